"""Who owns which disk slot, and which store the next one is taken of; see slots.pyx."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    NO_SLOT = 0xffffffff
    STORES = 2

# The slots of one store, `begin` to `end`.
cdef struct Pool:
    uint32_t *free              # those that could not be written lie at the bottom
    uint32_t *blank             # free, and forgotten by the store
    uint32_t n_free, n_blank
    uint32_t n_suspect, failed_writes   # of the free ones; writes that failed so far
    uint32_t begin, end, next   # from `next` on none was ever used
    int error                   # of the last write, an errno; 0: it works
    bint down                   # it is known not to answer
    uint64_t retry_ns, pause_ns     # when a failing one is tried again, and how long after that
    uint64_t unreadable_until_ns


cdef class Slots:
    cdef readonly int stores
    cdef Pool pools[2]
    cdef uint32_t *free
    cdef uint32_t *blank

    cdef int store_of(self, uint32_t slot) noexcept nogil
    cdef bint fails(self, int store) noexcept nogil
    cdef uint32_t usable(self) noexcept nogil
    cdef bint is_retry_due(self) noexcept nogil
    cdef bint has_refuge(self, int store, uint32_t beyond) noexcept nogil
    cdef uint32_t take(self) noexcept nogil
    cdef int _choose(self) noexcept nogil
    cdef int _due(self) noexcept nogil
    cdef void give(self, uint32_t slot) noexcept nogil
    cdef void give_failed(self, uint32_t slot, int error) noexcept nogil
    cdef void worked(self, uint32_t slot) noexcept nogil
    cdef uint32_t take_spent(self, uint32_t keep) noexcept nogil
    cdef void give_blank(self, uint32_t slot) noexcept nogil
    cdef uint32_t spent(self) noexcept nogil
    cdef bint is_out_of_reach(self, uint32_t slot) noexcept nogil
    cdef void not_readable(self, uint32_t slot) noexcept nogil
