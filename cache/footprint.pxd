"""RAM slots made and given back; see footprint.pyx."""

from libc.stdint cimport uint32_t

from swaptide.cache.segments cimport Segments

cdef int slots_populate(Segments segments, uint32_t count) noexcept nogil
cdef int slots_punch(Segments segments, uint32_t release) noexcept nogil
