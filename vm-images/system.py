"""Builds a whole Debian for the tests: its kernel and initramfs, systemd, swap by fstab, Redis as a service.

One process at a time (the lock of tools.py); the result appears by renaming.  It is made again when something
in system/, this file or debian.py changes, and for newer packages with `--refresh`.  Prints the directory,
which holds `vmlinuz`, `initrd`, `disk` (ext4) and `manifest.json`.
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

import debian  # noqa: E402
import tools  # noqa: E402

import build  # noqa: E402

FILES: Final = HERE / "system"
PACKAGES: Final = (
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "udev"),
    *("redis-server", "python3"),
)
DISK_BYTES: Final = 1 << 30
# Where each file belongs.  What is not named is the work's own.
PLACES: Final = {
    "fstab": "etc/fstab",
    "61-swap.rules": "etc/udev/rules.d/61-swap.rules",
    "work.service": "etc/systemd/system/work.service",
}
REDIS: Final = '\nsave ""\nenable-debug-command local\n'
# The console is the work's; a login on it would talk in between.
APPEND: Final = "root=LABEL=system rw systemd.mask=serial-getty@ttyS0.service systemd.show_status=0"


def key_of_sources() -> str:
    """A digest of all that goes into the image, but for the versions of Debian's packages."""
    digest = hashlib.sha256()
    for path in (pathlib.Path(__file__), pathlib.Path(debian.__file__), *sorted(FILES.glob("*.*"))):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def furnish(root: pathlib.Path) -> None:
    """Lay the files of the system and of the work into an installed Debian."""
    (root / "swaptide").mkdir()
    for path in FILES.glob("*.*"):
        shutil.copyfile(path, root / PLACES.get(path.name, f"swaptide/{path.name}"))
    for name, place in PLACES.items():
        shutil.copyfile(FILES / name, root / place)
    wanted = root / "etc/systemd/system/graphical.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    (wanted / "work.service").symlink_to("/etc/systemd/system/work.service")
    with open(root / "etc/redis/redis.conf", "a", encoding="utf-8") as settings:
        settings.write(REDIS)
    # An image that many guests start from has an empty one; without, systemd would set all services up anew.
    (root / "etc/machine-id").write_text("", encoding="ascii")


def build_image(refresh: bool) -> pathlib.Path:
    """The image's directory, built if an input changed or `refresh` is wanted; older ones are removed."""
    key = key_of_sources()
    kept = tools.CACHE / f"system-{key}"
    if kept.is_dir() and not refresh:
        return kept
    if os.geteuid():
        raise tools.BuildError("the files of a Debian belong to root, so only root can make one; run as root")
    print("system guest: installing a Debian with its kernel, about a minute", file=sys.stderr)
    with tools.scratch() as work:
        image, root = work / "image", work / "tree"
        image.mkdir()
        debian.bootstrap(work, root, PACKAGES)
        furnish(root)
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            shutil.copyfile(next((root / "boot").glob(pattern)), image / name)
        debian.pack_disk(root, image / "disk", DISK_BYTES, "system")
        kernel = next(line for line in debian.versions(root) if line.startswith("linux-image-6"))
        facts = {"key": key, "kernel": kernel, "architecture": "amd64", "append": APPEND}
        (image / "manifest.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for old in tools.CACHE.glob("system-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(image, kept)
    return kept


def ensure(refresh: bool) -> pathlib.Path:
    """The image's directory; raises BuildError, OSError or SubprocessError."""
    with tools.only_one():
        return build_image(refresh)


def main() -> int:
    """Build what is missing and print the image's directory."""
    return build.command(__doc__, "system guest", "install the newest packages", ensure)


if __name__ == "__main__":
    sys.exit(main())
