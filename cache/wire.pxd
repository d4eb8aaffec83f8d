"""One lane of a spill store over NBD; see wire.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.libnbd cimport nbd_handle
from swaptide.cache.requests cimport Part, Parts

cdef enum:
    REASON_BYTES = 200

cdef struct Lane:
    nbd_handle *handle      # NULL: not connected
    Parts flying
    uint32_t n_flying
    uint64_t load           # bytes in flight
    uint64_t progress_ns    # when something was answered last, or the first of what is in flight was sent
    uint32_t index
    uint32_t events         # as epoll knows them
    int fd
    int epoll_fd
    bint lost               # and not told of yet
    char reason[REASON_BYTES]

cdef bint lane_open(Lane *lane, nbd_handle *handle, uint32_t index, int epoll_fd) noexcept nogil
cdef const char *lane_send(Lane *lane, Part *part, bint durable) noexcept nogil
cdef const char *lane_hear(Lane *lane, uint32_t events) noexcept nogil
cdef void lane_done(Lane *lane, Part *part) noexcept nogil
cdef void lane_close(Lane *lane, const char *reason) noexcept nogil
