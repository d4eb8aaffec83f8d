"""Readers, writers and movers in real parallel on a disk so small that segments are reused all the time.

The core runs without the GIL, so these threads meet on every core there is.  Every page says which page
it is and which version; a reader knows the least version that it may see.
"""

import pathlib
import random
import struct
import threading
import time

import pytest

from swaptide.cache import engine, geometry, layout

PAGE = 4096
SIZE = 12 << 20
PAGES = SIZE // PAGE
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
STAMP = struct.Struct("<QQ")
WRITERS = 2


class Race:
    """Shared by all threads: the disk, the newest acknowledged version of each page, and what went wrong."""

    def __init__(self, disk: engine.Engine, seconds: float) -> None:
        self.disk = disk
        self.versions = [0] * PAGES
        self.wrong: list[str] = []
        self.reads = 0
        self.writes = 0
        self._end = time.monotonic() + seconds

    @property
    def going(self) -> bool:
        return time.monotonic() < self._end and not self.wrong

    def write(self, me: int) -> None:
        """Write whole pages of our own, in runs of one to eight; now and then trim one."""
        chooser = random.Random(me)
        while self.going:
            first = chooser.randrange(PAGES // WRITERS // 8) * 8 * WRITERS + me * 8
            count = chooser.randint(1, 8)
            version = max(self.versions[first : first + count]) + 1
            data = b"".join(STAMP.pack(page, version) * 256 for page in range(first, first + count))
            self.disk.log.write_bytes(data, first * PAGE)
            self.versions[first : first + count] = [version] * count
            self.writes += 1

    def read(self, me: int) -> None:
        """Read runs of pages anywhere and judge every page."""
        chooser = random.Random(-me)
        while self.going:
            count = chooser.randint(1, 8)
            first = chooser.randrange(PAGES - count)
            least = self.versions[first : first + count]
            data = self.disk.log.read_bytes(count * PAGE, first * PAGE)
            for n in range(count):
                self._judge(first + n, least[n], data[n * PAGE : (n + 1) * PAGE])
            self.reads += 1

    def _judge(self, page: int, least: int, data: bytes) -> None:
        whose, version = STAMP.unpack_from(data)
        if version == 0 and least == 0:
            return
        torn = data != data[:16] * 256
        if torn or whose != page or version < least:
            self.wrong.append(f"page {page}: page {whose} version {version}, at least {least}, torn={torn}")

    def squeeze(self, _me: int) -> None:
        """Move the target up and down, so that everything is spilled, dropped and cleaned again and again."""
        chooser = random.Random(7)
        while self.going:
            self.disk.set_target(chooser.choice((FLOOR, FLOOR + (6 << 20), 64 << 20)))
            time.sleep(chooser.random() * 0.02)


@pytest.mark.parametrize("seconds", [6, pytest.param(300, marks=pytest.mark.long)])
def test_readers_writers_and_movers_in_parallel(tmp_path: pathlib.Path, seconds: float) -> None:
    disk = engine.Engine.prepare(
        engine.Settings(size_bytes=SIZE, ram_bytes=64 << 20, spill=tmp_path / "spill")
    )
    disk.start()
    race = Race(disk, seconds)
    threads = [threading.Thread(target=race.write, args=(n,)) for n in range(WRITERS)]
    threads += [threading.Thread(target=race.read, args=(n,)) for n in range(2)]
    threads.append(threading.Thread(target=race.squeeze, args=(0,)))
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
        assert not any(thread.is_alive() for thread in threads), "wedged"
        assert race.wrong == []
        counted = {name: disk.counter(name) for name in layout.COUNTERS}
        assert race.reads > 1000 and race.writes > 1000
        assert counted["cleaned_segments"] > 0 and counted["spill_written_bytes"] > 0
        assert counted["misses"] > 0 and counted["spill_read_errors"] == 0
    finally:
        disk.stop()
