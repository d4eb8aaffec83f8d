"""Hosts that are made up: a /proc whose MemAvailable follows the disks that really run, and nothing else.

So a test knows to the byte what its host has, whatever else runs on the machine.
"""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator

MIB = 1 << 20
_TICK_SECONDS = 0.005


class Host:
    """`total_bytes` of RAM, of which `other_bytes` are used by other things than disks below `root`."""

    def __init__(self, root: pathlib.Path, total_bytes: int, other_bytes: int = 0) -> None:
        self.proc = root / "proc"
        self.total_bytes = total_bytes
        self.other_bytes = other_bytes
        self.broken = False  # meminfo cannot be read
        self._states = root / "run/mem"
        self._lock = threading.Lock()
        self._over = threading.Event()
        (self.proc / "self").mkdir(parents=True)
        self.update()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def available_bytes(self) -> int:
        """What is free now."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # a disk was removed between two looks: look again
                cached = sum(path.stat().st_blocks * 512 for path in self._states.rglob("*.state"))
                return max(0, self.total_bytes - self.other_bytes - cached)

    def update(self) -> None:
        """Let everybody see it."""
        with self._lock:
            if self.broken:
                (self.proc / "meminfo").unlink(missing_ok=True)
                return
            fresh = self.proc / "meminfo.new"
            fresh.write_text(
                f"MemTotal: {self.total_bytes >> 10} kB\nMemAvailable: {self.available_bytes() >> 10} kB\n"
            )
            os.replace(fresh, self.proc / "meminfo")

    def use(self, more_bytes: int) -> None:
        """Somebody takes so much more, or gives it back; seen at once."""
        self.other_bytes += more_bytes
        self.update()

    def end(self) -> None:
        """Change no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            self.update()


@contextlib.contextmanager
def made_up(root: pathlib.Path, total_bytes: int, other_bytes: int = 0) -> Iterator[Host]:
    """A host for daemons with `proc_dir` of it."""
    host = Host(root, total_bytes, other_bytes)
    try:
        yield host
    finally:
        host.end()
