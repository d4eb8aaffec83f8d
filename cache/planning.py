"""What moves next: `plan` is a pure function from a snapshot of the pools to the moves to start."""

import math
import os
from typing import Final, NamedTuple

from swaptide.cache import geometry

# Writes in flight: four of 2 MiB keep a fast disk busy (measured: 4 x pwritev, 3.5 GB/s).
SPILLERS: Final = 4
CORES: Final = len(os.sched_getaffinity(0))
PACKERS: Final = min(8, CORES)
# A segment in RAM that weighs less than this (segments.pyx) is cleaned rather than written out, in bytes:
# below it, copying what lives costs less than writing everything.
CLEAN_RAM_BYTES: Final = int(geometry.CONTENT_BYTES * 0.75)
# On disk one is cleaned as long as it has room for one more page.
CLEAN_DISK_BYTES: Final = geometry.CONTENT_BYTES
# Segments that one spiller writes in one go: under load, taking the interpreter again costs as much as one.
SPILL_BATCH: Final = 8
# Free RAM slots for the guest's next writes: never fewer, never more, and how long they should last.
LEAST_FREE: Final = 2
MOST_FREE: Final = 16
DEMAND_SECONDS: Final = 0.05
# Free RAM slots beyond twice the wish, and beyond what the guest filled lately, that are kept before any is
# given back: what it overwrites comes free in bursts, and making slots anew costs as much as filling them.
SPARE_SLOTS: Final = 2
# Free disk slots below which the cleaner works on the disk: a 32nd, at least 12.
DISK_LOW_SHARE: Final = 1 / 32
DISK_LOW_LEAST: Final = 12
# Packing needs segments of its own to pack into: with fewer slots than these there is none, in segments.
PACK_LEAST_SLOTS: Final = 16
# What the guest wrote lately is not packed, up to an eighth: it is overwritten or read soonest.
RAW_SHARE: Final = 1 / 8
# Free slots that packers find while RAM is taken back; see RamSlots.keep_free.
PACK_FREE_SLOTS: Final = 5
# Ahead of need something is packed from three quarters of the limit on, and written from half of it on.
PACK_AHEAD_SHARE: Final = 3 / 4
WRITE_AHEAD_SHARE: Final = 1 / 2
AHEAD_WRITES: Final = 2


class Snapshot(NamedTuple):
    """State of the pools; all in segments (2 MiB), taken under one lock."""

    limit: int
    populated: int
    free: int
    to_punch: int
    dirty: int
    writing: int
    clean: int
    disk_free: int
    disk_slots: int
    waiting: int
    cleaner_waits: int
    raw: int  # of the dirty ones: may shrink
    packed: int  # of the dirty ones: has shrunk
    packers_open: int
    guest_fill: int  # bytes, in the segment that the guest writes to; 0 for none


class Busy(NamedTuple):
    """What is under way."""

    spilling: int = 0
    packing: int = 0


class Wish(NamedTuple):
    """What is wanted beyond the limit, and what the host has to spare.

    `hurry`: packing alone would be too slow.  `clean` segments are to be on disk as well as in RAM.
    `demand`: segments that the guest filled lately, per second, at most; `recent`: how many it filled in the
    last rates.RECENT_SECONDS.  `resting`: nothing was wanted for a good while.
    """

    compress: bool = False
    strengthen: bool = False
    hurry: bool = False
    clean: int = 0
    demand: float = 0.0
    recent: int = 0
    resting: bool = False
    idle_core: bool = False
    idle_disk: bool = False


class Plan(NamedTuple):
    """Moves to start now; `release` free slots are given back as well, since nobody will need them soon."""

    punch: bool = False
    release: int = 0
    drop: int = 0
    spill: int = 0
    batch: int = 1  # segments that each spiller writes before anybody looks again
    populate: int = 0
    clean_ram: bool = False
    clean_disk: bool = False
    pack: int = 0
    keep_raw: int = 0
    keep_free: int = 1  # free slots that stay while RAM is taken back; see RamSlots.keep_free
    strengthen: bool = False
    seal_packers: bool = False
    seal_guest: bool = False  # if it has not been written to for a while
    ahead: bool = False  # there is something to be done in idle moments


