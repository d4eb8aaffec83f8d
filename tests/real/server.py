"""Runs the real plugin in a real nbdkit, and looks at it from outside.  Everything is reaped by its pid."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from swaptide.cache import face, keys, spillfile
from swaptide.cache.errors import StateError
from tests.real import sockets

PLUGIN = pathlib.Path(face.__file__).parents[1] / "nbdkit_plugin" / "plugin.py"
EAGER = pathlib.Path(__file__).with_name("eager.py")
# However busy the host: only what hangs takes longer.
WAIT_SECONDS = 60.0


class Ended(RuntimeError):
    """nbdkit ended before it served; str() has its own words."""


class Server:
    """One nbdkit with one disk.  `state` is None for a disk whose state file has no name."""

    def __init__(self, directory: pathlib.Path, parameters: dict[str, str], named_state: bool = True) -> None:
        if shutil.which("nbdkit") is None:
            pytest.skip("nbdkit is missing (Debian package nbdkit)")
        self.directory = directory
        self.socket = directory / "nbd.sock"
        self.state = directory_on_tmpfs(directory) / "disk.state" if named_state else None
        self.log = directory / "nbdkit.log"
        self.parameters = parameters
        self.threads = 16
        self.plugin = PLUGIN
        self.environment: dict[str, str] = {}
        self.always: dict[str, str] = {}  # in the environment as well
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where clients find the disk."""
        return f"nbd+unix:///?socket={self.socket}"

    @property
    def pid(self) -> int:
        """The process id of the running nbdkit."""
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """The command line that serves the disk."""
        arguments = [f"{key}={value}" for key, value in self.parameters.items()]
        if self.state is not None:
            arguments.append(f"state={self.state}")
        start = ["nbdkit", "-f", "-t", str(self.threads), "-U", str(self.socket)]
        return [*start, "python", str(self.plugin), *arguments]

    def start(self) -> None:
        """Start and wait until it serves; fails with nbdkit's own words."""
        self.socket.unlink(missing_ok=True)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdout=output,
                stderr=output,
                env={**bare_environment(), **self.always, **self.environment},
            )
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._is_up():
            if self.process.poll() is not None:
                raise Ended(f"nbdkit ended with {self.process.returncode}: {self.log.read_text()}")
            if time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"nbdkit does not serve: {self.log.read_text()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it, by force if it does not go; returns its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"nbdkit does not end: {self.log.read_text()}") from None

    def face(self) -> face.StateFace:
        """The disk's counters and limits."""
        assert self.state is not None
        return face.StateFace(self.state)

    def _is_up(self) -> bool:
        if not sockets.listens(self.socket):
            return False
        if self.state is None:
            return True
        with self.face() as disk:
            return disk.counters()["owner_pid"] == self.pid and disk.counters()["serving"] == 1


@contextlib.contextmanager
def serving(
    directory: pathlib.Path,
    named_state: bool = True,
    plugin: pathlib.Path = PLUGIN,
    eager: bool = False,
    **parameters: str,
) -> Iterator[Server]:
    """A running server with these plugin parameters (`swap_label` means swap-label); cleaned up after.

    An `eager` one takes its host for idle.
    """
    server = Server(
        directory, {key.replace("_", "-"): value for key, value in parameters.items()}, named_state
    )
    server.plugin = EAGER if eager else plugin
    server.always = {"SWAPTIDE_PLUGIN": str(plugin)} if eager else {}
    try:
        server.start()
        yield server
        # nbdkit waits for its clients: whoever forgot to leave makes this fail.
        server.stop()
    finally:
        server.stop(signal.SIGKILL)
        if server.state is not None:
            _release_spill(server)
            shutil.rmtree(server.state.parent, ignore_errors=True)


def _release_spill(server: Server) -> None:
    """A disk whose state file has a name keeps its spill file; here nobody will serve it again."""
    with contextlib.suppress(OSError, StateError), server.face() as disk:
        disk_id = disk.identity.disk_id
        keys.erase(disk_id)
        spillfile.release(spillfile.DEFAULT_DIRECTORY / f"swaptide-{disk_id}.spill", disk_id)


def directory_on_tmpfs(directory: pathlib.Path) -> pathlib.Path:
    """A private directory for state files on /dev/shm, named after the test's own."""
    where = pathlib.Path("/dev/shm") / f"swaptide-test-{os.getpid()}-{abs(hash(str(directory))):x}"
    where.mkdir(mode=0o700, exist_ok=True)
    return where


def bare_environment() -> dict[str, str]:
    """An environment that knows nothing of the venv: the plugin must find its way alone."""
    keep = ("HOME", "LANG", "LC_ALL", "TMPDIR")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    venv = pathlib.Path(sys.prefix) / "bin"
    environment["PATH"] = ":".join(p for p in os.environ["PATH"].split(":") if pathlib.Path(p) != venv)
    return environment


def fresh_counters(disk: face.StateFace, seconds: float = WAIT_SECONDS) -> dict[str, int]:
    """Counters published after this call."""
    wanted = disk.request_publish()
    deadline = time.monotonic() + seconds
    while disk.counters()["publish_answer"] < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError("the plugin does not publish")
        time.sleep(0.002)
    return dict(disk.counters())


def wait_until_holds(disk: face.StateFace, target_bytes: int, seconds: float = WAIT_SECONDS) -> None:
    """Wait until the memory in use is at most the target."""
    deadline = time.monotonic() + seconds
    while disk.ram_bytes() > target_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{disk.ram_bytes()} bytes in use, target {target_bytes}: {dict(disk.counters())}"
            )
        time.sleep(0.005)


def freeze(disk: face.StateFace) -> None:
    """Have the disk stand still, and wait until it does."""
    _wait_until_obeyed(disk, disk.set_frozen(True))


def thaw(disk: face.StateFace) -> None:
    """Have the disk go on, and wait until it does."""
    _wait_until_obeyed(disk, disk.set_frozen(False))


def _wait_until_obeyed(disk: face.StateFace, word: int, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while disk.counters()["frozen_seen"] != word:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the word {word} is not obeyed: {dict(disk.counters())}")
        time.sleep(0.002)
