"""How many cores of the host have nothing to do."""

import pathlib
import time
from typing import Final, NamedTuple

# /proc/stat counts in hundredths of a second: a shorter look would tell nothing.
LOOK_SECONDS: Final = 0.2
TICKS_PER_SECOND: Final = 100
_STAT: Final = pathlib.Path("/proc/stat")


class Spare(NamedTuple):
    """What the host had to spare since the last look."""

    cores: float


class Idle:
    """Looks at most a few times a second; not thread-safe."""

    def __init__(self, stat: pathlib.Path = _STAT) -> None:
        self._stat = stat
        self._ticks = self._read()
        self._at = time.monotonic()
        self._spare = Spare(0.0)

    def now(self) -> Spare:
        """The cores that were idle lately; none before the first look is over."""
        passed = time.monotonic() - self._at
        if passed >= LOOK_SECONDS:
            try:
                ticks = self._read()
            except OSError:
                return Spare(0.0)  # no descriptor to be had, for example
            self._spare = Spare((ticks - self._ticks) / TICKS_PER_SECOND / passed)
            self._ticks, self._at = ticks, self._at + passed
        return self._spare

    def _read(self) -> int:
        """Ticks that all cores spent without work, waiting for disks included."""
        fields = self._stat.read_text().split("\n", 1)[0].split()
        return int(fields[4]) + int(fields[5])
