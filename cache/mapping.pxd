"""The mapped state file: where its tables, words and pool lie in this process."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from swaptide.cache.pthread cimport pthread_mutex_t


# A segment's flags.
cdef enum:
    COLD_FLAG = 1       # the cleaner moved pages into it
    BAD_FLAG = 2        # its tags do not match; the cleaner leaves it alone until a restart
    SUSPECT_FLAG = 4    # its read failed; tried again after a while
    ALIGNED_FLAG = 8    # every piece is a whole page, at a multiple of one
    PACKED_FLAG = 16    # there is nothing left in it to pack
    SOLID_FLAG = 32     # it does not shrink
    STRONG_FLAG = 64    # packed as well as can be

cdef struct SegmentEntry:
    uint64_t place          # state, RAM slot + 1, disk slot + 1; one atomic store moves a segment
    uint64_t write          # the number of the write that put it on disk; every seal is bound to it
    uint64_t age            # the log's clock when its data was written; small is cold
    uint32_t fill           # bytes handed out so far
    uint16_t count          # pieces handed out so far
    uint16_t flags


cdef class Mapping:
    cdef int fd
    cdef char *tables
    cdef char *pool
    cdef uint64_t tables_bytes
    cdef uint64_t pool_bytes
    cdef uint64_t pool_offset
    cdef uint64_t directory_offset
    cdef uint64_t directory_pages
    cdef uint64_t page_table_offset
    cdef uint64_t segment_table_offset
    cdef readonly uint64_t pages
    cdef readonly uint32_t segments
    cdef readonly uint32_t ram_slots
    cdef readonly uint32_t disk_slots
    cdef readonly uint32_t first_slots      # of these, the first store's
    cdef uint64_t *control
    cdef uint64_t *counters
    cdef uint64_t *histograms
    cdef uint64_t *ages
    cdef uint8_t *directory
    cdef SegmentEntry *segment_table
    cdef uint64_t *page_table
    cdef uint64_t table_pieces
    cdef pthread_mutex_t grow_lock

    cdef bint page_ready(self, uint64_t page) noexcept nogil
    cdef int page_ensure(self, uint64_t page) noexcept nogil
    cdef bint segment_ready(self, uint32_t segment) noexcept nogil
    cdef int segment_ensure(self, uint32_t segment) noexcept nogil
    cdef int _grow(self, uint64_t index) noexcept nogil
    cdef char *slot(self, uint32_t slot) noexcept nogil
    cdef int slot_populate(self, uint32_t slot) noexcept nogil
    cdef int slot_punch(self, uint32_t first, uint32_t count) noexcept nogil
    cdef uint64_t metadata_bytes(self) noexcept nogil
    cdef int _map(self) except -1
    cdef char *_map_pool(self) except NULL
    cdef int _count_pieces(self) except -1
