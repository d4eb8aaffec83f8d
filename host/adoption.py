"""A disk that came in together with its store takes the place of the one it was sent to.

Each step is remembered in the disk's definition before the next one, so that a daemon that was killed goes on
where it was: kept (all of it is here), claimed (the stores say that they are this disk's), swapped (the
process that starts next serves it).  On the daemon's loop.
"""

import asyncio
import contextlib
import logging
import pathlib
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swaptide.cache import detached, face, marks, places, statefile, uris
from swaptide.cache.errors import BusyError, SetupError, StateError, SwaptideError, UsageError
from swaptide.host import definitions, shielded, spills

if TYPE_CHECKING:
    from swaptide.host import estate, jobs, supervisor

log = logging.getLogger(__name__)

_CLAIM_SECONDS: Final = 60.0
_SERVED_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.01
_LATER_SECONDS: Final = 0.5


def is_due(disk: definitions.Definition) -> bool:
    """Whether the process that starts next serves what came."""
    return disk.adoption is not None and disk.adoption.stage == "claimed"


def waits(disk: definitions.Definition) -> bool:
    """Whether what came with its store is here, and may be this disk's yet."""
    return disk.adoption is not None and disk.adoption.stage != "swapped"


async def keep(keeper: "supervisor.Keeper", step: "jobs.Step") -> None:
    """Remember what is all here; raises SetupError where it makes no sense or cannot be remembered."""
    spill, number, found = step.get("spill"), step.get("number"), step.get("marks")
    try:
        kept = msgspec.convert(
            {"stage": "kept", "number": number, "spill_path": spill, "marks": found}, definitions.Adoption
        )
        _check(keeper.definition, kept)
    except (msgspec.ValidationError, UsageError) as error:
        raise SetupError(f"what the process says makes no sense: {error}") from error
    await keeper.commit(msgspec.structs.replace(keeper.definition, adoption=kept))


async def forget(keeper: "supervisor.Keeper") -> None:
    """What came was dropped."""
    adoption = keeper.definition.adoption
    if adoption is not None and adoption.stage == "kept":
        await keeper.update(msgspec.structs.replace(keeper.definition, adoption=None))


async def claim(keeper: "supervisor.Keeper", *, given: bool) -> None:
    """Have the stores be this disk's.  Unless it was `given` it is looked first whether its owner lives.

    Raises BusyError where they were used since it was copied, SetupError where one is not reached.
    """
    disk = keeper.definition
    adoption, disk_id = disk.adoption, disk.disk_id
    if adoption is None or disk_id is None:
        raise BusyError(f"disk {disk.name} has not arrived")
    if adoption.stage != "kept":
        return

    def body() -> None:
        if not given:
            marks.check_lifeless(adoption.spill_path, adoption.marks, disk_id)
        marks.claim(adoption.spill_path, adoption.marks, disk_id, disk.state_path)

    try:
        await detached.call(body, _CLAIM_SECONDS)
    except TimeoutError:
        raise SetupError(f"spill={places.show(adoption.spill_path)}: its server does not answer") from None
    claimed = msgspec.structs.replace(adoption, stage="claimed")
    await keeper.commit(msgspec.structs.replace(keeper.definition, adoption=claimed))


async def swapped(disk: definitions.Definition, belongings: "estate.Estate") -> dict[str, Any]:
    """Put what came into the place of what was here, while nobody serves it; returns what changes.

    May be done again after it was cut off.  Raises SetupError.
    """
    adoption = disk.adoption
    assert adoption is not None and disk.disk_id is not None
    state = pathlib.Path(disk.state_path)
    draft = statefile.draft_of(state, adoption.number)
    try:
        if draft.exists():
            if disk.encrypt:
                await belongings.adopt_key(adoption.number, disk.disk_id)
            draft.rename(state)
        else:
            _check_swapped(disk, state)
    except (OSError, StateError) as error:
        raise SetupError(f"{state} cannot be replaced: {error}") from error
    log.info("disk took its place name=%s spill=%r", disk.name, places.show(adoption.spill_path))
    before = msgspec.structs.replace(adoption, stage="swapped", spill_path=disk.spill_path, marks=())
    return {"spill_path": adoption.spill_path, "spill_chosen": True, "adoption": before}


