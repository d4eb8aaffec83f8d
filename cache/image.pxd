"""A segment's image on disk; see image.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.mapping cimport SegmentEntry
from swaptide.cache.pthread cimport pthread_mutex_t
from swaptide.cache.seal cimport sealer

cdef enum:
    STRIDE = 4112               # a chunk and its tag
    IMAGE_FOOTER = 2097120      # CHUNKS * STRIDE
    NO_PAGE = 0xffffffff        # of a chunk that is not one whole page

cdef struct SpillFile:
    int fd
    uint32_t align              # of offsets, lengths and buffers for direct I/O, in bytes
    uint64_t base               # offset of the first disk slot
    uint64_t disk_seed
    pthread_mutex_t *in_turn    # NULL where writes are direct: an error is that of its write

cdef int image_make(char *image, sealer *by, char *content, const SpillFile *spill, const SegmentEntry *entry,
                    uint32_t slot) noexcept nogil
cdef bint chunk_open(char *to, sealer *by, const char *chunk, const SpillFile *spill, uint64_t write,
                     uint32_t slot, uint32_t index, uint32_t page) noexcept nogil
cdef int image_write(const char *image, const SpillFile *spill, uint32_t slot) noexcept nogil
cdef int image_read(char *image, const SpillFile *spill, uint32_t slot) noexcept nogil
cdef int chunks_read(char *buffer, const SpillFile *spill, uint32_t slot, uint32_t index, uint32_t count,
                     char **first) noexcept nogil
