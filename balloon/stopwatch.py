"""How long disks take to give memory back: from a target that fell to the moment when it holds.

Owned by the loop, one task for each disk that is falling.  It only looks: polls the file's blocks, which is
memory, asks nothing of the disk and waits for no store.
"""

import asyncio
import bisect
import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Final

from swaptide.cache import face
from swaptide.cache.errors import StateError

log = logging.getLogger(__name__)

BOUNDS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# What a squeeze that runs at memory speed takes for a few segments; then less often.
_POLL_SECONDS: Final = 0.005
_SLOW_POLL_SECONDS: Final = 0.05
_SLOW_AFTER_SECONDS: Final = 1.0
# When more than so many fall at once each is looked at less often, so that together they cost no more.
_AT_ONCE: Final = 4


@dataclasses.dataclass
class Record:
    """A disk's squeezes: `counts` by bucket of BOUNDS_SECONDS, one more than those, and their time in all.

    `late` counts those that did not hold when their deadline was over.
    """

    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    sum_seconds: float = 0.0
    late: int = 0

    def note(self, seconds: float) -> None:
        """One that holds, after so long."""
        self.counts[bisect.bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds


@dataclasses.dataclass(eq=False)
class _Squeeze:
    """One that is under way; `due` is in seconds of the clock, None for no such time."""

    due: float | None
    from_bytes: int
    late: bool = False


class Stopwatch:
    """All disks of a daemon, by name.

    A squeeze begins when a target falls below the RAM in use, and ends when that is within the target that is
    in force by then, which may have fallen further.  It does not count where the target rose again to what
    was in use at first, the disk was frozen or is gone: nothing was squeezed then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[str, Record] = {}
        self._under_way: dict[str, tuple[_Squeeze, asyncio.Task[None]]] = {}

    def fell(self, name: str, path: pathlib.Path, due: float | None = None) -> None:
        """The target of the disk whose state file is `path` was lowered; it is to hold by `due`."""
        known = self._under_way.get(name)
        if known is not None:
            squeeze, _ = known
            if due is not None:
                squeeze.due = due if squeeze.due is None else min(squeeze.due, due)
            return
        try:
            self._begin(name, path, due)
        except (StateError, OSError) as error:
            log.debug("squeeze not followed name=%s error=%r", name, str(error))

    def record(self, name: str) -> Record:
        """What is known of a disk."""
        return self._records.get(name) or Record()

    def is_falling(self, name: str) -> bool:
        """Whether a target that fell does not hold yet."""
        return name in self._under_way

    def forget(self, name: str) -> None:
        """The disk is gone for good."""
        self._records.pop(name, None)
        known = self._under_way.pop(name, None)
        if known is not None:
            known[1].cancel()

    async def close(self) -> None:
        """Follow none any more."""
        tasks = [task for _, task in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, name: str, path: pathlib.Path, due: float | None) -> None:
        with contextlib.ExitStack() as stack:
            # One of its own: the keeper's is closed when the disk is stopped.
            state = stack.enter_context(face.StateFace(path))
            squeeze = _Squeeze(due, state.ram_bytes())
            if squeeze.from_bytes <= state.limits().target_bytes:
                return
            task = asyncio.get_running_loop().create_task(
                self._follow(name, state, squeeze, self._clock()), name=f"squeeze-{name}"
            )
            self._under_way[name] = (squeeze, task)
            task.add_done_callback(lambda done: self._end(name, done, state))
            stack.pop_all()

    def _end(self, name: str, task: asyncio.Task[None], state: face.StateFace) -> None:
        state.close()
        if self._under_way.get(name, (None, None))[1] is task:
            del self._under_way[name]

    async def _follow(self, name: str, state: face.StateFace, squeeze: _Squeeze, begun: float) -> None:
        try:
            await self._until_held(name, state, squeeze, begun)
        except (StateError, OSError) as error:
            log.debug("squeeze not followed name=%s error=%r", name, str(error))

    async def _until_held(self, name: str, state: face.StateFace, squeeze: _Squeeze, begun: float) -> None:
        record = self._records.setdefault(name, Record())
        while _uses_more(state, target := state.limits().target_bytes):
            now = self._clock()
            if squeeze.due is not None and now > squeeze.due and not squeeze.late:
                squeeze.late = True
                record.late += 1
                log.warning(
                    "deadline missed name=%s target_bytes=%d ram_bytes=%d after_seconds=%.3f",
                    name,
                    target,
                    state.ram_bytes(),
                    now - begun,
                )
            if state.is_frozen():
                return
            await asyncio.sleep(self._pause_seconds(now - begun))
        if target < squeeze.from_bytes:
            passed = self._clock() - begun
            record.note(passed)
            if squeeze.late:
                log.info("target held late name=%s target_bytes=%d after_seconds=%.3f", name, target, passed)

    def _pause_seconds(self, passed: float) -> float:
        pause = _POLL_SECONDS if passed < _SLOW_AFTER_SECONDS else _SLOW_POLL_SECONDS
        return pause * max(1.0, len(self._under_way) / _AT_ONCE)


def _uses_more(state: face.StateFace, target_bytes: int) -> bool:
    """Whether the disk's RAM is beyond this; mostly its blocks alone are, which are quickly had."""
    return state.state_blocks_bytes() > target_bytes or state.ram_bytes() > target_bytes
