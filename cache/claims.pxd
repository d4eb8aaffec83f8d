"""What movers take hold of; see claims.pyx."""

from libc.stdint cimport uint16_t, uint32_t

from swaptide.cache.agelists cimport AgeLists
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.ramslots cimport RamSlots
from swaptide.cache.segments cimport Segments
from swaptide.cache.slots cimport Slots
from swaptide.cache.turnstile cimport Turnstile
from swaptide.cache.victims cimport Victims


cdef class Claims:
    cdef Segments segments
    # Parts of the segments, which these are looked at through:
    cdef Mapping map
    cdef Turnstile turnstile
    cdef AgeLists lists
    cdef RamSlots ram
    cdef Slots disk
    cdef Victims victims

    cdef uint32_t claim_clean(self) noexcept nogil
    cdef uint32_t claim_for_disk(self) noexcept nogil
    cdef uint32_t claim_to_pack(self, uint32_t keep) noexcept nogil
    cdef uint32_t claim_to_strengthen(self) noexcept nogil
    cdef uint32_t claim_to_clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef void unclaim(self, uint32_t segment) noexcept nogil
    cdef void stiffen(self, uint32_t segment) noexcept nogil
    cdef void mark(self, uint32_t segment, uint16_t flag) noexcept nogil
    cdef void forgive(self) noexcept nogil
    cdef bint begin_write(self, uint32_t segment) noexcept nogil
    cdef void end_write(self, uint32_t segment, int result) noexcept nogil
    cdef bint keep(self, uint32_t segment) noexcept nogil
    cdef void drop(self, uint32_t segment) noexcept nogil
    cdef bint is_short(self) noexcept nogil
    cdef void cannot_read(self, uint32_t slot) noexcept nogil
    cdef uint32_t claim_to_discard(self, uint32_t keep) noexcept nogil
    cdef void end_discard(self, uint32_t slot, bint ok) noexcept nogil

    cdef uint32_t _coldest_of(self, int kind, int state, uint16_t without) noexcept nogil
    cdef uint32_t _next_dirty(self, uint32_t segment) noexcept nogil
    cdef bint _may_take_disk(self, uint32_t segment) noexcept nogil
