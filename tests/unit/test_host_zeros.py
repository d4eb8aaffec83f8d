"""Zeros on a device: by whatever it has for that, and never by its word alone.  A file stands for it here."""

import errno
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from swaptide.host import zeros

STEP = zeros.STEP_BYTES
SIZE = 2 * STEP + 8192
DISCARD, ZERO_OUT = 0x1277, 0x127F


@pytest.fixture
def device(tmp_path: pathlib.Path) -> Iterator[int]:
    fd = os.open(tmp_path / "device", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * SIZE)
    yield fd
    os.close(fd)


def answers(kinds: dict[int, Callable[[int, int, int], None]]) -> Callable[[int, int, bytes], int]:
    def ioctl(fd: int, request: int, raw: bytes) -> int:
        start, count = zeros._RANGE.unpack(raw)
        if request not in kinds:
            raise OSError(errno.EOPNOTSUPP, "no")
        kinds[request](fd, start, count)
        return 0

    return ioctl


def lies(fd: int, start: int, count: int) -> None:
    """As a device whose discard means nothing."""


def obeys(fd: int, start: int, count: int) -> None:
    os.pwrite(fd, bytes(count), start)


def forgets_half(fd: int, start: int, count: int) -> None:
    obeys(fd, start, STEP)


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {DISCARD: obeys},
        {DISCARD: lies},
        {DISCARD: forgets_half},
        {ZERO_OUT: obeys},
        {DISCARD: forgets_half, ZERO_OUT: obeys},
    ],
)
def test_zeros_from_start_to_end(
    device: int, monkeypatch: pytest.MonkeyPatch, kinds: dict[int, Callable[[int, int, int], None]]
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", answers(kinds))
    progress = zeros.Progress()
    zeros.write(device, 4096, SIZE - 4096, progress)
    assert os.pread(device, SIZE, 0) == b"x" * 4096 + bytes(SIZE - 8192) + b"x" * 4096
    assert progress.done_bytes == progress.total_bytes == SIZE - 8192


def test_a_device_that_fails_is_an_error(device: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "ioctl", fails)
    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="Input/output error"):
        zeros.write(device, 0, SIZE, zeros.Progress())
