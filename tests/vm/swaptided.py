"""A private swaptide daemon as a context manager, driven only through its command line.

Everything it makes lies in one temporary directory, which is how leftovers are recognised: processes that
name it, mounts below it, files in it, state files of its disks.  The caller's thread owns it.
"""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
COMMAND_SECONDS: Final = 90.0
# On a real filesystem: spill files are written with direct I/O, which tmpfs refuses on older kernels.
PLACE: Final = pathlib.Path("/var/tmp")


class DaemonError(Exception):
    """The daemon or one of its commands failed; str() says which and what it printed."""


class LeftBehindError(Exception):
    """Something of a stopped daemon was still there; it has been removed by now."""


def program() -> list[str]:
    """The `swaptide` command of the environment that runs the tests."""
    script = pathlib.Path(sys.executable).parent / "swaptide"
    return [str(script)] if script.exists() else [sys.executable, "-m", "swaptide.host.cli"]


class Daemon:
    """`swaptide serve` with a run directory of its own.  `root` holds it, the spill files and the log."""

    def __init__(self) -> None:
        """Prepare; nothing exists before the `with`."""
        self._disks: list[str] = []
        self._traces: list[pathlib.Path] = []  # files that must be gone when all disks are
        self._process: subprocess.Popen[bytes] | None = None
        self._config: list[str] = []

    def __enter__(self) -> Self:
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="swaptide-vm-", dir=PLACE))
        self.root.chmod(0o711)  # a daemon of root has its disks served by another user
        self.run_dir = self.root / "run"
        try:
            self.start()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._tear_down()
        if left and error is None:
            raise LeftBehindError("left behind after the daemon's end: " + "; ".join(left))
        if left and error is not None:
            error.add_note("left behind after the daemon's end: " + "; ".join(left))

    # -- the daemon itself

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the daemon and wait until it answers; raises DaemonError."""
        with open(self.root / "daemon.log", "ab") as log:
            self._process = subprocess.Popen(
                [*program(), "serve", *self._config, "--run-dir", str(self.run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
            )
        deadline = time.monotonic() + START_SECONDS
        while self._ask("disk", "ls", "--json").returncode:
            if self._process.poll() is not None:
                raise DaemonError(f"swaptide serve ended at once: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise DaemonError(
                    f"swaptide serve does not answer in {START_SECONDS:.0f} s: {self.log_tail()}"
                )
            time.sleep(0.1)

    def configure(self, **settings: str) -> None:
        """What the configuration says from the next start on."""
        file = self.root / "config.toml"
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        file.write_text(text, encoding="utf-8")
        self._config = ["--config", str(file)]

    def stop(self, *, kill: bool = False, backends: bool = False) -> None:
        """End the daemon (SIGTERM, or SIGKILL if `kill`); raises DaemonError if it stays.

        Its disks go on serving, unless `backends` asks for their nbdkits to be killed right after it.
        """
        process = self._process
        if process is None:
            return
        pids = [int(self.show(name)["pid"]) for name in self._disks] if backends else []
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DaemonError(f"swaptide serve ignored SIGTERM for {STOP_SECONDS:.0f} s") from None
        finally:
            self._process = None
        for pid in pids:
            self._kill_nbdkit(pid)

    def log_tail(self) -> str:
        """The last lines of what the daemon wrote."""
        text = (self.root / "daemon.log").read_text(encoding="utf-8", errors="replace")
        return "\n  ".join(text.splitlines()[-12:])

    # -- its commands

    def command(self, *words: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run `swaptide WORDS… --run-dir` of ours and return its output; raises DaemonError."""
        done = self._ask(*words, seconds=seconds)
        if done.returncode:
            raise DaemonError(f"swaptide {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def add(
        self, name: str, *, size: str, ram: str, swap_label: str | None = None, uri: str | None = None
    ) -> str:
        """Add a disk that spills to `uri`, or into our directory; returns what the command printed."""
        label = ["--swap-label", swap_label] if swap_label else []
        spill = ["--spill", uri or str(self.root / f"{name}.spill")]
        self._disks.append(name)
        if uri is None:
            self._traces.append(pathlib.Path(spill[1]))
        said = self.command("disk", "add", name, "--size", size, "--ram", ram, *spill, *label)
        self._traces.append(pathlib.Path(self.show(name)["state_file"]))
        return said

    def show(self, name: str) -> dict[str, Any]:
        """The disk as `disk show --json` has it."""
        shown: dict[str, Any] = json.loads(self.command("disk", "show", name, "--json"))
        return shown

    def set_ram(self, name: str, ram: str) -> str:
        """Change the cap; returns what the command printed once it holds."""
        return self.command("disk", "set", name, "--ram", ram).strip()

    def begin_set_ram(self, name: str, ram: str) -> subprocess.Popen[str]:
        """The same without waiting; the caller reaps it."""
        return subprocess.Popen(
            [*program(), "disk", "set", name, "--ram", ram, "--run-dir", str(self.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a disk."""
        self.command("disk", "rm", name, *(["--force"] if force else []))
        self._disks.remove(name)

    def qemu_arguments(self, name: str) -> tuple[str, ...]:
        """What `snippet --format qemu` prints, split as a shell would."""
        text = self.command("snippet", name, "--format", "qemu")
        return tuple(shlex.split(text.replace("\\\n", " "), comments=True))

    def kill_backend(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Signal the disk's nbdkit; returns the pid it had.  Raises DaemonError if that is none of ours."""
        pid = int(self.show(name)["pid"])
        self._kill_nbdkit(pid, how)
        return pid

    def wait_backend(self, name: str, *, not_pid: int, seconds: float = START_SECONDS) -> int:
        """Wait until another nbdkit than `not_pid` serves the disk; raises DaemonError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid = int(self.show(name)["pid"] or 0)
            if pid not in (0, not_pid):
                return pid
            time.sleep(0.1)
        raise DaemonError(f"disk {name} got no new nbdkit in {seconds:.0f} s: {self.log_tail()}")

    def _ask(self, *words: str, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program(), *words, "--run-dir", str(self.run_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _kill_nbdkit(self, pid: int, how: signal.Signals = signal.SIGKILL) -> None:
        command = _command_line(pid)
        if b"nbdkit" not in command or str(self.root).encode() not in command:
            raise DaemonError(f"pid {pid} is no nbdkit of ours")
        os.kill(pid, how)

    # -- the end

    def _tear_down(self) -> list[str]:
        with contextlib.suppress(DaemonError, subprocess.SubprocessError, OSError):
            if self._process is None and self._disks:
                self.start()  # only a daemon can remove what the last one left serving
        for name in list(self._disks):
            with contextlib.suppress(DaemonError, subprocess.SubprocessError, OSError):
                self.remove(name, force=True)
        with contextlib.suppress(DaemonError):
            self.stop()
        left = [f"file {path}" for path in self._traces if path.exists()]
        left += [f"process {pid}: {what}" for pid, what in self._end_processes()]
        left += [f"mount {where}" for where in self._unmount()]
        shutil.rmtree(self.root, ignore_errors=True)
        return left

    def _end_processes(self) -> Iterator[tuple[int, str]]:
        """Kill what still names our directory, which nobody else knows, after a moment to end by itself."""
        deadline = time.monotonic() + GRACE_SECONDS
        while _processes_naming(str(self.root)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in _processes_naming(str(self.root)):
            what = _command_line(pid).replace(b"\0", b" ").decode("utf-8", "replace")[:120]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            yield pid, what

    def _unmount(self) -> Iterator[str]:
        mounts = pathlib.Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        for where in [line.split()[1] for line in mounts]:
            if where.startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", where], check=False, timeout=STOP_SECONDS)
                yield where


def _command_line(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _processes_naming(text: str) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if text.encode() in _command_line(pid)]
