"""One disk, put together: state file, spill file, log and movers, and the thread that runs the movers.

`prepare` runs before the server forks and may fail with one clear line; `start` runs after the fork and
starts the event loop's thread; `stop` ends it.  After `start` the log may be used from any thread.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import sys
import threading
import uuid
from collections.abc import Callable

import swaptide
from swaptide.cache import (
    face,
    geometry,
    guard,
    keys,
    layout,
    pairs,
    places,
    recovery,
    spillfile,
    statefile,
    swaplabel,
    uris,
)
from swaptide.cache.errors import BusyError, UsageError
from swaptide.cache.governor import Governor
from swaptide.cache.log import Log
from swaptide.cache.movers import Movers
from swaptide.cache.moves import Moves
from swaptide.cache.planning import PACKERS, SPILLERS
from swaptide.cache.runner import Runner
from swaptide.cache.segments import Segments

log = logging.getLogger(__name__)

# A mover's Python code must not keep nbdkit's threads from the interpreter for the default 5 ms.
SWITCH_SECONDS = 0.0005
DEFAULT_COMPRESS = "lz4"
DEFAULT_CLEAN_AHEAD = 0.25


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a disk is asked to be.  `size_bytes` and `ram_bytes` are needed unless the state file exists.

    `target_bytes` is what of `ram_bytes` a new disk may use at first; None for all of it.

    `encrypt`, `compress` (one of layout.COMPRESS) and `clean_ahead` (a share of the target) of None mean yes,
    lz4 and a quarter for a new disk, and as it is for one that exists.  `spill_timeout_seconds` is how long
    reads wait for a spill server that is gone; None for the default.
    """

    size_bytes: int | None = None
    ram_bytes: int | None = None
    floor_bytes: int | None = None
    target_bytes: int | None = None
    name: str = "swaptide"
    state: pathlib.Path | None = None
    spill: places.Spill | None = None
    spill_timeout_seconds: float | None = None
    swap_label: str = ""
    encrypt: bool | None = None
    compress: str | None = None
    clean_ahead: float | None = None
    force: bool = False


# A file or device, an NBD export, or two of these; all have the same methods.
Spill = pairs.Single | pairs.Pair


