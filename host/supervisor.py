"""Keeps one disk served: starts its nbdkit, adopts one that lives, restarts one that died.

Everything runs on the daemon's loop, in one task for each disk.  The disk's memory is the state file;
a process that dies loses nothing, and clients wait in the socket's queue for its successor.
"""

import asyncio
import contextlib
import enum
import logging
import pathlib
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec

from swaptide.cache import face, places
from swaptide.cache.errors import BusyError, SetupError, StateError, SwaptideError
from swaptide.host import (
    adoption,
    config,
    deaths,
    definitions,
    estate,
    isolation,
    launch,
    listener,
    memory,
    paths,
    process,
    shares,
    spills,
    turns,
)

log = logging.getLogger(__name__)

START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_OWNER_SECONDS = 1.0
_TAKE_UP_SECONDS = 10.0
# A process that answered a request, or lived for this long, is restarted at once, another one after a pause.
_STEADY_SECONDS = 5.0
_FAILED_AFTER = 3
_REQUESTS = ("reads", "writes", "trims", "zeroes")


class State(enum.StrEnum):
    """What a disk's process is doing."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    UNSTABLE = "unstable"  # it serves, between deaths
    FAILED = "failed"
    STOPPED = "stopped"


class Keeper:
    """One disk's process and files.  `definition` is replaced, never changed."""

    def __init__(
        self,
        chosen: config.Config,
        memory_dir: pathlib.Path,
        definition: definitions.Definition,
        save: Callable[[definitions.Definition], Awaitable[None]],
        servants: isolation.Servants | None = None,
        starts: turns.Turns | None = None,
    ) -> None:
        self.definition = definition
        self.socket_path = chosen.run_dir / f"{definition.name}.sock"
        self.calls_path = paths.calls(chosen.run_dir, definition.name)
        self.log_path = chosen.run_dir / f"{definition.name}.log"
        self.state = State.STOPPED
        self.error = ""
        self.process: process.Process | None = None
        self.face: face.StateFace | None = None
        self.settled = asyncio.Event()  # the first start has ended, one way or the other
        self.deaths = deaths.Deaths()
        self.starts = 0  # processes that were started
        self.changed: Callable[[], None] = lambda: None  # called when `state` did
        self._turns = starts or turns.Turns()
        self._servants = servants or isolation.Servants()
        self.estate = estate.Estate(self._servants, chosen.definitions_dir / f"{definition.name}.json")
        self.shares = shares.Shares(chosen.cgroup)
        self._config = chosen
        self._memory_dir = memory_dir
        self._save = save
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_start = 0
        self._expected_end = 0  # pid of a process that is being replaced
        self._serving: process.Process | None = None  # the one that was seen to serve
        self._answered_before = 0  # requests, when the process was started

    @property
    def serves(self) -> bool:
        """Whether a process answers requests right now, as far as is known."""
        seen = self.process is not None and self.process is self._serving
        return seen and self.state in (State.RUNNING, State.UNSTABLE)

    @property
    def spill_timeout_seconds(self) -> float | None:
        """How long reads are to wait for the spill server; None where there is none."""
        return launch.spill_timeout_seconds(self._config, self.definition)

    def start(self, *, force: bool = False) -> None:
        """Begin to keep the disk served; `force` lets the first start overwrite a spill path in use."""
        self.settled.clear()
        self._enter(State.STARTING)
        self._task = asyncio.create_task(self._keep(force), name=f"keeper-{self.definition.name}")

    async def started(self) -> None:
        """Wait for the first start; raises SetupError with the reason if it failed or takes too long."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.settled.wait()
        except TimeoutError:
            raise SetupError(
                f"disk {self.definition.name} does not start within {START_SECONDS:.0f} s;"
                f" is its store {places.show(self.definition.spill_path)} alive?"
            ) from None
        if not self.serves:
            raise SetupError(self.error or f"disk {self.definition.name} was stopped")

    async def restart(self) -> float:
        """End the process and wait until its successor serves; returns the seconds in between.

        Raises BusyError if it does not run, SetupError if the successor does not serve.
        """
        live = self.process
        if not self.serves or live is None:
            raise BusyError(f"disk {self.definition.name} does not run; look with `swaptide disk show`")
        launch.require(self._config.nbdkit)
        self._expected_end = live.pid
        self.settled.clear()
        begun = time.monotonic()
        await self._end(live)
        await self.started()
        return time.monotonic() - begun

    async def _end(self, live: process.Process) -> None:
        if not await live.end():
            place = places.show(self.definition.spill_path)
            raise SetupError(f"process {live.pid} does not end; is its store {place} alive?")

    async def take_up(self) -> None:
        """Find the process of a disk that is not to be kept any more, so that `stop` can end it."""
        with contextlib.suppress(SwaptideError, OSError, TimeoutError):
            async with asyncio.timeout(_TAKE_UP_SECONDS):
                self.process = await self._adopt()

    async def stop(self) -> None:
        """End the process and close everything; files stay.  Never waits for a dead store."""
        await self.leave(process_too=True)

    async def leave(self, *, process_too: bool = False) -> None:
        """Stop keeping the disk; the process goes on serving unless `process_too`."""
        if self._task is not None:
            self._task.cancel()
            # Whatever it ended with, the disk has to be let go.
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.process is not None:
            if not process_too:
                self.process.forget()
            elif not await self.process.end():
                log.warning("process stuck name=%s pid=%d", self.definition.name, self.process.pid)
            self.process = None
        self._close()
        self._enter(State.STOPPED)
        self.settled.set()

    async def update(self, definition: definitions.Definition) -> str | None:
        """Use `definition` from now on, and persist it; returns the trouble with that, if any."""
        self.use(definition)
        return await self.persist()

    async def commit(self, definition: definitions.Definition) -> None:
        """As `update`, but raises SetupError where it cannot be persisted."""
        trouble = await self.update(definition)
        if trouble is not None:
            raise SetupError(trouble)

    def use(self, definition: definitions.Definition) -> None:
        """Use `definition` from now on; it is yet to be persisted."""
        if definition.weight != self.definition.weight and self.process is not None:
            self.shares.weigh(definition.name, definition.weight)
        self.definition = definition

    async def persist(self) -> str | None:
        """Write the definition that is used to disk; returns the trouble with that, if any."""
        definition = self.definition
        try:
            await self._save(definition)
        except SetupError as error:
            log.warning("definition not saved name=%s error=%r", definition.name, str(error))
            return str(error)
        return None

    def open_face(self) -> face.StateFace | None:
        """The disk's state file, None while there is none; raises StateError if it is damaged."""
        if self.face is None:
            with contextlib.suppress(FileNotFoundError):
                self.face = face.StateFace(pathlib.Path(self.definition.state_path))
        return self.face

    def _close(self) -> None:
        if self.face is not None:
            self.face.close()
            self.face = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _enter(self, state: State, error: str = "") -> None:
        # A disk that keeps dying is news once; how often it died by now is for who asks.
        if state is not self.state or (error != self.error and state is not State.UNSTABLE):
            name = self.definition.name
            if error:
                log.warning("disk changed name=%s state=%s error=%r", name, state.value, error)
            else:
                log.info("disk changed name=%s state=%s", name, state.value)
        self.state, self.error = state, error
        self.changed()

    async def _keep(self, force: bool) -> None:
        failures = 0
        while True:
            try:
                if self.process is None:
                    self.process = await self._adopt()
                if self.process is not None and adoption.is_due(self.definition):
                    await self._end(self.process)
                    self.process = None
                if self.process is None:
                    await self._begin(force and failures == 0)
                else:
                    await self._until_serving(self.process)
                assert self.process is not None
                await self._note_served()
                if await self._while_serving(self.process):
                    failures = 0
                else:
                    failures += 1
                    await asyncio.sleep(deaths.pause_seconds(failures - 1))
            except (SwaptideError, OSError) as error:
                failures += 1
                await self._pause_after_failure(failures, str(error))
            except Exception as error:
                log.debug("keeper failed name=%s", self.definition.name, exc_info=True)
                failures = max(failures + 1, _FAILED_AFTER)
                await self._pause_after_failure(failures, f"internal error {error!r}; remove the disk")

    async def _while_serving(self, live: process.Process) -> bool:
        """Wait for its end; returns whether it was of use, so that a successor may start at once."""
        since = time.monotonic()
        if self.deaths.unstable:
            await self._until_steady(live)
        await live.exited.wait()
        self.process = None
        # At once, so that clients find a queue to wait in.
        with contextlib.suppress(SwaptideError):
            self._listen()
        if live.pid == self._expected_end:
            self._enter(State.RESTARTING)
            return True
        self._note_death(live.pid)
        return time.monotonic() - since >= _STEADY_SECONDS or self._answered() > self._answered_before

    async def _until_steady(self, live: process.Process) -> None:
        try:
            async with asyncio.timeout(deaths.WINDOW_SECONDS):
                await live.exited.wait()
        except TimeoutError:
            self.deaths.forget()
            self._enter(State.RUNNING)

    def _note_death(self, pid: int) -> None:
        self.deaths.note()
        if self.deaths.unstable:
            self._enter_unstable()
        else:
            self._enter(State.RESTARTING, f"nbdkit (pid {pid}) ended")

    def _enter_unstable(self) -> None:
        self._enter(State.UNSTABLE, f"{self.deaths}; look for the reason in {self.log_path}")

    def _answered(self) -> int:
        """Requests that were answered since the disk was made, as the state file counts them."""
        try:
            state = self.open_face()
            counters = {} if state is None else state.counters()
        except (StateError, OSError):
            return 0
        return sum(counters.get(word, 0) for word in _REQUESTS)

    async def _pause_after_failure(self, failures: int, error: str) -> None:
        failed = not self.settled.is_set() or failures >= _FAILED_AFTER
        self._enter(State.FAILED if failed else State.RESTARTING, error)
        if self.process is None:
            await self.estate.take_back(self.definition)
        if failed and self._listener is not None:
            self._listener.close()
            self._listener = None
        self.settled.set()
        await asyncio.sleep(deaths.pause_seconds(failures))

    async def _note_served(self) -> None:
        self._serving = self.process
        state = self.open_face()
        self.estate.settle()
        if self.deaths.unstable:
            self._enter_unstable()
        else:
            self._enter(State.RUNNING)
        self.settled.set()
        if state is not None and state.identity.disk_id != self.definition.disk_id:
            await self.update(msgspec.structs.replace(self.definition, disk_id=state.identity.disk_id))

    async def _adopt(self) -> process.Process | None:
        """The process that already serves the state file, if there is one."""
        path = pathlib.Path(self.definition.state_path)
        complained = False
        begin = time.monotonic()
        while True:
            try:
                if not memory.is_locked(path):
                    return None
            except FileNotFoundError:
                return None
            found = launch.owner(self.definition)
            if found is not None and not listener.is_held(self.socket_path, found.pid):
                # Begun by a daemon that ended meanwhile: no client finds its socket any more.
                log.warning("process without its socket is ended name=%s pid=%d", path.stem, found.pid)
                if not await found.end():
                    raise SetupError(f"process {found.pid} of {path} does not end; is its store alive?")
                return None
            if found is not None:
                with contextlib.suppress(SetupError, OSError):
                    await self._find_user(fresh=False)
                self._place(found.pid)
                log.info("process adopted name=%s pid=%d", self.definition.name, found.pid)
                self._answered_before = -1  # whatever it answered was for another daemon to see
                return found
            if not complained and time.monotonic() - begin > START_SECONDS:
                self._enter(State.FAILED, f"{path} is locked by a process that is not its nbdkit")
                complained = True
                self.settled.set()
            await asyncio.sleep(_OWNER_SECONDS if complained else _POLL_SECONDS)

    async def _begin(self, force: bool) -> None:
        """Start a process and wait until it serves, when it is our turn; clients find a queue meanwhile."""
        self._listen()
        async with self._turns.take():
            self.process = await self._spawn(force)
            await self._until_serving(self.process)
        self._remind()  # of what was said while there was no state file yet

    def _remind(self) -> None:
        # Whoever cannot read it says why.
        with contextlib.suppress(StateError, OSError):
            state = self.open_face()
            if state is not None:
                launch.remind(self._config, self.definition, state)

    async def _spawn(self, force: bool) -> process.Process:
        launch.require(self._config.nbdkit)
        if adoption.is_due(self.definition):
            await self._find_user(fresh=False)
            changes = await adoption.swapped(self.definition, self.estate)
            await self.update(msgspec.structs.replace(self.definition, **changes))
        fresh = not pathlib.Path(self.definition.state_path).exists()
        if fresh:
            await self._renew()
        await self._find_user(fresh=fresh)
        await self.estate.give(self.definition, fresh=fresh, force=force)
        self._answered_before = 0 if fresh else self._answered()
        if self.face is not None:
            self.face.close()
            self.face = None
        if not fresh:
            self._remind()
        self._listen()
        assert self._listener is not None
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = launch.command(
            self._config, self.definition, fresh=fresh, force=force, user=self.estate.user
        )
        started = process.spawn(command, self._listener, self.log_path, self._place)
        self.starts += 1
        level = logging.DEBUG if self.deaths.unstable else logging.INFO
        log.log(level, "process started name=%s pid=%d", self.definition.name, started.pid)
        return started

    def _place(self, pid: int) -> None:
        self.shares.enter(self.definition.name, pid, self.definition.weight)

    async def _renew(self) -> None:
        """The state file is gone, with the host or by hand: the disk comes back empty, as another one."""
        old = self.definition
        if old.disk_id is None:  # it was never made
            await self._renew_place(old)
            return
        log.warning("disk lost its memory and comes back empty name=%s old_id=%s", old.name, old.disk_id)
        if old.encrypt:
            await self.estate.erase_key(old.disk_id, old.uid)
        await self.estate.remove_state(old)
        if not old.store_given:
            await spills.release(old.spill_path, old.disk_id)
        await self.update(self.blank())

    async def _renew_place(self, old: definitions.Definition) -> None:
        """Who serves may have changed since it was to be made, and where their state files lie."""
        place = memory.state_path(self._memory_dir, old.name, apart=self._servants.apart)
        if str(place) != old.state_path:
            await self.estate.remove_state(old)
            await self.update(msgspec.structs.replace(self.definition, state_path=str(place)))

    async def _find_user(self, *, fresh: bool) -> None:
        uid = await self.estate.find_user(self.definition, fresh=fresh)
        if uid != self.definition.uid:
            await self.update(msgspec.structs.replace(self.definition, uid=uid))

    def blank(self) -> definitions.Definition:
        """The disk as it comes back empty, which is another one with paths of its own."""
        blank = msgspec.structs.replace(self.definition, disk_id=None, adoption=None, store_given=False)
        return estate.fresh_paths(blank, self._config, self._memory_dir, apart=self._servants.apart)

    def _listen(self) -> None:
        if self._listener is None:
            owner = self.definition.socket_owner
            self._listener = listener.bind(
                self.socket_path, None if owner is None else isolation.find(owner).uid
            )

    async def _until_serving(self, starting: process.Process) -> None:
        """Return once it serves; raises SetupError with its last word if it ends before."""
        try:
            await launch.until_serving(
                self.definition, starting, self.log_path, self._log_start, self.estate.user
            )
        except SetupError:
            self.process = None
            raise
