"""Who waits for memory: what is granted, refused at once, too late, or nobody's any more."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from swaptide.balloon import reservations
from swaptide.balloon.desk import Desk, Situation, Standing, Verdict
from swaptide.cache.errors import SetupError, UsageError

T = TypeVar("T")


class Office:
    """A desk with a clock of its own; `look` is what the controller does at a step."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.now = 0.0
        self.woken = 0
        self.told: list[Standing] = []
        boot = directory / "boot"
        boot.write_text("x")
        self.book = reservations.Book(directory / "book", boot)
        self.desk = Desk(self.book, self._wake, lambda: self.now)

    def ask(self, size: int, deadline: float = 10.0, hold: float = 60.0) -> "asyncio.Task[Standing]":
        return asyncio.create_task(self.desk.reserve(size, deadline, hold, self.told.append))

    async def look(
        self, free: int, *, reclaimable: int = 0, used: int | None = 0, after: float = 0.1
    ) -> None:
        await asyncio.sleep(0)
        self.now += after
        self.desk.look(Situation(self.now, free, used, reclaimable))
        await asyncio.sleep(0)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def office(tmp_path: pathlib.Path) -> Office:
    return Office(tmp_path)


def run(body: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await body()

    return asyncio.run(bounded())


def test_what_is_free_is_granted_once_the_targets_leave_room_for_it(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5)
        await office.look(8)
        assert not asked.done() and office.desk.wanted_bytes == 5 and office.desk.held_bytes == 0
        assert office.woken >= 2, "the next look comes at once"
        await office.look(8)
        assert (await asked).verdict is Verdict.GRANTED
        assert office.desk.wanted_bytes is None and office.desk.due is None
        assert office.desk.held_bytes == 5
        ((entry, left),) = office.desk.granted()
        assert (entry.id, left, entry.expires_at - entry.granted_at) == (asked.result().id, 5, 60)

    run(body)


def test_it_waits_until_the_caches_have_given_back_enough(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5)
        for free in (1, 2, 3, 4):
            await office.look(free, reclaimable=9 - free)
            assert not asked.done() and office.desk.wanted_bytes == 5
            assert office.desk.due == 10.0
        await office.look(5, reclaimable=4)
        assert asked.result().verdict is Verdict.GRANTED
        assert [standing.available_bytes for standing in office.told] == [1, 3], "not at every step"
        assert {standing.id for standing in office.told} == {asked.result().id}
        assert all(standing.verdict is Verdict.WAITING for standing in office.told)

    run(body)


def test_what_can_never_be_is_refused_at_once(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(10)
        await office.look(3, reclaimable=6)
        standing = asked.result()
        assert (standing.verdict, standing.could_bytes) == (Verdict.IMPOSSIBLE, 9)
        assert office.desk.wanted_bytes is None

    run(body)


def test_others_count(office: Office) -> None:
    async def body() -> None:
        first = office.ask(4)
        await office.look(4)
        await office.look(4)
        assert first.done()
        second, third, fourth = office.ask(3), office.ask(2), office.ask(2)
        await office.look(4, reclaimable=6)
        assert office.desk.wanted_bytes == 5
        standing = fourth.result()
        assert (standing.verdict, standing.could_bytes) == (Verdict.IMPOSSIBLE, 1)
        assert (standing.held_bytes, standing.waiting_bytes) == (4, 5)
        await office.look(6, reclaimable=4)
        assert third.done() and not second.done(), "the smaller one need not wait"
        await office.look(9, reclaimable=1)
        assert second.result().verdict is Verdict.GRANTED
        assert office.desk.held_bytes == 9

    run(body)


def test_too_late_is_given_up(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5, deadline=1.0)
        await office.look(2, reclaimable=9)
        await office.look(4, reclaimable=7, after=1.0)
        standing = asked.result()
        assert (standing.verdict, standing.could_bytes, standing.available_bytes) == (Verdict.LATE, 4, 4)
        assert office.desk.wanted_bytes is None and office.desk.held_bytes == 0
        assert not office.book.ledger.entries

    run(body)


def test_a_host_that_does_not_tell_grants_nothing(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5, deadline=1.0)
        await office.look(0, reclaimable=9, used=None)
        await office.look(9, used=None, after=1.0)
        assert asked.result().verdict is Verdict.LATE

    run(body)


def test_who_goes_away_leaves_nothing_behind(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5)
        await office.look(2, reclaimable=9)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert office.desk.wanted_bytes is None
        # Granted in the very moment in which nobody waits any more.
        asked = office.ask(5)
        await office.look(9)
        await asyncio.sleep(0)
        office.desk.look(Situation(office.now, 9, 0, 0))
        assert office.desk.held_bytes == 5
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert office.desk.held_bytes == 0

    run(body)


def test_release_and_expiry_wake_the_loop(office: Office) -> None:
    async def body() -> None:
        asked = office.ask(5, hold=3.0)
        await office.look(9)
        await office.look(9)
        other = office.ask(1)
        await office.look(9)
        await office.look(9)
        before = office.woken
        office.desk.release(asked.result().id)
        assert office.woken > before and office.desk.held_bytes == 1
        with pytest.raises(UsageError, match="there is no reservation"):
            office.desk.release(asked.result().id)
        await office.look(9, after=61.0)
        assert other.done() and office.desk.granted() == []

    run(body)


def test_it_is_used_by_what_grows_beside_the_disks(office: Office) -> None:
    async def body() -> None:
        office.ask(5)
        await office.look(9, used=100)
        await office.look(9, used=100)
        await office.look(7, used=102)
        assert office.desk.held_bytes == 3
        await office.look(9, used=None)
        assert office.desk.held_bytes == 5, "unknown use leaves all of it held"

    run(body)


def test_one_that_cannot_be_written_down_is_not_granted(office: Office, tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        asked = office.ask(5)
        await office.look(9)
        (tmp_path / "book.new").mkdir()
        await office.look(9)
        with pytest.raises(SetupError, match="cannot be written"):
            await asked
        assert office.desk.held_bytes == 0 and office.desk.wanted_bytes is None

    run(body)
