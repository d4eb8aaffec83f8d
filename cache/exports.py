"""NBD exports as spill stores: claimed, told apart, taken over and given up again.

An export begins as a spill file does, with a header that says whose it is; behind that stand the host, and a
page that its owner changes every few seconds, since no lock reaches across a network.  Claims are made in the
thread that asks for them, over a connection of their own (link.py).
"""

import dataclasses
import errno
import logging
import os
import pathlib
import socket
import struct
import threading
import time
import uuid
from typing import Final, Protocol

from swaptide.cache import geometry, lanes, link, remote, spillfile, uris
from swaptide.cache.errors import BusyError, SetupError, UsageError

log = logging.getLogger(__name__)

# How long one request of a claim may take, the handshake too.
LIMIT_SECONDS: Final = 10.0
# A disk that exists is served without its store if that does not answer so soon.
REOPEN_SECONDS: Final = 5.0
# How long reads wait for a server that is gone, where nobody said.
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
# What a connection that broke may still hold is with the server's disk by then, once it answers again.
DRAIN_SECONDS: Final = 1.0
_PROBE_BYTES: Final = 1 << 20
# How much is made zeros, or forgotten, in one request, and how long that may take: an export that is being
# emptied shows life oftener than whoever would take it by force looks.
_STEP_BYTES: Final = 8 << 20
_FORGET_BYTES: Final = 64 << 20
STEP_SECONDS: Final = 4.0
_DECLINED: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_PAGE: Final = geometry.PAGE_BYTES
# Of the header's page: machine id and name of the host.
_HOST_OFFSET: Final = 2048
_HOST: Final = struct.Struct("<40s256s")
# The page behind it: a number that its owner changes, and when that was, for people.
BEAT: Final = struct.Struct("<Qd")
BEAT_OFFSET: Final = _PAGE
# The disk of an export that was given up: what else is there is nobody's.
_NOBODY: Final = str(uuid.UUID(int=0))
_MACHINE_ID: Final = pathlib.Path("/etc/machine-id")


@dataclasses.dataclass(frozen=True)
class Owner:
    """Whose an export is: its disk, and the host that it is on."""

    header: spillfile.SpillHeader
    machine_id: str
    host: str

    @property
    def is_nobody(self) -> bool:
        """Whether the export was given up."""
        return self.header.disk_id == _NOBODY

    def __str__(self) -> str:
        if self.is_nobody:
            return "nobody"
        return f"the disk {self.header.disk_id} on {self.host or 'an unknown host'}"


