"""One nbdkit process: started or adopted, its end noticed through a pidfd, ended on request.

Owned by the daemon's loop.  A process outlives the daemon, so it is nobody's child but init's: nbdkit
under socket activation asks the kernel for a SIGTERM when its parent ends (measured: 1.32 does).
"""

import asyncio
import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

TERM_SECONDS = 2.0
KILL_SECONDS = 1.0

# The outer shell leaves the inner one to init and tells its pid on fd 5.  The inner one waits on fd 4
# until the outer is gone, and becomes nbdkit, which compares LISTEN_PID with its own pid.
_INNER = 'read -r _ <&4 || exit; exec 4<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
_OUTER = 'cd / || exit; inner=$1; shift; /bin/sh -c "$inner" sh "$@" 5>&- & echo $! >&5'
_LOG_LIMIT_BYTES = 1 << 20
# An operator's secrets and oddities are not for a process of another user; SWAPTIDE_ is what tests set.
_KEPT = frozenset(("LANG", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE"))
_KEPT_FAMILIES = ("LC_", "SWAPTIDE_")
_OOM_SCORE_ADJ = -500  # as cache/guard.py has it


class Process:
    """A live process; `exited` is set once it is gone."""

    def __init__(self, pid: int) -> None:
        """Watch `pid`; raises ProcessLookupError if there is none."""
        self.pid = pid
        self.exited = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_exit)

    def forget(self) -> None:
        """Stop watching, and leave the process alone."""
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)

    async def end(self) -> bool:
        """SIGTERM, later SIGKILL; False if even that had no effect yet (a process stuck on a dead store)."""
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            if self.exited.is_set():
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.exited.wait()
        return self.exited.is_set()

    def _on_exit(self) -> None:
        self.forget()
        self.exited.set()


def spawn(
    command: Sequence[str],
    listener: socket.socket,
    log: pathlib.Path,
    place: Callable[[int], None] = lambda pid: None,
) -> Process:
    """Start `command` with `listener` as its activation socket and its output appended to `log`.

    `place` is called with its id before it runs.  Raises OSError if it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "ab", opener=_private))
        if output.tell() > _LOG_LIMIT_BYTES:
            output.truncate(0)
        (wait, go), (pids, pid_out) = _pipe(stack), _pipe(stack)
        sources = {1: output.fileno(), 2: output.fileno(), 3: listener.fileno(), 4: wait, 5: pid_out}
        outer = _spawn_outer(command, sources)
        _, status = os.waitpid(outer, 0)
        if status != 0:
            raise ChildProcessError(f"{command[0]} cannot be started: /bin/sh ended with status {status}")
        started = Process(int(os.read(pids, 32)))
        _spare(started.pid)
        place(started.pid)
        os.write(go, b"\n")
        return started


def _spare(pid: int) -> None:
    """Have the kernel kill others first; where we may not, the process tries and warns (cache/guard.py)."""
    score = pathlib.Path(f"/proc/{pid}/oom_score_adj")
    with contextlib.suppress(OSError):
        if int(score.read_text()) > _OOM_SCORE_ADJ:
            score.write_text(str(_OOM_SCORE_ADJ))


def _spawn_outer(command: Sequence[str], sources: Mapping[int, int]) -> int:
    # First out of the way: a source may have the number of another one's target.
    high = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for target, fd in sources.items()}
    try:
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _OUTER, "sh", _INNER, *command],
            environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_DUP2, fd, target) for target, fd in high.items()),
            ],
            setsid=True,
            # Python ignores SIGPIPE, and an ignored signal would be inherited.
            setsigdef=[signal.SIGPIPE],
        )
    finally:
        for fd in high.values():
            os.close(fd)


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    return reading, writing


def command_line(pid: int) -> list[str]:
    """The arguments of `pid`, empty if there is no such process or it is a zombie."""
    try:
        raw = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]


def user_of(pid: int) -> int | None:
    """The number of the user that `pid` runs as, None if there is no such process."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    return next(int(line.split()[2]) for line in status.splitlines() if line.startswith(b"Uid:"))


def environment() -> Mapping[str, str]:
    """The environment that nbdkit gets: of the daemon's own, what it needs to find itself and to speak."""
    kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_FAMILIES)}
    # nbdkit's Python takes its venv from the python3 that it finds first.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
