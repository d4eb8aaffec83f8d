"""A segment's image on disk; see image.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.mapping cimport SegmentEntry
from swaptide.cache.seal cimport sealer
from swaptide.cache.store cimport store_face

cdef enum:
    STRIDE = 4112               # a chunk and its tag
    IMAGE_FOOTER = 2097120      # CHUNKS * STRIDE
    NO_PAGE = 0xffffffff        # of a chunk that is not one whole page

cdef struct Spill:
    store_face store
    uint64_t base               # offset of the first disk slot
    uint64_t disk_seed

cdef int image_make(char *image, sealer *by, char *content, const Spill *spill, const SegmentEntry *entry,
                    uint32_t slot) noexcept nogil
cdef bint chunk_open(char *to, sealer *by, const char *chunk, const Spill *spill, uint64_t write,
                     uint32_t slot, uint32_t index, uint32_t page) noexcept nogil
cdef int image_write(const char *image, const Spill *spill, uint32_t slot) noexcept nogil
cdef int image_commit(const Spill *spill, uint64_t mark, uint32_t slot) noexcept nogil
cdef int image_read(char *image, const Spill *spill, uint32_t slot) noexcept nogil
cdef int image_discard(const Spill *spill, uint32_t slot, uint32_t count) noexcept nogil
cdef int chunks_read(char *buffer, const Spill *spill, uint32_t slot, uint32_t index, uint32_t count,
                     char **first) noexcept nogil
cdef void piece_copy(char *to, const char *chunks, uint32_t first, uint32_t at,
                     uint32_t length) noexcept nogil
