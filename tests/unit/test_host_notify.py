"""What a service manager is told, on a socket of its kind."""

import asyncio
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from swaptide.host import notify

LIMIT_SECONDS = 20.0


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        # Bound to nothing, a socket gets an abstract name that nobody else has.
        listening.bind(str(tmp_path / "notify") if request.param == "file" else "")
        listening.setblocking(False)
        yield listening


def name_of(manager: socket.socket) -> str:
    """As in NOTIFY_SOCKET."""
    name = manager.getsockname()
    return name if isinstance(name, str) else "@" + os.fsdecode(name[1:])


async def told(manager: socket.socket) -> list[str]:
    async with asyncio.timeout(LIMIT_SECONDS):
        return (await asyncio.get_running_loop().sock_recv(manager, 4096)).decode().split("\n")


def test_begin_life_and_end_are_told(manager: socket.socket) -> None:
    async def play() -> None:
        disks = 1
        notifier = notify.Notifier(
            lambda: f"disks: {disks}", {"NOTIFY_SOCKET": name_of(manager), "WATCHDOG_USEC": "10000"}
        )
        notifier.start()
        assert await told(manager) == ["READY=1", "STATUS=disks: 1"]
        assert await told(manager) == ["WATCHDOG=1", "STATUS=disks: 1"]
        disks = 2
        while (words := await told(manager)) != ["WATCHDOG=1", "STATUS=disks: 2"]:
            assert words == ["WATCHDOG=1", "STATUS=disks: 1"]
        await notifier.close()
        while (words := await told(manager))[0] != "STOPPING=1":
            assert words[0] == "WATCHDOG=1"

    asyncio.run(play())


def test_a_loop_that_stands_still_is_silent(manager: socket.socket) -> None:
    async def play() -> None:
        notifier = notify.Notifier(str, {"NOTIFY_SOCKET": name_of(manager), "WATCHDOG_USEC": "1000"})
        notifier.start()
        assert (await told(manager))[0] == "READY=1"
        with pytest.raises(BlockingIOError):
            for _ in range(1000):  # the loop does not come round here
                manager.recv(4096)
        await notifier.close()

    asyncio.run(play())


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "nonsense"])
def test_nobody_asked(address: str | None) -> None:
    async def play() -> None:
        notifier = notify.Notifier(str, {} if address is None else {"NOTIFY_SOCKET": address})
        notifier.start()
        assert len(asyncio.all_tasks()) == 1
        await notifier.close()

    asyncio.run(play())


def test_a_manager_that_is_gone_or_full_does_no_harm(tmp_path: pathlib.Path) -> None:
    async def play(address: str) -> None:
        beats = 0

        def status() -> str:
            nonlocal beats
            beats += 1
            return "disks: 0"

        notifier = notify.Notifier(status, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200"})
        notifier.start()
        async with asyncio.timeout(LIMIT_SECONDS):
            while beats < 2000:  # a queue is full after some hundreds
                await asyncio.sleep(0.01)
        await notifier.close()

    asyncio.run(play(str(tmp_path / "gone")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        asyncio.run(play(str(tmp_path / "deaf")))


@pytest.mark.parametrize(
    ("environ", "beats_within"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, 10.0),  # meant for another process
        ({"WATCHDOG_USEC": "often"}, 10.0),
        ({}, 10.0),
    ],
)
def test_the_watchdog_hears_twice_of_us_in_its_time(environ: dict[str, str], beats_within: float) -> None:
    assert notify._beat_seconds(environ) == beats_within
