"""Builds a guest without a system: a disk that the BIOS boots, with the work of bios/disk.c on it.

One process at a time (the lock of tools.py); the result appears by renaming.  It is made again when something
in bios/ or this file changes.  Prints the directory, which holds `disk` and `manifest.json`.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import Final

HERE: Final = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import tools  # noqa: E402

import build  # noqa: E402

SOURCES: Final = HERE / "bios"
CFLAGS: Final = (
    *("-m16", "-march=i386", "-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-fno-tree-loop-distribute-patterns"),
    *("-Wall", "-Wextra", "-Werror", "-nostdlib", "-static", "-no-pie"),
)
# SeaBIOS reads no disk that has not a cylinder of its own making.
DISK_BYTES: Final = 16 << 20


def key_of_sources() -> str:
    """A digest of all that goes into the image."""
    digest = hashlib.sha256()
    for path in (pathlib.Path(__file__), *sorted(SOURCES.iterdir())):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_image() -> pathlib.Path:
    """The image's directory, built if an input changed; older ones are removed; raises BuildError."""
    key = key_of_sources()
    kept = tools.CACHE / f"bios-{key}"
    if kept.is_dir():
        return kept
    with tools.scratch() as work:
        image = work / "image"
        image.mkdir()
        linked = f"-Wl,-T,{SOURCES / 'layout.ld'},--build-id=none,-m,elf_i386,--oformat,binary"
        sources = (str(SOURCES / "start.S"), str(SOURCES / "disk.c"))
        tools.run("gcc", *CFLAGS, linked, "-o", str(image / "disk"), *sources)
        os.truncate(image / "disk", DISK_BYTES)
        facts = {"key": key, "kernel": "none", "architecture": "amd64"}
        (image / "manifest.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        os.rename(image, kept)
    for old in tools.CACHE.glob("bios-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return kept


def ensure(_refresh: bool) -> pathlib.Path:
    """The image's directory; raises BuildError, OSError or SubprocessError."""
    with tools.only_one():
        return build_image()


def main() -> int:
    """Build what is missing and print the image's directory."""
    return build.command(__doc__, "bios guest", "of no use here: nothing is fetched", ensure)


if __name__ == "__main__":
    sys.exit(main())
