"""The disks as the policy sees them, read from their state files, and their targets written there.

Owned by the controller's loop; pread, pwrite and fstat of memory only, so nothing here waits for a store.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence

from swaptide.balloon import complaints, limits, samples
from swaptide.cache import face, layout
from swaptide.cache.errors import StateError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """A disk whose memory counts.  One that does not serve right now keeps its memory and its target."""

    name: str
    state: face.StateFace
    weight: int
    serves: bool


@dataclasses.dataclass(frozen=True)
class Count:
    """All disks at one moment.  Sizes in bytes.

    `ram_bytes` is what all members take, whether they serve or not; `reclaimable_bytes` what those that do
    would give back at their floors, where their stores work and they are not frozen; `falling` whether one
    of them is above its target.
    """

    disks: tuple[samples.Disk, ...]
    ram_bytes: int
    reclaimable_bytes: int
    falling: bool


class Census:
    """Reads and steers disks; complains once about each that cannot be."""

    def __init__(self) -> None:
        self._complaints = complaints.Complaints(log)

    def take(self, members: Sequence[Member]) -> Count:
        """Count them.  One that cannot be read is left out: nobody could steer it either."""
        disks, ram, reclaimable = [], 0, 0
        for member in members:
            try:
                counters = member.state.counters()
                disk = _disk(member, counters)
                self._complaints.fine(f"disk {member.name}")
            except (StateError, OSError) as error:
                self._complaints.fail(f"disk {member.name}", error, "its RAM is not steered")
                continue
            ram += disk.ram_bytes
            if member.serves:
                disks.append(disk)
                reclaimable += _reclaimable_bytes(disk)
        falling = any(disk.ram_bytes > disk.target_bytes for disk in disks)
        return Count(tuple(disks), ram, reclaimable, falling)

    def steer(
        self, members: Sequence[Member], targets: Mapping[str, int], due: float | None
    ) -> dict[str, tuple[int, int]]:
        """Write `targets`; those that fall are to hold by `due` (seconds of CLOCK_MONOTONIC), if it is given.

        Returns what changed: old and new target by disk.
        """
        changed = {}
        for member in members:
            wanted = targets.get(member.name)
            if wanted is None or not member.serves:
                continue
            try:
                old, new = _steer(member.state, wanted, due)
            except (StateError, OSError) as error:
                self._complaints.fail(f"disk {member.name}", error, "its RAM is not steered")
                continue
            if old != new:
                changed[member.name] = (old, new)
        return changed


def _disk(member: Member, counters: Mapping[str, int]) -> samples.Disk:
    held = member.state.limits()
    ages = member.state.ages()
    return samples.Disk(
        name=member.name,
        ram_bytes=member.state.ram_bytes(counters),
        target_bytes=held.target_bytes,
        cap_bytes=held.cap_bytes,
        floor_bytes=held.floor_bytes,
        weight=member.weight,
        reads_by_age=ages.reads,
        live_bytes_by_age=ages.live_bytes,
        missed_pages=counters["misses"],
        # What stands still cannot give anything back either, until it is thawed.
        stuck=not layout.can_spill(counters) or member.state.is_frozen(),
        written_bytes=counters["write_bytes"],
    )


def _reclaimable_bytes(disk: samples.Disk) -> int:
    """What the policy can have of a disk.  Of a stuck one it asks nothing: what is dirty has nowhere to go,
    and what is clean would be left on the store that fails alone.  (A disk whose other store works keeps that
    until it is there as well.)"""
    return 0 if disk.stuck else max(0, disk.ram_bytes - disk.floor_bytes)


def _steer(state: face.StateFace, wanted: int, due: float | None) -> tuple[int, int]:
    """Old and new target.  A deadline that somebody else has set, and that is nearer, stays."""
    held = state.limits()
    target = limits.clamp(wanted, held)
    if target != held.target_bytes:
        deadline_ns = _nearer(state, due) if due is not None and target < held.target_bytes else None
        state.set_limits(deadline_ns=deadline_ns, target_bytes=target)
    return held.target_bytes, target


def _nearer(state: face.StateFace, due: float) -> int | None:
    wanted = max(1, round(due * 1e9))
    present = state.deadline_ns()
    return wanted if wanted < present or present < time.monotonic_ns() else None