class Export:
    """A claimed export: `store` serves from it between `start` and `close`."""

    def __init__(
        self,
        uri: uris.Uri,
        shape: geometry.Geometry,
        disk_id: str,
        *,
        align: int,
        timeout_seconds: float,
        wary: bool,
        part: int = 0,
    ) -> None:
        self.uri = uri
        self.reserved_bytes = shape.spill_bytes
        stall_seconds = _stall_seconds(timeout_seconds)
        self.store = remote.RemoteStore(
            align=align,
            read_seconds=timeout_seconds,
            stall_seconds=stall_seconds,
            drain_seconds=DRAIN_SECONDS,
            wary=wary,
            # Of two, the other one takes what this one does not.
            write_seconds=stall_seconds if part else 0.0,
        )
        self._disk_id = disk_id
        self._part = part
        self._align = align
        self._beating = threading.Lock()
        self._hushed = False
        self._lanes = lanes.Lanes(self.store, uri, self._verify, self._beat)

    @property
    def place(self) -> str:
        """Which one it is, for people."""
        return str(self.uri)

    def start(self, *, may_die: bool) -> None:
        """Connect, and stay connected; returns when that has worked or failed for the first time.

        `may_die`: a successor process could carry on.
        """
        self._lanes.start(REOPEN_SECONDS, may_die=may_die)

    def trouble(self) -> str:
        """What is wrong with the server right now, and which one it is; empty where it is well."""
        why = self._lanes.trouble or ("its server answers no writes" if self._lanes.overdue else "")
        return f"spill={self.uri}: {why}" if why else ""

    def set_timeout(self, seconds: float | None) -> None:
        """How long reads wait for a server that is gone; None for the default.  Any thread."""
        wanted = DEFAULT_TIMEOUT_SECONDS if seconds is None else seconds
        self.store.set_patience(wanted, _stall_seconds(wanted))

    def wind_up(self) -> bool:
        """Let go of the server; whoever still waits for it gets an error.  Whether a write was cut off."""
        return self._lanes.stop()

    def close(self) -> None:
        """As `wind_up`."""
        self.wind_up()

    def discard(self, disk_id: str) -> None:
        """Give the export up for a disk that came to nothing.  Raises OSError."""
        self.wind_up()
        release(self.uri, disk_id)

    def _verify(self, connection: link.Link) -> None:
        """Raises SetupError if this is not the disk's export any more, whatever it was before."""
        check_traits(self.uri, connection.traits, self.reserved_bytes)
        if connection.traits.least_bytes > self._align:
            raise SetupError(f"its blocks have {connection.traits.least_bytes} bytes now")
        owner = _owner(connection)
        if owner is not None and owner.header.disk_id == self._disk_id:
            spillfile.check_part(str(self.uri), owner.header, self._part)
        else:
            raise SetupError(f"it is not the export of this disk but of {owner or 'nobody'}; put it back")

    def _beat(self, count: int) -> None:
        """Show that the owner lives.  Raises OSError."""
        with self._beating:
            if not self._hushed:
                self.store.write_bytes(beat_page(count), BEAT_OFFSET)

    def hush(self, hushed: bool) -> None:
        """Show no life from now on, or again, and at once.  Raises SetupError where a write of it hangs."""
        if not hushed:
            self._hushed = False
            self._lanes.beat_now()
            return
        if not self._beating.acquire(timeout=LIMIT_SECONDS):
            raise SetupError(f"spill={self.uri}: its server answers no writes")
        self._hushed = True
        self._beating.release()


def create(
    uri: uris.Uri,
    shape: geometry.Geometry,
    disk_id: str,
    state_path: str,
    *,
    force: bool,
    timeout_seconds: float,
    part: int = 0,
) -> Export:
    """Claim the export for a new disk.

    Raises UsageError where it holds something that is not ours to overwrite, BusyError where a disk uses it,
    SetupError where it cannot be reached or is too small.
    """
    connection = connect(uri, LIMIT_SECONDS)
    try:
        with connection:
            check_traits(uri, connection.traits, shape.spill_bytes)
            before = _owner(connection)
            if before is None:
                if not force and not _is_blank(connection):
                    raise UsageError(
                        f"spill={uri}: holds something that is not swaptide's; empty it, or use force"
                    )
            elif before.header.disk_id == disk_id:
                raise UsageError(f"spill={uri}: the same store as the first one; name two")
            elif not before.is_nobody:
                _take_from(uri, connection, before, force)
            header = spillfile.SpillHeader(disk_id, state_path, spillfile.boot_id(), part)
            connection.write(pack_header(header), 0, LIMIT_SECONDS)
            connection.flush(LIMIT_SECONDS)
            align = _align(connection.traits)
    except link.LinkError as error:
        raise SetupError(f"spill={uri}: {error.strerror}; look at its server") from error
    wary = before is not None
    return Export(uri, shape, disk_id, align=align, timeout_seconds=timeout_seconds, wary=wary, part=part)


