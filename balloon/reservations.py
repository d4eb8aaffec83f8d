"""Memory that was promised: what the caches must not grow into until it is used, released or expired.

The ledger is pure data; sizes in bytes, times in seconds of CLOCK_MONOTONIC, which outlives the daemon but
not the host.  `Book` keeps it in a file and belongs to the controller's loop.

A reservation counts as used when the host's memory in use beside the disks grows: the kernel does not say
what for.  Growth is taken from the oldest first; where it falls again the newest gets back first.  What
holds next to nothing any more for USED_SECONDS is done with.
"""

import contextlib
import logging
import os
import pathlib

import msgspec

from swaptide.cache.errors import SetupError, UsageError

log = logging.getLogger(__name__)

USED_SECONDS = 2.0
# Next to nothing: how far off the host's figures may be, which are not of one moment.
_REST_SHARE, _REST_BYTES = 32, 16 << 20
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Reservation(msgspec.Struct, frozen=True):
    """`left_bytes` is what was not used yet when the ledger's mark was taken.

    `empty_since` is since when next to nothing is left of it, None while there is more.
    """

    id: str
    size_bytes: int
    left_bytes: int
    granted_at: float
    expires_at: float
    empty_since: float | None = None


class Ledger(msgspec.Struct, frozen=True):
    """All reservations, oldest first.

    `mark_bytes` is what the host used beside the disks when `left_bytes` were true, None while nothing is
    reserved.
    """

    entries: tuple[Reservation, ...] = ()
    mark_bytes: int | None = None


def left_bytes(ledger: Ledger, used_bytes: int | None) -> tuple[int, ...]:
    """What is left of each entry when the host uses `used_bytes` beside the disks; None for not known."""
    left = [entry.left_bytes for entry in ledger.entries]
    if used_bytes is None or ledger.mark_bytes is None:
        return tuple(left)
    growth = used_bytes - ledger.mark_bytes
    if growth >= 0:
        for index, each in enumerate(left):
            left[index] -= min(each, growth)
            growth -= each - left[index]
    else:
        for index, entry in reversed(list(enumerate(ledger.entries))):
            back = min(entry.size_bytes - left[index], -growth)
            left[index] += back
            growth += back
    return tuple(left)


def held_bytes(ledger: Ledger, used_bytes: int | None) -> int:
    """What all reservations keep free."""
    return sum(left_bytes(ledger, used_bytes))


def advance(ledger: Ledger, now: float, used_bytes: int | None) -> Ledger:
    """The ledger without what expired or has been used up; the same object if nothing changed."""
    left = left_bytes(ledger, used_bytes)
    empty = [_empty_since(entry, rest, now) for entry, rest in zip(ledger.entries, left, strict=True)]
    gone = {
        entry.id
        for entry, since in zip(ledger.entries, empty, strict=True)
        if now >= entry.expires_at or (since is not None and now - since >= USED_SECONDS)
    }
    if not gone and empty == [entry.empty_since for entry in ledger.entries]:
        return ledger
    marked = tuple(
        msgspec.structs.replace(entry, empty_since=since)
        for entry, since in zip(ledger.entries, empty, strict=True)
    )
    changed = msgspec.structs.replace(ledger, entries=marked)
    return _without(changed, gone, used_bytes) if gone else changed


def grant(ledger: Ledger, new: Reservation, used_bytes: int) -> Ledger:
    """The ledger with `new`, whose use counts from `used_bytes` on."""
    settled = _settled(ledger, used_bytes)
    return Ledger((*settled.entries, new), used_bytes)


def release(ledger: Ledger, id: str, used_bytes: int | None) -> Ledger:
    """The ledger without that one; raises UsageError if there is none such."""
    known = {entry.id for entry in ledger.entries}
    if id not in known:
        raise UsageError(
            f"there is no reservation {id!r}; the reservations are: {', '.join(sorted(known)) or 'none'}"
        )
    return _without(ledger, {id}, used_bytes)


def _empty_since(entry: Reservation, left: int, now: float) -> float | None:
    rest = min(entry.size_bytes // 4, max(entry.size_bytes // _REST_SHARE, _REST_BYTES))
    if left > rest:
        return None
    return now if entry.empty_since is None else entry.empty_since


def _settled(ledger: Ledger, used_bytes: int | None) -> Ledger:
    """The same with what is left as it is now, and a new mark."""
    left = left_bytes(ledger, used_bytes)
    entries = tuple(
        msgspec.structs.replace(entry, left_bytes=rest)
        for entry, rest in zip(ledger.entries, left, strict=True)
    )
    return Ledger(entries, ledger.mark_bytes if used_bytes is None else used_bytes)


def _without(ledger: Ledger, gone: set[str], used_bytes: int | None) -> Ledger:
    # What was used of those that go stays theirs: it is not taken from the others.
    settled = _settled(ledger, used_bytes)
    entries = tuple(entry for entry in settled.entries if entry.id not in gone)
    return Ledger(entries, settled.mark_bytes if entries else None)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    boot_id: str
    ledger: Ledger


class Book:
    """The ledger of one run directory, in a file there.  `ledger` is replaced, never changed."""

    def __init__(self, path: pathlib.Path, boot: pathlib.Path = _BOOT) -> None:
        """Takes up what another daemon left; what is damaged, or of another boot, is dropped and logged."""
        self._path = path
        self._boot_id = _text(boot)
        self.ledger = Ledger()
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("reservations lost file=%s error=%r", path, str(error))
            return
        if found.boot_id == self._boot_id and _is_sound(found.ledger):
            self.ledger = found.ledger
        else:
            log.warning("reservations of another boot dropped file=%s", path)

    def put(self, ledger: Ledger) -> None:
        """Use `ledger` from now on; it is on file as well.

        Raises SetupError if one that is new cannot be written: then the old ledger stays.  What goes, goes
        in any case: the next daemon finds it expired.
        """
        if _on_file(ledger) != _on_file(self.ledger):
            try:
                self._write(ledger)
            except OSError as error:
                if {entry.id for entry in ledger.entries} - {entry.id for entry in self.ledger.entries}:
                    raise SetupError(
                        f"{self._path} cannot be written: {error.strerror}; make room there"
                    ) from error
                log.warning("reservations not saved file=%s error=%r", self._path, error.strerror)
        self.ledger = ledger

    def _write(self, ledger: Ledger) -> None:
        if not ledger.entries:
            self._path.unlink(missing_ok=True)
            return
        fresh = self._path.with_suffix(".new")
        try:
            # Not synchronised: it has to outlive this process, not the host.
            with open(fresh, "wb", opener=_private) as file:
                file.write(msgspec.json.encode(_File(self._boot_id, ledger)))
            os.replace(fresh, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise


def _on_file(ledger: Ledger) -> Ledger:
    """What has to survive: `empty_since` begins anew with each daemon."""
    entries = tuple(msgspec.structs.replace(entry, empty_since=None) for entry in ledger.entries)
    return msgspec.structs.replace(ledger, entries=entries)


def _is_sound(ledger: Ledger) -> bool:
    ids = {entry.id for entry in ledger.entries}
    return len(ids) == len(ledger.entries) and all(
        0 <= entry.left_bytes <= entry.size_bytes and entry.granted_at <= entry.expires_at
        for entry in ledger.entries
    )


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
