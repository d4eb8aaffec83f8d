"""Processes inside a memory cgroup, among them one that eats memory at a given speed.

A process puts itself into the group before it becomes what it is to be; the test's own stays outside.
"""

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

MIB = 1 << 20
# Takes MiB after MiB at so many in a second, says when it has them, and holds them until its input ends.
_SCRIPT = """
import mmap, sys, time
mib, speed = int(sys.argv[1]), float(sys.argv[2])
held, chunk = mmap.mmap(-1, mib << 20), b"x" * (1 << 20)
print("begun", flush=True)
begun = time.monotonic()
for number in range(mib):
    held[number << 20 : number + 1 << 20] = chunk
    time.sleep(max(0.0, begun + (number + 1) / speed - time.monotonic()))
print("done", flush=True)
sys.stdin.read()
"""


def inside(group: pathlib.Path) -> list[str]:
    """What a command has to begin with so that it runs in `group`."""
    return ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group)]


class Eater:
    """Eats `mib` MiB in `group`; when it began and ended, in seconds of time.monotonic()."""

    def __init__(self, group: pathlib.Path, mib: int, mib_per_second: float) -> None:
        command = [sys.executable, "-c", _SCRIPT, str(mib), str(mib_per_second)]
        self.process = subprocess.Popen(
            [*inside(group), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._expect(b"begun\n")
        self.begun = time.monotonic()

    def finish(self) -> float:
        """Wait until it has eaten; returns the seconds that took.  Fails if it was killed."""
        self._expect(b"done\n")
        return time.monotonic() - self.begun

    def end(self) -> None:
        """Let go of the memory."""
        self.process.kill()
        self.process.communicate()

    def _expect(self, word: bytes) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == word, f"the eater ended with {self.process.wait()}"


@contextlib.contextmanager
def eating(group: pathlib.Path, mib: int, mib_per_second: float) -> Iterator[Eater]:
    """An eater, gone at the end."""
    eater = Eater(group, mib, mib_per_second)
    try:
        yield eater
    finally:
        eater.end()


def figure(group: pathlib.Path, name: str) -> int:
    """A file of the group with a number in it."""
    return int((group / name).read_text())


def words(paths: Sequence[pathlib.Path]) -> str:
    """What is in these files, for a failure."""
    return "\n".join(path.read_text() for path in paths)