def reopen(
    uri: uris.Uri,
    shape: geometry.Geometry,
    disk_id: str,
    *,
    timeout_seconds: float,
    wary: bool,
    part: int = 0,
) -> Export:
    """The export of an existing disk; one whose server does not answer is connected to later.

    `wary` where the last process that wrote to it may have died in the middle.  Raises SetupError where it is
    another's.
    """
    align = _PAGE
    try:
        with link.Link(uri.text, REOPEN_SECONDS) as connection:
            check_traits(uri, connection.traits, shape.spill_bytes)
            owner = _owner(connection)
            if owner is None or owner.header.disk_id != disk_id:
                raise SetupError(
                    f"spill={uri}: not the export of this disk ({disk_id}) but of"
                    f" {owner or 'nobody'}; put it back"
                )
            spillfile.check_part(str(uri), owner.header, part)
            if owner.header.boot_id != spillfile.boot_id():
                raise SetupError(
                    f"spill={uri}: of a disk that was lost when the host restarted; remove its state file"
                )
            align = _align(connection.traits)
    except link.LinkError as error:
        log.warning("spill server not reached uri=%s error=%r", uri, error.strerror)
    return Export(uri, shape, disk_id, align=align, timeout_seconds=timeout_seconds, wary=wary, part=part)


def size_of(uri: uris.Uri) -> int:
    """How many bytes an export has.  Raises SetupError if it cannot be reached."""
    with connect(uri, LIMIT_SECONDS) as connection:
        return connection.traits.size_bytes


def release(uri: uris.Uri, disk_id: str, *, zero_bytes: int = 0, progress: "Progress | None" = None) -> None:
    """Mark a disk's export as nobody's; one that is another's is left alone.

    Before that it is emptied: its first `zero_bytes` are made zeros; where there are none, all of it is
    forgotten if the server can.  It is the disk's until all that is done: what comes after the header would
    hit the next owner.  Nobody may take it by force meanwhile, since it shows life, and nothing goes on once
    `progress` says that nobody waits for it any more.  Raises OSError.
    """
    try:
        with link.Link(uri.text, LIMIT_SECONDS) as connection:
            if not _is_of(connection, disk_id):
                return
            size = connection.traits.size_bytes
            if zero_bytes or connection.traits.trim:
                end = min(size, zero_bytes) if zero_bytes else size
                _empty(connection, geometry.SPILL_HEADER_BYTES, end, bool(zero_bytes), progress)
    except link.LinkError as error:
        # Trims are a hint.  But one without an answer may still be carried out, and much later.
        if zero_bytes or error.errno not in _DECLINED:
            raise
    with link.Link(uri.text, LIMIT_SECONDS) as connection:
        _go_on(progress)
        if not _is_of(connection, disk_id):
            raise SetupError("another disk took it meanwhile")
        connection.write(pack_header(spillfile.SpillHeader(_NOBODY, "", "")), 0, STEP_SECONDS)
        connection.flush(LIMIT_SECONDS)


def _stall_seconds(timeout_seconds: float) -> float:
    """How long a server may have requests and answer none, so that reads can be asked for once more."""
    return max(1.0, timeout_seconds / 2)


def owner_of(uri: uris.Uri) -> Owner | None:
    """Whose the export is, None where nobody's.  Raises OSError."""
    with link.Link(uri.text, LIMIT_SECONDS) as connection:
        return _owner(connection)


class Progress(Protocol):
    """How far emptying is, for another thread to read; `total_bytes` is 0 until it has begun.

    `abandoned` is that thread's word: nobody waits for it any more.
    """

    doing: str

    done_bytes: int
    total_bytes: int
    abandoned: bool


def _is_of(connection: link.Link, disk_id: str) -> bool:
    owner = _owner(connection)
    return owner is not None and owner.header.disk_id == disk_id


def _empty(connection: link.Link, start: int, end: int, plain: bool, progress: Progress | None) -> None:
    """Have the server hold zeros there where it is `plain`, else forget it if it can; show life meanwhile."""
    traits = connection.traits
    step = _FORGET_BYTES
    if plain:
        step = _STEP_BYTES if traits.zero else min(_STEP_BYTES, traits.most_bytes)
    if progress is not None:
        progress.doing = "zeroing its export" if plain else "trimming its export"
        progress.total_bytes = max(0, end - start)
    at = start
    while at < end:
        # In whole steps of the export: a store of objects keeps one of which each half was forgotten apart.
        count = min(step - at % step, end - at)
        _go_on(progress)
        connection.write(beat_page(at), BEAT_OFFSET, STEP_SECONDS)
        if not plain:
            connection.trim(count, at, STEP_SECONDS)
        elif traits.zero:
            connection.zero(count, at, STEP_SECONDS)
        else:
            connection.write(bytes(count), at, STEP_SECONDS)
        if progress is not None:
            progress.done_bytes += count
        at += count
    connection.flush(LIMIT_SECONDS)


