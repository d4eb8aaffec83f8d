"""Readers, writers and movers in real parallel on a disk so small that segments are reused all the time.

The core runs without the GIL, so these threads meet on every core there is.  Every page says which page
it is and which version; a reader knows the least version that it may see.
"""

import os
import pathlib
import random
import struct
import threading
import time

import pytest

from swaptide.cache import engine, geometry, idle, layout, memory, planning

PAGE = 4096
SIZE = 12 << 20
STAMP = struct.Struct("<QQ")
WRITERS = 2
NOISE = random.Random(8).randbytes(1 << 20)
# Packing takes room: a disk of its own size, and targets that leave it some.
PACKED_SIZE = 40 << 20
PACKED_TARGETS = (0, 20 << 20, 22 << 20, 26 << 20, 64 << 20)
TARGETS = (0, 6 << 20, 64 << 20)
MOVED = (
    "log_clock",
    "write_clock",
    "cleaned_pages",
    "pack_tried_pages",
    "dropped_segments",
    "ram_slots_used",
)
# What has to have happened, by the counters; with packing more of it.
HAPPENED = ("cleaned_segments", "spill_written_bytes", "misses", "frozen_waits")
PACKED = ("packed_total_pages", "packed_hits")
# How much longer a host may take for that, in seconds.
LATEST_SECONDS = 120.0


