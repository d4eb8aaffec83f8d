"""Guests as the policy sees them: honest ones, liars, silent ones, and those that come and go."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swaptide.balloon import figures, guests, qmp, samples, watch
from tests.unit import monitors
from tests.unit.monitors import GIB, wait_for

Setup = tuple[monitors.Monitor, guests.Guests]


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "_SHORTEST_POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(qmp, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(qmp, "COMMAND_SECONDS", 0.5)
    monkeypatch.setattr(qmp.Monitor.execute, "__kwdefaults__", {"seconds": 0.5})


@contextlib.asynccontextmanager
async def watching(
    path: pathlib.Path, low: int | None = GIB, high: int | None = 3 * GIB
) -> AsyncIterator[Setup]:
    """One guest, `g`, that is watched."""
    async with monitors.Monitor(path / "qmp") as server:
        registry = guests.Guests()
        registry.add(watch.Entry("g", path / "qmp", low, high))
        try:
            yield server, registry
        finally:
            await registry.leave()


async def told_last(server: monitors.Monitor, size: int) -> None:
    """Wait until that is what the balloon was told last."""
    await wait_for(lambda: server.commands("balloon")[-1:] == [{"value": size}])


async def sampled(registry: guests.Guests) -> samples.Guest:
    """The one sample, once there is one."""
    await wait_for(lambda: len(registry.samples()) == 1, "a sample")
    return registry.samples()[0]


def test_what_a_guest_says(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            found = await sampled(registry)
            assert found.age_seconds is not None and 0 <= found.age_seconds < 60
            assert (found.name, found.actual_bytes, found.min_bytes, found.max_bytes) == (
                "g",
                2 * GIB,
                GIB,
                3 * GIB,
            )
            assert (found.available_bytes, found.swapped_in_bytes, found.swapped_out_bytes) == (
                GIB,
                4096,
                8192,
            )
            asked = server.commands("qom-set")
            assert [given["property"] for given in asked] == ["guest-stats-polling-interval"]
            assert asked[0]["path"] == monitors.PATH

    asyncio.run(body())


def test_what_is_unsupported_or_was_never_said_is_none(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            server.stats = dict.fromkeys(server.stats, monitors.UNSUPPORTED)
            await wait_for(
                lambda: bool(registry.samples()) and registry.samples()[0].swapped_in_bytes is None
            )
            assert registry.samples()[0].available_bytes is None
            server.last_update = 0
            await wait_for(lambda: bool(registry.samples()) and registry.samples()[0].age_seconds is None)

    asyncio.run(body())


def test_age_is_from_the_last_update(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            server.last_update = int(time.time()) - 100
            await wait_for(
                lambda: bool(registry.samples()) and (registry.samples()[0].age_seconds or 0) >= 100
            )
            server.last_update = int(time.time()) + 10_000
            await wait_for(lambda: bool(registry.samples()) and registry.samples()[0].age_seconds is None)

    asyncio.run(body())


@pytest.mark.parametrize("value", [-1, 1 << 64, 1 << 63, "4096", 1.5, None, True, [], {}, 10**400])
def test_absurd_statistics_are_as_good_as_none(value: Any) -> None:
    said = figures.statistics(
        figures.GuestStats(last_update=1000, stats={"stat-available-memory": value, "stat-swap-in": 5})
    )
    assert (said.available_bytes, said.swapped_in_bytes, said.at_seconds) == (None, 5, 1000)


@pytest.mark.parametrize("value", [-1, 0, "now", None, True, [], float("nan"), float("inf"), 10**400])
def test_absurd_times_are_as_good_as_none(value: Any) -> None:
    said = figures.statistics(figures.GuestStats(last_update=value, stats={"stat-swap-in": 5}))
    assert said == figures.Statistics() and said.age_seconds(time.time()) is None


@pytest.mark.parametrize("stats", [None, [], "lots", 7, {7: 1}, {"stat-swap-in": {"a": 1}}])
def test_absurd_shapes_are_as_good_as_none(stats: Any) -> None:
    assert figures.statistics(figures.GuestStats(last_update=9, stats=stats)).swapped_in_bytes is None


def test_more_than_there_is_is_cut(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path, high=100 * GIB) as (server, registry):
            server.actual, server.stats = 1000 * GIB, {"stat-available-memory": 999 * GIB}
            found = await sampled(registry)
            assert (found.actual_bytes, found.available_bytes, found.max_bytes) == (4 * GIB, 4 * GIB, 4 * GIB)

    asyncio.run(body())


@pytest.mark.parametrize("actual", [-1, 1 << 70, "much", None, 1.5])
def test_a_liar_has_no_sample_until_it_tells_sense(tmp_path: pathlib.Path, actual: Any) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            server.actual = actual
            await wait_for(lambda: not registry.samples(), "no sample")
            await wait_for(lambda: "nonsense" in (registry["g"].error or ""))
            server.actual = GIB
            assert (await sampled(registry)).actual_bytes == GIB

    asyncio.run(body())


def test_without_limits_a_balloon_is_never_moved(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path, None, None) as (server, registry):
            await wait_for(lambda: registry["g"].actual_bytes is not None)
            registry.apply({"g": GIB})
            await registry["g"].stop()
            assert registry.samples() == () and server.commands("balloon") == []

    asyncio.run(body())


def test_a_balloon_is_told_within_its_limits(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            for asked, told in ((2 * GIB, 2 * GIB), (0, GIB), (-5, GIB), (100 * GIB, 3 * GIB)):
                registry.apply({"g": asked, "nobody": GIB})
                await told_last(server, told)
            await wait_for(lambda: registry.samples()[0].actual_bytes == 3 * GIB)
            assert registry["g"].target_bytes == 3 * GIB

    asyncio.run(body())


def test_a_balloon_that_never_completes(tmp_path: pathlib.Path) -> None:
    """QEMU takes the order, the guest does nothing: the sample says so, and nobody waits."""

    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            server.answers["balloon"] = lambda given: {}
            registry.apply({"g": GIB})
            await wait_for(lambda: registry["g"].target_bytes == GIB)
            for _ in range(5):
                await asyncio.sleep(0.05)
                assert registry.samples()[0].actual_bytes == 2 * GIB

    asyncio.run(body())


def test_an_order_that_is_never_answered_holds_nobody_up(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        (tmp_path / "other").mkdir()
        async with watching(tmp_path) as (server, registry), monitors.Monitor(tmp_path / "other/qmp") as fine:
            registry.add(watch.Entry("h", fine.path, GIB, 3 * GIB))
            await wait_for(lambda: len(registry.samples()) == 2)
            server.answers["balloon"] = lambda given: monitors.NEVER
            registry.apply({"g": GIB, "h": GIB})
            await wait_for(lambda: fine.commands("balloon") == [{"value": GIB}])
            # Orders that come meanwhile do not pile up: the last one counts.
            for size in range(1000):
                registry.apply({"g": GIB + size})
            await wait_for(lambda: registry["g"]._mover is not None and registry["g"]._mover.done())
            assert len(server.commands("balloon")) <= 2
            assert len(registry.samples()) == 2

    asyncio.run(body())


def test_news_between_two_polls(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 1000)

    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            server.event("BALLOON_CHANGE", actual=GIB)
            await wait_for(lambda: registry.samples()[0].actual_bytes == GIB)
            for lie in (-1, 1 << 70, "x", None, True):
                server.event("BALLOON_CHANGE", actual=lie)
            server.event("BALLOON_CHANGE", actual=GIB + 4096)
            await wait_for(lambda: registry.samples()[0].actual_bytes == GIB + 4096)
            server.running = False
            server.event("STOP")
            await wait_for(lambda: registry.samples() == ())
            server.running = True
            server.event("RESUME")
            await wait_for(lambda: len(registry.samples()) == 1)
            server.running = False
            server.event("SHUTDOWN", guest=True, reason="guest-shutdown")
            await wait_for(lambda: registry.samples() == ())

    asyncio.run(body())


def test_a_guest_that_vanishes_and_comes_back(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            await server.vanish()
            await wait_for(lambda: registry.samples() == ())
            await wait_for(lambda: "not there" in (registry["g"].error or ""))
            assert registry["g"].report(time.time())["state"] == "unreachable"
            async with monitors.Monitor(server.path) as again:
                again.actual = GIB
                assert (await sampled(registry)).actual_bytes == GIB
                assert registry["g"].error is None

    asyncio.run(body())


@pytest.mark.parametrize("command", ["query-status", "query-balloon", "qom-get", "qom-list"])
@pytest.mark.parametrize("how", [monitors.NEVER, monitors.HANG_UP], ids=["never", "hang-up"])
def test_a_guest_that_stalls_or_dies_in_the_middle(tmp_path: pathlib.Path, command: str, how: object) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            honest = server.answers[command]
            server.answers[command] = lambda given: how
            await wait_for(lambda: registry["g"].error not in (None, "not connected yet"))
            assert registry.samples() == ()
            server.answers[command] = honest
            await sampled(registry)

    asyncio.run(body())


@pytest.mark.parametrize("turns", range(5))
def test_the_end_is_not_lost_to_news_that_come_with_it(tmp_path: pathlib.Path, turns: int) -> None:
    """Python 3.11's wait_for forgets that it was cancelled if what it waits for is there by then."""

    async def body() -> None:
        async with watching(tmp_path) as (_, registry):
            await sampled(registry)
            registry["g"]._kick.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(monitors.WAIT_SECONDS):
                await registry.leave()

    asyncio.run(body())


