"""The guests that are registered: what the policy may know of them, and its answer carried out.

Owned by the loop.  Nothing here waits for a guest.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from swaptide.balloon import qmp, samples, watch

OnEvent = Callable[[watch.Watch, qmp.Event], None]
OnConnect = Callable[[watch.Watch], Awaitable[None]]


class Guests:
    """All guests by name."""

    def __init__(
        self, on_event: OnEvent = lambda watch, event: None, on_connect: OnConnect | None = None
    ) -> None:
        """`on_event` hears what any guest's QEMU tells; `on_connect` is awaited after each connection."""
        self._on_event = on_event
        self._on_connect = on_connect
        self._watches: dict[str, watch.Watch] = {}

    def __iter__(self) -> Iterator[watch.Watch]:
        return iter([self._watches[name] for name in sorted(self._watches)])

    def __contains__(self, name: object) -> bool:
        return name in self._watches

    def __getitem__(self, name: str) -> watch.Watch:
        return self._watches[name]

    def add(self, entry: watch.Entry) -> watch.Watch:
        """Begin to watch a guest; its name must be free."""
        made = self._watches[entry.name] = watch.Watch(entry, self._on_event, self._on_connect)
        made.start()
        return made

    async def remove(self, name: str) -> None:
        """Watch it no more; its balloon stays as it is."""
        await self._watches.pop(name).stop()

    async def leave(self) -> None:
        """Watch none of them any more."""
        await asyncio.gather(*(each.stop() for each in self._watches.values()))

    def samples(self) -> tuple[samples.Guest, ...]:
        """Those whose balloon may be moved now, by name; one that is silent, paused or gone is missing."""
        now, wall = time.monotonic(), time.time()
        return tuple(found for each in self if (found := each.sample(now, wall)) is not None)

    def apply(self, balloons: Mapping[str, int]) -> None:
        """Tell balloons their logical sizes in bytes; what a guest makes of it, the next samples say."""
        for name, size_bytes in balloons.items():
            if name in self._watches:
                self._watches[name].move(size_bytes)
