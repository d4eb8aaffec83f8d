"""What a new disk is to be, checked before anything is made; and the place that it needs."""

import contextlib
import os
import pathlib

from swaptide.balloon import limits
from swaptide.cache import face
from swaptide.cache.errors import BusyError, StateError, UsageError
from swaptide.host import config, definitions, isolation, listener, memory, protocol, supervisor


def define(
    request: protocol.Add, chosen: config.Config, memory_dir: pathlib.Path, *, apart: bool
) -> definitions.Definition:
    """What a new disk is to be, `apart` if each has its own user; raises UsageError for what cannot be."""
    definitions.check_name(request.name)
    if request.swap_label is not None:
        definitions.check_label(request.swap_label)
    if request.spill is not None:
        definitions.check_spill(request.spill)
    if request.socket_owner is not None:
        _check_socket_owner(request.socket_owner)
    checked = limits.check(request.size_bytes, request.ram_bytes, request.floor_bytes)
    definition = supervisor.fresh_paths(
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
