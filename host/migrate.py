"""Disks that move: sent to another host while their guest uses them, taken in, saved and loaded.

One method for each call of the command, on the daemon's loop.  Each ends with the disk as it was or with the
disk handed over, and says which; what was begun is undone when its caller leaves (docs/design.md,
"Migration").
"""

import asyncio
import contextlib
import logging
import os
import pathlib
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from swaptide.balloon import qmp
from swaptide.cache import face, layout
from swaptide.cache.errors import BusyError, SetupError, StateError, SwaptideError, UsageError
from swaptide.host import (
    addresses,
    adoption,
    blocks,
    disks,
    drafts,
    guests,
    handing,
    handover,
    jobs,
    protocol,
    report,
    supervisor,
    switchover,
)

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]


class Migrations:
    """What moves, of one run directory."""

    def __init__(self, served: disks.Disks, watched: guests.Guests) -> None:
        self._disks = served
        self._guests = watched
        self._sent: set[str] = set()  # disks on their way out

    # Out.

    async def send(self, request: protocol.Migrate, tell: Tell) -> dict[str, Any]:
        """Move a disk to another host; returns what that took.

        Raises SwaptideError, when the guest goes on here, or the message says what else.
        """
        if (request.uri is None) != (request.qmp is None and request.guest is None):
            raise UsageError("who moves the guest? give --qemu-uri with --qmp or --guest, or none of them")
        keeper = self._disks.keeper(request.name)
        self._refuse_sent(request.name)
        to = addresses.parse(request.to)
        tls = addresses.certificates(to, request.tls_certificates, insecure=request.insecure, server=False)
        sending, remove = handover.Sending, request.remove
        if request.hand_over_store:
            handing.check(keeper, request, tls=tls is not None, unix=to.path is not None)
            # What it held is another disk's, its store included.
            sending, remove = handing.Handing, True
        with self._marked(request.name), _state_of(keeper) as state:
            if state.gate() != "open":
                raise BusyError(f"disk {request.name} is {state.gate()}, and not here to be sent")
            if state.is_frozen():  # no write that waits would ever be over
                raise BusyError(f"disk {request.name} is frozen; `swaptide disk thaw {request.name}` first")
            async with contextlib.AsyncExitStack() as stack:
                moved: handover.Moved
                if request.uri is None:
                    moved = handover.Leaving(keeper, state)
                else:
                    monitor = await stack.enter_async_context(self._guests.monitor(request))
                    await _check_guest(monitor, request.name, state)
                    moved = handover.Switching(switchover.Switchover(monitor, request.uri), monitor)
                connection = await addresses.connect(to)
                outcome = await sending(keeper, state, moved, tell).run(
                    connection, tls, request.bandwidth_bytes
                )
        log.info("disk handed over name=%s to=%s", request.name, to)
        result = {"name": request.name, "to": str(to), "removed": remove, **outcome}
        if remove:
            await self._disks.remove(protocol.Remove(request.name, force=True), lambda step: None)
        return result

    async def take_back(self, name: str) -> dict[str, Any]:
        """Serve a disk that was given away, but never taken; raises BusyError if it is not there any more."""
        keeper = self._disks.keeper(name)
        self._refuse_sent(name)
        with _state_of(keeper) as state:
            was = state.gate()
        if was in layout.SHUT_GATES:
            await handing.retake(keeper)
            return {"name": name, "gate": "open", "was": was}
        return self._reopen(name, "given", "was not given away, or its contents are gone")

    async def save(self, request: protocol.Save, tell: Tell) -> dict[str, Any]:
        """Write a disk into a file, which is there whole or not at all; clients' changes wait meanwhile."""
        keeper = self._disks.keeper(request.name)
        path = pathlib.Path(request.file)
        with _state_of(keeper) as state:
            if state.gate() != "open":
                raise BusyError(
                    f"disk {request.name} is {state.gate()}; there is nothing to be saved,"
                    f" look with `swaptide disk show {request.name}`"
                )
            _check_free(path, request.force)
            begun = time.monotonic()
            with contextlib.ExitStack() as stack:
                try:
                    fd = stack.enter_context(drafts.becoming(path))
                except OSError as error:
                    raise SetupError(f"{path} cannot be made: {error.strerror}; name another file") from error
                async with jobs.begun(keeper, {"do": "save"}, [fd], _telling(tell)) as job:
                    step = await job.until("done")
            return {
                "name": request.name,
                "id": state.identity.disk_id,
                "file": str(path),
                **handover.figures(step),
                "elapsed_seconds": time.monotonic() - begun,
            }

    # In.

    async def receive(self, request: protocol.Receive, tell: Tell) -> dict[str, Any]:
        """Take a disk in from another host; returns once it is served here.

        Raises SwaptideError, and clients of the disk wait then for another try.
        """
        keeper = self._disks.keeper(request.name)
        at = addresses.parse(request.listen)
        tls = addresses.certificates(at, request.tls_certificates, insecure=request.insecure, server=True)
        with _state_of(keeper) as state:
            listening = addresses.listen(at)
            try:
                await _expect(keeper, state)
                await adoption.forget(keeper)  # what is left of another try
                where = addresses.where(at, listening)
                tell({"at": "listening", "address": str(where), "id": state.identity.disk_id})
                begun, step, more = await self._take_in(keeper, state, listening, tls, tell)
            except SwaptideError as error:
                raise type(error)(f"{error}; {_waits(request.name, state)}") from error
            finally:
                addresses.leave(at, listening)
        log.info("disk taken in name=%s origin=%s", request.name, more["origin"])
        return {
            "name": request.name,
            **more,
            **handover.figures(step),
            "elapsed_seconds": time.monotonic() - begun,
        }

    async def _take_in(
        self,
        keeper: supervisor.Keeper,
        state: face.StateFace,
        listening: Any,
        tls: dict[str, str] | None,
        tell: Tell,
    ) -> tuple[float, jobs.Step, dict[str, Any]]:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)
            begun = time.monotonic()
            order = {"do": "receive", "tls": tls}
            async with jobs.begun(keeper, order, [connection], _telling(tell)) as job:
                try:
                    step = await job.until("done", "kept")
                    store = None
                    if step["at"] == "kept":
                        store = await adoption.follow(keeper, job)
                    return begun, job.step, {"origin": state.origin(), "store": store}
                except jobs.JobError as error:
                    if job.step["at"] != "begun":
                        if state.gate() != "open":
                            raise
                        # The process died with the last word on its lips.
                        return begun, job.step, {"origin": state.origin(), "store": None}
                    if state.gate() != "incoming":  # another call has filled it
                        raise
                    # Whoever that was, nothing of the disk depends on it.
                    log.warning("stranger refused name=%s error=%r", keeper.definition.name, str(error))

    async def accept(self, name: str) -> dict[str, Any]:
        """Serve a disk that arrived, on its operator's word; raises BusyError if it is not all here."""
        keeper = self._disks.keeper(name)
        with _state_of(keeper) as state:
            with_store = state.gate() == "arrived" and adoption.waits(keeper.definition)
        if with_store:
            await adoption.accept(keeper)
            return {"name": name, "gate": "open", "was": "arrived"}
        return self._reopen(name, "arrived", "has not arrived")

    async def load(self, request: protocol.Load, tell: Tell) -> dict[str, Any]:
        """Fill a disk from a file, and serve it then."""
        keeper = self._disks.keeper(request.name)
        begun = time.monotonic()
        try:
            fd = os.open(request.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block us
        except OSError as error:
            raise SetupError(f"{request.file} cannot be read: {error.strerror}; name another file") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{request.file} is no regular file; name one of `swaptide disk save`")
            with _state_of(keeper) as state:
                await _expect(keeper, state)
                try:
                    async with jobs.begun(keeper, {"do": "load"}, [fd], _telling(tell)) as job:
                        step = await job.until("done")
                except SwaptideError as error:
                    raise type(error)(f"{request.file}: {error}; {_waits(request.name, state)}") from error
                return {
                    "name": request.name,
                    "id": state.identity.disk_id,
                    "origin": state.origin(),
                    **handover.figures(step),
                    "elapsed_seconds": time.monotonic() - begun,
                }
        finally:
            os.close(fd)

    def _refuse_sent(self, name: str) -> None:
        if name in self._sent:
            raise BusyError(f"disk {name} is being moved; wait for that `swaptide migrate`, or end it")

    @contextlib.contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        self._sent.add(name)
        try:
            yield
        finally:
            self._sent.discard(name)

    def _reopen(self, name: str, gate: str, otherwise: str) -> dict[str, Any]:
        keeper = self._disks.keeper(name)
        with _state_of(keeper) as state:
            if state.gate() != gate:
                raise BusyError(f"disk {name} {otherwise}: it is {state.gate()}")
            state.set_gate("open")
        log.info("disk opened by hand name=%s was=%s", name, gate)
        return {"name": name, "gate": "open", "was": gate}


async def _check_guest(monitor: qmp.Monitor, name: str, state: face.StateFace) -> None:
    """Raises UsageError if that guest does not have this disk."""
    for each in (state.identity.disk_id, state.origin()):
        if each is not None and await blocks.find(monitor, each) is not None:
            return
    raise UsageError(f"the guest at {monitor.path} does not have disk {name}; is it another one's?")


async def _expect(keeper: supervisor.Keeper, state: face.StateFace) -> None:
    """Shut the gate of a disk that is empty, for contents to come.  Raises BusyError if it holds any."""
    name, before = keeper.definition.name, state.gate()
    if before not in ("open", "incoming"):
        raise BusyError(f"disk {name} is {before}; `swaptide disk clear {name}` empties it")
    state.set_gate("incoming")
    if before == "incoming":
        return
    try:
        await report.refresh(keeper)
        counters = state.counters()
    except BaseException:  # whoever asked left, before it was known that nobody uses it
        state.set_gate("open")
        raise
    # One page is what makes it a swap area.
    if counters["connections"] or counters["stored_pages"] + counters["same_filled_pages"] > 1:
        state.set_gate("open")
        what = "has a client" if counters["connections"] else "is not empty"
        raise BusyError(
            f"disk {name} {what}: what comes would take the place of what is there;"
            f" `swaptide disk clear {name}` first, and start the guest's QEMU after this"
        )


def _waits(name: str, state: face.StateFace) -> str:
    gate = state.gate()
    if gate == "arrived":
        return (
            f"all of disk {name} is here, and its clients wait: if the guest runs here now,"
            f" `swaptide receive {name} --accept`; if it runs where it was, `swaptide disk clear {name}`"
        )
    if gate == "incoming":
        return f"clients of disk {name} wait: try again, or `swaptide disk clear {name}`"
    return f"disk {name} is {gate}"


def _check_free(path: pathlib.Path, force: bool) -> None:
    """Raises UsageError if something is there that is not to be replaced, SetupError if nothing can be."""
    try:
        is_there, is_plain = path.exists(), path.is_file()
    except OSError as error:
        raise SetupError(f"{path} cannot be made: {error.strerror}; name another file") from error
    if is_there and not is_plain:  # what is saved takes the name of what was there
        raise UsageError(f"{path} is no plain file; name another one")
    if is_there and not force:
        raise UsageError(f"{path} exists; choose another file, or --force")


@contextlib.contextmanager
def _state_of(keeper: supervisor.Keeper) -> Iterator[face.StateFace]:
    """A face of its own: the keeper's is closed when the disk is stopped.  Raises BusyError without one."""
    try:
        state = face.StateFace(pathlib.Path(keeper.definition.state_path))
    except (FileNotFoundError, StateError) as error:
        raise BusyError(f"disk {keeper.definition.name} does not run: {error}") from error
    with state:
        yield state


def _telling(tell: Tell) -> Callable[[jobs.Step], None]:
    return lambda step: tell(dict(step))
