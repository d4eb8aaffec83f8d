"""Two spill stores of one disk, made, opened and given up together: one preferred, the other for the rest.

Each is a store as any other, with a header that says which of the two it is; nothing lies in both.  Made and
opened in one thread, before the server starts.
"""

import contextlib
import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Union

from swaptide.cache import geometry, pair, places, spillfile, uris
from swaptide.cache.errors import SetupError, UsageError

if TYPE_CHECKING:
    # Else where it is needed, as in engine.py.
    from swaptide.cache import exports

# A file or device, or an NBD export; both have the same methods.
Single = Union[spillfile.SpillFile, "exports.Export"]


class Pair:
    """Two open stores; has the methods that one has."""

    def __init__(self, first: Single, second: Single, shape: geometry.Geometry) -> None:
        self.parts = (first, second)
        self.reserved_bytes = first.reserved_bytes + second.reserved_bytes
        self.store = pair.PairStore(
            first.store,
            second.store,
            geometry.SPILL_HEADER_BYTES,
            shape.first_slots * geometry.SEGMENT_BYTES,
        )

    def start(self, *, may_die: bool) -> None:
        """As of one store, for both."""
        for part in self.parts:
            part.start(may_die=may_die)

    def set_timeout(self, seconds: float | None) -> None:
        """As of one store, for both."""
        for part in self.parts:
            part.set_timeout(seconds)

    def wind_up(self) -> bool:
        """As of one store, for both."""
        return any([part.wind_up() for part in self.parts])

    def close(self) -> None:
        """As of one store, for both."""
        for part in self.parts:
            part.close()

    def discard(self, disk_id: str) -> None:
        """As of one store, for both.  Raises OSError when both were tried."""
        with contextlib.ExitStack() as each:
            for part in self.parts:
                each.callback(part.discard, disk_id)


def divide(places_: places.Pair, size_bytes: int) -> tuple[int, int]:
    """How many disk slots each store of a new disk has, by what there is and what was said.

    Raises SetupError where they are too small together, or one cannot be looked at.
    """
    try:
        shape = geometry.of_size(size_bytes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = [_size_of(part, shape) for part in (places_.first, places_.second)]
    slots = [
        min(shape.disk_slots, max(0, nbytes - geometry.SPILL_HEADER_BYTES) // geometry.SEGMENT_BYTES)
        for nbytes in found
    ]
    for part, each, nbytes in zip((places_.first, places_.second), slots, found, strict=True):
        if not each:
            raise SetupError(
                f"spill={part.place}: {nbytes} bytes, at least {geometry.store_bytes(1)} are needed;"
                " choose a larger one, or the other one alone"
            )
    if sum(slots) < shape.disk_slots:
        needed = shape.disk_slots * geometry.SEGMENT_BYTES + 2 * geometry.SPILL_HEADER_BYTES
        raise SetupError(
            f"spill={places_}: {found[0]} and {found[1]} bytes, together {sum(found)}, {needed} are needed;"
            " choose larger ones or a smaller disk"
        )
    return slots[0], slots[1]


def create(
    named: places.Pair,
    shape: geometry.Geometry,
    disk_id: str,
    state_path: str,
    *,
    force: bool,
    timeout_seconds: float,
) -> Pair:
    """Claim both for a new disk of a shape with two stores.  Raises as for one; then neither is claimed."""

    def make(part: int, place: uris.Place) -> Single:
        own = _shape_of(part, shape)
        if isinstance(place, uris.Uri):
            from swaptide.cache import exports

            return exports.create(
                place, own, disk_id, state_path, force=force, timeout_seconds=timeout_seconds, part=part
            )
        if part == 2:
            _refuse_same(place, disk_id)
        return spillfile.create(place, own, disk_id, state_path, force=force, part=part)

    def undo(made: Single) -> None:
        made.discard(disk_id)
        made.close()

    return _both(named, shape, make, undo)


def reopen(
    named: places.Pair,
    shape: geometry.Geometry,
    disk_id: str,
    *,
    timeout_seconds: float,
    wary: bool,
) -> Pair:
    """Both stores of an existing disk.  Raises as for one, and SetupError where they are in another order."""

    def opened(part: int, place: uris.Place) -> Single:
        own = _shape_of(part, shape)
        if isinstance(place, uris.Uri):
            from swaptide.cache import exports

            return exports.reopen(place, own, disk_id, timeout_seconds=timeout_seconds, wary=wary, part=part)
        return spillfile.reopen(place, own, disk_id, part=part)

    return _both(named, shape, opened, lambda made: made.close())


def _both(
    named: places.Pair,
    shape: geometry.Geometry,
    make: Callable[[int, uris.Place], Single],
    undo: Callable[[Single], None],
) -> Pair:
    first = make(1, named.first.place)
    try:
        return Pair(first, make(2, named.second.place), shape)
    except BaseException:
        with contextlib.suppress(OSError):
            undo(first)
        raise


def _shape_of(part: int, shape: geometry.Geometry) -> geometry.Geometry:
    """As if it were the only one, in what it has to hold."""
    slots = shape.first_slots if part == 1 else shape.disk_slots - shape.first_slots
    return dataclasses.replace(shape, spill_bytes=geometry.store_bytes(slots))


def _refuse_same(path: pathlib.Path, disk_id: str) -> None:
    """Raises UsageError if the first store is there under another name."""
    with contextlib.suppress(OSError):
        header = spillfile.read_header(path)
        if header is not None and header.disk_id == disk_id:
            raise UsageError(f"spill={path}: the same store as the first one; name two")


def _size_of(part: places.Part, shape: geometry.Geometry) -> int:
    """What may be used of a store, in bytes."""
    if isinstance(part.place, uris.Uri):
        from swaptide.cache import exports

        there = exports.size_of(part.place)
    elif (found := _device_bytes(part.place)) is not None:
        there = found
    else:
        # A file is made as large as it is to be; whether there is space shows when it is reserved.
        return shape.spill_bytes if part.size_bytes is None else part.size_bytes
    if part.size_bytes is not None and part.size_bytes > there:
        raise SetupError(
            f"spill={part.place}: {there} bytes, {part.size_bytes} are to be used;"
            " say less, or leave size= out"
        )
    return there if part.size_bytes is None else part.size_bytes


def _device_bytes(path: pathlib.Path) -> int | None:
    """The size of a block device, None for anything else."""
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"spill={path}: {error.strerror}; choose another path") from error
