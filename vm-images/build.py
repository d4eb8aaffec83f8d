"""Builds the guest that the tests boot: Debian's cloud kernel and a busybox initramfs with our work in it.

One process at a time (a lock file); the result appears by renaming, so an interrupted build leaves nothing
half made.  The kernel is fetched once and kept until `--refresh`; the image is made again when something
in guest/, this file, the kernel or busybox changes.  Prints the image's directory, which holds `vmlinuz`,
`initrd` and `manifest.json`.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

HERE: Final = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import progress  # noqa: E402

GUEST: Final = HERE / "guest"
CACHE: Final = HERE.parent / ".cache" / "vm"
META_PACKAGE: Final = "linux-image-cloud-amd64"
# In the order in which the guest's init loads them.
MODULES: Final = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_balloon",
    "virtio_blk",
)
# Loaded only when the command line asks for zram, by guest/zram.sh in its own order.
ZRAM_MODULES: Final = ("zsmalloc", "zram", "lzo-rle", "lz4_compress", "lz4", "zstd_compress", "zstd")
CFLAGS: Final = ("-O2", "-static", "-Wall", "-Wextra", "-Werror")
# The package that brings a tool, where the names differ.
PACKAGES: Final = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "gcc": "gcc and libc6-dev"}
APT_SECONDS: Final = 300
TOOL_SECONDS: Final = 120


class BuildError(Exception):
    """The image cannot be built; str() is one line that says what to do."""


def run(*command: str, cwd: pathlib.Path | None = None, seconds: float = TOOL_SECONDS) -> str:
    """Run a tool to its end and return what it printed; raises BuildError with its last words."""
    progress.at(command[0])
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is missing; install {PACKAGES.get(command[0], command[0])}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {seconds:.0f} s; try again") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise BuildError(f"{' '.join(command[:3])}: {words[-1]}")
    return done.stdout


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """A directory beside the results, so that renaming out of it is atomic; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=CACHE) as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the cache's lock; the one before us may have done all the work."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "build.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in CACHE.glob(".new-*"):  # of a build that was killed outright
            shutil.rmtree(stale, ignore_errors=True)
        yield


# -- the kernel


def newest_kernel_package() -> str:
    """The package that Debian's cloud meta package stands for today; raises BuildError without lists."""
    for line in run("apt-cache", "depends", META_PACKAGE).splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise BuildError(f"apt knows no {META_PACKAGE}; run `apt-get update`, on Debian for amd64")


def fetch_kernel(refresh: bool) -> pathlib.Path:
    """The directory with vmlinuz and modules, downloaded if one is not there yet or `refresh` is wanted."""
    kept = CACHE / "kernel"
    whole = all((kept / f"{name}.ko").is_file() for name in (*MODULES, *ZRAM_MODULES))
    if whole and not refresh:
        return kept
    package = newest_kernel_package()
    print(f"guest image: fetching {package}", file=sys.stderr)
    with scratch() as work:
        # As root apt would drop to a user who cannot write here, and only warns about it.
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=work, seconds=APT_SECONDS)
        debs = list(work.glob("*.deb"))
        if len(debs) != 1:
            raise BuildError(f"apt-get download {package} left no package file; run `apt-get update`")
        run("dpkg-deb", "-x", str(debs[0]), str(work / "tree"))
        pick_kernel(work / "tree", work / "kernel", debs[0].name)
        shutil.rmtree(kept, ignore_errors=True)
        os.rename(work / "kernel", kept)
    return kept


def pick_kernel(tree: pathlib.Path, target: pathlib.Path, package_file: str) -> None:
    """Take the kernel and the few modules the guest needs out of an unpacked package."""
    target.mkdir()
    for name in (*MODULES, *ZRAM_MODULES):
        found = sorted(tree.rglob(f"{name}.ko*"))
        if not found:
            raise BuildError(f"{package_file} has no module {name}; the guest needs another kernel")
        (target / f"{name}.ko").write_bytes(unpacked(found[0]))
    (target / "package").write_text(package_file + "\n", encoding="utf-8")
    shutil.copyfile(next(tree.glob("boot/vmlinuz-*")), target / "vmlinuz")


