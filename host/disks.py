"""The disks of a daemon and what can be done with them; one method for each call of the command.

Owned by the daemon's loop.  A disk that is being cleared or removed stays in the table, marked, so that
its name and files are not taken by another call; nothing here waits for a store without a time limit.
"""

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import msgspec

from swaptide.balloon import census, stopwatch
from swaptide.cache import face, geometry, layout
from swaptide.cache.errors import BusyError, SetupError, StateError, UsageError
from swaptide.host import (
    adoption,
    config,
    definitions,
    freezer,
    isolation,
    making,
    protocol,
    relimit,
    report,
    spills,
    steps,
    supervisor,
    turns,
)

log = logging.getLogger(__name__)

_CLEARING = "being cleared"
_REMOVING = "being removed"


async def _nothing_to_settle() -> None:
    """Nobody steers."""


class Disks:
    """All disks of one run directory."""

    def __init__(
        self,
        chosen: config.Config,
        memory_dir: pathlib.Path,
        store: definitions.Store,
        servants: isolation.Servants | None = None,
    ) -> None:
        self._config = chosen
        self._memory_dir = memory_dir
        self._store = store
        self._servants = servants or isolation.Servants()
        self.squeezes = stopwatch.Stopwatch()
        self._turns = turns.Turns()
        self._keepers: dict[str, supervisor.Keeper] = {}
        self._busy: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._wake: Callable[[], None] = lambda: None
        self._settle: Callable[[], Awaitable[None]] = _nothing_to_settle

    def __len__(self) -> int:
        return len(self._keepers)

    def steered_by(self, wake: Callable[[], None], settle: Callable[[], Awaitable[None]]) -> None:
        """Who sets the targets: `wake` tells them of a change, `settle` waits until they have seen it."""
        self._wake, self._settle = wake, settle

    def keepers(self) -> list[supervisor.Keeper]:
        """The keepers of all disks, by name; also of those that do not serve, or are on their way out."""
        return [self._keepers[name] for name in sorted(self._keepers)]

    def keeper(self, name: str) -> supervisor.Keeper:
        """The keeper of a disk; raises UsageError if there is none, BusyError if it is on its way out."""
        return self._available(name)

    def members(self) -> list[census.Member]:
        """The disks that take memory, for whoever sets the targets."""
        found = []
        for name, keeper in self._keepers.items():
            with contextlib.suppress(StateError, OSError):  # its report says so
                # One that is on its way out must not be opened again: its file is about to go.
                leaving = name in self._busy or keeper.state is supervisor.State.STOPPED
                state = keeper.face if leaving else keeper.open_face()
                if state is not None:
                    serves = keeper.serves and not leaving
                    found.append(census.Member(name, state, keeper.definition.weight, serves))
        return found

    def start(self) -> None:
        """Adopt or start every disk that is defined; one whose removal was cut off is removed."""
        for definition in self._store.load():
            keeper = self._keeper(definition)
            if definition.removing:
                self._in_background(self._finish_removal(keeper))
            else:
                keeper.start()
                if definition.adoption is not None:
                    self._in_background(adoption.finish(keeper))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def leave(self) -> None:
        """Let go of all disks; their processes go on serving."""
        for removal in self._background:
            removal.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.squeezes.close()
        for keeper in self._keepers.values():
            await keeper.leave()

    async def add(self, request: protocol.Add, tell: steps.Tell) -> report.Report:
        """Make a disk, tell of the way there, and wait until it serves.

        Raises UsageError for what cannot be, SetupError with the plugin's reason; nothing is left then.
        """
        if request.name in self._keepers:
            raise UsageError(
                f"disk {request.name} exists; choose another name, or remove it with"
                f" `swaptide disk rm {request.name}`"
            )
        definition = making.define(request, self._config, self._memory_dir, apart=self._servants.apart)
        dropped = making.make_room(pathlib.Path(definition.state_path), request.force)
        keeper = self._keeper(definition)
        try:
            if dropped is not None:
                await keeper.estate.erase_key(*dropped)
            await self._store.save(definition)
            keeper.start(force=request.force)
            await making.until_started(keeper, steps.Steps(tell))
        except Exception:
            if self._keepers.get(request.name) is keeper and request.name not in self._busy:
                await self._discard(keeper, steps.Steps(tell))
            raise
        await self._settle()
        return await report.fresh(keeper)

    async def all(self) -> list[report.Report]:
        """The reports of all disks, by name."""
        return list(await asyncio.gather(*map(report.fresh, self.keepers())))

    async def show(self, name: str) -> report.Report:
        """The report of one disk."""
        return await report.fresh(self._find(name))

    async def looks(self) -> list[report.Report]:
        """The reports of all disks, by name, each with its latency counts."""
        return list(await asyncio.gather(*map(report.look, self.keepers())))

    async def set(self, request: protocol.Set, tell: relimit.Tell) -> dict[str, Any]:
        """Change a disk's limits and orders, tell of the way there, and return the last step.

        The steps are those of balloon.squeeze, with what there was before.  Raises UsageError if the limits
        contradict each other.
        """
        keeper = self._available(request.name)
        last = await relimit.change(
            keeper,
            request,
            steered=self._config.balloon,
            gone=lambda: self._gone(keeper),
            tell=tell,
            fell=self.squeezes.fell,
        )
        await self._settle()
        return last

    async def clear(self, request: protocol.Clear, tell: steps.Tell) -> report.Report:
        """Empty a disk, which comes back as another one; raises BusyError if it is connected."""
        told = steps.Steps(tell)
        keeper = self._available(request.name)
        await self._refuse_connected(keeper, request.force, "cleared")
        with self._marked(request.name, _CLEARING):
            await self._drop_contents(keeper, told)
            if self._keepers.get(request.name) is not keeper or self._busy.get(request.name) != _CLEARING:
                raise BusyError(f"disk {request.name} was removed while it was being cleared")
            await keeper.update(keeper.blank())
            keeper.start()
            await making.until_started(keeper, told)
        await self._settle()
        return await report.fresh(keeper)

    async def restart(self, name: str) -> report.Report:
        """Serve a disk with a new process, from the code that is installed now; its clients wait meanwhile.

        Raises BusyError if the disk does not run, SetupError if the new process does not serve.
        """
        keeper = self._available(name)
        pause = await keeper.restart()
        return {**await report.fresh(keeper), "pause_seconds": pause}

    async def freeze(self, name: str, frozen: bool) -> dict[str, Any]:
        """Have a disk stand still, or go on again; returns once it does.  Raises as `freezer.turn`."""
        keeper = self._available(name)
        if frozen:
            log.info("freeze asked for name=%s", name)
        else:
            log.info("thaw asked for name=%s", name)
        return await freezer.turn(keeper, frozen, lambda: self._gone(keeper))

    async def remove(self, request: protocol.Remove, tell: steps.Tell) -> dict[str, Any]:
        """Remove a disk and all its files, tell of the way there; returns which one that was.

        Raises BusyError if it is connected, SetupError if it serves no more but something of it is left.
        """
        keeper = self._find(request.name)
        # A disk that hangs while it is being cleared can still be removed by force.
        if self._busy.get(request.name) != _CLEARING or not request.force:
            self._available(request.name)
        await self._refuse_connected(keeper, request.force, "removed")
        left = await self._discard(keeper, steps.Steps(tell))
        log.info("disk removed name=%s", request.name)
        if left:
            raise SetupError(
                f"disk {request.name} serves no more, but not all of it is gone: {'; '.join(left)};"
                " remove that by hand"
            )
        return {"name": request.name, "id": keeper.definition.disk_id}

    async def _finish_removal(self, keeper: supervisor.Keeper) -> None:
        name = keeper.definition.name
        with self._marked(name, _REMOVING):
            await keeper.take_up()
            await self._discard(keeper, steps.Steps())
        log.info("disk removed, as begun by another daemon name=%s", name)

    def _keeper(self, definition: definitions.Definition) -> supervisor.Keeper:
        keeper = supervisor.Keeper(
            self._config, self._memory_dir, definition, self._store.save, self._servants, self._turns
        )
        keeper.changed = lambda: self._changed(keeper)
        self._keepers[definition.name] = keeper
        return keeper

    def _changed(self, keeper: supervisor.Keeper) -> None:
        """A disk came, went, or serves again."""
        if not self._config.balloon and keeper.serves:
            with contextlib.suppress(StateError, OSError):
                state = keeper.open_face()
                if state is not None:
                    # A daemon with a balloon may have left less.
                    state.set_limits(target_bytes=state.limits().cap_bytes)
        self._wake()

    def _find(self, name: str) -> supervisor.Keeper:
        if name not in self._keepers:
            known = ", ".join(sorted(self._keepers)) or "none"
            raise UsageError(f"there is no disk {name!r}; the disks are: {known}")
        return self._keepers[name]

    def _available(self, name: str) -> supervisor.Keeper:
        keeper = self._find(name)
        if name in self._busy:
            raise BusyError(f"disk {name} is {self._busy[name]}; try again when that is done")
        return keeper

    async def _refuse_connected(self, keeper: supervisor.Keeper, force: bool, what: str) -> None:
        if force:
            return
        await report.refresh(keeper)
        clients = report.connections(keeper)
        if clients:
            raise BusyError(
                f"disk {keeper.definition.name} is not {what}: {clients} client(s) connected;"
                " detach it from its guest, or use --force"
            )

    def _gone(self, keeper: supervisor.Keeper) -> bool:
        name = keeper.definition.name
        return self._keepers.get(name) is not keeper or name in self._busy

    async def _discard(self, keeper: supervisor.Keeper, told: steps.Steps) -> list[str]:
        """Remove all of a disk; returns what could not be removed, and why."""
        name = keeper.definition.name
        with self._marked(name, _REMOVING):
            await keeper.update(msgspec.structs.replace(keeper.definition, removing=True))
            left = await self._drop_contents(keeper, told, for_good=True)
            keeper.log_path.unlink(missing_ok=True)
            keeper.shares.leave(name)
            try:
                await self._store.forget(name)
                await keeper.estate.release_user(keeper.definition)
            except SetupError as error:
                left.append(f"its definition stays: {error}")
            finally:
                if self._keepers.get(name) is keeper:
                    del self._keepers[name]
                    self.squeezes.forget(name)
        return left

    async def _drop_contents(
        self, keeper: supervisor.Keeper, told: steps.Steps, *, for_good: bool = False
    ) -> list[str]:
        """Stop the disk and remove its socket, key, state and spill; returns what is left, and why.

        A device that is not encrypted is zeroed only `for_good`: else the next disk writes there.
        """
        disk_id = keeper.definition.disk_id
        with contextlib.suppress(StateError, OSError):
            state = keeper.open_face()
            if state is not None:
                disk_id = state.identity.disk_id
        told.at("ending its process")
        await keeper.stop()
        # Only now: until its process ended it may have gone with its store.
        kept_elsewhere = await _remember_given(keeper)
        told.at("giving its RAM back")
        keeper.socket_path.unlink(missing_ok=True)
        keeper.calls_path.unlink(missing_ok=True)
        state_path = pathlib.Path(keeper.definition.state_path)
        left: list[str | None] = []
        # The key first: without it the rest is noise, whatever becomes of it.
        if disk_id is not None and keeper.definition.encrypt:
            owners = (making.owner_of(state_path), keeper.definition.uid)
            left.append(await keeper.estate.erase_key(disk_id, *owners))
        left += await keeper.estate.remove_state(keeper.definition)
        await keeper.estate.take_back(keeper.definition)
        # Without an id nothing was ever made: what lies at the spill path is somebody else's.
        if disk_id is not None and kept_elsewhere:
            log.warning("store left to whom the disk was handed over name=%s", keeper.definition.name)
        elif disk_id is not None:
            plain = for_good and not keeper.definition.encrypt
            needed = geometry.of_size(keeper.definition.size_bytes).spill_bytes if plain else 0
            place = keeper.definition.spill_path
            left += await spills.release(place, disk_id, plain_bytes=needed, told=told)
            # What is not this disk's there is left alone.
            if (other := keeper.definition.adoption) is not None:
                await spills.release(other.spill_path, disk_id, plain_bytes=needed, told=told)
        return [each for each in left if each is not None]

    @contextlib.contextmanager
    def _marked(self, name: str, what: str) -> Iterator[None]:
        self._busy[name] = what
        try:
            yield
        finally:
            if self._busy.get(name) == what:  # else another call has taken over
                del self._busy[name]


async def _remember_given(keeper: supervisor.Keeper) -> bool:
    """Whether the store of a disk without a process may be another's.

    Remembered before the state file goes: another daemon may have to go on with the removal.
    """
    given = keeper.definition.store_given
    with (
        contextlib.suppress(StateError, OSError),
        face.StateFace(pathlib.Path(keeper.definition.state_path)) as state,
    ):
        given = state.gate() in layout.SHUT_GATES
    if given != keeper.definition.store_given:
        await keeper.update(msgspec.structs.replace(keeper.definition, store_given=given))
    return given
