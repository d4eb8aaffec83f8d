"""Taking over an existing state file: what a dead process left behind, made whole.

Runs in one thread, before anybody else looks.  Only entries and places are believed, and only after all of
them were checked (inspection.pyx); lists and free slots are made anew (docs/design.md, "Kill-safe").
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from swaptide.cache.entry cimport (
    CLEAN,
    DIRTY,
    FREE,
    OPEN,
    WRITING,
    disk_of,
    place_of,
    ram_of,
    state_of,
)
from swaptide.cache.inspection cimport CLOCK_LIMIT
from swaptide.cache.mapping cimport ALIGNED_FLAG, COLD_FLAG, PACKED_FLAG, SOLID_FLAG, STRONG_FLAG
from swaptide.cache.segments cimport Segments
from swaptide.cache.words cimport LOG_CLOCK, WRITE_CLOCK

from swaptide.cache import inspection

cdef enum:
    # A billion writes a second would take decades to get here.  A clock that is behind this is set anew, so
    # that it is never found where a table's numbers are refused.
    CLOCK_MOST = 0x2000000000000000
    # More than the writes of 8 PiB.
    CLOCK_SKIP = 0x100000000


def recover(Segments segments, uint64_t taken):
    """Bring half-done moves to an end, and rebuild lists from the tables of an existing state file.

    `taken` counts the processes that took the disk over, other than by the state file: see _mend_clocks.
    Returns the number of same-filled pages.  Raises StateError as `inspect` does; the file is not changed
    before everything is checked.
    """
    same, greatest = inspection.inspect(segments)
    _mend_clocks(segments, greatest, taken)
    ages = _settle(segments)
    for _age, segment in sorted(ages):
        segments.link(segment)
    _rebuild_free_lists(segments)
    return same


def _mend_clocks(Segments segments, uint64_t greatest, uint64_t taken):
    """Have both clocks go on from behind all that the tables know, and far from their end.

    A write's number is stored in the segment table before it is used, so `greatest` is the last one that was:
    unless the file was put back from a copy.  So every process begins with numbers of its own.
    """
    cdef uint64_t *clocks = segments.map.counters
    cdef uint64_t latest = 0, age
    cdef uint32_t segment
    if not greatest <= clocks[WRITE_CLOCK] <= CLOCK_MOST:
        # Whatever put it wrong may have taken a number from the table as well.
        clocks[WRITE_CLOCK] = greatest + CLOCK_SKIP
    if clocks[WRITE_CLOCK] < taken * CLOCK_SKIP <= CLOCK_MOST:
        clocks[WRITE_CLOCK] = taken * CLOCK_SKIP
    for segment in range(segments.used_ids):
        age = segments.map.segment_table[segment].age
        if latest < age <= CLOCK_LIMIT:
            latest = age
    if not latest <= clocks[LOG_CLOCK] <= CLOCK_LIMIT:
        clocks[LOG_CLOCK] = latest
    for segment in range(segments.used_ids):
        if segments.map.segment_table[segment].age > CLOCK_LIMIT:
            segments.map.segment_table[segment].age = clocks[LOG_CLOCK]
    segments.log_clock = clocks[LOG_CLOCK]
    segments.write_clock = clocks[WRITE_CLOCK]


def _settle(Segments segments):
    """Bring half-done moves to an end; returns (age, segment) of what is in RAM."""
    cdef uint32_t segment
    cdef uint16_t flags
    cdef uint64_t place
    ages = []
    for segment in range(segments.used_ids):
        place = segments.map.segment_table[segment].place
        state = state_of(place)
        if state == FREE:
            continue
        # What was bad may have been the way to it.
        flags = segments.map.segment_table[segment].flags & <uint16_t> (
            COLD_FLAG | ALIGNED_FLAG | PACKED_FLAG | SOLID_FLAG | STRONG_FLAG)
        segments.map.segment_table[segment].flags = flags
        # set_place() tallies differences; nothing is tallied yet.
        segments.tally(segments.class_of(segment), state, 1)
        if segments.live[segment] == 0:
            segments.set_place(segment, 0)
        elif state in (OPEN, WRITING, DIRTY):
            # A write that was cut off counts for nothing; its disk slot is free again, since
            # nobody else can be writing to it: the file's lock died after its last write.
            segments.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            ages.append((segments.map.segment_table[segment].age, segment))
        elif state == CLEAN:
            ages.append((segments.map.segment_table[segment].age, segment))
    return ages


def _rebuild_free_lists(Segments segments):
    cdef uint32_t segment, slot
    cdef uint64_t place
    ram, disk = set(), set()
    for segment in range(segments.used_ids):
        place = segments.map.segment_table[segment].place
        if state_of(place) == FREE:
            segments.free_ids[segments.n_free_ids] = segment
            segments.n_free_ids += 1
            continue
        if ram_of(place):
            ram.add(ram_of(place) - 1)
        if disk_of(place):
            disk.add(disk_of(place) - 1)
    segments.ram.used = max(ram, default=-1) + 1
    segments.ram.populated = len(ram)
    for slot in range(segments.ram.used):
        if slot not in ram:
            segments.map.slot_punch(slot, 1)
            segments.ram.holes[segments.ram.n_holes] = slot
            segments.ram.n_holes += 1
    # Above the mark: whatever a dead process had populated ahead.
    if segments.ram.used < segments.map.ram_slots:
        segments.map.slot_punch(segments.ram.used, segments.map.ram_slots - segments.ram.used)
    segments.disk.adopt(disk)
