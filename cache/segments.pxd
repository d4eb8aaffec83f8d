"""Who owns which segment, RAM slot and disk slot; see segments.pyx."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from swaptide.cache.agelists cimport CLASSES, AgeLists
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.ramslots cimport RamSlots
from swaptide.cache.slots cimport Slots
from swaptide.cache.turnstile cimport Turnstile, Waiter

# Who appends to an open segment of its own.
cdef enum:
    GUEST = 0
    COLD = 1        # the cleaner: pieces of any kind
    PACK = 2        # the packers
    SOLID = 3       # the packers: pages that do not shrink
    STRONG_PACK = 4  # the packers: packed anew, better
    HEADS = 5

cdef struct OpenSegment:
    uint32_t segment
    double age_sum
    uint64_t age_bytes


cdef class Segments:
    cdef Mapping map
    cdef readonly Turnstile turnstile
    cdef AgeLists lists
    cdef readonly RamSlots ram
    cdef Slots disk
    cdef int64_t *live      # pieces << 32 | their bytes
    cdef int32_t *pins
    cdef int32_t *disk_pins
    cdef uint8_t *claimed
    cdef uint32_t *free_ids
    cdef uint32_t n_free_ids
    cdef uint32_t used_ids      # a high-water mark: numbers never used lie above
    cdef uint32_t clean_segments, writing_segments
    cdef uint32_t dirty_segments[CLASSES]
    cdef bint cleaner_waits
    cdef OpenSegment heads[HEADS]
    cdef uint64_t log_clock, write_clock    # as the state file has them; what it says later is not believed
    cdef uint64_t guest_opened      # segments that the guest began to fill, since this process started

    cdef int reserve(self, int head, uint32_t want, uint32_t length, uint64_t age, Waiter *waiter,
                     uint32_t *segment, uint32_t *offset, uint32_t *ordinal) noexcept nogil
    cdef int ensure_page(self, uint64_t page, Waiter *waiter) noexcept nogil
    cdef void cancel(self, uint32_t segment, uint32_t pieces, uint32_t length) noexcept nogil
    cdef void retire(self, uint64_t entry) noexcept nogil
    cdef uint32_t live_bytes(self, uint32_t segment) noexcept nogil
    cdef uint32_t weight(self, uint32_t segment) noexcept nogil
    cdef void pin(self, uint32_t segment) noexcept nogil
    cdef void unpin(self, uint32_t segment) noexcept nogil
    cdef void disk_pin(self, uint32_t segment) noexcept nogil
    cdef void disk_unpin(self, uint32_t segment) noexcept nogil
    cdef bint wait_unpinned(self, uint32_t segment) noexcept nogil
    cdef uint64_t place(self, uint32_t segment) noexcept nogil

    # With the lock, for movers and recovery:
    cdef void set_place(self, uint32_t segment, uint64_t place) noexcept nogil
    cdef int class_of(self, uint32_t segment) noexcept nogil
    cdef void tally(self, int kind, int state, int by) noexcept nogil
    cdef void link(self, uint32_t segment) noexcept nogil
    cdef void unlink(self, uint32_t segment) noexcept nogil
    cdef void reap(self, uint32_t segment) noexcept nogil

    cdef uint32_t _room(self, int head, uint32_t length) noexcept nogil
    cdef bint _may_take_slot(self, int head) noexcept nogil
    cdef bint _open(self, int head) noexcept nogil
    cdef void _blend_age(self, int head, uint64_t age, uint32_t nbytes) noexcept nogil
    cdef void _seal(self, int head) noexcept nogil
    cdef void _reap_unlocked(self, uint32_t segment) noexcept nogil
    cdef void _free(self, uint32_t segment) noexcept nogil
    cdef int _list_of(self, uint32_t segment) noexcept nogil