class Engine:
    """A disk that is prepared; `log` serves it.  Tests move by hand with `segments` and `moves`."""

    def __init__(self, state: statefile.StateFile, spill: Spill, key: bytearray | None) -> None:
        """`key` is wiped: every part that needs it has taken it up when this returns."""
        self._state = state
        self._spill = spill
        self._kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.segments = Segments(state.mapping, self._kick_fd)
        self.log = Log(
            state.mapping,
            self.segments,
            state.shape.size_bytes,
            spill.store,
            geometry.SPILL_HEADER_BYTES,
            self.seal_seed,
            key,
        )
        self.moves = Moves(self.log, self.segments, SPILLERS, PACKERS, key)
        if key is not None:
            keys.wipe(key)
        self._connecting = threading.Lock()
        self._clients = 0
        self._governor: Governor | None = None
        self._runner: Runner | None = None
        self.called: Callable[[], None] = lambda: None  # by a daemon, with the control word `call`

    @property
    def seal_seed(self) -> int:
        """What is spilled is bound to it: half of the id of the disk that spilled first."""
        word = self._state.mapping.control_word(layout.CONTROL.index("seal_seed"))
        return word or uuid.UUID(self._state.identity.disk_id).int & 0xFFFFFFFFFFFFFFFF

    @property
    def state(self) -> statefile.StateFile:
        """Its state file."""
        return self._state

    @property
    def spill(self) -> "Spill":
        """Its store or stores."""
        return self._spill

    @property
    def governor(self) -> Governor:
        """Who sees to its memory; of a disk that was started."""
        assert self._governor is not None
        return self._governor

    @property
    def identity(self) -> face.Identity:
        """Who the disk is; `disk_id` is its export name."""
        return self._state.identity

    def open_face(self) -> face.StateFace:
        """Counters and limits as the daemon would see them, also where the state file has no name."""
        return face.StateFace(self._state.path or pathlib.Path("state"), self._state.fd)

    @property
    def spill_fd(self) -> int:
        """The descriptor of the spill file, of two the first, which tests put faults under."""
        first = self._spill.parts[0] if isinstance(self._spill, pairs.Pair) else self._spill
        assert isinstance(first, spillfile.SpillFile)
        return first.fd

    @classmethod
    def prepare(cls, settings: Settings) -> "Engine":
        """Make the disk, or open the one that the state file holds.

        Raises SwaptideError with one line that names the parameter; then nothing half made is left, and a
        disk that existed is as it was.
        """
        if settings.state is not None and settings.state.exists():
            return cls._reopen(settings)
        return cls._create(settings)

    @classmethod
    def _create(cls, settings: Settings) -> "Engine":
        limits = check_limits(settings)
        first_page = (
            swaplabel.header(settings.size_bytes or 0, settings.swap_label) if settings.swap_label else None
        )
        encrypted = settings.encrypt is not False
        size_bytes, slots = settings.size_bytes or 0, None
        if isinstance(settings.spill, places.Pair):
            slots = pairs.divide(settings.spill, size_bytes)
        state = statefile.create(
            settings.state, size_bytes, settings.name, limits, encrypted=encrypted, slots=slots
        )
        try:
            spill = cls._make_spill(settings, state)
        except BaseException:
            state.discard()
            raise
        try:
            engine = cls(state, spill, cls._make_key(state))
            engine._adopt_orders(
                dataclasses.replace(
                    settings,
                    compress=settings.compress or DEFAULT_COMPRESS,
                    clean_ahead=DEFAULT_CLEAN_AHEAD if settings.clean_ahead is None else settings.clean_ahead,
                )
            )
            if first_page is not None:
                engine._write_first(first_page)
            state.publish()
        except BaseException:
            cls._undo(state, spill)
            raise
        return engine

    @staticmethod
    def _make_key(state: statefile.StateFile) -> bytearray | None:
        if not state.identity.encrypted:
            return None
        if state.path is None:
            return bytearray(os.urandom(keys.KEY_BYTES))  # nobody can take the disk over
        return keys.make(state.identity.disk_id)

    @staticmethod
    def _make_spill(settings: Settings, state: statefile.StateFile) -> Spill:
        path = settings.spill
        where = str(state.path.resolve()) if state.path is not None else ""
        if isinstance(path, places.Pair):
            return pairs.create(
                path,
                state.shape,
                state.identity.disk_id,
                where,
                force=settings.force,
                timeout_seconds=_timeout(settings),
            )
        if isinstance(path, uris.Uri):
            # Here: libnbd and all that comes with it, which a file is served without.
            from swaptide.cache import exports

            return exports.create(
                path,
                state.shape,
                state.identity.disk_id,
                where,
                force=settings.force,
                timeout_seconds=_timeout(settings),
            )
        if path is None and state.path is not None:
            # The state file outlives this process, so what it points to must as well.
            path = spillfile.DEFAULT_DIRECTORY / f"swaptide-{state.identity.disk_id}.spill"
        return spillfile.create(path, state.shape, state.identity.disk_id, where, force=settings.force)

    @classmethod
    def _reopen(cls, settings: Settings) -> "Engine":
        assert settings.state is not None
        state = statefile.reopen(settings.state)
        try:
            if settings.size_bytes not in (None, state.identity.size_bytes):
                raise UsageError(
                    f"size={settings.size_bytes}: the disk in {settings.state} has"
                    f" {state.identity.size_bytes} bytes; a disk keeps its size"
                )
            if settings.encrypt not in (None, state.identity.encrypted):
                raise UsageError(
                    f"encrypt={'yes' if settings.encrypt else 'no'}: the disk in {settings.state} was made"
                    " the other way, and keeps to it"
                )
            if layout.gate(state.mapping.control_word(layout.CONTROL.index("gate"))) in layout.SHUT_GATES:
                # Another disk may have its store: this one may not so much as connect.
                raise BusyError(
                    f"disk {state.identity.name} was handed over together with its store; if it was never"
                    f" opened there, `swaptide migrate {state.identity.name} --take-back`"
                )
            spill = cls._reopen_spill(settings, state)
            key, taken = keys.take_over(state.identity.disk_id) if state.identity.encrypted else (None, 0)
            engine = cls(state, spill, key)
            engine._recover(taken)
            engine._adopt_cap(settings)
            engine._adopt_orders(settings)
            return engine
        except BaseException:
            state.close()
            raise

    @staticmethod
    def _reopen_spill(settings: Settings, state: statefile.StateFile) -> Spill:
        disk_id = state.identity.disk_id
        # Whoever let go of its store in peace took its number away.
        died = state.mapping.counter_word(layout.COUNTERS.index("owner_pid")) != 0
        if isinstance(settings.spill, places.Pair) != (state.identity.slots is not None):
            has = "one store; name that one" if state.identity.slots is None else "two stores; name both"
            raise UsageError(
                f"spill={settings.spill}: the disk in {settings.state} has {has}, as it was made"
            )
        if isinstance(settings.spill, places.Pair):
            return pairs.reopen(
                settings.spill, state.shape, disk_id, timeout_seconds=_timeout(settings), wary=died
            )
        if isinstance(settings.spill, uris.Uri):
            from swaptide.cache import exports

            return exports.reopen(
                settings.spill, state.shape, disk_id, timeout_seconds=_timeout(settings), wary=died
            )
        path = settings.spill or spillfile.DEFAULT_DIRECTORY / f"swaptide-{disk_id}.spill"
        return spillfile.reopen(path, state.shape, disk_id)

    def _recover(self, taken: int) -> None:
        same = recovery.recover(self.segments, taken)
        mapping = self._state.mapping
        mapping.set_counter_word(layout.COUNTERS.index("same_filled_pages"), same)
        mapping.set_counter_word(layout.COUNTERS.index("connections"), 0)
        log.info("state taken over file=%s id=%s", self._state.path, self.identity.disk_id)

    def _adopt_cap(self, settings: Settings) -> None:
        """A cap on the command line that differs from the recorded one is a new cap."""
        mapping = self._state.mapping
        cap = mapping.control_word(layout.CONTROL.index("cap_bytes"))
        if settings.ram_bytes is not None and settings.ram_bytes != cap:
            limits = check_limits(dataclasses.replace(settings, size_bytes=self.identity.size_bytes))
            for index, word in enumerate(layout.CONTROL[:3]):
                mapping.set_control_word(index, getattr(limits, word))

    def _adopt_orders(self, settings: Settings) -> None:
        mapping = self._state.mapping
        if settings.compress is not None:
            mapping.set_control_word(
                layout.CONTROL.index("compress"), layout.COMPRESS.index(settings.compress)
            )
        if settings.clean_ahead is not None:
            mapping.set_control_word(
                layout.CONTROL.index("clean_ahead_permille"), round(settings.clean_ahead * 1000)
            )
        if settings.spill_timeout_seconds is not None:
            mapping.set_control_word(
                layout.CONTROL.index("spill_timeout_ms"), round(settings.spill_timeout_seconds * 1000)
            )

    def _write_first(self, page: bytes) -> None:
        """Write the first page of a new disk; the movers do not run yet, so make room by hand."""
        self.segments.ram.set_budget(1 << 62, 0)
        if self.moves.populate(2) < 0:
            raise MemoryError("the host has no memory for the first segments")
        self.log.write_bytes(page, 0)

    def start(self) -> None:
        """Start the movers and say in the state file that this process serves it."""
        sys.setswitchinterval(SWITCH_SECONDS)
        guard.protect(self._state.mapping, may_be_swapped=self._state.may_be_swapped)
        mapping = self._state.mapping
        self._spill.start(may_die=self._state.path is not None)
        # Of two stores the movers know which one fails; a single one says so itself.
        parts = self._spill.parts if isinstance(self._spill, pairs.Pair) else ()
        movers = Movers(self.moves, self.segments, self._kick_fd, parts)
        # Measures the base, so it comes when every buffer is there.
        self._governor = Governor(
            mapping,
            self.segments,
            movers,
            self._state.fd,
            self._state.path,
            self._spill.reserved_bytes,
            str if isinstance(self._spill, pairs.Pair) else self._spill.trouble,
            self._spill.set_timeout,
            lambda: self.called(),
        )
        movers.prepare()
        self._runner = Runner(movers, self._governor, may_die=self._state.path is not None)
        self._runner.start()
        self._announce(os.getpid(), 1)

    def stop(self) -> None:
        """End the movers; what is in the state file and on disk stays as it is."""
        self.segments.turnstile.stop()
        # Before the movers end: one that waits for a server that is gone would never.
        cut_off = self._spill.wind_up()
        if self._runner is not None:
            self._runner.stop()
        # What was cut off may still reach the store: a successor takes this process for one that died.
        self._announce(os.getpid() if cut_off else 0, 0)
        self._spill.close()
        self._state.close()

    def abandon(self) -> None:
        """Undo a `prepare` that made a new disk which was never started."""
        if self._state.fresh:
            self._undo(self._state, self._spill)

    @staticmethod
    def _undo(state: statefile.StateFile, spill: Spill) -> None:
        if state.path is not None and state.identity.encrypted:
            keys.erase(state.identity.disk_id)
        state.discard()
        # Last, for a directory of somebody else's refuses it; what stays is garbage without its state file.
        with contextlib.suppress(OSError):
            spill.discard(state.identity.disk_id)

    def wake_waiters(self) -> None:
        """Have writers that wait at the cap look whether their client is still there."""
        self.segments.turnstile.wake_waiters()

    def connected(self, by: int) -> None:
        """Count a client that came (+1) or went (-1)."""
        index = layout.COUNTERS.index("connections")
        mapping = self._state.mapping
        with self._connecting:
            # The word is only told: whoever overwrites it must not decide about memory here.
            self._clients += by
            mapping.set_counter_word(index, self._clients)
            if self._governor is not None:
                self._governor.expect_connections(self._clients)

    def wait_for_room(self, pause: Callable[[float], bool]) -> bool:
        """Wait a while for room for the buffers of the clients counted; false as soon as `pause` is."""
        return self._governor is None or self._governor.wait_for_room(pause)

    def set_target(self, target_bytes: int) -> None:
        """Change the target from inside the process; it is in force at once."""
        self._state.mapping.set_control_word(layout.CONTROL.index("target_bytes"), target_bytes)
        if self._governor is not None:
            self._governor.apply()

    def set_frozen(self, frozen: bool) -> None:
        """Freeze or thaw from inside the process; in force at once, but moves under way go on."""
        index = layout.CONTROL.index("frozen")
        mapping = self._state.mapping
        mapping.set_control_word(index, layout.after(mapping.control_word(index), frozen))
        if self._governor is not None:
            self._governor.apply()

    def control(self, name: str) -> int:
        """A word of layout.CONTROL, as it is now."""
        return self._state.mapping.control_word(layout.CONTROL.index(name))

    def set_control(self, name: str, value: int) -> None:
        """Store a word of layout.CONTROL that the process itself changes: `gate`, and the two of `origin`."""
        self._state.mapping.set_control_word(layout.CONTROL.index(name), value)

    @property
    def origin(self) -> str | None:
        """The id of the disk whose contents were moved into this one."""
        number = self.control("origin_high") << 64 | self.control("origin_low")
        return str(uuid.UUID(int=number)) if number else None

    def counter(self, name: str) -> int:
        """A counter of layout.COUNTERS, as it is now."""
        return self._state.mapping.counter_word(layout.COUNTERS.index(name))

    def _announce(self, pid: int, serving: int) -> None:
        mapping = self._state.mapping
        mapping.write_text(geometry.VERSION_OFFSET, geometry.VERSION_BYTES, swaptide.__version__.encode())
        mapping.set_counter_word(layout.COUNTERS.index("owner_pid"), pid)
        mapping.set_counter_word(layout.COUNTERS.index("serving"), serving)


