"""Calls that a dead store may block: their results, their errors, and no waiting for them."""

import asyncio
import threading
import time

import pytest

from swaptide.cache import detached


def test_result_and_error() -> None:
    assert asyncio.run(detached.call(lambda: 7, 5)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(detached.call(lambda: 1 // 0, 5))


def test_nobody_waits_for_a_blocked_call() -> None:
    blocked = threading.Event()
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(detached.call(blocked.wait, 0.05))
    assert time.monotonic() - begin < 60
    blocked.set()
