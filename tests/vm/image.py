"""The guest image: made by vm-images/build.py (which holds a lock while it works), found here."""

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


class ImageError(Exception):
    """The image could not be built; str() is the builder's own line."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A bootable guest; `kernel_package` is the Debian package file that the kernel is from.

    `architecture` is what Debian calls it.
    """

    kernel: pathlib.Path
    initrd: pathlib.Path
    kernel_package: str
    architecture: str


def ensure(name: str = DEFAULT) -> Image:
    """A guest image, built first if need be (milliseconds otherwise); raises ImageError."""
    command = [sys.executable, str(ROOT / "vm-images" / "build.py"), name]
    # Its progress goes straight to our standard error: the first build takes a download.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        raise ImageError(f"guest image {name} could not be built; vm-images/build.py said why above")
    where = pathlib.Path(done.stdout.strip().splitlines()[-1])
    manifest = json.loads((where / "manifest.json").read_text(encoding="utf-8"))
    return Image(where / "vmlinuz", where / "initrd", manifest["kernel"], manifest["architecture"])
