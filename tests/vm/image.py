"""The guest images: made by the recipes in vm-images/ (which hold a lock while they work), found here."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "vm"
BUILD_SECONDS: Final = 600
DEFAULT: Final = "guest"
# The other guests are kinds that build.py knows.
RECIPES: Final = {"bios": ("bios.py",), "system": ("system.py",)}


class ImageError(Exception):
    """The image could not be built; str() is the builder's own line."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A bootable guest; `kernel_package` is the Debian package file that the kernel is from.

    `architecture` is what Debian calls it.  A guest with a `disk` has it as its first, and may write to it as
    it likes: nothing is kept.  One without a `kernel` is booted from there by its BIOS.
    """

    kernel: pathlib.Path | None
    initrd: pathlib.Path | None
    kernel_package: str
    architecture: str
    disk: pathlib.Path | None
    append: str


def ensure(name: str = DEFAULT) -> Image:
    """A guest image, built first if need be (milliseconds otherwise); raises ImageError."""
    recipe = RECIPES.get(name, ("build.py", name))
    command = [sys.executable, str(ROOT / "vm-images" / recipe[0]), *recipe[1:]]
    # Its progress goes straight to our standard error: the first build takes a download.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        raise ImageError(f"guest image {name} could not be built; vm-images/{recipe[0]} said why above")
    where = pathlib.Path(done.stdout.strip().splitlines()[-1])
    manifest = json.loads((where / "manifest.json").read_text(encoding="utf-8"))
    kernel, initrd, disk = (
        path if (path := where / part).exists() else None for part in ("vmlinuz", "initrd", "disk")
    )
    append = manifest.get("append", "")
    return Image(kernel, initrd, manifest["kernel"], manifest["architecture"], disk, append)
