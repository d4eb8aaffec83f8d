"""Which segments pay to clean: the best few of one walk over all, so that not every claim walks.

A walk takes milliseconds on a disk of a TiB, as long as cleaning a segment.  It takes no lock, so whoever
claims judges again.  One thread at a time, without the GIL.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport peek64
from swaptide.cache.entry cimport CLEAN, CONTENT_BYTES, DIRTY, DISK, disk_of, state_of
from swaptide.cache.mapping cimport BAD_FLAG, SUSPECT_FLAG
from swaptide.cache.segments cimport Segments

cdef enum:
    # What a walk found is forgotten when so many segments were begun since: what was overwritten meanwhile
    # is in them, so but for trims no segment has lost more than what they hold.
    STALE_SEGMENTS = 16


cdef class Victims:
    """Segments of one disk that are worth cleaning."""

    def __cinit__(self, Segments segments):
        self.map = segments.map
        self.segments = segments
        self.disk = segments.disk

    cdef uint32_t next(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        """A sealed segment that weighed less than `below` when it was looked at, in RAM or on disk.

        With `by_age` one whose cleaning pays best: free space gained, times how long it is likely to
        stay so, over the cost of reading and writing (Rosenblum and Ousterhout, "The Design and
        Implementation of a Log-Structured File System", 1992, section 3.5).  Else one of the emptiest.
        """
        cdef uint32_t segment
        if not self._has_more(on_disk, below, by_age):
            self._walk(on_disk, below, by_age)
        if self.given == self.found:
            return NO_SEGMENT
        segment = self.best[self.given].segment
        self.given += 1
        return segment

    cdef bint suits(self, uint32_t segment, bint on_disk, uint32_t below) noexcept nogil:
        """Whether a segment may be cleaned, and weighs less than `below`."""
        cdef uint64_t place = self.segments.place(segment)
        cdef uint16_t flags = self.map.segment_table[segment].flags
        cdef int state = state_of(place)
        if self.segments.claimed[segment] or flags & (BAD_FLAG | SUSPECT_FLAG):
            return False
        if self.segments.weight(segment) >= below:
            return False
        if state == DISK:
            return on_disk and not self.disk.is_out_of_reach(disk_of(place) - 1)
        return state == CLEAN or (state == DIRTY and not on_disk)

    cdef bint _has_more(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        return (self.given < self.found and on_disk == self.on_disk and below == self.below
                and by_age == self.by_age
                and peek64(&self.segments.log_clock) - self.walked_at <= STALE_SEGMENTS)

    cdef void _walk(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        cdef uint64_t clock = peek64(&self.segments.log_clock)
        cdef uint32_t segment, live
        cdef double age
        self.found = self.given = 0
        self.walked_at = clock
        self.on_disk = on_disk
        self.below = below
        self.by_age = by_age
        for segment in range(self.segments.used_ids):
            live = self.segments.weight(segment)
            if live >= below or not self.suits(segment, on_disk, below):
                continue
            age = 1.0
            if by_age:
                age += <double> clock - <double> peek64(&self.map.segment_table[segment].age)
            self._keep(segment, (CONTENT_BYTES - live) * age / (CONTENT_BYTES + live))

    cdef void _keep(self, uint32_t segment, double score) noexcept nogil:
        """Put it where it belongs among the best, the one found first before its equals."""
        cdef int i
        if self.found < KEPT:
            self.found += 1
        elif score <= self.best[KEPT - 1].score:
            return
        i = self.found - 1
        while i > 0 and self.best[i - 1].score < score:
            self.best[i] = self.best[i - 1]
            i -= 1
        self.best[i].segment = segment
        self.best[i].score = score
