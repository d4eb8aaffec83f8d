"""New limits and orders for a disk: checked, put in force, remembered, and followed until they hold.

On the daemon's loop.  Saving goes on beside it: a store that does not answer must not hold up a disk that
returns memory.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from swaptide.balloon import limits, squeeze
from swaptide.cache import face
from swaptide.cache.errors import BusyError, UsageError
from swaptide.host import definitions, protocol, report, supervisor

Tell = Callable[[dict[str, Any]], None]
# Name and state file of a disk whose target was lowered, and by when that is to hold (time.monotonic).
Fell = Callable[[str, pathlib.Path, float | None], None]


async def change(
    keeper: supervisor.Keeper,
    request: protocol.Set,
    *,
    steered: bool,
    gone: Callable[[], bool],
    tell: Tell,
    fell: Fell,
) -> dict[str, Any]:
    """Change what is given, tell of the way there, and return the last step.

    The steps are those of balloon.squeeze, with what there was before.  `steered` where somebody else sets
    the targets; `gone` says that the disk is being removed.  Raises UsageError if the limits contradict
    each other, BusyError if the disk does not run or was removed.
    """
    deadline = None
    if request.deadline_seconds is not None:
        if request.ram_bytes is None:
            raise UsageError("a deadline needs a limit that is to hold by then; give --ram as well")
        deadline = squeeze.Deadline(time.monotonic(), request.deadline_seconds)
    await report.refresh(keeper)
    # From here until the limits are in force nothing else happens on the loop: no process is begun with the
    # old ones, no other call changes what these build on.
    old = keeper.definition
    cap = old.cap_bytes if request.ram_bytes is None else request.ram_bytes
    floor = old.floor_bytes if request.floor_bytes is None else request.floor_bytes
    wanted = limits.check(old.size_bytes, cap, floor)
    if request.spill_timeout_seconds is not None:
        definitions.check_spill_timeout(old.spill_path, request.spill_timeout_seconds)
    others = ("weight", "compress", "clean_ahead_percent", "spill_timeout_seconds")
    given = {name: getattr(request, name) for name in others if getattr(request, name) is not None}
    changed = msgspec.structs.replace(
        old, cap_bytes=wanted.cap_bytes, floor_bytes=wanted.floor_bytes, **given
    )
    return await _follow(keeper, changed, wanted, deadline, steered=steered, gone=gone, tell=tell, fell=fell)


async def _follow(
    keeper: supervisor.Keeper,
    changed: definitions.Definition,
    wanted: face.Limits,
    deadline: squeeze.Deadline | None,
    *,
    steered: bool,
    gone: Callable[[], bool],
    tell: Tell,
    fell: Fell,
) -> dict[str, Any]:
    name = changed.name
    # A face of its own: the keeper's is closed when the disk is stopped.
    with contextlib.ExitStack() as stack:
        try:
            state = stack.enter_context(face.StateFace(pathlib.Path(changed.state_path)))
        except FileNotFoundError as error:
            await keeper.update(changed)
            raise BusyError(f"disk {name} does not run; its limits will hold later") from error
        prospect = _prospect(state, wanted, deadline)
        if deadline is not None and not state.is_frozen():
            tell(prospect)
        state.set_orders(compress=changed.compress, clean_ahead_permille=changed.clean_ahead_percent * 10)
        if changed.spill_timeout_seconds is not None:
            state.set_spill_timeout(changed.spill_timeout_seconds)
        keeper.use(changed)
        # How much of its cap a disk may use is not for whoever sets the cap to say, where somebody steers.
        squeeze.apply(state, squeeze.keeping_target(state, wanted) if steered else wanted, deadline)
        fell(name, state.path, None if deadline is None else deadline.begun + deadline.seconds)
        # Beside it, since a store that does not answer must not hold up a disk that returns memory.
        saving = asyncio.create_task(keeper.persist())
        try:
            if keeper.state is supervisor.State.FAILED:
                raise BusyError(f"disk {name} does not run ({keeper.error}); its limits will hold later")
            last = prospect
            within = prospect["before_bytes"] <= wanted.cap_bytes
            steps = squeeze.follow(state, wanted.cap_bytes, deadline=deadline, within=within, gone=gone)
            async for step in steps:
                last = {**prospect, **dataclasses.asdict(step)}
                last["returned_bytes"] = max(0, prospect["before_bytes"] - step.ram_bytes)
                tell(last)
        finally:
            unsaved = await saving
            squeeze.release(state, deadline)
        if last["phase"] == squeeze.Phase.SUPERSEDED and gone():
            raise BusyError(f"disk {name} was removed or cleared meanwhile")
        return {**last, "unsaved": unsaved}


def _prospect(
    state: face.StateFace, wanted: face.Limits, deadline: squeeze.Deadline | None
) -> dict[str, Any]:
    """The step before the first: what is to be returned, and how long that takes where it matters."""
    ram = state.ram_bytes()
    estimate = squeeze.estimate_seconds(state.counters(), ram, wanted.target_bytes)
    return {
        **dataclasses.asdict(squeeze.Step(squeeze.Phase.SQUEEZING, 0.0, ram, wanted.target_bytes)),
        "before_bytes": ram,
        "wanted_bytes": max(0, ram - wanted.target_bytes),
        "returned_bytes": 0,
        "deadline_seconds": None if deadline is None else deadline.seconds,
        "estimate_seconds": estimate,
    }
