"""Commands that are interrupted while the daemon has their request, by Ctrl-C or by whoever ends them."""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence

from tests.real import daemons

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def asked(
    listening: socket.socket, command: Sequence[str]
) -> Iterator[tuple["subprocess.Popen[str]", bytes]]:
    """A command that waits for its answer, and what it asked."""
    listening.settimeout(daemons.WAIT_SECONDS)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            with listening.accept()[0] as client:
                client.settimeout(daemons.WAIT_SECONDS)
                yield process, client.makefile("rb").readline()
        finally:
            process.kill()


def end(process: "subprocess.Popen[str]", how: signal.Signals) -> str:
    """Interrupt a command; returns what it says, which is one line at most, and its status 130."""
    process.send_signal(how)
    out, said = process.communicate(timeout=daemons.WAIT_SECONDS)
    assert (process.returncode, out) == (130, ""), (process.returncode, out, said)
    assert "Traceback" not in said and len(said.split("\n")) <= 2, said
    return said


def before_the_answer(daemon: daemons.Daemon, how: signal.Signals, *words: str) -> str:
    """What a command says that is interrupted while the daemon has its request.

    We pass the request on, and no answer back.
    """
    between = daemon.root / "between"
    between.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, between)
        ours, theirs = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        ours.bind(str(between / "control.sock"))
        ours.listen()
        command = [*daemons.COMMAND, *words, "--run-dir", str(between)]
        process, request = stack.enter_context(asked(ours, command))
        theirs.connect(str(daemon.run_dir / "control.sock"))
        theirs.sendall(request)
        return end(process, how)
