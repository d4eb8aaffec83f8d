"""How long squeezes take, on state files made by hand."""

import asyncio
import logging
import pathlib
import re
from collections.abc import Awaitable, Callable

import pytest

from swaptide.balloon import stopwatch
from swaptide.cache.face import StateFace
from tests.unit.plugins import Plugin

MIB = 1 << 20


class Bench:
    """One disk of 48 MiB at a target that the test moves, and a clock that stands still until it is set."""

    def __init__(self, root: pathlib.Path) -> None:
        self.plugin = Plugin(root / "g1.state")
        self.plugin.use(48 * MIB)
        self.now = 100.0
        self.watch = stopwatch.Stopwatch(lambda: self.now)
        self.state = StateFace(self.plugin.path)
        self.target(64)

    def target(self, mib: int) -> None:
        self.state.set_limits(target_bytes=mib * MIB)

    def fall(self, mib: int, due: float | None = None) -> None:
        self.target(mib)
        self.watch.fell("g1", self.plugin.path, due)

    @property
    def record(self) -> stopwatch.Record:
        return self.watch.record("g1")

    async def looks(self) -> None:
        """Let it look a few times."""
        await asyncio.sleep(0.05)

    async def until_over(self) -> None:
        async with asyncio.timeout(60):
            while self.watch.is_falling("g1"):
                await asyncio.sleep(0.001)


def play(root: pathlib.Path, body: Callable[[Bench], Awaitable[None]]) -> Bench:
    async def run() -> Bench:
        bench = Bench(root)
        with bench.state:
            await body(bench)
            await bench.watch.close()
            await asyncio.sleep(0)
        return bench

    return asyncio.run(run())


def test_from_the_fall_to_the_moment_it_holds(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        assert bench.watch.is_falling("g1")
        bench.now += 0.3
        await bench.looks()
        assert bench.watch.is_falling("g1")
        bench.plugin.use(16 * MIB)
        await bench.until_over()

    record = play(tmp_path, body).record
    assert record.sum_seconds == pytest.approx(0.3) and record.late == 0
    assert record.counts == [int(bound == 0.5) for bound in (*stopwatch.BOUNDS_SECONDS, None)]


def test_a_target_that_falls_further_is_the_same_squeeze(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        bench.now += 1
        bench.fall(8)
        bench.plugin.use(16 * MIB)
        await bench.looks()
        assert bench.watch.is_falling("g1")
        bench.now += 1
        bench.plugin.use(0)
        await bench.until_over()

    record = play(tmp_path, body).record
    assert sum(record.counts) == 1
    assert record.sum_seconds == pytest.approx(2.0)


def test_a_target_below_which_the_disk_is_squeezes_nothing(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(50)
        assert not bench.watch.is_falling("g1")

    assert play(tmp_path, body).record == stopwatch.Record()


def test_one_that_was_taken_back_does_not_count(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        await bench.looks()
        bench.target(64)
        await bench.until_over()

    assert sum(play(tmp_path, body).record.counts) == 0


def test_one_that_was_eased_counts(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(16)
        await bench.looks()
        bench.plugin.use(30 * MIB)
        bench.target(32)
        await bench.until_over()

    assert sum(play(tmp_path, body).record.counts) == 1


def test_a_frozen_disk_gives_nothing(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        bench.state.set_frozen(True)
        await bench.until_over()

    assert play(tmp_path, body).record == stopwatch.Record()


def test_late_once_and_still_followed(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "swaptide")

    async def body(bench: Bench) -> None:
        bench.fall(32, due=101.0)
        await bench.looks()
        assert bench.record.late == 0
        bench.now = 101.5
        await bench.looks()
        assert bench.record.late == 1
        bench.now = 103.0
        bench.plugin.use(0)
        await bench.until_over()

    record = play(tmp_path, body).record
    assert (record.late, sum(record.counts)) == (1, 1)
    assert record.sum_seconds == pytest.approx(3.0)
    missed, held = (line.getMessage() for line in caplog.records)
    assert re.fullmatch(
        rf"deadline missed name=g1 target_bytes={32 * MIB} ram_bytes=[0-9]+ after_seconds=1\.500", missed
    )
    assert held == f"target held late name=g1 target_bytes={32 * MIB} after_seconds=3.000"


def test_the_nearer_deadline_binds(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        bench.fall(31, due=200.0)
        bench.fall(30, due=101.0)
        bench.fall(29, due=300.0)
        bench.now = 102.0
        await bench.looks()
        assert bench.record.late == 1

    play(tmp_path, body)


def test_a_disk_that_goes_is_let_go(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        bench.plugin.path.write_bytes(b"")  # truncated
        await bench.until_over()
        bench.watch.fell("g1", bench.plugin.path)
        bench.watch.fell("g2", tmp_path / "none")
        assert not bench.watch.is_falling("g1") and not bench.watch.is_falling("g2")

    assert play(tmp_path, body).record == stopwatch.Record()


def test_what_is_forgotten_begins_anew(tmp_path: pathlib.Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fall(32)
        bench.watch.forget("g1")
        assert not bench.watch.is_falling("g1")
        bench.fall(32)  # another disk of that name, before the old task has ended
        await bench.looks()
        assert bench.watch.is_falling("g1")
        bench.plugin.use(0)
        await bench.until_over()

    assert sum(play(tmp_path, body).record.counts) == 1