def unpacked(module: pathlib.Path) -> bytes:
    """A module's bytes; Debian 13 packs them with xz."""
    raw = module.read_bytes()
    return lzma.decompress(raw) if module.suffix == ".xz" else raw


# -- the image


def find_busybox() -> pathlib.Path:
    """The static busybox; raises BuildError if there is none or it needs libraries."""
    where = shutil.which("busybox")
    if where is None:
        raise BuildError("busybox is missing; install busybox-static")
    path = pathlib.Path(where).resolve()
    if b"ld-linux" in path.read_bytes()[:4096]:
        raise BuildError(f"{path} is not statically linked; install busybox-static")
    return path


def image_key(kernel: pathlib.Path, busybox: pathlib.Path) -> str:
    """A digest of all that goes into the image."""
    digest = hashlib.sha256()
    for path in (pathlib.Path(__file__), busybox, kernel / "package", *sorted(GUEST.iterdir())):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fill_root(root: pathlib.Path, kernel: pathlib.Path, busybox: pathlib.Path) -> None:
    """Lay out the initramfs; /dev/console comes with the kernel's own built-in one."""
    for name in ("bin", "dev", "lib", "proc", "sys", "modules"):
        (root / name).mkdir(parents=True)
    for name in (*MODULES, *ZRAM_MODULES):
        shutil.copyfile(kernel / f"{name}.ko", root / "modules" / f"{name}.ko")
    shutil.copyfile(busybox, root / "bin" / "busybox")
    shutil.copyfile(GUEST / "init", root / "init")
    shutil.copyfile(GUEST / "zram.sh", root / "lib" / "zram.sh")
    run("gcc", *CFLAGS, "-o", str(root / "bin/tide"), str(GUEST / "tide.c"))
    for name in ("bin/busybox", "init", "bin/tide"):
        (root / name).chmod(0o755)


def pack(root: pathlib.Path, target: pathlib.Path) -> None:
    """Write the initramfs, uncompressed: unpacking is what an emulated CPU is slow at."""
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))) + "\n"
    with open(target, "wb") as out:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=root,
            input=names.encode(),
            stdout=out,
            check=True,
            timeout=TOOL_SECONDS,
        )


def build_image(kernel: pathlib.Path) -> pathlib.Path:
    """The image's directory, built if an input changed; older ones are removed."""
    busybox = find_busybox()
    key = image_key(kernel, busybox)
    kept = CACHE / f"guest-{key}"
    if kept.is_dir():
        return kept
    print("guest image: building", file=sys.stderr)
    with scratch() as work:
        image = work / "image"
        image.mkdir()
        fill_root(work / "root", kernel, busybox)
        pack(work / "root", image / "initrd")
        shutil.copyfile(kernel / "vmlinuz", image / "vmlinuz")
        manifest = {"key": key, "kernel": (kernel / "package").read_text(encoding="utf-8").strip()}
        (image / "manifest.json").write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        os.rename(image, kept)
    for old in CACHE.glob("guest-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return kept


def stop(number: int, _frame: object) -> NoReturn:
    """SIGTERM as an exception, so that scratch directories are removed."""
    raise SystemExit(128 + number)


def command(
    description: str | None,
    what: str,
    refresh: str,
    make: Callable[[bool], pathlib.Path],
    *expected: type[Exception],
) -> int:
    """The command line of a recipe: print the directory that `make` yields, or why there is none.

    `make` is told whether --refresh was given, whose help is `refresh`; of the `expected` errors,
    as of what every recipe raises, one line is told.  Returns the exit status.
    """
    told: tuple[type[Exception], ...] = (BuildError, OSError, subprocess.SubprocessError, *expected)
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--refresh", action="store_true", help=refresh)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        with progress.waiting(what):
            made = make(options.refresh)
        print(made)
    except told as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def ensure(refresh: bool) -> pathlib.Path:
    """The image's directory; raises BuildError, OSError or SubprocessError."""
    with only_one():
        return build_image(fetch_kernel(refresh))


def main() -> int:
    """Build what is missing and print the image's directory."""
    return command(__doc__, "guest image", "fetch the newest kernel again", ensure)


if __name__ == "__main__":
    sys.exit(main())
