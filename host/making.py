"""What a new disk is to be, checked before anything is made; and the place that it needs."""

import asyncio
import contextlib
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Final

from swaptide.balloon import limits
from swaptide.cache import detached, face, geometry, places
from swaptide.cache.errors import BusyError, StateError, UsageError
from swaptide.host import (
    config,
    definitions,
    estate,
    isolation,
    listener,
    memory,
    protocol,
    steps,
    supervisor,
)

_LOOK_SECONDS: Final = 1.0


def define(
    request: protocol.Add, chosen: config.Config, memory_dir: pathlib.Path, *, apart: bool
) -> definitions.Definition:
    """What a new disk is to be, `apart` if each has its own user; raises UsageError for what cannot be."""
    definitions.check_name(request.name)
    if request.swap_label is not None:
        definitions.check_label(request.swap_label)
    if request.spill is not None:
        definitions.check_spill(request.spill)
    if request.spill_timeout_seconds is not None:
        definitions.check_spill_timeout(request.spill or "", request.spill_timeout_seconds)
    if request.socket_owner is not None:
        _check_socket_owner(request.socket_owner)
    checked = limits.check(request.size_bytes, request.ram_bytes, request.floor_bytes)
    definition = estate.fresh_paths(
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
            spill_timeout_seconds=request.spill_timeout_seconds,
        ),
        chosen,
        memory_dir,
        apart=apart,
    )
    listener.check(chosen.run_dir / f"{request.name}.sock")
    return definition


def make_room(state: pathlib.Path, force: bool) -> tuple[str, int] | None:
    """A state file without a definition may be a disk that somebody still wants.

    Drops it if `force`; returns its id and its file's owner where a key of it is left.
    """
    if not state.exists():
        return None
    if memory.is_locked(state):
        raise BusyError(f"{state} is in use by a process that this daemon does not know; end that one")
    if not force:
        raise UsageError(f"{state} holds a disk that is not defined; use --force to drop it")
    disk_id, owner = None, owner_of(state)
    with contextlib.suppress(StateError), face.StateFace(state) as opened:
        disk_id = opened.identity.disk_id if opened.identity.encrypted else None
    state.unlink()
    return None if disk_id is None else (disk_id, owner)


async def until_started(keeper: supervisor.Keeper, told: steps.Steps) -> None:
    """Wait for a disk's first start, and tell how much of its spill space is reserved meanwhile.

    Raises as Keeper.started.
    """
    disk = keeper.definition
    spills, needed = _files_of(disk)
    told.at("starting its process")
    started = asyncio.ensure_future(keeper.started())
    answers = True
    try:
        while not (await asyncio.wait([started], timeout=steps.TELL_SECONDS))[0]:
            try:
                done = await detached.call(lambda: _allocated_bytes(spills), _LOOK_SECONDS) if answers else 0
            except FileNotFoundError:
                done = 0
            except (OSError, TimeoutError):
                answers, done = False, 0  # its store is dead: not asked again
            if 0 < done < needed:
                told.at("reserving space on disk", done, needed)
            else:
                told.at("starting its process")
        started.result()
    finally:
        started.cancel()


def _files_of(disk: definitions.Definition) -> tuple[list[pathlib.Path], int]:
    """The paths that the disk spills to, and what the files among them will have, in bytes."""
    spill, all_bytes = places.parse(disk.spill_path), geometry.of_size(disk.size_bytes).spill_bytes
    parts = (spill.first, spill.second) if isinstance(spill, places.Pair) else (places.Part(spill),)
    files = [(part.place, part.size_bytes or all_bytes) for part in parts]
    paths = [(place, nbytes) for place, nbytes in files if isinstance(place, pathlib.Path)]
    return [place for place, _ in paths], sum(nbytes for _, nbytes in paths)


def _allocated_bytes(spills: Sequence[pathlib.Path]) -> int:
    """Disk space that files have; a device has all of its own, and says 0.  Raises OSError."""
    found = [spill.stat() for spill in spills if spill.exists()]
    return sum(each.st_blocks * 512 for each in found if stat.S_ISREG(each.st_mode))


def owner_of(path: pathlib.Path) -> int:
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
