"""What a disk does without while nobody wants anything of it, and has again when somebody does."""

import asyncio
import errno
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from swaptide.cache import engine, geometry, keys, memory, movers, planning
from tests.unit import hands

SEGMENT = geometry.SEGMENT_BYTES
SIZE = 64 << 20
WAIT_SECONDS = 30.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fits(made: engine.Engine) -> bool:
    """Whether the disk has no more RAM slots than it may."""
    now = planning.Snapshot(*made.segments.snapshot())
    return now.populated <= now.limit


def test_staging_buffers_go_and_come_again(hand: hands.Hand) -> None:
    moves = hand.made.moves
    hand.write(range(3 * hands.PIECES), hands.noise)
    before = memory.anonymous_bytes(pathlib.Path("/proc/self"))
    moves.spiller.unstage()
    # The kernel counts RssAnon in batches.
    given = before - memory.anonymous_bytes(pathlib.Path("/proc/self"))
    assert given >= (planning.SPILLERS - 1) * SEGMENT - (1 << 20)
    assert [moves.spiller.is_staged(worker) for worker in range(planning.SPILLERS)] == [
        True,
        False,
        False,
        False,
    ]
    assert moves.spill(0, 1, True) == 1
    assert moves.spiller.stage(3) and moves.spiller.is_staged(3) and not moves.spiller.is_staged(2)
    assert moves.spill(3, 1, True) == 1
    hand.check()


def test_open_segments_without_contents_are_freed(hand: hands.Hand) -> None:
    hand.write(range(2 * hands.PIECES), hands.mixed)
    assert hand.pack() > 0
    segments = hand.made.segments
    assert segments.seal_dead() == 0  # packers', solid and the guest's hold something
    hand.check()
    hand.write(range(2 * hands.PIECES), lambda _key: bytes(hands.PAGE))  # takes no room
    before = planning.Snapshot(*segments.snapshot())
    assert segments.seal_dead() >= 2
    after = planning.Snapshot(*segments.snapshot())
    assert after.free == after.populated > before.free
    assert segments.seal_dead() == 0
    hand.write(range(hands.PIECES), hands.mixed, 1)
    hand.check()


class Staging:
    """Moves that tell whether a buffer was made, and whether anything was written from it."""

    def __init__(self, gives: bool) -> None:
        self.gives = gives
        self.done: list[str] = []
        self.spiller = self

    def packed_bytes(self) -> int:
        return 0

    def is_staged(self, worker: int) -> bool:
        return worker == 0

    def stage(self, worker: int) -> bool:
        self.done.append(f"stage {worker}")
        return self.gives

    def spill(self, worker: int, _most: int, _give_back: bool) -> int:
        self.done.append(f"spill {worker}")
        return 1


class Room:
    """A memory cgroup that has so much left."""

    def __init__(self, left: int | None) -> None:
        self._left = left

    def bytes(self) -> int | None:
        return self._left


@pytest.mark.parametrize(
    ("left", "gives", "worker", "done"),
    [
        (None, True, 2, ["stage 2", "spill 2"]),
        (movers.STAGE_MARGIN_BYTES + SEGMENT, True, 2, ["stage 2", "spill 2"]),
        (movers.STAGE_MARGIN_BYTES + SEGMENT - 1, True, 2, []),
        (None, False, 2, ["stage 2"]),
        # Its buffer is always there: the way out of a host that gives nothing.
        (0, False, 0, ["spill 0"]),
    ],
)
def test_a_buffer_is_made_only_where_there_is_room(
    left: int | None, gives: bool, worker: int, done: list[str]
) -> None:
    async def body() -> None:
        moves = Staging(gives)
        mover = movers.Movers(cast(Any, moves), cast(Any, None), -1)
        mover._headroom = cast(Any, Room(left))
        result = mover._stage_and_spill(worker, 1, True)
        assert moves.done == done
        assert result == (1 if done and done[-1].startswith("spill") else -errno.EAGAIN)

    asyncio.run(body())


def test_it_looks_less_often_when_nothing_was_wanted_for_long() -> None:
    async def body() -> None:
        mover = movers.Movers(cast(Any, Staging(True)), cast(Any, None), -1)
        assert not mover.calm and mover._pause_seconds() == movers.IDLE_SECONDS
        mover._calm_since -= movers.CALM_AFTER_SECONDS
        assert mover.calm and mover._pause_seconds() == movers.CALM_SECONDS
        mover._room = 1 << 40  # others may use it up
        assert not mover.calm and mover._pause_seconds() == movers.IDLE_SECONDS
        mover._room, mover._ahead = None, True
        assert mover._pause_seconds() == movers.AHEAD_SECONDS

    asyncio.run(body())


def test_a_calm_disk_tells_once_that_it_is_wanted_again() -> None:
    async def body() -> None:
        told: list[int] = []
        mover = movers.Movers(cast(Any, Staging(True)), cast(Any, None), -1)
        mover.stirred = lambda: told.append(1)
        at_rest = planning.Snapshot(*range(len(planning.Snapshot._fields)))
        mover._note(at_rest)
        assert not told  # it was not calm
        mover._calm_since -= movers.CALM_AFTER_SECONDS
        mover._note(at_rest)
        assert not told and mover.calm  # nothing has changed
        mover._note(at_rest._replace(dirty=77))
        mover._note(at_rest)
        assert told == [1] and not mover.calm

    asyncio.run(body())


def test_a_disk_at_rest_gives_its_buffers_back_and_writes_out_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "STAGED_SECONDS", 0.3)
    state = pathlib.Path(f"/dev/shm/swaptide-test-calm-{os.getpid()}")
    floor = geometry.of_size(SIZE).working_minimum_bytes
    settings = engine.Settings(SIZE, 256 << 20, floor, state=state, spill=tmp_path / "spill")
    made = engine.Engine.prepare(settings)
    try:
        made.start()
        for version in range(3):
            for page in range(SIZE // hands.PAGE // 2):
                made.log.write_bytes(hands.noise(page + version), page * hands.PAGE)
            made.set_target(floor)
            wait_for(lambda: fits(made))
            assert made.counter("spill_written_bytes") > 0
            made.set_target(256 << 20)
            wait_for(lambda: not any(made.moves.spiller.is_staged(n) for n in range(1, planning.SPILLERS)))
            assert made.moves.spiller.is_staged(0)
            for page in range(SIZE // hands.PAGE // 2):
                found = made.log.read_bytes(hands.PAGE, page * hands.PAGE)
                assert found == hands.noise(page + version), page
    finally:
        disk_id = made.identity.disk_id
        made.stop()
        keys.erase(disk_id)
        state.unlink(missing_ok=True)
