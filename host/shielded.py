"""Work that is done whole, whoever leaves meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do it whole, also if this task is cancelled meanwhile; CancelledError after it then."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except BaseException:
            break
    if cancelled and task.exception() is None:
        raise asyncio.CancelledError
    task.result()
