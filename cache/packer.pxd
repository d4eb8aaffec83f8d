"""Segments packed; see packer.pyx."""

from libc.stdint cimport uint32_t

from swaptide.cache.claims cimport Claims
from swaptide.cache.codec cimport packer
from swaptide.cache.entry cimport PAGE_BYTES
from swaptide.cache.log cimport Log
from swaptide.cache.segments cimport Segments


cdef class Packer:
    cdef Log log
    cdef Segments segments
    cdef Claims claims
    cdef packer by
    cdef char page[PAGE_BYTES]
    cdef char piece[PAGE_BYTES]
    cdef bint all_shrink    # of those that were tried of the segment under way

    cdef int pack(self, uint32_t keep, bint strong) noexcept nogil
    cdef int strengthen(self) noexcept nogil
    cdef bint _shrinks(self, uint32_t segment, bint strong) noexcept nogil
    cdef int _pack_page(self, const char *page, bint strong) noexcept nogil
    cdef int _pack_live(self, uint32_t segment, bint strong) noexcept nogil
