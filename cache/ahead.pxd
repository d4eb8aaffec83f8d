"""Read-ahead along the log; see ahead.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.image cimport Spill
from swaptide.cache.pthread cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    WINDOWS = 8
    STREAMS = 8
    WINDOW_CHUNKS = 32
    WINDOW_BYTES = 143360       # WINDOW_CHUNKS * 4112, and both ends widened to 4096

cdef struct Window:
    uint64_t write      # of the segment whose chunks these are; 0: none
    uint32_t first      # chunk
    uint32_t count
    uint32_t used       # chunks asked for so far
    uint32_t wanted     # of these, the ones that made us read it
    uint32_t users
    uint64_t tick
    bint filling
    char *memory
    char *start         # of the first chunk in the memory

cdef struct Stream:
    uint64_t write
    uint32_t next       # the chunk behind the last one that was read
    uint32_t size       # chunks to read next time; 0: not known to go on
    uint64_t tick


cdef class Ahead:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t filled
    cdef char *memory
    cdef Window windows[WINDOWS]
    cdef Stream streams[STREAMS]
    cdef uint64_t tick
    cdef uint32_t most          # chunks that are worth reading at once, by how it went lately
    cdef uint32_t asked
    cdef uint64_t *counters

    cdef int find(self, const Spill *spill, uint64_t write, uint32_t slot, uint32_t first, uint32_t count,
                  char **chunks) noexcept nogil
    cdef void release(self, int window) noexcept nogil
    cdef Window *_holding(self, uint64_t write, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t _follow(self, uint64_t write, uint32_t first, uint32_t count) noexcept nogil
    cdef Window *_take(self) noexcept nogil
