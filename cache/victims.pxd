"""Which segments pay to clean; see victims.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.mapping cimport Mapping
from swaptide.cache.segments cimport Segments
from swaptide.cache.slots cimport Slots

cdef enum:
    KEPT = 16

cdef struct Victim:
    uint32_t segment
    double score


cdef class Victims:
    cdef Mapping map
    cdef Segments segments
    cdef Slots disk
    cdef Victim best[KEPT]      # of the last walk, best first
    cdef int found, given
    cdef uint64_t walked_at     # by the log's clock
    # What the walk was for:
    cdef bint on_disk, by_age
    cdef uint32_t below

    cdef uint32_t next(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef bint suits(self, uint32_t segment, bint on_disk, uint32_t below) noexcept nogil
    cdef bint _has_more(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef void _walk(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef void _keep(self, uint32_t segment, double score) noexcept nogil
