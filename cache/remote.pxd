"""A spill store over NBD; see remote.pyx."""

from libc.stdint cimport uint64_t

from swaptide.cache.pthread cimport pthread_mutex_t
from swaptide.cache.requests cimport Request
from swaptide.cache.traffic cimport Traffic


cdef class RemoteStore(Traffic):
    # Any thread:
    cdef pthread_mutex_t lock
    cdef Request *incoming_first
    cdef Request *incoming_last
    cdef int kick_fd
    # Around all that Traffic has: the loop's thread, or one that asks.
    cdef pthread_mutex_t work
    cdef int epoll_fd

    cdef int ask(self, int kind, char *buffer, uint64_t length, uint64_t at,
                 uint64_t patience_ns) noexcept nogil
    cdef void _combine(self) noexcept nogil
    cdef void _leave_work(self) noexcept nogil
    cdef bint _has_mail(self) noexcept nogil
    cdef void _kick(self) noexcept nogil
    cdef void _take_in(self) noexcept nogil
