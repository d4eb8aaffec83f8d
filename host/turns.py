"""Turns for disks that start: so many at once as the host can work on, first come, first served.

Sixty processes that start at once are all late together, and the daemon with them; by turns the first ones
serve after half a second.  Belongs to the daemon's loop.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final

# Who takes longer waits for something else than a core, its store for example, and goes on beside others.
TURN_SECONDS: Final = 1.0


class Turns:
    """`most` at once; two for each core by default, since a start waits for the disk as well."""

    def __init__(self, most: int | None = None, seconds: float = TURN_SECONDS) -> None:
        self._free = asyncio.Semaphore(most or 2 * len(os.sched_getaffinity(0)))
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the block, but no longer than a turn lasts."""
        await self._free.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free.release()

        over = asyncio.get_running_loop().call_later(self._seconds, give_back)
        try:
            yield
        finally:
            over.cancel()
            give_back()
