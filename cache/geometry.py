"""Sizes and offsets: what a disk of a given size needs, and where things lie in its state file.

Pure arithmetic without state; every other room derives its offsets from here.  The picture of both
files is in docs/design.md.
"""

import dataclasses

PAGE_BYTES = 4096
SEGMENT_BYTES = 2 << 20
TAG_BYTES = 16
# On disk a segment is cut into chunks of a page, each with its tag: 510 of them leave 32 bytes of 2 MiB for
# the footer.  In RAM the same bytes lie back to back: pieces from below, the reverse map (4 bytes each) from
# above.
CHUNKS_PER_SEGMENT = 510
CONTENT_BYTES = CHUNKS_PER_SEGMENT * PAGE_BYTES
# Whole pages: 509 and their reverse map.
PIECES_PER_SEGMENT = 509
MAX_REQUEST_BYTES = 1 << 20
SPILL_HEADER_BYTES = 64 << 10
MAX_SIZE_BYTES = 16 << 40
MAX_BASE_BYTES = 48 << 20

SEGMENT_ENTRY_BYTES = 32
PAGE_ENTRY_BYTES = 8

# Pages of the state file that exist from its creation; the daemon may pwrite and pread these and
# no others, since writing to a hole of a tmpfs with huge=within_size would allocate 2 MiB.
IDENTITY_OFFSET = 0
CONTROL_OFFSET = 4096
COUNTERS_OFFSET = 8192
# The end of the page of the counters: the version of the program that serves; what is wrong, in words.
VERSION_OFFSET = 11712
VERSION_BYTES = 64
TROUBLE_OFFSET = 11776
TROUBLE_BYTES = 512
HISTOGRAMS_OFFSET = 12288
AGES_OFFSET = 20480
DIRECTORY_OFFSET = 65536

# Slack of the log on disk: 9/8 of the pages and 16 segments (design: never accept what cannot be
# taken back).  At least CLEANER_DISK_SLOTS of it is for the cleaner alone.
SLACK_SEGMENTS = 16
# One segment each: open for the guest, open for the cleaner, in flight to the disk (three), next
# for the guest, next for the cleaner, and one of tolerance.
MIN_RAM_SLOTS = 8


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def _align(value: int, to: int) -> int:
    return _ceil_div(value, to) * to


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Everything that follows from a disk's size.  All sizes and offsets are in bytes."""

    size_bytes: int
    pages: int
    disk_slots: int
    first_slots: int  # of these, the first store's: all of them where it is the only one
    ram_slots: int
    segments: int
    directory_bytes: int
    segment_table_offset: int
    page_table_offset: int
    tables_end: int
    pool_offset: int
    state_bytes: int
    spill_bytes: int

    @property
    def metadata_bytes(self) -> int:
        """Upper bound of the state file's blocks outside the pool, every table piece allocated."""
        return self.tables_end

    @property
    def working_minimum_bytes(self) -> int:
        """The smallest target at which a disk full of live pages still makes progress."""
        return _align(self.metadata_bytes + MIN_RAM_SLOTS * SEGMENT_BYTES, PAGE_BYTES)


def store_bytes(slots: int) -> int:
    """What a store of so many disk slots takes."""
    return SPILL_HEADER_BYTES + slots * SEGMENT_BYTES


def of_size(size_bytes: int, slots: tuple[int, int] | None = None) -> Geometry:
    """The geometry of a disk of `size_bytes`, a positive multiple of 4096, at most 16 TiB.

    `slots` are those of its two stores, where it has two: each at most what a single one would have, and
    together at least that.  Raises ValueError for any other size or slots.
    """
    if size_bytes <= 0 or size_bytes % PAGE_BYTES:
        raise ValueError(f"size {size_bytes} is not a positive multiple of {PAGE_BYTES}")
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f"size {size_bytes} is more than {MAX_SIZE_BYTES}")
    pages = size_bytes // PAGE_BYTES
    full = _ceil_div(pages, PIECES_PER_SEGMENT)
    disk_slots = _ceil_div(full * 9, 8) + SLACK_SEGMENTS
    # The pool is sparse: room for twice the log costs nothing until it is used, and lets a disk
    # with plenty of RAM leave its dead space alone instead of cleaning it.
    ram_slots = 2 * disk_slots
    segments = disk_slots + ram_slots
    first_slots = disk_slots
    if slots is not None:
        if not all(0 < each <= disk_slots for each in slots) or sum(slots) < disk_slots:
            raise ValueError(f"stores of {slots[0]} and {slots[1]} slots do not make {disk_slots}")
        # Slots beyond the need are for a store that fails; their numbers come out of the pool's.
        first_slots, disk_slots = slots[0], sum(slots)
        ram_slots = segments - disk_slots
    segment_table = _align(segments * SEGMENT_ENTRY_BYTES, PAGE_BYTES)
    page_table = _align(pages * PAGE_ENTRY_BYTES, PAGE_BYTES)
    directory = _align((segment_table + page_table) // PAGE_BYTES, PAGE_BYTES)
    segment_table_offset = DIRECTORY_OFFSET + directory
    page_table_offset = segment_table_offset + segment_table
    tables_end = page_table_offset + page_table
    pool_offset = _align(tables_end, SEGMENT_BYTES)
    return Geometry(
        size_bytes=size_bytes,
        pages=pages,
        disk_slots=disk_slots,
        first_slots=first_slots,
        ram_slots=ram_slots,
        segments=segments,
        directory_bytes=directory,
        segment_table_offset=segment_table_offset,
        page_table_offset=page_table_offset,
        tables_end=tables_end,
        pool_offset=pool_offset,
        state_bytes=pool_offset + ram_slots * SEGMENT_BYTES,
        spill_bytes=store_bytes(disk_slots),
    )
