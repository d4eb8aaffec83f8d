"""A terminal for what is tested: a pty, and what was written to it."""

import contextlib
import os
import pty
import subprocess
import threading
from collections.abc import Iterator, Sequence

BAR = "━"


@contextlib.contextmanager
def opened(said: list[bytes]) -> Iterator[int]:
    """A terminal to write to; what is written there is in `said` afterwards."""
    master, slave = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # nobody has it open any more
            while data := os.read(master, 65536):
                said.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield slave
    finally:
        os.close(slave)
        reader.join()
        os.close(master)


def run(command: Sequence[str], cwd: str | os.PathLike[str] | None = None) -> tuple[str, str]:
    """What a command prints on a pipe, and on the terminal that it has for its standard error.

    Fails unless the command works.
    """
    said: list[bytes] = []
    with opened(said) as error:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        )
    assert done.returncode == 0, (done, said)
    return done.stdout, b"".join(said).decode()
