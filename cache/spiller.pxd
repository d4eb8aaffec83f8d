"""Segments written out; see spiller.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.claims cimport Claims
from swaptide.cache.log cimport Log
from swaptide.cache.seal cimport sealer
from swaptide.cache.segments cimport Segments

cdef enum:
    MAX_SPILLERS = 16

# A segment that a worker has written, and where.
cdef struct Written:
    uint32_t segment
    uint32_t slot


cdef class Spiller:
    cdef Log log
    cdef Segments segments
    cdef Claims claims
    cdef int workers
    cdef char *memory                       # an image for each worker
    cdef bint staged[MAX_SPILLERS]          # whether that part of the memory is there
    cdef sealer sealers[MAX_SPILLERS]       # each goes with its part of the memory

    cdef int spill(self, int worker, int most, bint give_back) noexcept nogil
    cdef int _spill(self, int worker, Written *written) noexcept nogil
    cdef int _settle(self, const Written *written, int n, uint64_t mark, bint give_back) noexcept nogil
    cdef int _settle_in(self, int store, const Written *written, int n, uint64_t mark,
                        bint give_back) noexcept nogil
