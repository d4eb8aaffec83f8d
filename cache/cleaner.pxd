"""Segments cleaned; see cleaner.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from swaptide.cache.claims cimport Claims
from swaptide.cache.entry cimport CHUNKS
from swaptide.cache.log cimport Log
from swaptide.cache.mapping cimport SegmentEntry
from swaptide.cache.seal cimport sealer
from swaptide.cache.segments cimport Segments


cdef class Cleaner:
    cdef Log log
    cdef Segments segments
    cdef Claims claims
    cdef char *memory               # an image, and what is opened of it
    cdef sealer by
    cdef uint8_t opened[CHUNKS]     # of the segment that is cleaned from disk: 1 open, 2 damaged

    cdef int clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef int _clean_from_disk(self, uint32_t segment, uint32_t slot) noexcept nogil
    cdef bint _open_chunks(self, char *image, char *content, SegmentEntry *entry, uint32_t slot,
                           uint64_t start, uint64_t end, uint32_t page) noexcept nogil
    cdef uint32_t _find_pages(self, uint32_t segment, char *content) noexcept nogil
    cdef int _move_live(self, uint32_t segment, char *content, uint32_t count, char *image,
                        uint32_t slot) noexcept nogil
