"""The process of an NBD server: started, waited for until it answers, and always reaped by its id.

The main thread owns it: the process dies with the thread that started it.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from bench import measure

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 8.0


@contextlib.contextmanager
def running(
    directory: pathlib.Path, command: list[str], group: pathlib.Path | None = None
) -> Iterator[tuple[int, pathlib.Path]]:
    """The process of `command`, in which {socket} is filled in: its id and socket, while it serves.

    `group` is the file that lets it enter a cgroup.  Raises ContenderError if it does not serve.
    """
    socket, log = directory / "nbd.sock", directory / "log"
    words = [str(socket) if word == "{socket}" else word for word in command]
    if group is not None:
        words = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group), *words]
    with begun(words, log, env=_environment(directory)) as process:
        _wait_ready(process, socket, log)
        yield process.pid, socket


@contextlib.contextmanager
def begun(
    words: list[str], log: pathlib.Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a command, whatever it says in `log`."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            # Should we be killed outright, the server must not stay behind.
            ["setpriv", "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours: clients first, then servers
            env=env,
        )
    try:
        yield process
    finally:
        _reap(process)


def _wait_ready(process: subprocess.Popen[bytes], socket: pathlib.Path, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(socket):
        if process.poll() is not None:
            raise measure.ContenderError(f"ended with status {process.returncode}: {_said(log)}")
        if time.monotonic() > deadline:
            raise measure.ContenderError(f"does not serve within {START_SECONDS:.0f} s: {_said(log)}")
        time.sleep(0.02)


def _answers(socket: pathlib.Path) -> bool:
    if not socket.exists():
        return False
    probe = ["nbdinfo", "--size", f"nbd+unix:///?socket={socket}"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=START_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _said(log: pathlib.Path) -> str:
    return " ".join(log.read_text(errors="replace").split())[-300:]


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(directory: pathlib.Path) -> dict[str, str]:
    """Little enough that no venv and no setting of ours reaches them; TMPDIR is the cache filter's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "TMPDIR": str(directory)}
