"""A disk taken in whose store is handed over: its state file and key, kept aside until it is given.

Runs in a thread of its own in the process of the disk whose place it takes.  The file lies beside the state
file, under a name of drafts, so that whoever clears or removes the disk removes it, and its key, as well.
Nothing is written to the store here, and the disk's own state stays what it is: the daemon puts the other
into its place once it was given (host/adoption.py).
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import struct
import uuid
from collections.abc import Mapping
from typing import Any, Final, Protocol

from swaptide.cache import face, geometry, keys, layout, sending, statefile, stream
from swaptide.cache.errors import SwaptideError
from swaptide.cache.stream import StreamError

STORE: Final = "store"  # of the first frame: what is handed over
KEPT: Final = "kept"  # ordered: whoever steers will find it again
MINE: Final = "mine"  # ordered: the store is this disk's

# Two copies of a key would number their writes alike; no disk is taken over so often.
TAKEN_STEP: Final = 1 << 10
_ORDER_SECONDS: Final = 60.0
_OFFSET: Final = struct.Struct("<Q")
_KEY_LENGTHS: Final = (keys.KEY_BYTES, keys.KEY_BYTES + 8)
# Words of the counters that tell of the process that was there before.
_FORGOTTEN: Final = ("serving", "connections", "frozen_seen", "base_bytes", "private_bytes")


@dataclasses.dataclass(frozen=True)
class Offer:
    """What is handed over: a disk of this identity and `seal_seed`, on the stores that `spill` names."""

    origin: str
    size_bytes: int
    format: int
    encrypted: bool
    slots: tuple[int, int] | None
    seal_seed: int
    spill: str


def offer_of(identity: face.Identity, seal_seed: int) -> dict[str, Any]:
    """What a disk says of itself, for the other side's `parse`."""
    return {
        "format": layout.FORMAT_VERSION,
        "flags": layout.flags_of(identity.encrypted, identity.slots),
        "seal_seed": f"{seal_seed:x}",
    }


def parse(hello: Mapping[str, Any]) -> Offer:
    """Raises StreamError."""
    store = hello.get(STORE)
    if not isinstance(store, dict):
        raise StreamError("a message has no good store")
    flags = stream.number_of(store, "flags")
    spill = store.get("spill")
    if not isinstance(spill, str) or not spill.isprintable():
        raise StreamError("a message has no good spill")
    try:
        origin = str(uuid.UUID(stream.text_of(hello, "disk_id")))
        seed = int(stream.text_of(store, "seal_seed"), 16)
    except ValueError:
        raise StreamError("a message has no good disk_id or seal_seed") from None
    if not 0 < seed < 1 << 64:
        raise StreamError("a message has no good seal_seed")
    return Offer(
        origin,
        stream.number_of(hello, "size_bytes"),
        stream.number_of(store, "format"),
        bool(flags & layout.ENCRYPTED_FLAG),
        layout.slots_of(flags),
        seed,
        spill,
    )


def check_size(size_bytes: int, own_bytes: int) -> None:
    """Raises StreamError where a disk of this size does not fit into one of ours."""
    if size_bytes != own_bytes:
        raise StreamError(
            f"what comes has {size_bytes} bytes, and this disk {own_bytes}; make it with --size {size_bytes}"
        )


class AdoptingDisk(Protocol):
    """What this does with the disk."""

    def set_gate(self, gate: str) -> None:
        """Whether clients are served."""

    def set_origin(self, disk_id: str | None) -> None:
        """Whose contents these are."""

    def own_state(self) -> statefile.StateFile:
        """Its state file."""

    def marks(self, offer: Offer) -> list[str]:
        """What tells the stores from what they may be later; raises SwaptideError where one is not there."""

    @property
    def is_private(self) -> bool:
        """Whether nobody else hears what comes."""


