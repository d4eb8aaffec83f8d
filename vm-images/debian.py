"""Builds the guest whose memory is measured: a small Debian with real programs, on a disk of its own.

One process at a time (the lock of build.py); the result appears by renaming, so an interrupted build leaves
nothing half made.  The disk is made again when something in programs/, this file or the kernel changes, and
for newer packages with `--refresh`.  Prints the directory, which holds `vmlinuz`, `initrd`, `disk` (ext4,
meant to be mounted read-only) and `manifest.json`.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Final

HERE: Final = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import archive  # noqa: E402
import tools  # noqa: E402

import build  # noqa: E402

PROGRAMS: Final = HERE / "programs"
# What the guest runs; everything else comes with Debian's essential packages.
PACKAGES: Final = ("gawk", "gcc", "libc6-dev", "perl", "python3", "redis-server", "sqlite3")
LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
DISK_BYTES: Final = 512 << 20
INSTALL_SECONDS: Final = 540
# Not on the PATH of a user who is not root.
MKE2FS: Final = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "mke2fs"
tools.PACKAGES["mke2fs"] = "e2fsprogs"


def bootstrap(work: pathlib.Path, root: pathlib.Path, packages: Sequence[str]) -> None:
    """Install Debian and these packages into `root`; raises BuildError."""
    archives = archive.sources()
    (work / "sources.list").write_text("\n".join(archives) + "\n", encoding="utf-8")
    (work / "apt.conf").write_text("\n".join(archive.apt_options()) + "\n", encoding="utf-8")
    tools.run(
        *("mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        *(f"--aptopt={work / 'apt.conf'}", '--aptopt=Acquire::Languages "none"'),
        # Ours to clean up: what the archives' indices weigh is of no use in the guest.
        *("--skip=cleanup/apt", '--customize-hook=rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*'),
        *(archives[0].split()[2], str(root), str(work / "sources.list")),
        seconds=INSTALL_SECONDS,
    )


def pack_disk(root: pathlib.Path, disk: pathlib.Path, size_bytes: int, label: str = "") -> None:
    """Write `root` as an ext4 image without mounting anything; the journal is of no use read-only."""
    with open(disk, "wb") as empty:
        empty.truncate(size_bytes)
    tools.run(
        MKE2FS,
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-L",
        label,
        "-d",
        str(root),
        str(disk),
    )


def pack_initrd(root: pathlib.Path, kernel: pathlib.Path, initrd: pathlib.Path) -> None:
    """Write the initramfs that only finds the disk."""
    for name in ("bin", "dev", "disk", "modules"):
        (root / name).mkdir(parents=True)
    for module in kernel.glob("virtio*.ko"):
        shutil.copyfile(module, root / "modules" / module.name)
    shutil.copyfile(build.find_busybox(), root / "bin" / "busybox")
    shutil.copyfile(PROGRAMS / "init", root / "init")
    for name in ("bin/busybox", "init"):
        (root / name).chmod(0o755)
    build.pack(root, initrd)


def image_key(kernel: pathlib.Path) -> str:
    """A digest of all that goes into the image, but for the versions of Debian's packages."""
    digest = hashlib.sha256()
    programs = (path for path in sorted(PROGRAMS.iterdir()) if path.is_file())
    for path in (pathlib.Path(__file__), build.find_busybox(), kernel / "package", *programs):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions(root: pathlib.Path) -> list[str]:
    """Each installed package and its version, on a line."""
    wanted = ("dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "-W", "-f", "${Package} ${Version}\n")
    return tools.run(*wanted).splitlines()


def manifest(key: str, kernel: pathlib.Path, root: pathlib.Path) -> dict[str, object]:
    """What the image was made of."""
    return {
        "key": key,
        "kernel": (kernel / "package").read_text(encoding="utf-8").strip(),
        "programs": [line for line in versions(root) if line.split()[0] in PACKAGES],
    }


def build_image(kernel: pathlib.Path, refresh: bool) -> pathlib.Path:
    """The image's directory, built if an input changed or `refresh` is wanted; older ones are removed."""
    key = image_key(kernel)
    kept = tools.CACHE / f"debian-{key}"
    if kept.is_dir() and not refresh:
        return kept
    print("debian guest: installing packages into a new image, about half a minute", file=sys.stderr)
    with tools.scratch() as work:
        image = work / "image"
        image.mkdir()
        root = work / "tree"
        bootstrap(work, root, PACKAGES)
        shutil.copytree(PROGRAMS, root / "swaptide", ignore=shutil.ignore_patterns("init", "__pycache__"))
        pack_disk(root, image / "disk", DISK_BYTES)
        pack_initrd(work / "initramfs", kernel, image / "initrd")
        shutil.copyfile(kernel / "vmlinuz", image / "vmlinuz")
        facts = manifest(key, kernel, root)
        (image / "manifest.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for old in tools.CACHE.glob("debian-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(image, kept)
    return kept


def ensure(refresh: bool = False) -> pathlib.Path:
    """The image's directory; raises BuildError, OSError or SubprocessError."""
    with tools.only_one():
        return build_image(build.fetch_kernel(False), refresh)


def main() -> int:
    """Build what is missing and print the image's directory."""
    return build.command(__doc__, "debian guest", "install the newest packages", ensure)


if __name__ == "__main__":
    sys.exit(main())
