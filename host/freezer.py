"""Have a disk stand still, or go on, and wait until it does.

On the daemon's loop; polls the state file, which is memory, and never waits for the disk or its store.
"""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

from swaptide.cache import face, places
from swaptide.cache.errors import BusyError, SetupError
from swaptide.host import supervisor

LIMIT_SECONDS = 60.0
_POLL_SECONDS = 0.005


async def turn(
    keeper: supervisor.Keeper,
    frozen: bool,
    gone: Callable[[], bool],
    *,
    limit_seconds: float = LIMIT_SECONDS,
) -> dict[str, Any]:
    """Freeze or thaw a disk; returns once nothing of it changes or moves any more, or once it goes on.

    What was asked for is in force in any case but one: BusyError where the disk is gone or was never made, or
    somebody else asked for the opposite meanwhile.  BusyError also where it does not run, SetupError where
    it does not get there in time.
    """
    name, begun = keeper.definition.name, time.monotonic()
    with contextlib.ExitStack() as stack:
        try:  # a face of its own: the keeper's is closed when the disk is stopped
            state = stack.enter_context(face.StateFace(pathlib.Path(keeper.definition.state_path)))
        except FileNotFoundError as error:
            raise BusyError(f"disk {name} does not run, and holds nothing yet") from error
        word = state.set_frozen(frozen)
        while state.counters()["frozen_seen"] != word:
            if gone():
                raise BusyError(f"disk {name} was removed or cleared meanwhile")
            if state.is_frozen() != frozen:
                other = "thawed" if frozen else "frozen"
                raise BusyError(f"disk {name} was {other} by somebody else meanwhile")
            if keeper.state is supervisor.State.FAILED:
                will = "stands still" if frozen else "goes on"
                raise BusyError(f"disk {name} does not run ({keeper.error}); it {will} from when it does")
            if time.monotonic() - begun >= limit_seconds:
                raise SetupError(_late(keeper, frozen, limit_seconds))
            await asyncio.sleep(_POLL_SECONDS)
    return {"name": name, "frozen": frozen, "elapsed_seconds": time.monotonic() - begun}


def _late(keeper: supervisor.Keeper, frozen: bool, limit_seconds: float) -> str:
    disk = keeper.definition
    if not frozen:
        return f"disk {disk.name} was told to go on, but does not answer within {limit_seconds:.0f} s"
    return (
        f"disk {disk.name} takes no more writes, but what was under way has not ended within"
        f" {limit_seconds:.0f} s; is its store {places.show(disk.spill_path)} alive? It stands still from"
        f" when that ends; `swaptide disk thaw {disk.name}` undoes it"
    )
