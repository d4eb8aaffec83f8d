"""Segments in order of age; see agelists.pyx."""

from libc.stdint cimport uint32_t

from swaptide.cache.mapping cimport Mapping

cdef enum:
    NO_SEGMENT = 0xffffffff

# Sealed segments in RAM are listed by what is best done with them.
cdef enum:
    RAW = 0         # may shrink
    PACKED = 1      # has shrunk
    STIFF = 2       # does not shrink: the first to go to disk
    CLASSES = 3
    CLEANED = 3     # is on disk as well
    LISTS = 4


cdef class AgeLists:
    cdef Mapping map
    cdef uint32_t *newer
    cdef uint32_t *older
    cdef uint32_t coldest[LISTS]
    cdef uint32_t youngest[LISTS]

    cdef void link(self, int kind, uint32_t segment) noexcept nogil
    cdef void unlink(self, int kind, uint32_t segment) noexcept nogil
