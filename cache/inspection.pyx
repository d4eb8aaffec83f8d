"""A state file looked through: whether its tables make sense, before anything is believed or changed.

Runs in one thread, before anybody else looks.  What lives is counted on the way, from the entries alone.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp
from posix.types cimport off_t

from swaptide.cache.codec cimport CODEC_LEAST
from swaptide.cache.entry cimport (
    ABSENT,
    CLEAN,
    CONTENT_BYTES,
    DISK,
    DYING,
    FREE,
    PAGE_BYTES,
    PAGE_SHIFT,
    PIECE,
    PIECES,
    RMAP_ENTRY_BYTES,
    SAME,
    SEGMENT_BYTES,
    TABLE_PIECE_PAGES,
    WRITING,
    disk_of,
    is_piece,
    kind_of,
    length_of,
    offset_of,
    piece_entry,
    place_of,
    ram_of,
    rmap_of,
    same_entry,
    same_word,
    segment_of,
    state_of,
)
from swaptide.cache.mapping cimport ALIGNED_FLAG, Mapping, SegmentEntry
from swaptide.cache.segments cimport Segments

from swaptide.cache.errors import StateError


cdef extern from "<unistd.h>" nogil:
    off_t lseek(int fd, off_t offset, int whence) noexcept
    enum: SEEK_DATA
    enum: SEEK_HOLE

cdef enum:
    SEGMENTS_PER_PIECE = 128    # entries in one 4 KiB piece of a table


def inspect(Segments segments):
    """Check every entry and place, and count what lives in each segment.

    Returns the number of same-filled pages, and the greatest number of a write that the tables know.  Raises
    StateError when an entry points outside what the tables allow, or to a piece that is another page's.
    """
    _check_directory(segments)
    _find_used(segments)
    _check_places(segments)
    same = _recount(segments)
    _check_dead(segments)
    return same, _greatest_write(segments)


cdef bint is_zero(const char *piece) noexcept nogil:
    return piece[0] == 0 and memcmp(piece, piece + 1, PAGE_BYTES - 1) == 0


def _check_directory(Segments segments):
    """The directory names every table piece that holds something, and none that is not there.

    So no load or store below touches a hole of the file, which would allocate it or be SIGBUS.
    """
    cdef Mapping map = segments.map
    cdef uint64_t i, n = (map.tables_bytes - map.segment_table_offset) / PAGE_BYTES
    cdef off_t at, hole = 0, data = 0
    cdef bint bad = False
    with nogil:
        for i in range(n):
            at = <off_t> (map.segment_table_offset + i * PAGE_BYTES)
            if map.directory[i]:
                if hole < at + PAGE_BYTES:
                    hole = lseek(map.fd, at, SEEK_HOLE)
                bad = map.directory[i] != 1 or 0 <= hole < at + PAGE_BYTES
            else:
                # -1: nothing but holes from here on.
                if 0 <= data < at + PAGE_BYTES:
                    data = lseek(map.fd, at, SEEK_DATA)
                # A death just before the directory was written leaves a piece of zeros.
                bad = 0 <= data < at + PAGE_BYTES and not is_zero(map.tables + at)
            if bad:
                break
    if bad:
        raise StateError(f"the state file is damaged: its directory is wrong about table piece {i}")


def _find_used(Segments segments):
    cdef uint32_t segment = 0
    cdef bint gap = False
    with nogil:
        while segment < segments.map.segments:
            if not segments.map.segment_ready(segment):
                gap = True
                segment = (segment | (SEGMENTS_PER_PIECE - 1)) + 1
                continue
            if state_of(segments.map.segment_table[segment].place) != FREE:
                segments.used_ids = segment + 1
                if gap:
                    break
            segment += 1
    # Numbers are used from below, and a piece of the table stays for ever.
    if gap and segments.used_ids == segment + 1:
        raise StateError(f"the state file is damaged: segment {segment} lies behind a gap in its table")


def _slots_there(Mapping map):
    """For each RAM slot, whether the whole of it is in the file: it was populated before it was used."""
    cdef bytearray there = bytearray(map.ram_slots)
    cdef unsigned char *flags = there
    cdef off_t at = 0, hole = 0, end = <off_t> map.pool_bytes
    cdef uint64_t slot
    with nogil:
        # One pass: asking for each slot would walk all data behind it, each time.
        while hole < end:
            at = lseek(map.fd, <off_t> map.pool_offset + hole, SEEK_DATA) - <off_t> map.pool_offset
            if at < 0 or at >= end:
                break
            hole = lseek(map.fd, <off_t> map.pool_offset + at, SEEK_HOLE) - <off_t> map.pool_offset
            if hole <= at or hole > end:
                hole = end
            slot = (at + SEGMENT_BYTES - 1) / SEGMENT_BYTES
            while (slot + 1) * SEGMENT_BYTES <= <uint64_t> hole:
                flags[slot] = 1
                slot += 1
    return there


cdef bint is_place(Mapping map, uint64_t place) noexcept nogil:
    """Whether a place is one that this program stores."""
    cdef int state = state_of(place)
    cdef uint32_t ram = ram_of(place), disk = disk_of(place)
    if (place != place_of(state, ram, disk) or state > DYING or ram > map.ram_slots
            or disk > map.disk_slots):
        return False
    if state == FREE:
        return place == 0
    if state == DYING:
        return ram != 0 or disk != 0
    return (ram != 0) == (state != DISK) and (disk != 0) == (state in (WRITING, CLEAN, DISK))


def _check_places(Segments segments):
    """Every place is in range, what it names is there, and no slot is owned twice."""
    cdef uint32_t segment
    cdef uint64_t place
    ram, disk = set(), set()
    there = _slots_there(segments.map)
    for segment in range(segments.used_ids):
        place = segments.map.segment_table[segment].place
        if (not is_place(segments.map, place)
                or state_of(place) != FREE and not is_use(&segments.map.segment_table[segment])
                or ram_of(place) in ram or disk_of(place) in disk
                or ram_of(place) and not there[ram_of(place) - 1]):
            raise StateError(f"the state file is damaged: segment {segment} has the place {place:#x}")
        if ram_of(place):
            ram.add(ram_of(place))
        if disk_of(place):
            disk.add(disk_of(place))


cdef bint is_use(const SegmentEntry *entry) noexcept nogil:
    """Whether that many pieces of that many bytes fit into a segment."""
    if entry.flags & ALIGNED_FLAG:
        # A death between its two stores leaves the number of pieces behind.
        return (entry.count <= PIECES and entry.fill % PAGE_BYTES == 0 and entry.fill <= PIECES * PAGE_BYTES
                and entry.count <= entry.fill / PAGE_BYTES)
    return (entry.fill <= CONTENT_BYTES
            and entry.fill + <uint32_t> entry.count * RMAP_ENTRY_BYTES <= CONTENT_BYTES)


cdef bint is_own(Segments segments, uint64_t page, uint64_t entry, uint8_t *seen) noexcept nogil:
    """Whether a piece entry is well formed, names a piece that was handed out, and to this page alone.

    The reverse map tells where whole pages lie in RAM.  Where they are on disk `seen`, a bit for each, still
    finds two pages with one piece; that there may be only one makes a swap of two entries the one thing
    unseen.
    Of packed pieces it is known that all that live fit into what was handed out (`_recount`).
    """
    cdef uint32_t segment = segment_of(entry), offset = offset_of(entry), length = length_of(entry)
    cdef uint32_t index, ram
    cdef SegmentEntry *of
    cdef uint64_t bit
    if (segment >= segments.used_ids or entry != piece_entry(kind_of(entry), segment, offset, length)
            or not CODEC_LEAST <= length <= PAGE_BYTES):
        return False
    of = &segments.map.segment_table[segment]
    if offset + length > of.fill or (length == PAGE_BYTES and kind_of(entry) != PIECE):
        return False
    if not of.flags & ALIGNED_FLAG:
        return True
    index = offset >> PAGE_SHIFT
    if offset % PAGE_BYTES or length != PAGE_BYTES or index >= of.count:
        return False
    ram = ram_of(of.place)
    if ram:
        return rmap_of(segments.map.slot(ram - 1), index)[0] == page
    bit = <uint64_t> segment * (PIECES + 3) + index
    if seen[bit >> 3] & (1 << (bit & 7)):
        return False
    seen[bit >> 3] |= 1 << (bit & 7)
    return True


def _recount(Segments segments):
    cdef uint64_t page = 0, entry, same = 0
    cdef bint bad = False
    # Zeroed lazily by the kernel: only what is on disk costs.
    cdef uint8_t *seen = <uint8_t *> calloc(segments.used_ids + 1, PIECES / 8 + 1)
    if seen == NULL:
        raise MemoryError()
    with nogil:
        while page < segments.map.pages and not bad:
            if not segments.map.page_ready(page):
                page = (page | (TABLE_PIECE_PAGES - 1)) + 1
                continue
            entry = segments.map.page_table[page]
            if is_piece(entry):
                bad = not is_own(segments, page, entry, seen)
                if not bad:
                    segments.live[segment_of(entry)] += (<int64_t> 1 << 32) + length_of(entry)
            elif kind_of(entry) == SAME:
                bad = entry != same_entry(same_word(entry))
                same += 1
            else:
                bad = entry != ABSENT
            page += 1
    free(seen)
    if bad:
        raise StateError(f"the state file is damaged: the entry of page {page - 1} points nowhere")
    _check_packed(segments)
    return same


def _check_packed(Segments segments):
    """What lives in a segment of pieces of any length is no more than was handed out of it, and in RAM its
    reverse map names as many pages that lie there."""
    cdef uint32_t segment, ordinal, page
    cdef uint64_t live, entry, named
    cdef SegmentEntry *of
    cdef char *content
    cdef uint8_t *seen
    cdef bint bad = False
    for segment in range(segments.used_ids):
        of = &segments.map.segment_table[segment]
        live = <uint64_t> segments.live[segment]
        if state_of(of.place) == FREE or of.flags & ALIGNED_FLAG or live == 0:
            continue
        bad = (live >> 32) > of.count or <uint32_t> live > of.fill
        if not bad and ram_of(of.place):
            content = segments.map.slot(ram_of(of.place) - 1)
            seen = <uint8_t *> calloc(CONTENT_BYTES / CODEC_LEAST / 8 + 1, 1)
            if seen == NULL:
                raise MemoryError()
            named = 0
            with nogil:
                for ordinal in range(of.count):
                    page = rmap_of(content, ordinal)[0]
                    if page >= segments.map.pages or not segments.map.page_ready(page):
                        continue
                    entry = segments.map.page_table[page]
                    if not is_piece(entry) or segment_of(entry) != segment:
                        continue
                    # No two pieces begin within the same 16 bytes.
                    entry = offset_of(entry) / CODEC_LEAST
                    named += not seen[entry >> 3] >> (entry & 7) & 1
                    seen[entry >> 3] |= 1 << (entry & 7)
            free(seen)
            bad = named != live >> 32
        if bad:
            raise StateError(f"the state file is damaged: segment {segment} is not what its pages say")


def _check_dead(Segments segments):
    """What is free or dying has nothing that lives."""
    cdef uint32_t segment
    for segment in range(segments.used_ids):
        state = state_of(segments.map.segment_table[segment].place)
        if state in (FREE, DYING) and segments.live[segment] != 0:
            raise StateError(f"the state file is damaged: segment {segment} is not in use but lives")


def _greatest_write(Segments segments):
    """The greatest number of a write that the segment table knows, of free segments too."""
    cdef uint32_t segment = 0
    cdef uint64_t greatest = 0
    with nogil:
        while segment < segments.map.segments:
            if not segments.map.segment_ready(segment):
                segment = (segment | (SEGMENTS_PER_PIECE - 1)) + 1
                continue
            if segments.map.segment_table[segment].write > greatest:
                greatest = segments.map.segment_table[segment].write
            segment += 1
    if greatest > CLOCK_LIMIT:
        raise StateError(f"the state file is damaged: a segment was written by the write {greatest}")
    return greatest
