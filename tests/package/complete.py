"""A command line typed into a real bash, as it is installed, and TAB: run inside by its Python.

`complete.py TYPED WANTED` succeeds when bash makes WANTED of TYPED.
"""

import os
import pty
import select
import signal
import sys
import time

# What Debian has people put into their ~/.bashrc.
COMPLETION = "/usr/share/bash-completion/bash_completion"
SECONDS = 60.0


def until(terminal: int, wanted: str, shown: str = "") -> str:
    """What the terminal shows until `wanted` is in it; raises AssertionError if it never is."""
    end = time.monotonic() + SECONDS
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        assert ready, f"{wanted!r} is not in {shown!r}"
        shown += os.read(terminal, 65536).decode()
    return shown


def main(typed: str, wanted: str) -> None:
    """Type it.  Raises AssertionError with what was shown instead, OSError if bash ends."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="dumb", PS1="")
        os.execvp("bash", ["bash", "--noprofile", "--rcfile", COMPLETION, "-i"])
    try:
        os.write(terminal, b"PS1=REA''DY\n")
        until(terminal, "READY")
        os.write(terminal, f"{typed}\t".encode())
        until(terminal, wanted)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(f"completed: {wanted}")


if __name__ == "__main__":
    main(*sys.argv[1:])
