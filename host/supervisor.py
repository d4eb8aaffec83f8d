"""Keeps one disk served: starts its nbdkit, adopts one that lives, restarts one that died.

Everything runs on the daemon's loop, in one task for each disk.  The disk's memory is the state file;
a process that dies loses nothing, and clients wait in the socket's queue for its successor.
"""

import asyncio
import contextlib
import enum
import logging
import pathlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec

from swaptide.cache import face
from swaptide.cache.errors import SetupError, StateError, SwaptideError
from swaptide.host import config, definitions, launch, listener, memory, process, spills

log = logging.getLogger(__name__)

START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_OWNER_SECONDS = 1.0
# A process that served for this long is restarted at once, an unsteady one after a pause.
_STEADY_SECONDS = 5.0
_UNSTEADY_PAUSE_SECONDS = 0.5
_FAILED_AFTER = 3
_LONGEST_PAUSE_SECONDS = 30.0


class State(enum.StrEnum):
    """What a disk's process is doing."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
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
    ) -> None:
        self.definition = definition
        self.socket_path = chosen.run_dir / f"{definition.name}.sock"
        self.log_path = chosen.run_dir / f"{definition.name}.log"
        self.state = State.STOPPED
        self.error = ""
        self.process: process.Process | None = None
        self.face: face.StateFace | None = None
        self.settled = asyncio.Event()  # the first start has ended, one way or the other
        self._config = chosen
        self._memory_dir = memory_dir
        self._save = save
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_start = 0

    def start(self, *, force: bool = False) -> None:
        """Begin to keep the disk served; `force` lets the first start overwrite a spill path in use."""
        self.settled.clear()
        self._enter(State.STARTING)
        self._task = asyncio.create_task(self._keep(force), name=f"keeper-{self.definition.name}")

    async def started(self) -> None:
        """Wait for the first start; raises SetupError with the reason if it failed or takes too long."""
        try:
            await asyncio.wait_for(self.settled.wait(), START_SECONDS)
        except TimeoutError:
            raise SetupError(
                f"disk {self.definition.name} does not start within {START_SECONDS:.0f} s;"
                f" is its store {self.definition.spill_path} alive?"
            ) from None
        if self.state is not State.RUNNING:
            raise SetupError(self.error or f"disk {self.definition.name} was stopped")

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

    async def update(self, definition: definitions.Definition) -> None:
        """Use `definition` from now on, and persist it if the state directory allows."""
        self.definition = definition
        try:
            await self._save(definition)
        except SetupError as error:
            log.warning("definition not saved name=%s error=%r", definition.name, str(error))

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
        if state is not self.state or error != self.error:
            level = logging.WARNING if error else logging.INFO
            text = "disk name=%s state=%s" + (" error=%r" if error else "%s")
            log.log(level, text, self.definition.name, state.value, error)
        self.state, self.error = state, error

    async def _keep(self, force: bool) -> None:
        failures = 0
        while True:
            try:
                if self.process is None:
                    self.process = await self._adopt() or await self._spawn(force and failures == 0)
                await self._until_serving(self.process)
                await self._note_served()
                failures = 0
                await self._while_serving(self.process)
            except (SwaptideError, OSError) as error:
                failures += 1
                await self._pause_after_failure(failures, str(error))
            except Exception as error:
                log.debug("keeper failed name=%s", self.definition.name, exc_info=True)
                failures = max(failures + 1, _FAILED_AFTER)
                await self._pause_after_failure(failures, f"internal error {error!r}; remove the disk")

    async def _while_serving(self, live: process.Process) -> None:
        since = time.monotonic()
        await live.exited.wait()
        self.process = None
        self._enter(State.RESTARTING, f"nbdkit (pid {live.pid}) ended")
        # At once, so that clients find a queue to wait in.
        with contextlib.suppress(SetupError):
            self._listen()
        if time.monotonic() - since < _STEADY_SECONDS:
            await asyncio.sleep(_UNSTEADY_PAUSE_SECONDS)

    async def _pause_after_failure(self, failures: int, error: str) -> None:
        failed = not self.settled.is_set() or failures >= _FAILED_AFTER
        self._enter(State.FAILED if failed else State.RESTARTING, error)
        if failed and self._listener is not None:
            self._listener.close()
            self._listener = None
        self.settled.set()
        await asyncio.sleep(min(_UNSTEADY_PAUSE_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS))

    async def _note_served(self) -> None:
        state = self.open_face()
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
                log.info("process adopted name=%s pid=%d", self.definition.name, found.pid)
                return found
            if not complained and time.monotonic() - begin > START_SECONDS:
                self._enter(State.FAILED, f"{path} is locked by a process that is not its nbdkit")
                complained = True
                self.settled.set()
            await asyncio.sleep(_OWNER_SECONDS if complained else _POLL_SECONDS)

    async def _spawn(self, force: bool) -> process.Process:
        launch.require(self._config.nbdkit)
        fresh = not pathlib.Path(self.definition.state_path).exists()
        if fresh and self.definition.disk_id is not None:
            await self._renew()
        if self.face is not None:
            self.face.close()
            self.face = None
        self._listen()
        assert self._listener is not None
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = launch.command(self._config, self.definition, fresh=fresh, force=force)
        started = process.spawn(command, self._listener, self.log_path)
        log.info("process started name=%s pid=%d", self.definition.name, started.pid)
        return started

    async def _renew(self) -> None:
        """The state file is gone, with the host or by hand: the disk comes back empty, as another one."""
        old = self.definition
        assert old.disk_id is not None
        log.warning("disk lost its memory and comes back empty name=%s old_id=%s", old.name, old.disk_id)
        await spills.release(pathlib.Path(old.spill_path), old.disk_id)
        await self.update(
            fresh_paths(msgspec.structs.replace(old, disk_id=None), self._config, self._memory_dir)
        )

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = listener.bind(self.socket_path)

    async def _until_serving(self, starting: process.Process) -> None:
        """Return once it serves; raises SetupError with its last word if it ends before."""
        path = pathlib.Path(self.definition.state_path)
        while not starting.exited.is_set():
            with contextlib.suppress(FileNotFoundError, StateError), face.StateFace(path) as state:
                counters = state.counters()
                if counters["serving"] and counters["owner_pid"] == starting.pid:
                    return
            await asyncio.sleep(_POLL_SECONDS)
        self.process = None
        raise SetupError(launch.last_word(self.log_path, self._log_start))


def fresh_paths(
    definition: definitions.Definition, chosen: config.Config, memory_dir: pathlib.Path
) -> definitions.Definition:
    """`definition` with paths for a disk that is yet to be made; a spill path that was chosen stays.

    The spill file's name is new each time: a process stuck on a dead store may still hold the old one.
    """
    spill = definition.spill_path
    if not definition.spill_chosen:
        spill = str(chosen.spill_dir / f"{definition.name}-{secrets.token_hex(4)}.spill")
    state = str(memory_dir / f"{definition.name}.state")
    return msgspec.structs.replace(definition, spill_path=spill, state_path=state)
