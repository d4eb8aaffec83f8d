"""One page moved to another segment; see relocate.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.log cimport Log

cdef uint64_t live_entry(Log log, uint32_t segment, char *content, uint32_t ordinal,
                         uint32_t *page) noexcept nogil
cdef int move_piece(Log log, int head, uint32_t page, uint64_t old, int kind, const char *piece,
                    uint32_t length) noexcept nogil
