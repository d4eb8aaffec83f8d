"""Taking over an existing state file: what a dead process left behind, checked and made whole.

Runs in one thread, before anybody else looks.  Only entries and places are believed, and only after all
of them were checked; live counts, lists and free slots are made anew (docs/design.md, "Kill-safe").
"""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.entry cimport (
    ABSENT,
    CLEAN,
    DIRTY,
    DISK,
    DYING,
    FREE,
    OPEN,
    PIECE,
    PIECES,
    SAME,
    WRITING,
    disk_of,
    index_of,
    kind_of,
    piece_entry,
    place_of,
    ram_of,
    segment_of,
    state_of,
)
from swaptide.cache.segments cimport BAD_FLAG, SUSPECT_FLAG, Segments

from swaptide.cache.errors import StateError


def recover(Segments segments):
    """Rebuild live counts and lists from the tables of an existing state file.

    Returns the number of same-filled pages.  Raises StateError when an entry points outside what
    the tables allow; the file is not changed before everything is checked.
    """
    same = _recount(segments)
    _check_places(segments)
    ages = _settle(segments)
    for _age, segment in sorted(ages):
        segments._link(segment)
    _rebuild_free_lists(segments)
    return same


cdef bint is_in_use(Segments segments, uint32_t segment, uint64_t entry) noexcept nogil:
    """Whether a piece entry is well formed and names a piece that was handed out."""
    return (entry == piece_entry(segment, index_of(entry)) and segment < segments.used_ids
            and segments.map.segment_ready(segment)
            and index_of(entry) < segments.map.segment_table[segment].count)


def _recount(Segments segments):
    cdef uint64_t page, entry, same = 0
    cdef uint32_t segment
    cdef bint bad = False
    with nogil:
        segment = 0
        while segment < segments.map.segments:
            if not segments.map.segment_ready(segment):
                segment = (segment | 127) + 1
                continue
            if state_of(segments.map.segment_table[segment].place) != FREE:
                segments.used_ids = segment + 1
            segment += 1
        page = 0
        while page < segments.map.pages:
            if not segments.map.page_ready(page):
                page = (page | 511) + 1
                continue
            entry = segments.map.page_table[page]
            if kind_of(entry) == PIECE:
                segment = segment_of(entry)
                if not is_in_use(segments, segment, entry):
                    bad = True
                    break
                segments.live[segment] += 1
            elif kind_of(entry) == SAME:
                same += 1
            elif entry != ABSENT:
                bad = True
                break
            page += 1
    if bad:
        raise StateError(f"the state file is damaged: the entry of page {page} points nowhere")
    return same


def _check_places(Segments segments):
    """Every place is in range and no slot is owned twice."""
    cdef uint32_t segment
    cdef uint64_t place
    ram, disk = set(), set()
    for segment in range(segments.used_ids):
        if not segments.map.segment_ready(segment):
            continue
        place = segments.map.segment_table[segment].place
        state = state_of(place)
        if state == FREE:
            ok = segments.live[segment] == 0
        else:
            ok = (state <= DYING and ram_of(place) <= segments.map.ram_slots
                  and disk_of(place) <= segments.map.disk_slots
                  and segments.map.segment_table[segment].count <= PIECES
                  and (state == DYING or (ram_of(place) != 0) == (state != DISK))
                  and (state in (OPEN, DIRTY, DYING) or disk_of(place) != 0)
                  and ram_of(place) not in ram and disk_of(place) not in disk)
        if not ok:
            raise StateError(f"the state file is damaged: segment {segment} has the place {place:#x}")
        if ram_of(place):
            ram.add(ram_of(place))
        if disk_of(place):
            disk.add(disk_of(place))


def _settle(Segments segments):
    """Bring half-done moves to an end; returns (age, segment) of what is in RAM."""
    cdef uint32_t segment, flags
    cdef uint64_t place
    ages = []
    for segment in range(segments.used_ids):
        if not segments.map.segment_ready(segment):
            continue
        place = segments.map.segment_table[segment].place
        state = state_of(place)
        if state == FREE:
            continue
        # What was bad may have been the way to it.
        flags = segments.map.segment_table[segment].flags & ~<uint32_t> (BAD_FLAG | SUSPECT_FLAG)
        segments.map.segment_table[segment].flags = flags
        # set_place() tallies differences; nothing is tallied yet.
        segments._tally(state, 1)
        if segments.live[segment] == 0:
            segments.set_place(segment, 0)
        elif state in (OPEN, WRITING, DIRTY):
            # A write that was cut off counts for nothing; its disk slot is free again, since
            # nobody else can be writing to it: the file's lock died after its last write.
            segments.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            ages.append((segments.map.segment_table[segment].age, segment))
        elif state == CLEAN:
            ages.append((segments.map.segment_table[segment].age, segment))
        elif state == DYING:
            raise StateError(f"the state file is damaged: segment {segment} is dying but lives")
    return ages


def _rebuild_free_lists(Segments segments):
    cdef uint32_t segment, slot
    cdef uint64_t place
    ram, disk = set(), set()
    for segment in range(segments.used_ids):
        place = segments.map.segment_table[segment].place if segments.map.segment_ready(segment) else 0
        if state_of(place) == FREE:
            segments.free_ids[segments.n_free_ids] = segment
            segments.n_free_ids += 1
            if not segments.map.segment_ready(segment):
                segments.map.segment_ensure(segment)
            continue
        if ram_of(place):
            ram.add(ram_of(place) - 1)
        if disk_of(place):
            disk.add(disk_of(place) - 1)
    segments.used_ram = max(ram, default=-1) + 1
    segments.used_disk = max(disk, default=-1) + 1
    segments.populated = len(ram)
    for slot in range(segments.used_ram):
        if slot not in ram:
            segments.map.slot_punch(slot, 1)
            segments.hole_ram[segments.n_hole_ram] = slot
            segments.n_hole_ram += 1
    # Above the mark: whatever a dead process had populated ahead.
    if segments.used_ram < segments.map.ram_slots:
        segments.map.slot_punch(segments.used_ram, segments.map.ram_slots - segments.used_ram)
    for slot in range(segments.used_disk):
        if slot not in disk:
            segments.free_disk[segments.n_free_disk] = slot
            segments.n_free_disk += 1