def _timeout(settings: Settings) -> float:
    from swaptide.cache import exports

    wanted = settings.spill_timeout_seconds
    return exports.DEFAULT_TIMEOUT_SECONDS if wanted is None else wanted


def check_limits(settings: Settings) -> face.Limits:
    """The limits that the settings ask for.  Raises UsageError for a missing or impossible one."""
    if settings.size_bytes is None:
        raise UsageError("size= is missing; say for example size=4G")
    if settings.ram_bytes is None:
        raise UsageError("ram= is missing; say for example ram=1G")
    try:
        minimum = geometry.of_size(settings.size_bytes).working_minimum_bytes
    except ValueError as error:
        raise UsageError(str(error)) from error
    floor = minimum if settings.floor_bytes is None else settings.floor_bytes
    if floor < minimum:
        raise UsageError(f"floor={floor}: below the working minimum of a disk of this size, {minimum} bytes")
    if settings.ram_bytes < floor:
        raise UsageError(f"ram={settings.ram_bytes}: below the floor of {floor} bytes; give at least that")
    target = settings.ram_bytes if settings.target_bytes is None else settings.target_bytes
    target = max(floor, min(target, settings.ram_bytes))
    return face.Limits(cap_bytes=settings.ram_bytes, target_bytes=target, floor_bytes=floor)