def contents(page: int, version: int) -> bytes:
    """A page that says what it is all over, and of three one that does not shrink."""
    stamp = STAMP.pack(page, version)
    if page % 3:
        return stamp * (PAGE // len(stamp))
    at = (page * 7919 + version * 104729) % (len(NOISE) - PAGE)
    return stamp + NOISE[at : at + PAGE - 2 * len(stamp)] + stamp


class Race:
    """Shared by all threads: the disk, the newest acknowledged version of each page, and what went wrong."""

    def __init__(self, disk: engine.Engine, seconds: float, packs: bool) -> None:
        self.disk = disk
        self.pages = disk.identity.size_bytes // PAGE
        self.floor = geometry.of_size(disk.identity.size_bytes).working_minimum_bytes
        self.targets = PACKED_TARGETS if packs else TARGETS
        self.wanted = HAPPENED + (PACKED if packs else ())
        self.versions = [0] * self.pages
        self.wrong: list[str] = []
        self.reads = 0
        self.writes = 0
        self.freezes = 0
        self._by_hand = threading.Lock()  # a move that is not the movers': a freeze does not know of it
        self._end = time.monotonic() + seconds
        self._latest = self._end + LATEST_SECONDS
        self.complete = False

    @property
    def going(self) -> bool:
        """As long as asked for, and on a busy host until everything has happened."""
        return time.monotonic() < (self._end if self.complete else self._latest) and not self.wrong

    def happened(self) -> bool:
        """Whether there was some of everything that this is about."""
        busy = self.reads > 1000 and self.writes > 1000 and self.freezes > 1
        return busy and all(map(self.disk.counter, self.wanted))

    def write(self, me: int) -> None:
        """Write whole pages of our own, in runs of one to eight; now and then trim one."""
        chooser = random.Random(me)
        while self.going:
            first = chooser.randrange(self.pages // WRITERS // 8) * 8 * WRITERS + me * 8
            count = chooser.randint(1, 8)
            version = max(self.versions[first : first + count]) + 1
            data = b"".join(contents(page, version) for page in range(first, first + count))
            self.disk.log.write_bytes(data, first * PAGE)
            self.versions[first : first + count] = [version] * count
            self.writes += 1

    def read(self, me: int) -> None:
        """Read runs of pages anywhere and judge every page."""
        chooser = random.Random(-me)
        while self.going:
            count = chooser.randint(1, 8)
            first = chooser.randrange(self.pages - count)
            least = self.versions[first : first + count]
            data = self.disk.log.read_bytes(count * PAGE, first * PAGE)
            for n in range(count):
                self._judge(first + n, least[n], data[n * PAGE : (n + 1) * PAGE])
            self.reads += 1

    def _judge(self, page: int, least: int, data: bytes) -> None:
        whose, version = STAMP.unpack_from(data)
        if version == 0 and least == 0:
            return
        torn = data != contents(whose, version)
        if torn or whose != page or version < least:
            self.wrong.append(f"page {page}: page {whose} version {version}, at least {least}, torn={torn}")

    def squeeze(self, _me: int) -> None:
        """Move the target up and down, so that everything is spilled, dropped and cleaned again and again."""
        chooser = random.Random(7)
        while self.going:
            self.complete = self.complete or self.happened()
            self.disk.set_target(self.floor + chooser.choice(self.targets))
            time.sleep(chooser.random() * (0.02 if self.targets == TARGETS else 0.2))

    def strengthen(self, me: int) -> None:
        """Pack anew what the movers have packed: they would wait for an idle moment."""
        while self.going:
            with self._by_hand:
                done = self.disk.moves.strengthen(me)
            time.sleep(0 if done > 0 else 0.005)

    def freeze(self, _me: int) -> None:
        """Have the disk stand still now and then, and look whether it does."""
        chooser = random.Random(3)
        while self.going:
            time.sleep(chooser.random())
            self.disk.set_frozen(True)
            while self.disk.counter("frozen_seen") % 2 == 0:
                time.sleep(0.001)
            with self._by_hand:
                before = self.standing()
            time.sleep(chooser.random() * 0.03)
            if self.standing() != before:
                self.wrong.append("a frozen disk changes")
            self.disk.set_frozen(False)
            while self.disk.counter("frozen_seen") % 2:
                time.sleep(0.001)
            self.freezes += 1

    def standing(self) -> list[object]:
        """What may not change: where each page lies, and what was ever moved."""
        state = self.disk._state
        shape, size = state.shape, self.pages * geometry.PAGE_ENTRY_BYTES
        return [os.pread(state.fd, size, shape.page_table_offset), *map(self.disk.counter, MOVED)]


@pytest.mark.parametrize("seconds", [6, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("compress", ["none", "lz4", "lz4+zstd"])
def test_readers_writers_and_movers_in_parallel(
    tmp_path: pathlib.Path, compress: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle.Idle, "now", lambda _self: idle.Spare(1.0))
    # What a sanitizer keeps beside each byte is not the disk's; charged to it, that leaves no room to pack.
    monkeypatch.setattr(memory.Meter, "now_bytes", lambda self: self.start_bytes)
    monkeypatch.setattr(engine, "PACKERS", 2)
    monkeypatch.setattr(planning, "PACKERS", 1)
    packs = compress != "none"
    size = PACKED_SIZE if packs else SIZE
    disk = engine.Engine.prepare(
        engine.Settings(size_bytes=size, ram_bytes=96 << 20, spill=tmp_path / "spill", compress=compress)
    )
    disk.start()
    race = Race(disk, seconds, packs)
    threads = [threading.Thread(target=race.write, args=(n,)) for n in range(WRITERS)]
    threads += [threading.Thread(target=race.read, args=(n,)) for n in range(2)]
    threads.append(threading.Thread(target=race.squeeze, args=(0,)))
    threads.append(threading.Thread(target=race.freeze, args=(0,)))
    if compress == "lz4+zstd":
        threads.append(threading.Thread(target=race.strengthen, args=(1,)))
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + LATEST_SECONDS + 60)
        assert not any(thread.is_alive() for thread in threads), "wedged"
        assert race.wrong == []
        counted = {name: disk.counter(name) for name in layout.COUNTERS}
        assert race.happened(), counted
        assert counted["spill_read_errors"] == 0
        assert packs or not any(counted[name] for name in PACKED)
        # Where writers take every slot that comes free, a short time may be too short.
        assert compress != "lz4+zstd" or seconds < 60 or counted["strengthened_segments"] > 0
    finally:
        disk.stop()
