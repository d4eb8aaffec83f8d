"""Requests to a spill store over NBD, and its lanes; see traffic.pyx."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from swaptide.cache.libnbd cimport nbd_handle
from swaptide.cache.requests cimport STAGES, Part, Parts, Request, Requests
from swaptide.cache.store cimport Store
from swaptide.cache.wire cimport Lane

cdef enum:
    LANES = 4               # connections, where the server knows how to serve several as one


cdef class Traffic(Store):
    # Any thread reads them:
    cdef int32_t up, waiting        # lanes; requests that are not answered
    cdef int32_t late               # whether a write has waited for too long
    cdef uint64_t losses            # lanes so far that broke
    # Whoever holds `work`:
    cdef Lane lanes[LANES]
    cdef Parts reads, others, over
    cdef Request *answered          # their threads are not woken yet
    cdef Requests stages[STAGES]
    cdef Request flush
    cdef bint flushing, wary, ended
    cdef uint64_t quiet_until_ns
    # Any thread, at any time:
    cdef uint64_t read_ns, stall_ns
    cdef uint64_t write_ns          # 0: changes wait for ever
    # Set before the first request:
    cdef uint64_t drain_ns
    cdef uint64_t down_ns           # since when there is no lane, where there is none
    # As the server wants it:
    cdef uint64_t most_bytes, least_bytes
    cdef bint can_flush, can_fua, can_trim

    cdef bint _attach(self, int index, nbd_handle *handle, int epoll_fd) noexcept nogil
    cdef void _set_size(self, uint64_t least_bytes, uint64_t most_bytes) noexcept nogil
    cdef void _accept(self, Request *request) noexcept nogil
    cdef void _take_commit(self, Request *request) noexcept nogil
    cdef void _plan(self, Request *request) noexcept nogil
    cdef void _send_all(self) noexcept nogil
    cdef bint _send_next(self, Parts *queue) noexcept nogil
    cdef int _choose(self, int kind) noexcept nogil
    cdef void _start_flush(self) noexcept nogil
    cdef void _hear(self, int index, uint32_t events) noexcept nogil
    cdef void _settle(self) noexcept nogil
    cdef void _ended(self, Part *part) noexcept nogil
    cdef void _requeue(self, Part *part) noexcept nogil
    cdef void _advance(self, Request *request) noexcept nogil
    cdef void _flushed(self, int error) noexcept nogil
    cdef void _answer(self, Request *request) noexcept nogil
    cdef void _lose(self, int index, const char *reason) noexcept nogil
    cdef void _doubt(self) noexcept nogil
    cdef void _give_up(self, Request *request, int result) noexcept nogil
    cdef void _withdraw(self, Request *request) noexcept nogil
    cdef void _sweep(self) noexcept nogil
    cdef bint _is_hopeless(self, uint64_t now) noexcept nogil
    cdef void _beware(self) noexcept nogil
    cdef bint _is_late(self, uint64_t now, uint64_t stall_ns) noexcept nogil
    cdef void _move(self, Request *request, int stage) noexcept nogil
    cdef bint _end(self) noexcept nogil
