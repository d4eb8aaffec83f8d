"""One QMP connection to servers of every kind: each ends in an answer or one clear error, in time."""

import asyncio
import contextlib
import json
import pathlib
import socket
from collections.abc import Callable

import pytest

from swaptide.balloon import figures, qmp
from tests.unit import monitors


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "OPEN_SECONDS", 0.5)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "qmp"


async def fails_to_open(path: pathlib.Path, *words: str) -> None:
    monitor = qmp.Monitor(path)
    with pytest.raises(qmp.MonitorError) as caught:
        await monitor.open()
    text = str(caught.value)
    assert str(path) in text and "\n" not in text, text
    for word in words:
        assert word in text, text
    assert not monitor.is_open
    await monitor.close()


def test_answers_and_refusals(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            assert (await monitor.ask(figures.Status, "query-status")).running is True
            with pytest.raises(qmp.RefusedError, match="frob has not been found") as caught:
                await monitor.execute("frob", {"a": 1})
            assert caught.value.kind == "CommandNotFound"
            assert server.said[-1] == ("frob", {"a": 1})
            await monitor.close()
            with pytest.raises(qmp.MonitorError, match="not connected"):
                await monitor.execute("query-status")

    asyncio.run(body())


def test_no_socket_no_listener_no_permission(path: pathlib.Path) -> None:
    async def body() -> None:
        await fails_to_open(path, "not there", "-qmp unix:")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
        await fails_to_open(path, "not listened at", "ended")
        path.unlink()
        path.write_text("no socket")
        await fails_to_open(path)
        await fails_to_open(path.with_name("x" * 200))

    asyncio.run(body())


def test_a_greeting_that_never_comes(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.greeting = None
            await fails_to_open(path, "says nothing", "is another client connected to this monitor?")

    asyncio.run(body())


def test_a_monitor_that_another_client_has(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path):
            first = qmp.Monitor(path)
            await first.open()
            await fails_to_open(path, "is another client connected to this monitor?")
            assert await first.execute("query-status")
            await first.close()
            second = qmp.Monitor(path)
            await second.open()
            await second.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "greeting",
    [b"hello\r\n", b"{}\r\n", b"[]\r\n", b'{"QMP": 3}\r\n', b"\xff\xfe\r\n", b"[" * 100_000 + b"\r\n"],
    ids=["words", "empty", "list", "number", "bytes", "deep"],
)
def test_what_is_no_greeting(path: pathlib.Path, greeting: bytes) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.greeting = greeting
            await fails_to_open(path, "does not speak QMP", "-qmp")

    asyncio.run(body())


def test_a_greeting_without_end(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.greeting = b"x" * (4 * qmp.LINE_BYTES)
            await fails_to_open(path, "does not speak QMP")

    asyncio.run(body())


def test_a_server_that_hangs_up_first(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.answers["qmp_capabilities"] = lambda given: monitors.HANG_UP
            await fails_to_open(path, "hangs up before it greets")

    asyncio.run(body())


@pytest.mark.parametrize("events", [1, 2, 3])
def test_an_event_before_the_greeting_is_answered(path: pathlib.Path, events: int) -> None:
    """QEMU does that; it is no reason to give up, unless it does nothing else."""

    async def body() -> None:
        async with monitors.Monitor(path) as server:

            def answer(given: object) -> object:
                if len(server.commands("qmp_capabilities")) <= events:
                    server.event("STOP")
                return {}

            server.answers["qmp_capabilities"] = answer
            if events == 3:
                await fails_to_open(path, "does not speak QMP")
                return
            monitor = qmp.Monitor(path)
            await monitor.open()
            assert await monitor.execute("query-status")
            await monitor.close()

    asyncio.run(body())


def test_a_command_that_is_never_answered(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            server.answers["balloon"] = lambda given: monitors.NEVER
            with pytest.raises(qmp.MonitorError, match="balloon is not answered within 0.2 s"):
                await monitor.execute("balloon", {"value": 1}, seconds=0.2)
            assert await monitor.execute("query-status")  # the others still are
            await monitor.close()

    asyncio.run(body())


def test_a_connection_that_dies_in_the_middle(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            server.answers["balloon"] = lambda given: monitors.HANG_UP
            lost = asyncio.create_task(monitor.lost())
            with pytest.raises(qmp.MonitorError, match="went away during balloon"):
                await monitor.execute("balloon", {"value": 1})
            await asyncio.wait_for(lost, 60)
            assert not monitor.is_open
            with pytest.raises(qmp.MonitorError):
                await monitor.execute("query-status")
            await monitor.close()  # after an EOF: no error

    asyncio.run(body())


@pytest.mark.parametrize(
    "answer",
    [None, [], "much", {"actual": -1}, {"actual": 1 << 64}, {"actual": "1G"}, {"actual": True}, {"size": 1}],
)
def test_lies_are_told_as_such(path: pathlib.Path, answer: object) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.answers["query-balloon"] = lambda given: answer
            monitor = qmp.Monitor(path)
            await monitor.open()
            with pytest.raises(qmp.MonitorError, match="nonsense"):
                await monitor.ask(figures.Balloon, "query-balloon")
            await monitor.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n",
        b"[1,2]\r\n",
        b"[" * 200_000 + b"\r\n",
        b'{"error": {"class": 3}}\r\n',
        b'{"event": 7, "data": [], "timestamp": "now"}\r\n' * 3,
        b'{"event": "RESET", "timestamp": {"seconds": "x"}}\r\n',
        b'{"id": ["a"], "return": 1}\r\n',
        b"x" * (3 * qmp.LINE_BYTES),
    ],
    ids=lambda raw: f"{raw[:12]!r}",
)
def test_lines_out_of_the_blue(path: pathlib.Path, raw: bytes) -> None:
    """Either the connection goes on or it ends; nothing else."""

    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            server.tell_raw(raw)
            with contextlib.suppress(qmp.MonitorError):
                assert (await monitor.execute("query-status", seconds=3))["running"] is True
            await monitor.close()

    asyncio.run(body())


def test_refusals_are_fit_for_a_terminal(path: pathlib.Path) -> None:
    def refuse(given: object) -> object:
        raise monitors.Refusal("GenericError", "\x1b[2J\nowned\t" + "x" * 10_000)

    async def body() -> None:
        async with monitors.Monitor(path) as server:
            server.answers["balloon"] = refuse
            monitor = qmp.Monitor(path)
            await monitor.open()
            with pytest.raises(qmp.RefusedError) as caught:
                await monitor.execute("balloon", {"value": 1})
            assert str(caught.value).isprintable() and len(str(caught.value)) < 400
            await monitor.close()

    asyncio.run(body())


def test_events_are_heard_while_somebody_listens(path: pathlib.Path) -> None:
    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            heard: list[qmp.Event] = []

            def fails(event: qmp.Event) -> None:
                raise RuntimeError("must not end the connection")

            with monitor.hearing(fails), monitor.hearing(heard.append):
                server.event("RESET", at=1234.5, guest=True)
                await monitors.wait_for(lambda: len(heard) == 1)
            server.event("RESET")
            assert await monitor.execute("query-status")
            assert heard == [qmp.Event("RESET", {"guest": True}, 1234.5)]
            await monitor.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"event": "RESET", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}).encode()
        + b"\r\n",
        b'{"id": "nobody", "return": {}}\r\n',
        b"{}\n",
    ],
    ids=["events", "answers", "nothing"],
)
def test_a_flood_stops_nobody_and_is_kept_nowhere(
    path: pathlib.Path, raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others on the loop run at their pace, and what is taken in is bounded by time, not by the sender."""
    taken = counted(monkeypatch)

    async def body() -> None:
        async with monitors.Monitor(path) as server:
            monitor = qmp.Monitor(path)
            await monitor.open()
            flood = asyncio.create_task(server.flood(raw * 1000, 2.0))
            turns = 0
            while not flood.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 4, "the others had to wait for its end"
            assert await flood > 0
            client = monitor._client
            assert client is not None and client.events.empty() and client.events.history == ()
            await asyncio.wait_for(monitor.close(), 60)

    asyncio.run(body())
    assert 0 < taken() <= 4 * qmp._BURST


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    count = 0
    step = qmp.Pace.step

    async def counting(pace: qmp.Pace) -> None:
        nonlocal count
        await step(pace)
        count += 1

    monkeypatch.setattr(qmp.Pace, "step", counting)
    return lambda: count
