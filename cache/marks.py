"""NBD exports that go from one disk to another with all that is on them.

The two pages that tell whose an export is, and that its owner lives, are its **mark**.  Who takes one over
does so only where the mark is still what it was when the disk was copied: else somebody has used it since,
and the copy is worth nothing.  Each call has connections of its own, and blocks; a server that answers
nothing costs LIMIT_SECONDS for each request.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

from swaptide.cache import exports, geometry, lanes, link, places, spillfile, uris
from swaptide.cache.errors import BusyError, SetupError, UsageError

log = logging.getLogger(__name__)

# An owner that lives has shown it by then.
LIFE_SECONDS: Final = 2 * lanes.BEAT_SECONDS + 1
_PAGE: Final = geometry.PAGE_BYTES


class TakenError(SetupError):
    """An export is another disk's by now."""


@dataclasses.dataclass(frozen=True)
class Store:
    """One export of a disk, and which of its one or two it is (spillfile.SpillHeader)."""

    uri: uris.Uri
    part: int


def stores(spill: str) -> list[Store]:
    """The exports that `spill` names; raises UsageError where one of them is none."""
    parsed = places.parse(spill)
    if isinstance(parsed, places.Pair):
        found = [(parsed.first.place, 1), (parsed.second.place, 2)]
    else:
        found = [(parsed, 0)]
    made = [Store(place, part) for place, part in found if isinstance(place, uris.Uri)]
    if len(made) < len(found):
        raise UsageError(
            f"spill={places.show(spill)}: only NBD exports can be handed over, which both hosts reach;"
            " leave --hand-over-store out, and what is spilled is sent"
        )
    return made


def seen(spill: str, disk_id: str, shape: geometry.Geometry) -> list[str]:
    """What tells each export of the disk from what it may be later.  Nothing is written.

    Raises SetupError where one cannot be reached, is too small or is not that disk's.
    """
    found = []
    for each in stores(spill):
        with _reached(each.uri) as connection:
            slots = (shape.disk_slots, shape.first_slots, shape.disk_slots - shape.first_slots)[each.part]
            exports.check_traits(each.uri, connection.traits, geometry.store_bytes(slots))
            raw = _read_mark(connection)
            _check_owner(each, raw, disk_id)
            found.append(_digest(raw))
    return found


def claim(spill: str, expected: Sequence[str], disk_id: str, state_path: str) -> None:
    """Make the exports the disk's, which were another's; those that are its own already stay.

    `expected` are their marks.  Raises BusyError where one was used since, SetupError where it cannot be
    reached or does not take it.
    """
    with contextlib.ExitStack() as stack:
        found = [
            (each, mark, stack.enter_context(_reached(each.uri)))
            for each, mark in zip(stores(spill), expected, strict=True)
        ]
        # Only now that all are reached, which may take long: their owner may come back at any time.  And none
        # is taken before all of them may be.
        left = []
        for each, mark, connection in found:
            with _told(each.uri):
                if not _is_ours(each, _read_mark(connection), mark, disk_id):
                    left.append((each, connection))
        for each, connection in left:
            with _told(each.uri):
                made = spillfile.SpillHeader(disk_id, state_path, spillfile.boot_id(), each.part)
                connection.write(exports.pack_header(made), 0, exports.LIMIT_SECONDS)
                connection.flush(exports.LIMIT_SECONDS)
                log.info("spill export taken over uri=%s id=%s", each.uri, disk_id)


def retake(spill: str, disk_id: str) -> None:
    """Make every copy of the disk worthless, which is to go on here.

    Raises TakenError where one of its exports is another's by now, SetupError where one cannot be reached.
    """
    for each in stores(spill):
        with _reached(each.uri) as connection:
            _check_owner(each, _read_mark(connection), disk_id)
            number = int.from_bytes(os.urandom(8), "little")
            connection.write(exports.beat_page(number), exports.BEAT_OFFSET, exports.LIMIT_SECONDS)
            connection.flush(exports.LIMIT_SECONDS)


def check_lifeless(spill: str, expected: Sequence[str], disk_id: str) -> None:
    """Raises BusyError if whoever has the exports, other than this disk, lives.  Takes LIFE_SECONDS."""
    begun = time.monotonic()
    for seconds in (0.0, LIFE_SECONDS):
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        for each, mark in zip(stores(spill), expected, strict=True):
            with _reached(each.uri) as connection:
                _is_ours(each, _read_mark(connection), mark, disk_id)


@contextlib.contextmanager
def _reached(uri: uris.Uri) -> Iterator[link.Link]:
    """A connection, whose trouble is told in one line with the export's name."""
    with exports.connect(uri, exports.LIMIT_SECONDS) as connection, _told(uri):
        yield connection


@contextlib.contextmanager
def _told(uri: uris.Uri) -> Iterator[None]:
    try:
        yield
    except link.LinkError as error:
        raise SetupError(f"spill={uri}: {error.strerror}; look at its server") from error


def _is_ours(store: Store, raw: bytes, mark: str, disk_id: str) -> bool:
    """Whether it is that disk's already; raises BusyError where it was used since it had `mark`."""
    header = spillfile.parse(raw)
    if header is not None and header.disk_id == disk_id:
        return True
    if _digest(raw) != mark:
        raise BusyError(
            f"spill={store.uri}: used by {_owner_of(raw)} since its disk was copied: the copy is worth"
            " nothing, and the disk is where it was"
        )
    return False


def _read_mark(connection: link.Link) -> bytes:
    return connection.read(exports.BEAT_OFFSET + _PAGE, 0, exports.LIMIT_SECONDS)


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _check_owner(store: Store, raw: bytes, disk_id: str) -> None:
    header = spillfile.parse(raw)
    if header is None or header.disk_id != disk_id:
        raise TakenError(f"spill={store.uri}: it is not the export of disk {disk_id} but of {_owner_of(raw)}")
    spillfile.check_part(str(store.uri), header, store.part)


def _owner_of(raw: bytes) -> str:
    owner = exports.owner_in(raw)
    return "nobody" if owner is None else str(owner)
