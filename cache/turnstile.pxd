"""Where clients and movers wait for each other; see turnstile.pyx."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_cond_t, pthread_mutex_t

# Asked while a writer waits for RAM: is the client that sent the request still there?
ctypedef bint (*alive_t)(void *arg) noexcept nogil

cdef struct Waiter:
    alive_t alive
    void *arg
    uint64_t stalled_ns     # how long the request waited so far


cdef class Turnstile:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t freed
    cdef Mapping map
    cdef int32_t frozen, changing   # whether nothing may change; requests that do
    cdef uint32_t waiting           # writers, for memory
    cdef bint stopping
    cdef int kick_fd
    cdef int32_t kicked

    cdef int enter(self, Waiter *waiter) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef bint is_frozen(self) noexcept nogil
    cdef int wait(self, Waiter *waiter, bint changing) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef void kick(self) noexcept nogil
    cdef int _enter_frozen(self, Waiter *waiter) noexcept nogil
    cdef int _await_thaw(self, Waiter *waiter) noexcept nogil
    cdef void _sleep(self, uint64_t nanoseconds) noexcept nogil
    cdef bint _is_alive(self, Waiter *waiter) noexcept nogil
