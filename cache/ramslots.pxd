"""Who owns which RAM slot, and how many there may be; see ramslots.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.mapping cimport Mapping
from swaptide.cache.turnstile cimport Turnstile


cdef class RamSlots:
    cdef Mapping map
    cdef Turnstile turnstile
    cdef uint32_t *free
    cdef uint32_t *holes            # without memory
    cdef uint32_t *due              # to be given back to the host
    cdef uint32_t n_free, n_holes, n_due
    cdef uint32_t used              # a high-water mark: slots never used lie above
    cdef uint32_t populated         # with memory: in use, free or due
    cdef uint32_t gift
    cdef uint64_t target_bytes, private_bytes
    cdef uint64_t charged_bytes, granted_bytes      # of the tables: counted in the limit, and usable
    cdef uint32_t host_limit, keep_free

    cdef uint32_t limit(self) noexcept nogil
    cdef bint has_grant(self) noexcept nogil
    cdef bint wants_grant(self) noexcept nogil
    cdef uint32_t take(self) noexcept nogil
    cdef void give(self, uint32_t slot) noexcept nogil
    cdef bint take_hole(self, uint32_t *slot) noexcept nogil
    cdef void give_hole(self, uint32_t slot) noexcept nogil
    cdef bint take_due(self, uint32_t *slot, uint32_t *release) noexcept nogil