class Adopting:
    """Takes in what `hello` offered."""

    def __init__(
        self, disk: AdoptingDisk, called: sending.Called, reader: stream.Reader, writer: stream.Writer
    ) -> None:
        self._disk = disk
        self._called = called
        self._reader = reader
        self._writer = writer
        self._state = disk.own_state()
        self._bytes = 0
        self._pages = 0

    def take(self, hello: Mapping[str, Any]) -> None:
        """Until it is given and the daemon has taken it on; raises StreamError, and what came is dropped
        unless all of it was here."""
        offer = parse(hello)
        self._check(offer)
        self._marks(offer)
        self._writer.put_json(stream.HELLO, {"disk_id": self._state.identity.disk_id, "takes_store": True})
        self._tell("copying")
        number = str(uuid.uuid4())
        assert self._state.path is not None
        statefile.sweep_drafts(self._state.path)
        draft = statefile.draft_of(self._state.path, number)
        kept = False
        try:
            with _made(draft) as fd:
                self._take_all(fd, offer, number)
                self._tell("kept", number=number, spill=offer.spill, marks=self._marks(offer))
                self._order(KEPT)
                self._disk.set_origin(offer.origin)
                self._disk.set_gate("arrived")
                kept = True
        finally:
            if not kept:
                draft.unlink(missing_ok=True)
                with contextlib.suppress(SwaptideError):  # no keyring, no key
                    keys.erase(number)
        self._writer.put(stream.GOOD)
        self._tell("arrived")
        self._reader.expect(stream.OPEN)
        self._tell("given")
        self._order(MINE)
        with contextlib.suppress(StreamError):  # ours it is, whether they hear of it or not
            self._writer.put(stream.DONE)
        self._tell("done")

    def _check(self, offer: Offer) -> None:
        """Raises StreamError where this disk cannot be that one."""
        own = self._state.identity
        if self._state.path is None:
            raise StreamError("this disk's state file has no name: nothing can take its place")
        if not self._disk.is_private:
            raise StreamError("a store is handed over with TLS or a unix socket, and not in the clear")
        if offer.format != layout.FORMAT_VERSION:
            raise StreamError(
                f"what comes has the format {offer.format}, and this program's is {layout.FORMAT_VERSION};"
                " use the same swaptide on both sides"
            )
        check_size(offer.size_bytes, own.size_bytes)
        if offer.encrypted != own.encrypted:
            raise StreamError(
                f"what comes is {'' if offer.encrypted else 'not '}encrypted, and this disk is the other way;"
                f" make it with --encrypt {'yes' if offer.encrypted else 'no'}"
            )

    def _shape(self, offer: Offer) -> geometry.Geometry:
        try:
            return geometry.of_size(offer.size_bytes, offer.slots)
        except ValueError as error:
            raise StreamError(f"what comes makes no sense: {error}") from error

    def _marks(self, offer: Offer) -> list[str]:
        self._shape(offer)
        try:
            return self._disk.marks(offer)
        except SwaptideError as error:
            raise StreamError(f"the store cannot be had there: {error}") from error

    def _take_all(self, fd: int, offer: Offer, number: str) -> None:
        shape = self._shape(offer)
        try:
            os.ftruncate(fd, shape.state_bytes)
            while True:
                kind, payload = self._reader.next()
                if kind == stream.STATE:
                    self._take_state(fd, payload, shape)
                elif kind == stream.KEY and offer.encrypted:
                    _keep_key(payload, number)
                elif kind == stream.LAST:
                    break
                elif kind != stream.TICK:
                    raise StreamError(f"{kind.decode()} came where a state file was due")
            last = stream.parse(payload)
            if stream.number_of(last, "state_bytes") != self._bytes:
                raise StreamError(f"{self._bytes} bytes of a state file are here, and more were there")
            self._pages = stream.number_of(last, "stored_pages")
            if offer.encrypted:
                keys.wipe(keys.read(number))
            self._make_own(fd, offer)
        except StreamError:
            raise
        except SwaptideError as error:
            raise StreamError(str(error)) from error
        except OSError as error:
            raise StreamError(f"this host has no room for a state file: {error.strerror}") from error

    def _take_state(self, fd: int, payload: memoryview, shape: geometry.Geometry) -> None:
        if len(payload) <= _OFFSET.size:
            raise StreamError("a piece of a state file is too short")
        (at,) = _OFFSET.unpack_from(payload)
        data = payload[_OFFSET.size :]
        if at + len(data) > shape.state_bytes:
            raise StreamError("a piece of a state file lies outside it")
        if os.pwrite(fd, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._bytes += len(data)

    def _make_own(self, fd: int, offer: Offer) -> None:
        """What came is this disk from now on, with its id, limits and orders; what it holds stays."""
        own = self._state.identity
        theirs = face.parse_identity(os.pread(fd, layout.IDENTITY.size, 0), "what comes")
        if (theirs.disk_id, theirs.size_bytes) != (offer.origin, offer.size_bytes):
            raise StreamError("what comes is not the state file of the disk that was offered")
        mixed = face.Identity(own.disk_id, own.name, own.size_bytes, own.encrypted, offer.slots)
        os.pwrite(fd, statefile.pack_identity(mixed), geometry.IDENTITY_OFFSET)
        words = [self._state.mapping.control_word(index) for index in range(len(layout.CONTROL))]
        number = uuid.UUID(offer.origin).int
        words[layout.CONTROL.index("gate")] = layout.GATES.index("open")
        words[layout.CONTROL.index("origin_high")] = number >> 64
        words[layout.CONTROL.index("origin_low")] = number & 0xFFFFFFFFFFFFFFFF
        words[layout.CONTROL.index("seal_seed")] = offer.seal_seed
        packed = b"".join(map(layout.WORD.pack, words))
        os.pwrite(fd, packed.ljust(geometry.PAGE_BYTES, b"\0"), geometry.CONTROL_OFFSET)
        counters = {**dict.fromkeys(_FORGOTTEN, 0), "owner_pid": 1}  # as of one that died
        counters["publish_answer"] = words[layout.CONTROL.index("publish_request")]
        for name, value in counters.items():
            at = geometry.COUNTERS_OFFSET + layout.COUNTERS.index(name) * layout.WORD.size
            os.pwrite(fd, layout.WORD.pack(value), at)

    def _order(self, wanted: str) -> None:
        order = self._called.order(_ORDER_SECONDS)
        if order != wanted:
            raise StreamError(f"{order or 'nothing'} ordered where {wanted} was due")

    def _tell(self, at: str, **more: Any) -> None:
        self._called.tell(at=at, taken_pages=self._pages, taken_bytes=self._bytes, **more)


@contextlib.contextmanager
def _made(path: pathlib.Path) -> Any:
    """A new file that nobody sweeps meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StreamError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


def _keep_key(payload: memoryview, number: str) -> None:
    """In the keyring, under the draft's name."""
    if len(payload) not in _KEY_LENGTHS:
        raise StreamError("what comes as a key is none")
    kept = bytearray(payload)
    payload[:] = bytes(len(payload))
    taken = int.from_bytes(kept[keys.KEY_BYTES :], "little") + TAKEN_STEP
    kept[keys.KEY_BYTES :] = taken.to_bytes(8, "little")
    try:
        keys.keep(number, kept)
    except SwaptideError as error:
        raise StreamError(str(error)) from error
    finally:
        keys.wipe(kept)
