"""The contenders over NBD: how each is started, read from outside, and always ended by its process id.

One thread starts, uses and ends them.  Everything they leave lies in the directory that they are given.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from bench import measure, memcg, process
from swaptide.cache import face, keys
from swaptide.cache.errors import SetupError, StateError
from swaptide.host import config, memory, paths

THREADS: Final = 16  # nbdkit's default, named
_TICKS: Final = os.sysconf("SC_CLK_TCK")
ZSTD_NOTE: Final = "allocator=zstd is fed random data, which does not compress"


@dataclasses.dataclass
class Server:
    """A running server.  `files` are what it keeps on disk, `notes` what readers of its figures must know."""

    pid: int
    socket: pathlib.Path
    files: tuple[pathlib.Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """Where clients find the disk."""
        return f"nbd+unix:///?socket={self.socket}"

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far; 10 ms is the kernel's step.

        Raises ContenderError if it is gone.
        """
        words = self._proc("stat").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS

    def pss_bytes(self) -> int:
        """Its memory, shared pages by share (Pss); raises ContenderError if it is gone."""
        for line in self._proc("smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
        return 0

    def settle(self) -> None:
        """Have the kernel write what is dirty of its files, so that this does not disturb the next one."""
        held = pathlib.Path(f"/proc/{self.pid}/fd")
        for path in (*self.files, *held.iterdir()):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.stat().st_mode):
                    _with_file(path, os.fdatasync)

    def forget(self) -> None:
        """Drop its files from the page cache; what is dirty is written first."""
        self.settle()
        for path in self.files:
            _with_file(path, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))

    def _proc(self, name: str) -> str:
        try:
            return pathlib.Path(f"/proc/{self.pid}/{name}").read_text()
        except OSError as error:
            raise measure.ContenderError(f"the server is gone: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How ours is set up beside its sizes; None is swaptide's default.

    `spill` is a device or an NBD URI in the place of a file that is made in the server's directory.
    """

    encrypt: bool = True
    compress: str | None = None
    clean_ahead_percent: int | None = None
    spill: pathlib.Path | str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The plugin's parameters, without the spill file's."""
        found = [f"encrypt={'yes' if self.encrypt else 'no'}"]
        found += [f"compress={self.compress}"] if self.compress is not None else []
        if self.clean_ahead_percent is not None:
            found.append(f"clean-ahead={self.clean_ahead_percent}%")
        return tuple(found)


USUAL: Final = Tuning()
# Nothing is written to disk before it has to be.
NOTHING_AHEAD: Final = Tuning(clean_ahead_percent=0)


@dataclasses.dataclass
class Swaptide(Server):
    """Ours; `state` is its state file, through which it is steered and counted.

    `start_seconds` is the time from its process's start to its first answer.
    """

    state: pathlib.Path = pathlib.Path()
    start_seconds: float = 0.0

    def face(self) -> face.StateFace:
        """Its counters and limits, for the caller to close."""
        return face.StateFace(self.state)

    def counters(self, seconds: float = 5.0) -> dict[str, int]:
        """Counters published after this call; raises ContenderError if they do not come."""
        deadline = time.monotonic() + seconds
        with self.face() as disk:
            wanted = disk.request_publish()
            while disk.counters()["publish_answer"] < wanted:
                if time.monotonic() > deadline:
                    raise measure.ContenderError("swaptide publishes no counters")
                time.sleep(0.002)
            return dict(disk.counters())

    def squeeze(self, target_bytes: int | None = None, seconds: float = 60.0) -> None:
        """Lower the target, to the floor by default, and wait until it holds; raises ContenderError."""
        deadline = time.monotonic() + seconds
        with self.face() as disk:
            target = disk.limits().floor_bytes if target_bytes is None else target_bytes
            disk.set_limits(target_bytes=target)
            while disk.ram_bytes() > target:
                if time.monotonic() > deadline:
                    raise measure.ContenderError(f"holds {disk.ram_bytes()} bytes, target {target}")
                time.sleep(0.005)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to serve a disk.  `serve` takes an empty directory and the disk's size in bytes.

    `note` says what it promises less than the others, or how it is set up.
    """

    name: str
    serve: Callable[[pathlib.Path, int], contextlib.AbstractContextManager[Server]]
    note: str = ""


def null() -> Contender:
    """Holds nothing: what the transport and the client cost by themselves."""
    serve = functools.partial(_nbdkit, arguments=("null", "{size}"))
    return Contender("nbdkit null", serve, "nbdkit null holds no data: the floor of the transport")


def nbdkit_memory(threads: int = THREADS, again: bool = False) -> Contender:
    """RAM without a limit and without a disk, with nbdkit's number of threads."""
    name = f"nbdkit memory -t{threads}" + (" again" if again else "")
    serve = functools.partial(_nbdkit, arguments=("memory", "{size}"), threads=threads)
    return Contender(name, serve, "nbdkit memory has no cap and cannot give memory back")


def nbdkit_zstd(note: str = ZSTD_NOTE, again: bool = False) -> Contender:
    """RAM, compressed."""
    serve = functools.partial(_nbdkit, arguments=("memory", "{size}", "allocator=zstd"))
    return Contender("nbdkit memory zstd" + (" again" if again else ""), serve, note)


def nbdkit_file(cap_bytes: int | None = None) -> Contender:
    """A file with the kernel's page cache before it, which `cap_bytes` limits where cgroups allow."""
    serve = functools.partial(_nbdkit, arguments=("file", "{file}"), cap_bytes=cap_bytes)
    note = "" if cap_bytes else "nbdkit file has no cap: its page cache is the whole host's"
    return Contender("nbdkit file", serve, note)


def nbdkit_file_none(again: bool = False) -> Contender:
    """A file whose page cache nbdkit asks the kernel to drop; nbdkit has no direct mode."""
    name = "nbdkit file cache=none" + (" again" if again else "")
    serve = functools.partial(_nbdkit, arguments=("file", "{file}", "cache=none"))
    return Contender(name, serve)


def nbdkit_cache() -> Contender:
    """nbdkit's cache filter over a file: the cache is a sparse file in a directory, here on the same disk."""
    serve = functools.partial(_nbdkit, arguments=("--filter=cache", "file", "{file}", "cache=writeback"))
    note = "the cache filter keeps its cache in a file (cache=writeback, no size limit), so in the page cache"
    return Contender("nbdkit cache filter", serve, note)


def qemu_nbd(cache: str) -> Contender:
    """qemu-nbd over a raw file; `cache` is writeback or none."""
    # Tried with depth 16: io_uring was the best of QEMU's three for direct I/O.
    engine = "io_uring" if cache == "none" else "threads"
    options = (f"--cache={cache}", f"--aio={engine}")
    serve = functools.partial(_qemu_nbd, options=options)
    return Contender(f"qemu-nbd {cache}", serve, f"qemu-nbd {' '.join(options)}")


def swaptide_plain(ram_bytes: int) -> Contender:
    """Ours without encryption of what is spilled: the difference is what that costs."""
    return swaptide(ram_bytes, f"{measure.OURS}, not encrypted", Tuning(encrypt=False))


def swaptide(ram_bytes: int, name: str = measure.OURS, tuning: Tuning = USUAL) -> Contender:
    """Ours, with that much RAM; its state file lies where the daemon puts it."""
    return Contender(name, functools.partial(serve_swaptide, ram_bytes=ram_bytes, tuning=tuning))


@contextlib.contextmanager
def serve_swaptide(
    directory: pathlib.Path, size_bytes: int, *, ram_bytes: int, tuning: Tuning = USUAL
) -> Iterator[Swaptide]:
    """A running disk of ours; raises ContenderError if it does not start."""
    with _state_directory(directory) as place:
        state, spill = place.directory / "bench.state", tuning.spill or directory / "bench.spill"
        sizes = (f"size={size_bytes}", f"ram={ram_bytes}")
        arguments = (*sizes, f"state={state}", f"spill={spill}", *tuning.arguments())
        command = [
            "nbdkit",
            "-f",
            "-t",
            str(THREADS),
            "-U",
            "{socket}",
            "python",
            str(paths.plugin()),
            *arguments,
        ]
        where = "a tmpfs with huge pages, as the daemon mounts it" if place.mounted else "/dev/shm"
        begun = time.monotonic()
        with process.running(directory, command) as (pid, socket):
            files = (directory / "bench.spill",) if tuning.spill is None else ()
            notes = (f"swaptide's state file is on {where}",)
            yield Swaptide(pid, socket, files, notes, state, time.monotonic() - begun)


def _forget_key(state: pathlib.Path) -> None:
    with contextlib.suppress(StateError, OSError), face.StateFace(state) as disk:
        keys.erase(disk.identity.disk_id)


@contextlib.contextmanager
def _state_directory(directory: pathlib.Path) -> Iterator[memory.Memory]:
    """A directory for state files, made by the daemon's own code; given back in the end."""
    run_dir = directory / "run"
    run_dir.mkdir(mode=0o700)
    try:
        place = memory.prepare(config.Config(run_dir, directory, directory, None, "nbdkit", THREADS))
    except SetupError as error:
        raise measure.ContenderError(str(error)) from error
    try:
        yield place
    finally:
        for path in place.directory.glob("*.state"):
            _forget_key(path)
            path.unlink()
        memory.release(place)


@contextlib.contextmanager
def _nbdkit(
    directory: pathlib.Path,
    size_bytes: int,
    *,
    arguments: tuple[str, ...],
    threads: int = THREADS,
    cap_bytes: int | None = None,
) -> Iterator[Server]:
    disk = directory / "disk"
    files = (disk,) if "{file}" in arguments else ()
    for path in files:
        _allocate(path, size_bytes)
    filled = [each.format(size=size_bytes, file=disk) for each in arguments]
    command = ["nbdkit", "-f", "-t", str(threads), "-U", "{socket}", *filled]
    if cap_bytes is None:
        with process.running(directory, command) as (pid, socket):
            yield Server(pid, socket, files)
        return
    with memcg.limited(cap_bytes) as group, process.running(directory, command, group) as (pid, socket):
        mib = cap_bytes >> 20
        held = f"a memory cgroup of {mib} MiB holds nbdkit file and its page cache"
        yield Server(pid, socket, files, (held if group else "nbdkit file has no cap: no cgroup to be had",))


@contextlib.contextmanager
def _qemu_nbd(directory: pathlib.Path, size_bytes: int, *, options: tuple[str, ...]) -> Iterator[Server]:
    disk = directory / "disk"
    _allocate(disk, size_bytes)
    # -t: stay when a client leaves; qemu-nbd lets in one client at a time by default, and readiness is one.
    command = [
        "qemu-nbd",
        "-t",
        "-e",
        "4",
        "-f",
        "raw",
        "-k",
        "{socket}",
        "--discard=unmap",
        *options,
        str(disk),
    ]
    with process.running(directory, command) as (pid, socket):
        yield Server(pid, socket, (disk,))


def _allocate(path: pathlib.Path, size_bytes: int) -> None:
    _with_file(path, lambda fd: os.posix_fallocate(fd, 0, size_bytes), os.O_RDWR | os.O_CREAT)


def _with_file(path: pathlib.Path, do: Callable[[int], object], flags: int = os.O_RDWR) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        do(fd)
    finally:
        os.close(fd)
