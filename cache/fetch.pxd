"""Pieces brought to where they are wanted; see fetch.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.ahead cimport Ahead
from swaptide.cache.codec cimport unpacker
from swaptide.cache.image cimport Spill
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_cond_t, pthread_mutex_t
from swaptide.cache.seal cimport sealer
from swaptide.cache.segments cimport Segments
from swaptide.cache.store cimport Store

cdef enum:
    BOUNCE_BUFFERS = 16
    UNPACKERS = 4
    BOUNCE_CHUNKS = 33
    BOUNCE_BYTES = 147456       # BOUNCE_CHUNKS * 4112, and both ends widened to 4096


cdef class Fetcher:
    cdef Mapping map
    cdef Segments segments
    cdef Spill spill
    cdef Ahead ahead
    cdef Store store            # kept: `spill` is its face
    cdef pthread_mutex_t lock
    cdef pthread_cond_t bounce_free
    cdef char *bounce_memory
    cdef char *bounce[BOUNCE_BUFFERS]
    cdef sealer sealers[BOUNCE_BUFFERS]     # each goes with its buffer
    cdef int bounces
    cdef unpacker unpackers[UNPACKERS]
    cdef int free_unpackers[UNPACKERS]
    cdef int n_unpackers
    cdef pthread_cond_t unpacker_free

    cdef int read(self, char *buf, uint64_t count, uint32_t skip, uint32_t segment, uint64_t *entries,
                  uint64_t page) noexcept nogil
    cdef int unpack(self, char *buf, uint64_t count, uint32_t skip, uint64_t entry,
                    char *piece) noexcept nogil
    cdef char *take_bounce(self) noexcept nogil
    cdef void give_bounce(self, char *buffer) noexcept nogil
    cdef int _open_piece(self, char *buf, uint64_t count, uint32_t skip, uint64_t entry, char *chunks,
                         char *plain, uint32_t first, uint32_t *opened, int which, uint32_t slot,
                         uint64_t write) noexcept nogil
    cdef int _take_unpacker(self) noexcept nogil
    cdef void _give_unpacker(self, int which) noexcept nogil