def plan(now: Snapshot, busy: Busy, wish: Wish, emptiest: int) -> Plan:
    """Decide from the snapshot, what is under way, the wishes, and the weight of the emptiest segment in RAM.

    Free slots wanted: two, or what the guest has lately filled in a twentieth of a second, at most 16: an
    idle disk costs little, and a busy one does not wait for page faults.  Slots are taken back when there
    are more than the limit; else made free ahead of the writers, by populating below the limit, and at it by
    dropping what is clean, by cleaning, by packing, and by writing out, in this order.
    """
    wanted = max(LEAST_FREE, min(MOST_FREE, math.ceil(wish.demand * DEMAND_SECONDS), now.limit // 8))
    over = now.populated - now.to_punch - now.limit
    keep_raw = min(int(now.limit * RAW_SHARE), wish.recent)
    may_pack = wish.compress and now.limit >= PACK_LEAST_SLOTS
    unpacked = max(0, now.raw - keep_raw) if may_pack else 0
    keep_free = PACK_FREE_SLOTS if unpacked or busy.packing else 1
    if over > 0:
        # Free slots are given back as they are, down to those that are kept.
        short = over + 1 if now.waiting else over - max(0, now.free - keep_free)
    elif now.populated >= now.limit:
        short = wanted - now.free
    else:
        short = 0
    short = max(0, short)
    drop = min(short, now.clean)
    short -= drop + now.writing
    clean_ram = short > 0 and emptiest < CLEAN_RAM_BYTES
    clean_disk = now.disk_free <= max(DISK_LOW_LEAST, int(now.disk_slots * DISK_LOW_SHARE))
    spill = max(0, min(SPILLERS - busy.spilling, short, now.dirty))
    if clean_ram and not clean_disk and over <= 0:
        # Up to that share of live bytes cleaning yields a slot no slower than a write to disk does, and
        # leaves every page where it is quick to read.  Unless the cleaner itself has no room to go on.
        spill = min(spill, now.cleaner_waits)
    pack, ahead = 0, False
    if unpacked and short > 0 and (over > 0 or not clean_ram):
        most = max(1, CORES - 1) if now.waiting else PACKERS
        pack = max(0, min(most - busy.packing, unpacked, short))
        if not now.waiting and not wish.hurry:
            # What does not shrink goes to disk; and one more where packers lack a slot to pack into.
            stiff = now.dirty - now.raw - now.packed
            lacking = now.free <= 2 and not now.writing
            spill = min(spill, max(stiff, int(lacking)))
    strengthen = False
    scarce = now.populated >= now.limit * PACK_AHEAD_SHARE
    if short <= 0 and drop == 0:
        stiff = now.dirty - now.raw - now.packed
        better = wish.strengthen and now.packed > 0 and scarce and over <= 0
        if unpacked and scarce:
            ahead = True
            pack = int(wish.idle_core and not busy.packing)
        elif (
            now.populated >= now.limit * WRITE_AHEAD_SHARE
            and now.clean + now.writing < wish.clean
            and (stiff or now.packed or not may_pack or now.raw > keep_raw)
        ):
            ahead = True
            spill = max(0, min(AHEAD_WRITES - busy.spilling, now.dirty)) if wish.idle_disk else 0
        elif better:
            ahead = True
        strengthen = better and wish.idle_core and not pack and not busy.packing
    populate = 0
    if over < 0:
        populate = max(0, min(-over, wanted - now.free))
    elif now.free + now.to_punch + now.writing + now.clean + busy.spilling == 0:
        populate = 1  # the cleaner's, if it lacks one: footprint.pyx knows
    # What a trim freed goes back to the host; a reserve stays, since making a slot anew costs milliseconds.
    keep = wanted if wish.resting else 2 * wanted + SPARE_SLOTS + wish.recent
    return Plan(
        punch=now.to_punch > 0 or (over > 0 and now.free > 1),
        release=now.free - keep if now.free > keep and not now.waiting else 0,
        drop=drop,
        spill=spill,
        batch=max(1, min(SPILL_BATCH, short // SPILLERS)),
        populate=populate,
        clean_ram=clean_ram,
        clean_disk=clean_disk,
        pack=pack,
        keep_raw=keep_raw,
        keep_free=keep_free,
        strengthen=strengthen,
        seal_packers=not may_pack and bool(now.packers_open),
        seal_guest=may_pack and scarce and not unpacked and now.guest_fill > 0,
        ahead=ahead,
    )
