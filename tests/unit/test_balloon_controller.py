"""The loop on state files made by hand and a made-up host: what is sampled, written, logged, survived."""

import asyncio
import logging
import os
import pathlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from swaptide.balloon import census, controller, desk, policy, reservations, rooms, samples, squeeze, trace
from swaptide.cache.face import Limits, StateFace
from tests.unit.plugins import Plugin

MIB = 1 << 20
GIB = 1 << 30


class Guests:
    """One guest, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, int]] = []

    def samples(self) -> tuple[samples.Guest, ...]:
        return (samples.Guest("v1", GIB, GIB, 2 * GIB),)

    def apply(self, balloons: Mapping[str, int]) -> None:
        self.asked.append(balloons)


class Bench:
    """A controller whose policy is what `answer` says; it keeps the samples."""

    def __init__(self, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()
        self.meminfo(GIB)
        self.plugins: dict[str, Plugin] = {}
        self.members: list[census.Member] = []
        self.seen: list[samples.Sample] = []
        self.answer: Callable[[samples.Sample], samples.Decision] = lambda sample: samples.Decision({}, {})
        self.guests = Guests()
        self.woken = asyncio.Event()
        self.now: float | None = None
        monkeypatch.setattr(policy, "decide", self._decide)
        book = reservations.Book(root / "book")
        self.desk = desk.Desk(book, self.woken.set, self.clock)
        self.controller = self.make()

    def make(self, **more: Any) -> controller.Controller:
        return controller.Controller(
            policy.Settings(),
            lambda: self.members,
            self.desk,
            rooms.Rooms(rooms.Reserve(fixed_bytes=64 * MIB), proc=self.proc),
            self.woken,
            guests=self.guests,
            clock=self.clock,
            **more,
        )

    def clock(self) -> float:
        return time.monotonic() if self.now is None else self.now

    def meminfo(self, available: int) -> None:
        text = f"MemTotal: {8 << 20} kB\nMemAvailable: {available >> 10} kB\n"
        (self.proc / "meminfo").write_text(text)

    def disk(self, name: str, ram: int = 48 * MIB, weight: int = 100, serves: bool = True) -> StateFace:
        plugin = self.plugins[name] = Plugin(self.root / f"{name}.state")
        state = StateFace(plugin.path)
        squeeze.apply(state, Limits(64 * MIB, 64 * MIB, 16 * MIB))
        plugin.use(ram)
        self.members.append(census.Member(name, state, weight, serves))
        return state

    def step(self, number: int = 1) -> list[float]:
        async def body() -> list[float]:
            return [self.controller._step_safely() for _ in range(number)]

        return asyncio.run(body())

    def close(self) -> None:
        for member in self.members:
            member.state.close()

    def _decide(
        self, settings: policy.Settings, memory: policy.Memory, sample: samples.Sample
    ) -> tuple[policy.Memory, samples.Decision]:
        self.seen.append(sample)
        return memory, self.answer(sample)


@pytest.fixture
def bench(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


def run(body: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


def test_a_sample_says_what_is_there(bench: Bench) -> None:
    bench.disk("g1", weight=7)
    bench.disk("away", serves=False)
    for name, value in {"misses": 5, "write_bytes": 9, "base_bytes": MIB, "private_bytes": 3 * MIB}.items():
        bench.plugins["g1"].put(name, value)
    bench.plugins["g1"].put("degraded", 1)
    bench.step()
    bench.plugins["g1"].put("usable_stores", 1)
    bench.step()
    sample, later = bench.seen
    assert not later.disks[0].stuck, "the other one of its two stores works"
    assert sample.rooms == (samples.Room("host", GIB, 8 * GIB, 64 * MIB),)
    (disk,) = sample.disks
    assert (disk.name, disk.weight, disk.stuck) == ("g1", 7, True)
    assert (disk.target_bytes, disk.cap_bytes, disk.floor_bytes) == (64 * MIB, 64 * MIB, 16 * MIB)
    assert (disk.missed_pages, disk.written_bytes) == (5, 9)
    assert disk.ram_bytes == bench.members[0].state.state_blocks_bytes() + 2 * MIB
    assert sample.guests == bench.guests.samples()
    assert not sample.pressed and sample.held_bytes == 0 and sample.wanted_bytes is None


def test_targets_are_written_within_the_limits(bench: Bench) -> None:
    states = [bench.disk(name) for name in ("a", "b", "c", "d")]
    asked = {"a": 32 * MIB, "b": 1, "c": GIB, "gone": 5}
    bench.answer = lambda sample: samples.Decision(asked, {"v1": GIB})
    bench.step()
    found = [state.limits().target_bytes for state in states]
    assert found == [32 * MIB, 16 * MIB, 64 * MIB, 64 * MIB]
    assert all(state.deadline_ns() == 0 for state in states)
    assert bench.guests.asked == [{"v1": GIB}]


def test_a_hurry_is_a_deadline_for_what_falls(bench: Bench) -> None:
    falls, rises = bench.disk("falls"), bench.disk("rises")
    rises.set_limits(target_bytes=32 * MIB)
    targets = {"falls": 32 * MIB, "rises": 48 * MIB}
    bench.answer = lambda sample: samples.Decision(targets, {}, hurry_seconds=2.0)
    begun = time.monotonic_ns()
    bench.step()
    assert 2e9 <= falls.deadline_ns() - begun < 20e9
    assert rises.deadline_ns() == 0


@pytest.mark.parametrize(("seconds", "stays"), [(1, True), (100, False), (-5, False)])
def test_a_nearer_deadline_of_somebody_else_stays(bench: Bench, seconds: int, stays: bool) -> None:
    """One of `disk set`, that is; one that is over binds nobody."""
    state = bench.disk("g1")
    present = time.monotonic_ns() + seconds * 10**9
    state.set_limits(deadline_ns=present)
    bench.answer = lambda sample: samples.Decision({"g1": 32 * MIB}, {}, hurry_seconds=50.0)
    bench.step()
    assert (state.deadline_ns() == present) is stays
    # Without a hurry nobody's is touched.
    present = state.deadline_ns()
    bench.answer = lambda sample: samples.Decision({"g1": 16 * MIB}, {})
    bench.step()
    assert (state.limits().target_bytes, state.deadline_ns()) == (16 * MIB, present)


def test_how_soon_it_looks_again(bench: Bench) -> None:
    assert bench.step() == [controller.STEADY_SECONDS], "there is a guest"
    state = bench.disk("g1", ram=40 * MIB)
    assert bench.step() == [controller.STEADY_SECONDS]
    bench.answer = lambda sample: samples.Decision({"g1": 32 * MIB}, {})
    assert bench.step(3) == [controller.BUSY_SECONDS] * 3, "while it is above its target"
    bench.plugins["g1"].use(8 * MIB)
    assert bench.step() == [controller.STEADY_SECONDS]
    state.set_limits(target_bytes=48 * MIB)
    assert bench.step() == [controller.BUSY_SECONDS], "after a change"


def test_nothing_to_divide_is_looked_at_seldom(bench: Bench) -> None:
    bench.guests.samples = lambda: ()  # type: ignore[method-assign]
    assert bench.step() == [controller.EMPTY_SECONDS]


def test_a_disk_that_cannot_be_read_is_left_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.disk("good")
    bench.disk("bad")
    bench.plugins["bad"].path.write_bytes(b"")
    bench.step(3)
    assert [[disk.name for disk in sample.disks] for sample in bench.seen] == [["good"]] * 3
    assert len([record for record in caplog.records if "disk bad" in record.getMessage()]) == 1


def test_a_policy_that_fails_lets_nobody_starve(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    state = bench.disk("g1")

    def fail(sample: samples.Sample) -> samples.Decision:
        raise ZeroDivisionError("oops")

    bench.answer = fail
    bench.step(3)
    assert state.limits().target_bytes == 64 * MIB, "there is enough"
    bench.meminfo(63 * MIB)
    bench.step(3)
    assert state.limits().target_bytes == 16 * MIB
    assert len([record for record in caplog.records if "oops" in record.getMessage()]) == 1
    bench.answer = lambda sample: samples.Decision({"g1": 64 * MIB}, {})
    caplog.set_level(logging.INFO)
    bench.step()
    assert state.limits().target_bytes == 64 * MIB
    assert "sensor works again what=policy" in caplog.text


def test_a_host_that_does_not_tell_is_full(bench: Bench) -> None:
    bench.disk("g1")
    (bench.proc / "meminfo").unlink()
    bench.step()
    assert bench.seen[0].rooms[0].free_bytes == 0


def test_what_matters_is_logged_and_not_every_step(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "swaptide.balloon.controller")
    bench.disk("g1")

    def said(reason: str, now: float) -> list[str]:
        bench.now = now
        bench.answer = lambda sample: samples.Decision({"g1": 32 * MIB}, {}, reason=reason)
        bench.step(5)
        return [record.getMessage() for record in caplog.records if record.name.endswith(".controller")]

    assert said("steady", 100.0) == []
    (line,) = said("shrink", 100.1)
    assert line.startswith("balloon decides reason=shrink room=host free_mib=1024 reserve_mib=64 held_mib=0")
    assert len(said("grow", 100.2)) == len(said("steady", 100.3)) == 1, "at most one a second"
    assert len(said("grow", 101.5)) == 2


def test_reservations_are_in_the_sample(bench: Bench) -> None:
    bench.disk("g1", ram=48 * MIB)

    async def body() -> None:
        asked = asyncio.create_task(bench.desk.reserve(GIB + 16 * MIB, 20.0, 60.0, lambda standing: None))
        await asyncio.sleep(0)
        assert bench.controller._step_safely() <= controller.BUSY_SECONDS
        assert bench.seen[-1].wanted_bytes == GIB + 16 * MIB
        assert 0 < (bench.seen[-1].wanted_seconds or 0) <= 20
        bench.meminfo(GIB + 16 * MIB)
        bench.plugins["g1"].use(32 * MIB)
        bench.controller._step_safely()
        assert (await asked).verdict is desk.Verdict.GRANTED
        assert bench.seen[-1].held_bytes == GIB + 16 * MIB
        assert bench.seen[-1].wanted_bytes is None
        # Beside the disk, which does not serve right now but has its memory all the same, nothing grew.
        bench.members[0] = census.Member("g1", bench.members[0].state, 100, False)
        bench.controller._step_safely()
        assert bench.seen[-1].held_bytes == GIB + 16 * MIB

    run(body)


@pytest.mark.parametrize("hindrance", ["degraded", "frozen"])
def test_what_a_disk_cannot_give_is_not_waited_for(bench: Bench, hindrance: str) -> None:
    able, hindered = bench.disk("able"), bench.disk("hindered")
    if hindrance == "frozen":
        hindered.set_frozen(True)
    else:
        bench.plugins["hindered"].put("degraded", 1)
    # What would come back at once, or by packing, if anybody asked for it.
    bench.plugins["hindered"].put("droppable_bytes", 40 * MIB)
    bench.plugins["hindered"].put("packable_bytes", 40 * MIB)
    above = bench.members[0].state.ram_bytes(able.counters()) - 16 * MIB

    async def asked(size: int) -> desk.Standing:
        task = asyncio.create_task(bench.desk.reserve(GIB + size, 20.0, 60.0, lambda standing: None))
        await asyncio.sleep(0)
        bench.controller._step_safely()
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
        return await task

    async def body() -> None:
        refused = await asked(above + 1)
        assert refused.verdict is desk.Verdict.IMPOSSIBLE and refused.reclaimable_bytes == above
        with pytest.raises(asyncio.CancelledError):  # it waits
            await asked(above)

    run(body)


def test_it_looks_at_once_when_it_is_woken(bench: Bench, tmp_path: pathlib.Path) -> None:
    record = trace.Trace(tmp_path / "trace")
    steering = bench.make(record=record)

    async def body() -> None:
        task = asyncio.create_task(steering.run())
        await steering.looked()
        for _ in range(5):
            before = len(bench.seen)
            bench.woken.set()
            while len(bench.seen) == before:
                await asyncio.sleep(0.001)
        await steering.looked()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(body)
    lines = (tmp_path / "trace").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=samples.Sample) for line in lines] == bench.seen


def test_a_step_that_fails_does_not_end_the_loop(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> tuple[samples.Guest, ...]:
        raise RuntimeError("no guests today")

    bench.guests.samples = fail  # type: ignore[method-assign]
    assert bench.step(3) == [controller.STEADY_SECONDS] * 3
    assert len([record for record in caplog.records if "no guests today" in record.getMessage()]) == 1


def test_a_trace_is_bounded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace"
    sample = samples.Sample(1.0, (samples.Room("host", 1, 2, 3),), ())
    length = len(msgspec.json.encode(sample)) + 1
    recorded = trace.Trace(path, most_bytes=10 * length)
    for _ in range(35):
        recorded.put(sample)
    recorded.close()
    older = path.with_name("trace.1")
    assert (path.stat().st_size, older.stat().st_size) == (5 * length, 10 * length)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [path, older]
    again = trace.Trace(path)
    again.put(sample)
    again.close()
    assert (path.stat().st_size, older.stat().st_size) == (length, 5 * length)


@pytest.mark.parametrize("kind", ["fifo", "directory", "missing"])
def test_a_trace_that_cannot_be_written_is_left_alone(
    tmp_path: pathlib.Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "there" / "trace"
    if kind != "missing":
        path.parent.mkdir()
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    recorded = trace.Trace(path)
    for _ in range(100):
        recorded.put(samples.Sample(1.0, (), ()))
    recorded.close()
    assert caplog.text.count("trace ended") == 1
    assert not path.with_name("trace.1").exists()
