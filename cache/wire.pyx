"""One lane of a spill store over NBD: a connection that libnbd speaks, the parts in flight on it, and what
epoll knows of it.

All calls are made by whoever holds the store's `work` (traffic.pyx).  Those that return text return NULL, or
why the connection is over: then the lane has to be closed.
"""

from libc.errno cimport ENOTCONN
from libc.stdint cimport int64_t
from libc.string cimport strncpy

from swaptide.cache.histogram cimport now_ns
from swaptide.cache.libnbd cimport (
    LIBNBD_AIO_DIRECTION_READ,
    LIBNBD_AIO_DIRECTION_WRITE,
    LIBNBD_CMD_FLAG_FUA,
    nbd_aio_flush,
    nbd_aio_get_direction,
    nbd_aio_get_fd,
    nbd_aio_is_closed,
    nbd_aio_is_dead,
    nbd_aio_notify_read,
    nbd_aio_notify_write,
    nbd_aio_pread,
    nbd_aio_pwrite,
    nbd_aio_trim,
    nbd_close,
    nbd_completion_callback,
    nbd_get_errno,
    nbd_get_error,
)
from swaptide.cache.requests cimport DISCARD, READ, WRITE, append_over, append_part, remove_part


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event) noexcept
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout) noexcept
    enum: POLLIN

cdef extern from "<sys/socket.h>" nogil:
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length) noexcept
    enum:
        SOL_SOCKET
        SO_SNDBUF

cdef enum:
    # What the kernel is asked to take at once: a part and more, as far as its limit (net.core.wmem_max) goes.
    SEND_BYTES = 524288
    HEAR_MOST = 16          # answers at once, before anybody is told


cdef bint lane_open(Lane *lane, nbd_handle *handle, uint32_t index, int epoll_fd) noexcept nogil:
    """Use a connection, the lane's from now on; False, and it is closed, where it cannot be watched."""
    cdef epoll_event event
    cdef int wanted = SEND_BYTES
    lane.handle = handle
    lane.fd = nbd_aio_get_fd(handle)
    setsockopt(lane.fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(wanted))     # as good as it gets
    lane.index = index
    lane.epoll_fd = epoll_fd
    lane.events = event.events = EPOLLIN
    event.data.u32 = index
    lane.lost = False
    lane.n_flying = 0
    lane.load = 0
    lane.flying.first = lane.flying.last = NULL
    if epoll_ctl(epoll_fd, EPOLL_CTL_ADD, lane.fd, &event) != 0:
        nbd_close(handle)
        lane.handle = NULL
        return False
    return True


cdef const char *lane_send(Lane *lane, Part *part, bint durable) noexcept nogil:
    """Have a part in flight; `durable`: a write is to be answered when it is safe."""
    cdef nbd_completion_callback then
    cdef int64_t cookie
    if lane.n_flying == 0:
        lane.progress_ns = now_ns()
    append_part(&lane.flying, part)
    lane.n_flying += 1
    lane.load += part.length if part.of.kind != DISCARD else 0
    part.lane = <int> lane.index
    part.error = 0
    then.callback = on_end
    then.user_data = part
    then.free = NULL
    if part.of.kind == READ:
        cookie = nbd_aio_pread(lane.handle, part.buffer, part.length, part.at, then, 0)
    elif part.of.kind == WRITE:
        cookie = nbd_aio_pwrite(lane.handle, part.buffer, part.length, part.at, then,
                                LIBNBD_CMD_FLAG_FUA if durable else 0)
    elif part.of.kind == DISCARD:
        cookie = nbd_aio_trim(lane.handle, part.length, part.at, then, 0)
    else:
        cookie = nbd_aio_flush(lane.handle, then, 0)
    if cookie == -1:
        # Never sent.  Where the connection is at fault it is found out below.
        part.error = ENOTCONN if is_over(lane.handle) else max(nbd_get_errno(), 1)
        append_over(part.of.over, part)
    if is_over(lane.handle):
        return why_over(lane.handle)
    watch(lane)
    return NULL


cdef const char *lane_hear(Lane *lane, uint32_t events) noexcept nogil:
    """Something happened there, as epoll says."""
    cdef unsigned direction = nbd_aio_get_direction(lane.handle)
    cdef int more = HEAR_MOST
    # A hang-up is found by whichever is tried.
    if direction & LIBNBD_AIO_DIRECTION_READ and (events & ~EPOLLOUT
                                                  or not direction & LIBNBD_AIO_DIRECTION_WRITE):
        nbd_aio_notify_read(lane.handle)
        # One answer each; whatever else has come is heard before anybody is woken.
        while more and not is_over(lane.handle) and is_readable(lane.fd):
            nbd_aio_notify_read(lane.handle)
            more -= 1
    elif direction & LIBNBD_AIO_DIRECTION_WRITE:
        nbd_aio_notify_write(lane.handle)
    if is_over(lane.handle):
        return why_over(lane.handle)
    watch(lane)
    return NULL


cdef void lane_done(Lane *lane, Part *part) noexcept nogil:
    """A part is not in flight any more."""
    remove_part(&lane.flying, part)
    lane.n_flying -= 1
    lane.load -= part.length if part.of.kind != DISCARD else 0
    lane.progress_ns = now_ns()
    part.lane = -1


cdef void lane_close(Lane *lane, const char *reason) noexcept nogil:
    """Leave without a word.  Nothing is called back any more and no buffer touched; what was `flying` still
    stands there."""
    cdef nbd_handle *handle = lane.handle
    lane.handle = NULL
    lane.fd = -1
    strncpy(lane.reason, reason, REASON_BYTES - 1)
    lane.lost = True
    nbd_close(handle)


cdef int on_end(void *of, int *error) noexcept nogil:
    """Called by libnbd within the calls above: a part ended; looked after when libnbd has returned."""
    cdef Part *part = <Part *> of
    part.error = error[0]
    append_over(part.of.over, part)
    return 1                    # libnbd may forget it


cdef void watch(Lane *lane) noexcept nogil:
    """Have epoll look for what the lane waits for."""
    cdef unsigned direction = nbd_aio_get_direction(lane.handle)
    cdef epoll_event event
    event.events = 0
    if direction & LIBNBD_AIO_DIRECTION_READ:
        event.events |= EPOLLIN
    if direction & LIBNBD_AIO_DIRECTION_WRITE:
        event.events |= EPOLLOUT
    if event.events != lane.events:
        event.data.u32 = lane.index
        lane.events = event.events
        epoll_ctl(lane.epoll_fd, EPOLL_CTL_MOD, lane.fd, &event)


cdef bint is_over(nbd_handle *handle) noexcept nogil:
    return nbd_aio_is_dead(handle) > 0 or nbd_aio_is_closed(handle) > 0


cdef bint is_readable(int fd) noexcept nogil:
    cdef pollfd one
    one.fd = fd
    one.events = POLLIN
    return poll(&one, 1, 0) == 1 and one.revents == POLLIN


cdef const char *why_over(nbd_handle *handle) noexcept nogil:
    cdef const char *said = NULL
    if nbd_aio_is_dead(handle) > 0:
        said = nbd_get_error()
    if said == NULL:
        said = b"the server closed the connection"
    return said
