"""Builds the guest that the tests boot: a kernel of Debian's and a busybox initramfs with our work in it.

One process at a time (a lock file); the result appears by renaming, so an interrupted build leaves nothing
half made.  The kernel is fetched once and kept until `--refresh`; the image is made again when something
in guest/, this file, the kernel or busybox changes.  Prints the image's directory, which holds `vmlinuz`,
`initrd` and `manifest.json`.
"""

import argparse
import dataclasses
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

HERE: Final = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import archive  # noqa: E402
import progress  # noqa: E402
import tools  # noqa: E402

GUEST: Final = HERE / "guest"
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
PROGRAMS: Final = ("tide", "stripe")
CFLAGS: Final = ("-O2", "-static", "-Wall", "-Wextra", "-Werror")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The guest with one kernel or another; `release` is Debian's, where it is not this machine's own."""

    name: str
    meta_package: str
    release: str | None
    architecture: str
    compiler: str
    needed: tuple[str, ...]  # modules that it must bring, not built in

    @property
    def foreign(self) -> bool:
        """Whether this machine's busybox does not run there."""
        return self.compiler != "gcc"

    @property
    def suffix(self) -> str:
        """Of what is kept of it."""
        return "" if self is CLOUD else f"-{self.name}"


CLOUD: Final = Kind("guest", "linux-image-cloud-amd64", None, "amd64", "gcc", (*MODULES, *ZRAM_MODULES))
BLOCK: Final = ("virtio_blk",)
KINDS: Final = {
    kind.name: kind
    for kind in (
        CLOUD,
        Kind("trixie", "linux-image-cloud-amd64", "trixie", "amd64", "gcc", BLOCK),
        Kind("arm64-16k", "linux-image-arm64-16k", "trixie", "arm64", "aarch64-linux-gnu-gcc", BLOCK),
    )
}


# -- the kernel


def fetch_kernel(refresh: bool, kind: Kind = CLOUD) -> pathlib.Path:
    """The directory with vmlinuz and modules, downloaded if one is not there yet or `refresh` is wanted."""
    kept = tools.CACHE / f"kernel{kind.suffix}"
    whole = all((kept / f"{name}.ko").is_file() for name in kind.needed) and (kept / "package").is_file()
    if whole and not refresh:
        return kept
    with tools.scratch() as work:
        apt = archive.Apt()
        if kind.release:
            print(f"guest image: fetching the lists of {kind.release}, {kind.architecture}", file=sys.stderr)
            apt = archive.of_release(kind.release, kind.architecture, work)
        package = apt.newest(kind.meta_package)
        print(f"guest image: fetching {package}", file=sys.stderr)
        deb = apt.download(package, work)
        tools.run("dpkg-deb", "-x", str(deb), str(work / "tree"))
        pick_kernel(kind, work / "tree", work / "kernel", deb.name)
        if kind.foreign:
            busybox = apt.download("busybox-static", work)
            tools.run("dpkg-deb", "-x", str(busybox), str(work / "busybox"))
            shutil.copyfile(next((work / "busybox").glob("**/bin/busybox")), work / "kernel" / "busybox")
        shutil.rmtree(kept, ignore_errors=True)
        os.rename(work / "kernel", kept)
    return kept


def pick_kernel(kind: Kind, tree: pathlib.Path, target: pathlib.Path, package_file: str) -> None:
    """Take the kernel and the few modules the guest needs out of an unpacked package."""
    target.mkdir()
    built_in = next(tree.rglob("modules.builtin")).read_text(encoding="ascii")
    for name in (*MODULES, *kind.needed):
        found = sorted(tree.rglob(f"{name}.ko*"))
        if not found and name not in kind.needed and f"/{name}.ko\n" in built_in:
            continue
        if not found:
            raise tools.BuildError(f"{package_file} has no module {name}; the guest needs another kernel")
        (target / f"{name}.ko").write_bytes(unpacked(found[0]))
    (target / "package").write_text(package_file + "\n", encoding="utf-8")
    shutil.copyfile(next(tree.glob("boot/vmlinuz-*")), target / "vmlinuz")


def unpacked(module: pathlib.Path) -> bytes:
    """A module's bytes; Debian 13 packs them with xz."""
    raw = module.read_bytes()
    return lzma.decompress(raw) if module.suffix == ".xz" else raw


# -- the image


