"""The words of the state file's header pages, as the daemon and the plugin both see them.

Identity is written once, at creation.  Control is written by whoever steers (the daemon, a test),
with pwrite, and read by the plugin.  Counters are written by the plugin alone.  All words are
little-endian unsigned 64-bit.  The compiled core has the same order in `words.pxd`;
tests/unit/test_cache_small.py holds the two against each other.
"""

import struct
from collections.abc import Mapping
from typing import Final

MAGIC: Final = b"swaptide"
FORMAT_VERSION: Final = 4

# magic, version, segment bytes, size, disk id (16 raw bytes), name (64 bytes, zero-padded UTF-8), flags
IDENTITY = struct.Struct("<8sQQQ16s64sQ")
ENCRYPTED_FLAG: Final = 1
# In the flags of a disk with two spill stores: how many disk slots each has.
_SLOTS_SHIFTS: Final = (8, 36)
_SLOTS_MASK: Final = (1 << 28) - 1

# In the order of the control page.
CONTROL: Final = (
    "cap_bytes",
    "target_bytes",
    "floor_bytes",
    "publish_request",  # bumped by a reader that wants fresh counters; answered in publish_answer
    "compress",  # an index of COMPRESS
    "clean_ahead_permille",  # of the target: the coldest data that is kept on disk as well as in RAM
    "deadline_ns",  # of CLOCK_MONOTONIC: when the target has to hold; 0 for as soon as it may be
    "frozen",  # counts freezes and thaws: odd while the disk is to stand still
    "spill_timeout_ms",  # how long reads wait for a spill server that is gone; 0 for the default
    "gate",  # an index of GATES
    "call",  # bumped by a daemon that wants the process to call it back, for a job (nbdkit_plugin/gate.py)
    "origin_high",  # the id of the disk whose contents were moved into this one; 0 for none
    "origin_low",
    "seal_seed",  # what spilled data is bound to in the place of half of the disk's id; 0 for that
)
# More than this is damage.
SPILL_TIMEOUT_MOST_MS: Final = 86_400_000
# A count that is beyond this is damage, which is no reason to let a guest wait.
FROZEN_MOST: Final = 1 << 32

# Whether clients are served (docs/design.md, "Migration").  What is none of these is damage, and open.
GATES: Final = (
    "open",
    "incoming",  # the contents are on their way: requests wait
    "arrived",  # all there, but the source has not given it away yet: requests wait
    "given",  # the contents are another disk's now: requests are refused
    "gone",  # and its memory was given back
    "leaving",  # copied together with where it lies on its store: served, changes wait, no process starts
    "handed",  # given, and its store as well: requests are refused, no process starts
)

# By which nobody may begin to serve the disk.
SHUT_GATES: Final = ("leaving", "handed")

# lz4+zstd: with LZ4 first, and what stays cold anew with zstd when cores are idle.
COMPRESS: Final = ("none", "lz4", "zstd", "lz4+zstd")

# In the order of the counters page.
COUNTERS: Final = (
    "owner_pid",
    "serving",  # 1 once the process that owns the file answers requests
    "connections",
    "publish_answer",
    "target_seen_bytes",
    "base_bytes",
    "private_bytes",
    "reads",
    "writes",
    "trims",
    "zeroes",
    "flushes",
    "read_bytes",
    "write_bytes",
    "hits",
    "misses",
    "stalls",
    "spill_written_bytes",
    "spill_read_bytes",
    "spill_write_errors",
    "spill_read_errors",
    "cleaned_segments",
    "cleaned_pages",
    "stored_pages",
    "same_filled_pages",
    "raw_bytes",
    "packed_bytes",
    "spilled_bytes",
    "clean_bytes",
    "reserved_bytes",
    "ram_slots_used",
    "ram_slots_limit",
    "disk_slots_used",
    "degraded",  # 1 while the spill store fails, or one of two
    "ram_blocked",  # 1 while the host (cgroup, tmpfs) refuses memory below the target
    # The two words here that the log itself relies on:
    "log_clock",  # counts the lives of all segments
    "write_clock",  # numbers the writes to the spill file; each number is used once: it is half of the nonce
    "packed_pages",  # pages in RAM in segments that are packed; packed_bytes is what they take there
    "packed_hits",  # pages read from such
    "pack_tried_pages",
    "packed_total_pages",  # of these, the ones that shrank
    "packed_total_bytes",  # to so many bytes
    "strengthened_segments",  # packed anew with zstd
    "written_ahead_segments",
    "dropped_segments",  # clean ones, whose RAM was given up
    "cleaned_disk_segments",  # of the cleaned ones: those that were on disk only
    "spilled_disk_bytes",  # what spilled_bytes take on disk
    "read_ahead_pages",  # read from disk beyond what was asked for; in chunks of a page
    "read_ahead_hits",  # of all that was asked for, what had been read ahead
    # What a falling target can count on, in bytes of RAM and as fast as this host was measured to be:
    "droppable_bytes",  # come back at once: segments that are clean, and free ones
    "packable_bytes",  # what packing would free, at the mean of what it freed so far
    "pack_bytes_per_second",  # of RAM that packing frees; 0 where nothing is packed
    "spill_bytes_per_second",  # of RAM that writing out frees
    "frozen_seen",  # the control word `frozen` once it is obeyed: nothing changes or moves any more
    "frozen_waits",  # how often a write, trim or zero had to wait for a thaw
    "second_slots_used",  # of disk_slots_used, those in the second of two spill stores
    "usable_stores",  # how many spill stores take writes now; an older version does not count, and says 0
)
WORD: Final = struct.Struct("<Q")

# One histogram.Histogram each, in this order, behind the counters.  A request is counted once it was answered
# without an error, with the time from its arrival in the plugin to its answer and the bytes it asked for.
HISTOGRAMS: Final = (
    "hit",  # reads that needed nothing from the disk
    "miss",  # reads that did
    "write",  # waits at the cap and for a thaw included
    "stall",  # of writes, trims and zeroes that waited for memory: the time they waited for it
)


def spill_timeout_seconds(word: int) -> float | None:
    """What the word `spill_timeout_ms` says; None for the default, and for damage."""
    return word / 1000 if 0 < word <= SPILL_TIMEOUT_MOST_MS else None


def flags_of(encrypted: bool, slots: tuple[int, int] | None) -> int:
    """The flags of an identity."""
    first, second = slots or (0, 0)
    return (ENCRYPTED_FLAG if encrypted else 0) | first << _SLOTS_SHIFTS[0] | second << _SLOTS_SHIFTS[1]


def slots_of(flags: int) -> tuple[int, int] | None:
    """The disk slots of a disk's two spill stores; None where it has one."""
    first, second = (flags >> shift & _SLOTS_MASK for shift in _SLOTS_SHIFTS)
    return (first, second) if first or second else None


def is_frozen(word: int) -> bool:
    """Whether the control word `frozen` says that the disk is to stand still."""
    return word % 2 == 1 and word <= FROZEN_MOST


def can_spill(counters: Mapping[str, int]) -> bool:
    """Whether what is dirty has somewhere to go: to the other store, perhaps, where one of two fails."""
    return counters["degraded"] == 0 or counters["usable_stores"] > 0


def gate(word: int) -> str:
    """What the control word `gate` says, one of GATES."""
    return GATES[word] if word < len(GATES) else "open"


def after(word: int, frozen: bool) -> int:
    """What the control word `frozen` is set to, to freeze or to thaw; as it is where it says so already."""
    if word >= FROZEN_MOST:
        return int(frozen)
    return word + (is_frozen(word) != frozen)
