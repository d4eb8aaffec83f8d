"""A spill store on an NBD server, over libnbd's asynchronous calls: many requests on a few connections.

Whoever reads or writes puts a request, which lies on its own stack, into the store's inbox and sleeps until
it is answered.  Everything else (traffic.pyx) is done by whoever holds `work`.  Mostly that is the thread of
one event loop (lanes.py), which alone waits for connections.  While there is work it stays in `serve`,
without the GIL, and gives itself back to its loop when there is none.  Who asks sends its request itself
where nobody else is at it: that saves waking the other thread.
"""

import errno
import os

from libc.errno cimport ENOTCONN, ESHUTDOWN
from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.atomics cimport load32, peek64, poke64
from swaptide.cache.histogram cimport now_ns
from swaptide.cache.libnbd cimport nbd_handle
from swaptide.cache.link cimport Link
from swaptide.cache.link import told
from swaptide.cache.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from swaptide.cache.requests cimport (
    ACTIVE,
    COMMIT,
    DISCARD,
    PARTS,
    READ,
    WRITE,
    sem_destroy,
    sem_init,
    sem_post,
    sem_wait,
)
from swaptide.cache.traffic cimport LANES


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count) noexcept
    ssize_t write(int fd, const void *buf, size_t count) noexcept
    int close(int fd) noexcept

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) noexcept
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event) noexcept
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout) noexcept
    enum:
        EPOLLIN
        EPOLL_CTL_ADD
        EPOLL_CLOEXEC

cdef enum:
    KICKED = LANES              # what epoll says of the eventfd
    # How long the thread waits for more, in milliseconds, and how long it stays away from its loop at most.
    LINGER_MS = 1
    STAY_NS = 100000000


# How many connections a store can have.
CONNECTIONS = LANES