def find_busybox(kernel: pathlib.Path | None = None) -> pathlib.Path:
    """The static busybox: this machine's, or the one that came with a foreign kernel; raises BuildError."""
    if kernel is not None and (kernel / "busybox").is_file():
        return kernel / "busybox"
    where = shutil.which("busybox")
    if where is None:
        raise tools.BuildError("busybox is missing; install busybox-static")
    path = pathlib.Path(where).resolve()
    if b"ld-linux" in path.read_bytes()[:4096]:
        raise tools.BuildError(f"{path} is not statically linked; install busybox-static")
    return path


def image_key(kernel: pathlib.Path, busybox: pathlib.Path) -> str:
    """A digest of all that goes into the image."""
    digest = hashlib.sha256()
    for path in (pathlib.Path(__file__), busybox, kernel / "package", *sorted(GUEST.iterdir())):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fill_root(kind: Kind, root: pathlib.Path, kernel: pathlib.Path, busybox: pathlib.Path) -> None:
    """Lay out the initramfs; /dev/console comes with the kernel's own built-in one."""
    for name in ("bin", "dev", "lib", "proc", "sys", "modules"):
        (root / name).mkdir(parents=True)
    for module in kernel.glob("*.ko"):
        shutil.copyfile(module, root / "modules" / module.name)
    shutil.copyfile(busybox, root / "bin" / "busybox")
    shutil.copyfile(GUEST / "init", root / "init")
    shutil.copyfile(GUEST / "zram.sh", root / "lib" / "zram.sh")
    for name in PROGRAMS:
        tools.run(kind.compiler, *CFLAGS, "-o", str(root / "bin" / name), str(GUEST / f"{name}.c"))
    for name in ("bin/busybox", "init", *(f"bin/{name}" for name in PROGRAMS)):
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
            timeout=tools.TOOL_SECONDS,
        )


def build_image(kernel: pathlib.Path, kind: Kind = CLOUD) -> pathlib.Path:
    """The image's directory, built if an input changed; older ones are removed."""
    busybox = find_busybox(kernel)
    key = image_key(kernel, busybox)
    kept = tools.CACHE / f"{kind.name}-{key}"
    if kept.is_dir():
        return kept
    print("guest image: building", file=sys.stderr)
    with tools.scratch() as work:
        image = work / "image"
        image.mkdir()
        fill_root(kind, work / "root", kernel, busybox)
        pack(work / "root", image / "initrd")
        shutil.copyfile(kernel / "vmlinuz", image / "vmlinuz")
        package = (kernel / "package").read_text(encoding="utf-8").strip()
        manifest = {"key": key, "kernel": package, "architecture": kind.architecture}
        (image / "manifest.json").write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        os.rename(image, kept)
    for old in tools.CACHE.glob(f"{kind.name}-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return kept


def stop(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and SIGHUP as Ctrl-C, so that scratch directories are removed."""
    raise KeyboardInterrupt


def command(
    description: str | None,
    what: str,
    refresh: str,
    make: Callable[..., pathlib.Path],
    *expected: type[Exception],
    names: Sequence[str] = (),
) -> int:
    """The command line of a recipe: print the directory that `make` yields, or why there is none.

    `make` is told whether --refresh was given, whose help is `refresh`, and, where there are `names`, which
    was asked for (the first, unless one is); of the `expected` errors, as of what every recipe raises, one
    line is told.  Returns the exit status.
    """
    told: tuple[type[Exception], ...] = (tools.BuildError, OSError, subprocess.SubprocessError, *expected)
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--refresh", action="store_true", help=refresh)
    if names:
        parser.add_argument("name", nargs="?", choices=names, default=names[0], help="default: %(default)s")
    options = parser.parse_args()
    which = (options.name,) if names else ()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        with progress.waiting(what):
            made = make(options.refresh, *which)
        print(made)
    except told as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def ensure(refresh: bool, name: str) -> pathlib.Path:
    """The image's directory; raises BuildError, OSError or SubprocessError."""
    with tools.only_one():
        return build_image(fetch_kernel(refresh, KINDS[name]), KINDS[name])


def main() -> int:
    """Build what is missing and print the image's directory."""
    return command(__doc__, "guest image", "fetch the newest kernel again", ensure, names=tuple(KINDS))


if __name__ == "__main__":
    sys.exit(main())
