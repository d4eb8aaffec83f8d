"""Processes that a test starts and ends by their pid, and waits for aloud.

Used from the thread that started them: when that thread ends, so do they.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

WAIT_SECONDS: Final = 90.0
_TELL_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.05
_END_SECONDS: Final = 10.0


class ClusterError(RuntimeError):
    """Something of the cluster does not work; str() says what, and its last words."""


class Child:
    """A process called `name` with its output in `log`; started anew as often as one likes."""

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; whether it works is for others to see."""
        assert self._process is None, f"{self.name} runs already"
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(
                # Ctrl-C is the test's to answer, and a test that is killed leaves nothing.
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                env=environment(),
            )

    def kill(self) -> None:
        """End it at once with SIGKILL; nothing happens if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End it with SIGTERM, by force if it does not go."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self.kill()

    def check(self) -> None:
        """Raises ClusterError if it ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise ClusterError(f"{self.name} ended with {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it said."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " / ".join(lines[-5:]) or "it said nothing"


class Watch:
    """Waits for conditions, and tells `say` how that goes, one line at a time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def until(self, what: str, holds: Callable[[], bool], *children: Child) -> None:
        """Wait until `holds`; raises ClusterError if one of `children` ends, or after WAIT_SECONDS."""
        begun = told = time.monotonic()
        while not holds():
            for child in children:
                child.check()
            now = time.monotonic()
            if now - begun > WAIT_SECONDS:
                words = "; ".join(f"{child.name}: {child.last_words()}" for child in children)
                raise ClusterError(f"{what}: not within {WAIT_SECONDS:.0f} s; {words}")
            if now - told >= _TELL_SECONDS:
                self.say(f"  … {what}: waiting for {now - begun:.0f} s")
                told = now
            time.sleep(_LOOK_SECONDS)
        self.say(f"  {what}: {time.monotonic() - begun:.1f} s")


def environment() -> dict[str, str]:
    """Ours, without what would lead Ceph's programs to another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}
