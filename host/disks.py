"""The disks of a daemon and what can be done with them; one method for each call of the command.

Owned by the daemon's loop.  A disk that is being cleared or removed stays in the table, marked, so that
its name and files are not taken by another call; nothing here waits for a store without a time limit.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from swaptide.balloon import census, limits, squeeze
from swaptide.cache import face, geometry
from swaptide.cache.errors import BusyError, SetupError, StateError, UsageError
from swaptide.host import (
    config,
    definitions,
    freezer,
    isolation,
    listener,
    memory,
    protocol,
    report,
    spills,
    supervisor,
)

log = logging.getLogger(__name__)

_CLEARING = "being cleared"
_REMOVING = "being removed"

Tell = Callable[[dict[str, Any]], None]


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
        self._keepers: dict[str, supervisor.Keeper] = {}
        self._busy: dict[str, str] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._wake: Callable[[], None] = lambda: None
        self._settle: Callable[[], Awaitable[None]] = _nothing_to_settle

    def __len__(self) -> int:
        return len(self._keepers)

    def steered_by(self, wake: Callable[[], None], settle: Callable[[], Awaitable[None]]) -> None:
        """Who sets the targets: `wake` tells them of a change, `settle` waits until they have seen it."""
        self._wake, self._settle = wake, settle

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
                removal = asyncio.create_task(self._finish_removal(keeper))
                self._removals.add(removal)
                removal.add_done_callback(self._removals.discard)
            else:
                keeper.start()

    async def leave(self) -> None:
        """Let go of all disks; their processes go on serving."""
        for removal in self._removals:
            removal.cancel()
        await asyncio.gather(*self._removals, return_exceptions=True)
        for keeper in self._keepers.values():
            await keeper.leave()

    async def add(self, request: protocol.Add) -> report.Report:
        """Make a disk and wait until it serves.

        Raises UsageError for what cannot be, SetupError with the plugin's reason; nothing is left then.
        """
        definition = self._define(request)
        dropped = self._make_room(pathlib.Path(definition.state_path), request.force)
        keeper = self._keeper(definition)
        try:
            if dropped is not None:
                await keeper.estate.erase_key(*dropped)
            await self._store.save(definition)
            keeper.start(force=request.force)
            await keeper.started()
        except Exception:
            if self._keepers.get(request.name) is keeper and request.name not in self._busy:
                await self._discard(keeper)
            raise
        await self._settle()
        return await report.fresh(keeper)

    async def all(self) -> list[report.Report]:
        """The reports of all disks, by name."""
        keepers = [self._keepers[name] for name in sorted(self._keepers)]
        return list(await asyncio.gather(*map(report.fresh, keepers)))

    async def show(self, name: str) -> report.Report:
        """The report of one disk."""
        return await report.fresh(self._find(name))

    async def set(self, request: protocol.Set, tell: Tell) -> dict[str, Any]:
        """Change a disk's limits and orders, tell of the way there, and return the last step.

        The steps are those of balloon.squeeze, with what there was before.  Raises UsageError if the limits
        contradict each other.
        """
        keeper = self._available(request.name)
        deadline = None
        if request.deadline_seconds is not None:
            if request.ram_bytes is None:
                raise UsageError("a deadline needs a limit that is to hold by then; give --ram as well")
            deadline = squeeze.Deadline(time.monotonic(), request.deadline_seconds)
        old = keeper.definition
        cap = old.cap_bytes if request.ram_bytes is None else request.ram_bytes
        floor = old.floor_bytes if request.floor_bytes is None else request.floor_bytes
        wanted = limits.check(old.size_bytes, cap, floor)
        others = ("weight", "compress", "clean_ahead_percent")
        given = {name: getattr(request, name) for name in others if getattr(request, name) is not None}
        changed = msgspec.structs.replace(
            old, cap_bytes=wanted.cap_bytes, floor_bytes=wanted.floor_bytes, **given
        )
        return await self._follow(keeper, changed, wanted, deadline, tell)

    async def clear(self, request: protocol.Clear) -> report.Report:
        """Empty a disk, which comes back as another one; raises BusyError if it is connected."""
        keeper = self._available(request.name)
        await self._refuse_connected(keeper, request.force, "cleared")
        with self._marked(request.name, _CLEARING):
            await self._drop_contents(keeper)
            if self._keepers.get(request.name) is not keeper or self._busy.get(request.name) != _CLEARING:
                raise BusyError(f"disk {request.name} was removed while it was being cleared")
            blank = msgspec.structs.replace(keeper.definition, disk_id=None)
            await keeper.update(keeper.fresh_paths(blank))
            keeper.start()
            await keeper.started()
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
        log.info("disk %s name=%s", "frozen" if frozen else "thawed", name)
        return await freezer.turn(keeper, frozen, lambda: self._gone(keeper))

    async def remove(self, request: protocol.Remove) -> dict[str, Any]:
        """Remove a disk and all its files; returns which one that was.

        Raises BusyError if it is connected, SetupError if it serves no more but something of it is left.
        """
        keeper = self._find(request.name)
        # A disk that hangs while it is being cleared can still be removed by force.
        if self._busy.get(request.name) != _CLEARING or not request.force:
            self._available(request.name)
        await self._refuse_connected(keeper, request.force, "removed")
        left = await self._discard(keeper)
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
            await self._discard(keeper)
        log.info("disk removed, as begun by another daemon name=%s", name)

    def _define(self, request: protocol.Add) -> definitions.Definition:
        definitions.check_name(request.name)
        if request.swap_label is not None:
            definitions.check_label(request.swap_label)
        if request.spill is not None:
            definitions.check_spill(request.spill)
        if request.socket_owner is not None:
            _check_socket_owner(request.socket_owner)
        if request.name in self._keepers:
            raise UsageError(
                f"disk {request.name} exists; choose another name, or remove it with"
                f" `swaptide disk rm {request.name}`"
            )
        checked = limits.check(request.size_bytes, request.ram_bytes, request.floor_bytes)
        definition = supervisor.fresh_paths(
            definitions.Definition(
                name=request.name,
                size_bytes=request.size_bytes,
                cap_bytes=checked.cap_bytes,
                floor_bytes=checked.floor_bytes,
                weight=request.weight,
                compress=request.compress,
                clean_ahead_percent=request.clean_ahead_percent,
                encrypt=request.encrypt,
                swap_label=request.swap_label,
                spill_path=request.spill or "",
                spill_chosen=request.spill is not None,
                state_path="",
                socket_owner=request.socket_owner,
            ),
            self._config,
            self._memory_dir,
            apart=self._servants.apart,
        )
        listener.check(self._config.run_dir / f"{request.name}.sock")
        return definition

    def _make_room(self, state: pathlib.Path, force: bool) -> tuple[str, int] | None:
        """A state file without a definition may be a disk that somebody still wants.

        Drops it if `force`; returns its id and its file's owner where a key of it is left.
        """
        if not state.exists():
            return None
        if memory.is_locked(state):
            raise BusyError(f"{state} is in use by a process that this daemon does not know; end that one")
        if not force:
            raise UsageError(f"{state} holds a disk that is not defined; use --force to drop it")
        disk_id, owner = None, _owner(state)
        with contextlib.suppress(StateError), face.StateFace(state) as opened:
            disk_id = opened.identity.disk_id if opened.identity.encrypted else None
        state.unlink()
        return None if disk_id is None else (disk_id, owner)

    def _keeper(self, definition: definitions.Definition) -> supervisor.Keeper:
        keeper = supervisor.Keeper(
            self._config, self._memory_dir, definition, self._store.save, self._servants
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

    async def _follow(
        self,
        keeper: supervisor.Keeper,
        changed: definitions.Definition,
        wanted: face.Limits,
        deadline: squeeze.Deadline | None,
        tell: Tell,
    ) -> dict[str, Any]:
        name = changed.name
        await report.refresh(keeper)
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
            squeeze.apply(state, self._within(state, wanted), deadline)
            # Beside it, since a store that does not answer must not hold up a disk that returns memory.
            saving = asyncio.create_task(keeper.update(changed))
            try:
                if keeper.state is supervisor.State.FAILED:
                    raise BusyError(f"disk {name} does not run ({keeper.error}); its limits will hold later")
                last = prospect
                async for step in squeeze.follow(
                    state, wanted.cap_bytes, deadline=deadline, gone=lambda: self._gone(keeper)
                ):
                    last = {**prospect, **dataclasses.asdict(step)}
                    last["returned_bytes"] = max(0, prospect["before_bytes"] - step.ram_bytes)
                    tell(last)
            finally:
                unsaved = await saving
                squeeze.release(state, deadline)
            if last["phase"] == squeeze.Phase.SUPERSEDED and self._gone(keeper):
                raise BusyError(f"disk {name} was removed or cleared meanwhile")
            await self._settle()
            return {**last, "unsaved": unsaved}

    def _within(self, state: face.StateFace, wanted: face.Limits) -> face.Limits:
        """`wanted` with the target that is in force, as far as it fits: how much of its cap a disk may use
        is not for whoever sets the cap to say, unless nobody steers.
        """
        if not self._config.balloon:
            return wanted
        target = limits.clamp(state.limits().target_bytes, wanted)
        return dataclasses.replace(wanted, target_bytes=target)

    def _gone(self, keeper: supervisor.Keeper) -> bool:
        name = keeper.definition.name
        return self._keepers.get(name) is not keeper or name in self._busy

    async def _discard(self, keeper: supervisor.Keeper) -> list[str]:
        """Remove all of a disk; returns what could not be removed, and why."""
        name = keeper.definition.name
        with self._marked(name, _REMOVING):
            await keeper.update(msgspec.structs.replace(keeper.definition, removing=True))
            left = await self._drop_contents(keeper, for_good=True)
            keeper.log_path.unlink(missing_ok=True)
            try:
                await self._store.forget(name)
                await keeper.estate.release_user(keeper.definition)
            except SetupError as error:
                left.append(f"its definition stays: {error}")
            finally:
                if self._keepers.get(name) is keeper:
                    del self._keepers[name]
        return left

    async def _drop_contents(self, keeper: supervisor.Keeper, *, for_good: bool = False) -> list[str]:
        """Stop the disk and remove its socket, key, state and spill; returns what is left, and why.

        A device that is not encrypted is zeroed only `for_good`: else the next disk writes there.
        """
        disk_id = keeper.definition.disk_id
        with contextlib.suppress(StateError, OSError):
            state = keeper.open_face()
            disk_id = disk_id if state is None else state.identity.disk_id
        await keeper.stop()
        keeper.socket_path.unlink(missing_ok=True)
        state_path = pathlib.Path(keeper.definition.state_path)
        left: list[str | None] = []
        # The key first: without it the rest is noise, whatever becomes of it.
        if disk_id is not None and keeper.definition.encrypt:
            owners = (_owner(state_path), keeper.definition.uid)
            left.append(await keeper.estate.erase_key(disk_id, *owners))
        left += await keeper.estate.remove_state(keeper.definition)
        await keeper.estate.take_back(keeper.definition)
        # Without an id nothing was ever made: what lies at the spill path is somebody else's.
        if disk_id is not None:
            plain = for_good and not keeper.definition.encrypt
            needed = geometry.of_size(keeper.definition.size_bytes).spill_bytes if plain else 0
            path = pathlib.Path(keeper.definition.spill_path)
            left.append(await spills.release(path, disk_id, plain_bytes=needed))
        return [each for each in left if each is not None]

    @contextlib.contextmanager
    def _marked(self, name: str, what: str) -> Iterator[None]:
        self._busy[name] = what
        try:
            yield
        finally:
            if self._busy.get(name) == what:  # else another call has taken over
                del self._busy[name]


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


def _owner(path: pathlib.Path) -> int:
    """Whose the file is, or would be."""
    with contextlib.suppress(OSError):
        return path.lstat().st_uid
    return os.geteuid()


def _check_socket_owner(name: str) -> None:
    """Raises UsageError unless the socket can be given to this user."""
    if os.geteuid() not in (0, isolation.find(name).uid):
        raise UsageError(
            f"--socket-owner {name} needs a daemon that runs as root; run `swaptide serve` as root"
        )
