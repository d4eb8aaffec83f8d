"""One page moved to another segment while its guest may read and overwrite it; for cleaner and packers.

Runs without the GIL, in the movers' threads.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from swaptide.cache.atomics cimport cas64, mortal, point
from swaptide.cache.entry cimport ABSENT, is_piece, piece_entry, rmap_of, segment_of
from swaptide.cache.log cimport Log
from swaptide.cache.segments cimport COLD
from swaptide.cache.turnstile cimport Waiter


cdef uint64_t live_entry(Log log, uint32_t segment, char *content, uint32_t ordinal,
                         uint32_t *page) noexcept nogil:
    """The entry of the `ordinal`-th page in a claimed segment's reverse map, ABSENT where it is dead."""
    cdef uint64_t entry
    page[0] = rmap_of(content, ordinal)[0]
    if page[0] >= log.map.pages:
        return ABSENT
    entry = log.entry(page[0])
    return entry if is_piece(entry) and segment_of(entry) == segment else ABSENT


cdef int move_piece(Log log, int head, uint32_t page, uint64_t old, int kind, const char *piece,
                    uint32_t length) noexcept nogil:
    """Have `piece` stand for a page of a claimed segment instead of its `old` entry.

    1, 0 where the page was overwritten meanwhile, or -EAGAIN: stopping, or no slot for a packer, or none
    for the cleaner of a frozen disk.
    """
    cdef uint32_t to, offset, ordinal, segment = segment_of(old)
    cdef char *content
    cdef int result = 0
    cdef Waiter patient
    patient.alive = NULL
    patient.arg = NULL
    patient.stalled_ns = 0
    if log.segments.reserve(head, 1, length, log.map.segment_table[segment].age,
                            &patient if head == COLD else NULL, &to, &offset, &ordinal) < 0:
        return -EAGAIN
    content = log.content(to)
    memcpy(content + offset, piece, length)
    rmap_of(content, ordinal)[0] = page
    point("move: copied")
    # The source is claimed, so its number cannot come round: equal means unchanged.
    if cas64(&log.map.page_table[page], old, piece_entry(kind, to, offset, length)):
        mortal("move: entry swapped")
        log.segments.retire(old)
        result = 1
    else:
        log.segments.cancel(to, 1, length)
    log.segments.unpin(to)
    return result