def _go_on(progress: Progress | None) -> None:
    if progress is not None and progress.abandoned:
        raise SetupError("nobody waits for it any more")


def beat_page(number: int) -> bytes:
    return BEAT.pack(number, time.time()).ljust(_PAGE, b"\0")


def connect(uri: uris.Uri, limit_seconds: float) -> link.Link:
    """Raises SetupError that says what may be wrong."""
    try:
        return link.Link(uri.text, limit_seconds)
    except link.LinkError as error:
        raise SetupError(f"spill={uri}: {error.strerror}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    said = str(error.strerror).lower()
    if "export" in said:
        return "check the name of the export"
    if "requires tls" in said:
        return "use nbds:// or nbds+unix://"
    if "tls" in said:
        return "check its certificates and ours (tls-certificates=, tls-psk-file=)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "let the user that serves the disk connect to it"
    return "is the server running?"


def check_traits(uri: uris.Uri, traits: link.Traits, needed_bytes: int) -> None:
    if traits.read_only:
        raise SetupError(f"spill={uri}: the export is read-only; have its server allow writing")
    if traits.size_bytes < needed_bytes:
        raise SetupError(
            f"spill={uri}: the export has {traits.size_bytes} bytes, {needed_bytes} are needed;"
            " choose a larger one or a smaller disk"
        )
    if traits.least_bytes > _PAGE or traits.least_bytes & (traits.least_bytes - 1):
        raise SetupError(
            f"spill={uri}: the server wants blocks of {traits.least_bytes} bytes, at most {_PAGE} are"
            " possible; choose another one"
        )


def _align(traits: link.Traits) -> int:
    return traits.least_bytes


def _take_from(uri: uris.Uri, connection: link.Link, owner: Owner, force: bool) -> None:
    """Raises unless the export may be taken from a disk that is gone."""
    if not force:
        raise UsageError(f"spill={uri}: belongs to {owner}; remove that disk, or use force if it is gone")
    before = connection.read(_PAGE, BEAT_OFFSET, LIMIT_SECONDS)
    time.sleep(2 * lanes.BEAT_SECONDS + 1)
    if connection.read(_PAGE, BEAT_OFFSET, LIMIT_SECONDS) != before:
        raise BusyError(f"spill={uri}: in use by {owner}; choose another export")
    log.warning("spill export taken from another disk uri=%s owner=%r", uri, str(owner))


def _owner(connection: link.Link) -> Owner | None:
    return owner_in(connection.read(_PAGE, 0, LIMIT_SECONDS))


def owner_in(raw: bytes) -> Owner | None:
    """Whose an export is, by its first page; None where nobody's."""
    header = spillfile.parse(raw)
    if header is None:
        return None
    machine, host = _HOST.unpack_from(raw, _HOST_OFFSET)
    return Owner(header, _text(machine), _text(host))


def _text(raw: bytes) -> str:
    text = raw.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(char for char in text if char.isprintable())


def pack_header(header: spillfile.SpillHeader) -> bytes:
    page = bytearray(spillfile.pack(header))
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    _HOST.pack_into(page, _HOST_OFFSET, machine.encode()[:40], os.fsencode(socket.gethostname())[:256])
    return bytes(page)


def _is_blank(connection: link.Link) -> bool:
    """Nothing but zeros in the first and the last MiB."""
    end = connection.traits.size_bytes // _PAGE * _PAGE
    for start in (0, max(0, end - _PROBE_BYTES)):
        for at in range(start, min(start + _PROBE_BYTES, end), 16 * _PAGE):
            if any(connection.read(min(16 * _PAGE, end - at), at, LIMIT_SECONDS)):
                return False
    return True
