"""Run a call that a dead store may block for ever, without anything waiting for it for ever."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def call(work: Callable[[], T], limit_seconds: float | None) -> T:
    """What `work` returns or raises; TimeoutError after `limit_seconds`, if any, while it goes on.

    It runs in a daemon thread of its own: a thread of a pool would be joined when the loop ends.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=body, name="detached", daemon=True).start()
    async with asyncio.timeout(limit_seconds):
        return await future