def _check_swapped(disk: definitions.Definition, state: pathlib.Path) -> None:
    """Raises SetupError unless what came is in its place already, or all of it went with the host."""
    if not state.exists():
        return
    with face.StateFace(state) as found:
        if found.gate() != "open":
            raise SetupError(f"what came for disk {disk.name} is gone; `swaptide disk clear {disk.name}`")


async def serve(keeper: "supervisor.Keeper") -> None:
    """Have a new process serve what came, and release what was here; raises SetupError."""
    await until_served(keeper)
    await clean_up(keeper)


async def until_served(keeper: "supervisor.Keeper") -> None:
    """Wait until a process serves the disk, the next one where that is due; raises SetupError."""
    deadline = time.monotonic() + _SERVED_SECONDS
    while is_due(keeper.definition) or not keeper.serves:
        if time.monotonic() >= deadline:
            raise SetupError(
                f"disk {keeper.definition.name} is not served yet: {keeper.error or 'it starts'}"
            )
        if is_due(keeper.definition):
            with contextlib.suppress(BusyError):  # it is being started
                await keeper.restart()
        await asyncio.sleep(_POLL_SECONDS)


async def finish(keeper: "supervisor.Keeper") -> None:
    """As another daemon began it, from where that was: the disk's keeper serves what came."""
    while is_due(keeper.definition):
        await asyncio.sleep(_LATER_SECONDS)
    await clean_up(keeper)


async def clean_up(keeper: "supervisor.Keeper") -> None:
    """Release the store of the disk that was here before, if there is one."""
    adoption, disk_id = keeper.definition.adoption, keeper.definition.disk_id
    if adoption is None or adoption.stage != "swapped" or disk_id is None:
        return
    await spills.release(adoption.spill_path, disk_id)
    if keeper.definition.adoption == adoption:
        await keeper.update(msgspec.structs.replace(keeper.definition, adoption=None))


async def follow(keeper: "supervisor.Keeper", job: "jobs.Job") -> str:
    """A disk that comes in with its store, from when all of it is here; returns its store.

    Raises SwaptideError; then it is as the disk's gate says.
    """
    name = keeper.definition.name
    try:
        await keep(keeper, job.step)
    except BaseException:
        await forget(keeper)
        raise
    # From here on it stays known: the process may drop it, but nobody may take it for a copied disk.
    job.order("kept")
    await job.until("given")
    adoption = keeper.definition.adoption
    assert adoption is not None

    async def take() -> None:
        await claim(keeper, given=True)
        job.order("mine")
        with contextlib.suppress(SwaptideError):  # whether the source heard it or not
            await job.until("done")
        await serve(keeper)

    await shielded.to_the_end(take())
    log.info("disk taken in with its store name=%s", name)
    return places.show(adoption.spill_path)


async def accept(keeper: "supervisor.Keeper") -> None:
    """Serve what arrived, on its operator's word.  Raises BusyError where its owner lives, SetupError."""

    async def take() -> None:
        await claim(keeper, given=False)
        await serve(keeper)

    await shielded.to_the_end(take())


def _check(disk: definitions.Definition, kept: definitions.Adoption) -> None:
    definitions.check_spill(kept.spill_path)
    stores = marks.stores(kept.spill_path)
    state = pathlib.Path(disk.state_path)
    if statefile.id_of_draft(state, statefile.draft_of(state, kept.number)) != kept.number:
        raise UsageError("no number")
    if len(kept.marks) != len(stores) or not all(isinstance(each.uri, uris.Uri) for each in stores):
        raise UsageError("no marks")