def test_a_guest_without_a_balloon_is_watched_all_the_same(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            honest = server.answers["qom-list"]
            server.answers["qom-list"] = lambda given: []
            await wait_for(lambda: registry["g"].error is None)
            assert registry.samples() == () and registry["g"].report(0)["balloon"] is False
            server.answers["qom-list"] = honest  # it is plugged in
            await sampled(registry)

            def refuse(given: Any) -> Any:
                raise monitors.Refusal("DeviceNotActive", "No balloon device has been activated")

            server.answers["query-balloon"] = refuse  # and out again
            server.answers["qom-list"] = lambda given: []
            await wait_for(lambda: registry.samples() == ())
            assert registry["g"].error is None

    asyncio.run(body())


def test_a_borrowed_connection_outlives_a_slow_poll(tmp_path: pathlib.Path) -> None:
    """While QEMU connects to a disk it answers nobody; who has it do that must not lose the connection."""

    async def body() -> None:
        async with watching(tmp_path) as (server, registry):
            await sampled(registry)
            async with registry["g"].borrow() as monitor:
                server.answers["query-status"] = lambda given: monitors.NEVER
                polls = len(server.commands("query-status"))
                await wait_for(lambda: len(server.commands("query-status")) > polls + 2)
                assert monitor.is_open
                assert await monitor.execute("query-balloon")
            await wait_for(lambda: not monitor.is_open)

    asyncio.run(body())


def test_a_guest_that_is_not_there_cannot_be_borrowed(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        registry = guests.Guests()
        made = registry.add(watch.Entry("g", tmp_path / "qmp"))
        await made.tried(5)
        with pytest.raises(qmp.MonitorError, match="guest g is not connected: .*not there"):
            async with made.borrow():
                pass
        await registry.remove("g")
        assert "g" not in registry and registry.samples() == ()

    asyncio.run(body())


def test_a_flood_of_events_disturbs_no_other_guest(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        (tmp_path / "other").mkdir()
        async with watching(tmp_path) as (server, registry), monitors.Monitor(tmp_path / "other/qmp") as fine:
            registry.add(watch.Entry("h", fine.path, GIB, 3 * GIB))
            await wait_for(lambda: len(registry.samples()) == 2)
            flood = asyncio.create_task(server.flood(b'{"event": "RESET", "data": {}}\r\n' * 5000, 1.5))
            while not flood.done():
                await asyncio.sleep(0.05)
                assert "h" in [each.name for each in registry.samples()]
            await flood
            # And it is as good as any other again.
            await wait_for(lambda: len(registry.samples()) == 2)

    asyncio.run(body())


def test_failure_is_told_once(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        registry = guests.Guests()
        made = registry.add(watch.Entry("g", tmp_path / "qmp"))
        await made.tried(5)
        await asyncio.sleep(0.5)
        await registry.leave()

    with caplog.at_level("INFO", "swaptide"):
        asyncio.run(body())
    told = [record.getMessage() for record in caplog.records if record.name.startswith("swaptide")]
    assert len(told) == 1 and "guest not connected name=g" in told[0]