cdef class RemoteStore(Traffic):
    """A store whose reads fail after `read_seconds`; what does not answer for `stall_seconds` is given up.

    A `wary` one has a predecessor that may have died with writes in flight: it changes nothing before the
    server has had `drain_seconds` for them.  `align` is what requests are aligned to, in bytes.

    Changes wait for ever, but with `write_seconds`: then they fail after that time, or after a second without
    any connection.
    """

    def __cinit__(self, *, uint32_t align, double read_seconds, double stall_seconds, double drain_seconds,
                  bint wary, double write_seconds=0.0):
        cdef epoll_event event
        pthread_mutex_init(&self.lock, NULL)
        pthread_mutex_init(&self.work, NULL)
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno.EMFILE, "no descriptor for a spill store")
        event.events = EPOLLIN
        event.data.u32 = KICKED
        epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.kick_fd, &event)
        self.write_ns = <uint64_t> (write_seconds * 1e9)
        self.set_patience(read_seconds, stall_seconds)
        self.drain_ns = <uint64_t> (drain_seconds * 1e9)
        self.down_ns = now_ns()
        self.wary = wary
        self.face.of = <void *> self
        self.face.read = remote_read
        self.face.write = remote_write
        self.face.mark = remote_mark
        self.face.commit = remote_commit
        self.face.discard = remote_discard
        self.face.align = align

    def __dealloc__(self):
        close(self.epoll_fd)
        close(self.kick_fd)
        pthread_mutex_destroy(&self.lock)
        pthread_mutex_destroy(&self.work)

    # Any thread.

    cdef int ask(self, int kind, char *buffer, uint64_t length, uint64_t at,
                 uint64_t patience_ns) noexcept nogil:
        """Have it done; returns 0 or a negative errno.  `patience_ns` of 0 is for ever."""
        cdef Request request
        cdef int i
        request.over = &self.over
        request.next = NULL
        request.kind = kind
        request.stage = ACTIVE
        request.buffer = buffer
        request.length = length
        request.at = at
        request.planned = 0
        request.asked_ns = now_ns()
        request.deadline_ns = request.asked_ns + patience_ns if patience_ns else 0
        request.held_until_ns = 0
        request.flying = 0
        request.result = 0
        request.doubled = False
        for i in range(PARTS):
            request.parts[i].busy = False
        sem_init(&request.done, 0, 0)
        pthread_mutex_lock(&self.lock)
        if self.ended:
            pthread_mutex_unlock(&self.lock)
            return -ESHUTDOWN
        if self.incoming_last == NULL:
            self.incoming_first = &request
        else:
            self.incoming_last.next = &request
        self.incoming_last = &request
        pthread_mutex_unlock(&self.lock)
        self._combine()
        while sem_wait(&request.done) != 0:
            pass                # a signal
        sem_destroy(&request.done)
        return request.result

    cdef void _combine(self) noexcept nogil:
        """Have what is in the inbox sent, by this thread or by whoever is at work."""
        cdef bint lost
        cdef int i
        while self._has_mail():
            if pthread_mutex_trylock(&self.work) != 0:
                # Whoever it is looks into the inbox once more before it rests, or is woken for it.
                return
            self._take_in()
            self._send_all()
            self._settle()
            lost = False
            for i in range(LANES):
                lost = lost or self.lanes[i].lost
            self._leave_work()
            if lost:
                self._kick()

    cdef void _leave_work(self) noexcept nogil:
        """Let others work, and then wake those whose requests were answered: all at once, since each that
        wakes may well take the processor from us."""
        cdef Request *request = self.answered
        cdef Request *next
        self.answered = NULL
        pthread_mutex_unlock(&self.work)
        while request != NULL:
            next = request.next
            sem_post(&request.done)         # from here on it is gone
            request = next

    cdef bint _has_mail(self) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(&self.lock)
        found = self.incoming_first != NULL
        pthread_mutex_unlock(&self.lock)
        return found

    cdef void _kick(self) noexcept nogil:
        cdef uint64_t one = 1
        write(self.kick_fd, &one, 8)

    def set_patience(self, double read_seconds, double stall_seconds):
        """How long reads wait that are asked from now on, and how long the server may be silent; changes that
        do not wait for ever are given up then as well."""
        poke64(&self.read_ns, <uint64_t> (read_seconds * 1e9))
        poke64(&self.stall_ns, <uint64_t> (stall_seconds * 1e9))
        if peek64(&self.write_ns):
            poke64(&self.write_ns, <uint64_t> (stall_seconds * 1e9))

    def read_bytes(self, size_t count, uint64_t at):
        """`count` bytes at `at`, which both suit the server.  Raises OSError."""
        cdef bytearray data = bytearray(count)
        cdef char *raw = data
        cdef int result
        with nogil:
            result = self.ask(READ, raw, count, at, self.read_ns)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return bytes(data)

    def write_bytes(self, bytes data, uint64_t at):
        """Write `data` at `at`, however long that takes.  Raises OSError."""
        cdef char *raw = <char *> data
        cdef size_t count = len(data)
        cdef int result
        with nogil:
            result = self.ask(WRITE, raw, count, at, 0)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    @property
    def connections(self):
        """How many lanes there are right now."""
        return load32(&self.up)

    @property
    def unanswered(self):
        """How many requests wait for the server."""
        return load32(&self.waiting)

    @property
    def overdue(self):
        """Whether a write has waited for longer than a server may be silent, as the last `sweep` saw it."""
        return bool(load32(&self.late))

    # The loop's thread.

    def fileno(self):
        """A descriptor that is readable when there is something to `serve`."""
        return self.epoll_fd

    def attach(self, int index, Link link):
        """Use a connection as the lane `index`, which is not connected."""
        cdef nbd_handle *handle
        cdef bint watched
        traits = link.traits
        cdef uint64_t least = traits.least_bytes, most = traits.most_bytes
        cdef bint can_flush = traits.flush, can_fua = traits.fua, can_trim = traits.trim
        handle = link.take()
        with nogil:
            pthread_mutex_lock(&self.work)
            self._set_size(least, most)
            self.can_flush = can_flush
            self.can_fua = can_fua
            self.can_trim = can_trim
            watched = self._attach(index, handle, self.epoll_fd)
            self._leave_work()
            self._combine()
        if not watched:
            raise OSError(errno.EMFILE, "a connection cannot be watched")

    def serve(self):
        """Do what there is to do; returns the lanes that were lost meanwhile, each with the reason."""
        cdef epoll_event events[LANES + 1]
        cdef uint64_t begun = now_ns(), drop
        cdef int n = 0, i
        with nogil:
            while now_ns() - begun < STAY_NS:
                pthread_mutex_lock(&self.work)
                for i in range(n):
                    if events[i].data.u32 == KICKED:
                        read(self.kick_fd, &drop, 8)
                    else:
                        self._hear(<int> events[i].data.u32, events[i].events)
                self._take_in()
                self._send_all()
                self._settle()
                self._leave_work()
                self._combine()     # what came meanwhile, from who found the lock taken
                n = epoll_wait(self.epoll_fd, events, LANES + 1, LINGER_MS)
                if n == 0:
                    break
        return self._lost()

    def sweep(self):
        """Give up what has waited too long; to be called a few times a second.  As `serve` returns."""
        with nogil:
            pthread_mutex_lock(&self.work)
            self._take_in()
            self._sweep()
            self._send_all()
            self._settle()
            self._leave_work()
            self._combine()
        return self._lost()

    def end(self):
        """Answer everything with ESHUTDOWN, from now on; returns whether a change was cut off by it."""
        cdef bint cut
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.ended = True
            pthread_mutex_unlock(&self.lock)
            pthread_mutex_lock(&self.work)
            self._take_in()
            cut = self._end()
            self._leave_work()
        return bool(cut)

    def _lost(self):
        cdef int i
        found = []
        for i in range(LANES):
            if self.lanes[i].lost:
                self.lanes[i].lost = False
                found.append((i, told(self.lanes[i].reason.decode("utf-8", "replace"))))
        return found

    cdef void _take_in(self) noexcept nogil:
        cdef Request *request
        cdef Request *next
        pthread_mutex_lock(&self.lock)
        request = self.incoming_first
        self.incoming_first = self.incoming_last = NULL
        pthread_mutex_unlock(&self.lock)
        while request != NULL:
            next = request.next
            self._accept(request)
            request = next


# The store's face.

cdef int remote_read(void *of, char *buffer, size_t length, uint64_t at) noexcept nogil:
    return (<RemoteStore> of).ask(READ, buffer, length, at, peek64(&(<RemoteStore> of).read_ns))


cdef int remote_write(void *of, const char *data, size_t length, uint64_t at) noexcept nogil:
    if (<RemoteStore> of)._is_hopeless(now_ns()):
        return -ENOTCONN
    return (<RemoteStore> of).ask(
        WRITE, <char *> data, length, at, peek64(&(<RemoteStore> of).write_ns)
    )


cdef uint64_t remote_mark(void *of) noexcept nogil:
    return peek64(&(<RemoteStore> of).losses)


cdef int remote_commit(void *of, uint64_t mark, uint64_t at) noexcept nogil:
    return (<RemoteStore> of).ask(COMMIT, NULL, 0, mark, 0)


cdef int remote_discard(void *of, uint64_t length, uint64_t at) noexcept nogil:
    if not (<RemoteStore> of).can_trim:
        return 0
    return (<RemoteStore> of).ask(DISCARD, NULL, length, at, peek64(&(<RemoteStore> of).write_ns))
