"""A segment's image on disk; see image.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.pthread cimport pthread_mutex_t
from swaptide.cache.seal cimport sealer

cdef enum:
    STRIDE = 4112               # a page and its tag
    IMAGE_RMAP = 2088896        # PIECES * STRIDE
    IMAGE_FOOTER = 2092960      # behind the reverse map

cdef struct SpillFile:
    int fd
    uint32_t align              # of offsets, lengths and buffers for direct I/O, in bytes
    uint64_t base               # offset of the first disk slot
    uint64_t disk_seed
    pthread_mutex_t *in_turn    # NULL where writes are direct: an error is that of its write

cdef int image_make(char *image, sealer *by, const char *pages, const SpillFile *spill, uint64_t write,
                    uint32_t slot, uint32_t count) noexcept nogil
cdef bint image_open(char *image, sealer *by, const SpillFile *spill, uint64_t write,
                     uint32_t slot) noexcept nogil
cdef bint piece_open(char *to, sealer *by, const char *piece, const SpillFile *spill, uint64_t write,
                     uint32_t slot, uint32_t index, uint64_t page) noexcept nogil
cdef int image_write(const char *image, const SpillFile *spill, uint32_t slot) noexcept nogil
cdef int image_read(char *image, const SpillFile *spill, uint32_t slot) noexcept nogil
cdef int pieces_read(char *buffer, const SpillFile *spill, uint32_t slot, uint32_t index, uint32_t count,
                     char **first) noexcept nogil
