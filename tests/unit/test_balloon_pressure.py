"""Pressure triggers in an asyncio loop; a socket with urgent data stands in for the kernel's file."""

import asyncio
import os
import pathlib
import socket
from collections.abc import Callable, Coroutine

import pytest

from swaptide.balloon import pressure

TEXT = "some avg10=1.25 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
WAIT_SECONDS = 60.0


class Urgent:
    """A descriptor that has EPOLLPRI when `fire` is called, and an error when `break_off` is."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.far = socket.create_connection(listener.getsockname())
        self.near, _ = listener.accept()
        listener.close()

    def arm(self, path: pathlib.Path) -> tuple[int, int]:
        return os.dup(self.near.fileno()), 1

    def fire(self) -> None:
        self.far.send(b"!", socket.MSG_OOB)

    def break_off(self) -> None:
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.far.close()  # answers with a reset

    def close(self) -> None:
        self.far.close()
        self.near.close()


def run(body: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await body()

    asyncio.run(bounded())


def test_a_trigger_wakes_the_loop(tmp_path: pathlib.Path) -> None:
    urgent, fired = Urgent(), asyncio.Event()
    watched = pressure.Pressure(fired.set, urgent.arm)

    async def body() -> None:
        watched.watch([tmp_path / "memory"])
        await asyncio.sleep(0)
        assert not fired.is_set()
        urgent.fire()
        await fired.wait()
        assert not watched.polled(1.0), "what has a trigger is not polled"
        watched.close()
        watched.close()

    run(body)
    urgent.close()


def test_a_file_that_goes_away_is_let_go(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    urgent = Urgent()
    watched = pressure.Pressure(lambda: None, urgent.arm)

    async def body() -> None:
        watched.watch([tmp_path / "memory"])
        urgent.break_off()
        while "gone" not in caplog.text:
            await asyncio.sleep(0.01)
        for _ in range(10):
            await asyncio.sleep(0)
        watched.watch([])
        watched.close()

    run(body)
    assert caplog.text.count("gone") == 1
    urgent.close()


def test_without_pressure_information_one_line_says_so(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = pressure.Pressure(lambda: None)

    async def body() -> None:
        for _ in range(5):
            watched.watch([tmp_path / "pressure/memory"])
            assert not watched.polled(1.0)
            assert watched.percent() is None
        watched.close()

    run(body)
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text and "only free memory is watched" in caplog.text


def test_a_file_that_takes_no_trigger_is_read_instead(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A regular file is one: epoll refuses it."""
    path = tmp_path / "memory"
    path.write_text(TEXT.format(0))
    watched = pressure.Pressure(lambda: None)

    def refuse(path: pathlib.Path) -> tuple[int, int]:
        return os.open(path, os.O_RDWR), 1

    watched = pressure.Pressure(lambda: None, refuse)

    async def body() -> None:
        watched.watch([path])
        assert watched.percent() == 1.25
        assert not watched.polled(0.0)
        path.write_text(TEXT.format(149_000))
        assert not watched.polled(1.0)
        path.write_text(TEXT.format(151_000))
        assert watched.polled(1.5)
        assert not watched.polled(1.6), "told once"
        path.write_text(TEXT.format(251_000))
        assert not watched.polled(4.0), "a little in a long time"
        path.write_text(TEXT.format(350_000))
        assert not watched.polled(6.5)
        path.write_text("nonsense")
        assert not watched.polled(7.0)
        assert watched.percent() is None
        watched.close()

    run(body)
    assert len(caplog.records) == 1 and "read now and then" in caplog.text


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_the_short_window_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    path = tmp_path / "memory"
    path.touch()
    asked: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        asked.append(data)
        if len(asked) <= refused:
            raise PermissionError(1, "Operation not permitted")
        return len(data)

    monkeypatch.setattr(os, "write", write)
    if refused == 2:
        with pytest.raises(PermissionError):
            pressure.arm(path)
    else:
        fd, window = pressure.arm(path)
        os.close(fd)
        assert window == refused + 1
    assert asked == [b"some 150000 1000000\0", b"some 150000 2000000\0"][: refused + 1]


def test_this_host_takes_a_trigger() -> None:
    path = pathlib.Path("/proc/pressure/memory")
    try:
        fd, window = pressure.arm(path)
    except OSError as error:
        pytest.skip(f"no pressure triggers here: {error}")
    os.close(fd)
    assert window in pressure.WINDOWS_SECONDS
