"""The disk that the guest sees; see log.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.fetch cimport Fetcher
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_mutex_t
from swaptide.cache.segments cimport Segments
from swaptide.cache.turnstile cimport Waiter

cdef enum:
    STRIPES = 64

# What one read came upon; ages of neighbouring pieces are mostly of one bucket, and added up as one.
cdef struct Tally:
    uint64_t hits           # pages
    uint64_t missed
    uint64_t aged           # pages of the bucket below that are not counted yet
    uint32_t bucket


cdef class Log:
    cdef Mapping map
    cdef Segments segments
    cdef Fetcher fetcher
    cdef pthread_mutex_t stripes[STRIPES]
    cdef readonly uint64_t size_bytes
    cdef uint64_t changes       # 0, or where the bits of changed pages are, while somebody sends the disk
    cdef uint64_t changes_map   # the same, kept for the next one

    cdef int read(self, char *buf, uint64_t count, uint64_t offset, bint may_wait, uint64_t *done,
                  uint64_t *missed) noexcept nogil
    cdef int write(self, const char *buf, uint64_t count, uint64_t offset, Waiter *waiter,
                   bint may_wait) noexcept nogil
    cdef int discard(self, uint64_t count, uint64_t offset, Waiter *waiter, bint keep) noexcept nogil

    cdef int _read(self, char *buf, uint64_t count, uint64_t offset, bint may_wait, uint64_t *done,
                   Tally *tally) noexcept nogil
    cdef void _count_age(self, Tally *tally, uint64_t born, uint32_t pages) noexcept nogil
    cdef uint64_t entry(self, uint64_t page) noexcept nogil
    cdef void _prefetch(self, uint64_t page, uint64_t pages) noexcept nogil
    cdef int _read_piece(self, char *buf, uint64_t count, uint64_t offset, uint64_t entry, bint may_wait,
                         uint64_t *done, Tally *tally) noexcept nogil
    cdef uint32_t _find_run(self, uint64_t *entries, uint64_t page, uint64_t pages) noexcept nogil
    cdef int _write(self, const char *buf, uint64_t count, uint64_t offset, Waiter *waiter,
                    bint may_wait) noexcept nogil
    cdef int _discard(self, uint64_t count, uint64_t offset, Waiter *waiter, bint keep) noexcept nogil
    cdef int _write_pages(self, const char *buf, uint64_t page, uint64_t pages, Waiter *waiter) noexcept nogil
    cdef int _write_part(self, const char *buf, uint32_t count, uint64_t page, uint32_t skip,
                         Waiter *waiter) noexcept nogil
    cdef int _load_page(self, char *to, uint64_t page, uint64_t entry, uint32_t *pinned) noexcept nogil
    cdef void _publish(self, uint64_t page, uint64_t entry) noexcept nogil
    cdef void _note_change(self, uint64_t page) noexcept nogil
    cdef void _count_same(self, uint64_t old, uint64_t new) noexcept nogil
    cdef char *content(self, uint32_t segment) noexcept nogil
