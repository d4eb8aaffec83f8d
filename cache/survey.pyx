"""What a walk over all segments in use tells.  It takes neither the lock nor the GIL, so its figures are not
of one moment.
"""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.ages cimport AGE_BUCKETS, AGE_LIVE, age_bucket
from swaptide.cache.atomics cimport load64s, peek64, poke64
from swaptide.cache.entry cimport CLEAN, CONTENT_BYTES, DIRTY, ram_of, state_of
from swaptide.cache.mapping cimport PACKED_FLAG
from swaptide.cache.segments cimport Segments


def emptiest_in_ram(Segments segments):
    """Weight of the emptiest sealed segment in RAM, or of a full one."""
    cdef uint32_t segment, live, least = CONTENT_BYTES
    cdef int state
    with nogil:
        for segment in range(segments.used_ids):
            live = segments.weight(segment)
            if live >= least or segments.claimed[segment]:
                continue
            state = state_of(segments.place(segment))
            if state == DIRTY or state == CLEAN:
                least = live
    return least


def count_ages(Segments segments):
    """Tell in the state file how many bytes live, by the age of their segments."""
    cdef uint64_t by_age[AGE_BUCKETS]
    cdef uint64_t clock = peek64(&segments.log_clock), born
    cdef uint32_t segment, live
    cdef int bucket
    with nogil:
        for bucket in range(AGE_BUCKETS):
            by_age[bucket] = 0
        for segment in range(segments.used_ids):
            live = segments.live_bytes(segment)
            if live:
                born = peek64(&segments.map.segment_table[segment].age)
                by_age[age_bucket(clock, born)] += live
        for bucket in range(AGE_BUCKETS):
            poke64(&segments.map.ages[AGE_LIVE + bucket], by_age[bucket])


def tiers(Segments segments):
    """What lives where, by segments in use: whole pages in RAM, packed pages in RAM, bytes of the latter,
    pages in RAM and on disk, pages on disk only, bytes of the latter.
    """
    cdef uint64_t raw = 0, packed = 0, packed_bytes = 0, clean = 0, disk = 0, disk_bytes = 0
    cdef uint32_t segment
    cdef uint64_t place, pieces, live
    with nogil:
        for segment in range(segments.used_ids):
            live = <uint64_t> load64s(&segments.live[segment])
            pieces = live >> 32
            if pieces == 0:
                continue
            place = segments.place(segment)
            if not ram_of(place):
                disk += pieces
                disk_bytes += <uint32_t> live
                continue
            if state_of(place) == CLEAN:
                clean += pieces
            if segments.map.segment_table[segment].flags & PACKED_FLAG:
                packed += pieces
                packed_bytes += <uint32_t> live
            else:
                raw += pieces
    return raw, packed, packed_bytes, clean, disk, disk_bytes
