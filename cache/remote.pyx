"""A spill store on an NBD server, over libnbd's asynchronous calls: many requests on a few connections.

Whoever reads or writes puts a request, which lies on its own stack, into the store's inbox and sleeps until
it is answered.  Everything else is done by whoever holds `work`: requests are cut into parts as large as the
server takes them, parts are sent over the *lanes*, which are connections, and what comes back is settled.
Mostly that is the thread of one event loop (lanes.py), which alone waits for connections.  While there is
work it stays in `serve`, without the GIL, and gives itself back to its loop when there is none.  Who asks
sends its request itself where nobody else is at it: that saves waking the other thread.

A lane that breaks, or does not answer for too long, is closed, and what was in flight on it is sent again:
reads, writes and trims may be done twice.  But never twice *apart*: what a broken connection holds may still
reach the disk, so a write that was sent twice is answered only when that has had time to come, and its slot
is nobody else's before.  Where there is a cache behind the server, what was written is committed by a flush,
one for all who wait for it; what was not when a lane broke is to be written anew, since the server may have
crashed.
"""

import errno
import os

from libc.errno cimport EAGAIN, ENOTCONN, ESHUTDOWN, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport strncpy

from swaptide.cache.atomics cimport add32, load32, peek64, poke64
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
from swaptide.cache.link cimport Link
from swaptide.cache.link import told
from swaptide.cache.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)


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
        EPOLLOUT
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout) noexcept
    enum: POLLIN

cdef enum:
    # A segment is cut into as many as keep several connections, and the server's threads, busy.
    PART_BYTES = 262144
    # In flight on one lane at most.
    LANE_PARTS = 64
    HEAR_MOST = 16
    # Reads go to the first lane that has less than this.
    READ_PARTS = 32
    READ_LOAD = 524288
    KICKED = LANES              # what epoll says of the eventfd
    # How long the thread waits for more, in milliseconds, and how long it stays away from its loop at most.
    LINGER_MS = 1
    STAY_NS = 100000000
    # Where there is another store to write to, how long one without a connection is waited for.
    HOPE_NS = 1000000000


# How many connections a store can have.
CONNECTIONS = LANES


cdef class RemoteStore(Store):
    """A store whose reads fail after `read_seconds`; what does not answer for `stall_seconds` is given up.

    A `wary` one has a predecessor that may have died with writes in flight: it changes nothing before the
    server has had `drain_seconds` for them.  `align` is what requests are aligned to, in bytes.

    Changes wait for ever, but with `write_seconds`: then they fail after that time, or after a second without
    any connection.
    """

    def __cinit__(self, *, uint32_t align, double read_seconds, double stall_seconds, double drain_seconds,
                  bint wary, double write_seconds=0.0):
        cdef int i
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
        self.read_ns = <uint64_t> (read_seconds * 1e9)
        self.stall_ns = <uint64_t> (stall_seconds * 1e9)
        self.drain_ns = <uint64_t> (drain_seconds * 1e9)
        self.write_ns = <uint64_t> (write_seconds * 1e9)
        self.down_ns = now_ns()
        self.wary = wary
        self.most_bytes = PART_BYTES
        self.least_bytes = 1
        self.flush.kind = FLUSH
        self.flush.over = &self.over
        self.flush.parts[0].of = &self.flush
        for i in range(LANES):
            self.lanes[i].fd = -1
        self.face.of = <void *> self
        self.face.read = remote_read
        self.face.write = remote_write
        self.face.mark = remote_mark
        self.face.commit = remote_commit
        self.face.discard = remote_discard
        self.face.align = align

    def __dealloc__(self):
        cdef int i
        for i in range(LANES):
            if self.lanes[i].handle != NULL:
                nbd_close(self.lanes[i].handle)
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
        request.deadline_ns = now_ns() + patience_ns if patience_ns else 0
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
            self.least_bytes = least
            self.most_bytes = max(least, min(most, <uint64_t> PART_BYTES) / least * least)
            self.can_flush = can_flush
            self.can_fua = can_fua
            self.can_trim = can_trim
            watched = self._attach(index, handle)
            self._leave_work()
            self._combine()
        if not watched:
            raise OSError(errno.EMFILE, "a connection cannot be watched")

    cdef bint _attach(self, int index, nbd_handle *handle) noexcept nogil:
        cdef epoll_event event
        cdef Lane *lane = &self.lanes[index]
        lane.handle = handle
        lane.fd = nbd_aio_get_fd(lane.handle)
        lane.events = event.events = EPOLLIN
        event.data.u32 = index
        lane.lost = False
        lane.n_flying = 0
        lane.load = 0
        lane.flying.first = lane.flying.last = NULL
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, lane.fd, &event) != 0:
            nbd_close(lane.handle)
            lane.handle = NULL
            return False
        if self.wary:
            self.wary = False
            self.quiet_until_ns = now_ns() + self.drain_ns
        add32(&self.up, 1)
        self._send_all()
        self._settle()
        return True

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
        cdef int i
        cdef bint cut = False
        cdef Request *request
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.ended = True
            pthread_mutex_unlock(&self.lock)
            pthread_mutex_lock(&self.work)
            self._take_in()
            for i in range(LANES):
                if self.lanes[i].handle != NULL:
                    self._lose(i, b"ended")
            for i in range(STAGES):
                while self.stages[i].first != NULL:
                    request = self.stages[i].first
                    cut = cut or request.kind != READ
                    self._give_up(request, -ESHUTDOWN)
            # What was given up may come as well: see _beware().
            cut = cut or self.wary or now_ns() < self.quiet_until_ns
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
            add32(&self.waiting, 1)
            append_request(&self.stages[ACTIVE], request)
            if request.kind == COMMIT:
                self._take_commit(request)
            else:
                self._plan(request)
            request = next

    cdef void _take_commit(self, Request *request) noexcept nogil:
        """Have it wait for a flush, if there is one to wait for."""
        if not self.can_flush:
            self._answer(request)
        elif request.at != self.losses:
            request.result = -EAGAIN
            self._answer(request)
        else:
            self._move(request, UNFLUSHED)

    cdef void _plan(self, Request *request) noexcept nogil:
        """Cut what is left of a request into parts, as many as it has room for."""
        cdef int i
        cdef Part *part
        # A trim carries no data: no size is too large for it.
        cdef uint64_t most = request.length if request.kind == DISCARD else self.most_bytes
        for i in range(PARTS):
            if request.planned == request.length:
                return
            part = &request.parts[i]
            if part.busy:
                continue
            part.of = request
            part.busy = True
            part.lane = -1
            part.at = request.at + request.planned
            part.buffer = request.buffer + request.planned if request.buffer != NULL else NULL
            part.length = min(most, request.length - request.planned)
            request.planned += part.length
            request.flying += 1
            append_part(&self.reads if request.kind == READ else &self.others, part)

    cdef void _send_all(self) noexcept nogil:
        """Send what waits, reads first: somebody waits for each of them."""
        if load32(&self.up) == 0:
            return
        while self.reads.first != NULL and self._send_next(&self.reads):
            pass
        if self.quiet_until_ns:
            if now_ns() < self.quiet_until_ns:
                return
            self.quiet_until_ns = 0
        while self.others.first != NULL and self._send_next(&self.others):
            pass
        if not self.flushing and self.stages[UNFLUSHED].first != NULL:
            self._start_flush()

    cdef bint _send_next(self, Parts *queue) noexcept nogil:
        """Send the first of a queue over the lane with the least under way; False where all have enough."""
        cdef Part *part = queue.first
        cdef int index = self._choose(part.of.kind)
        cdef Lane *lane
        cdef nbd_completion_callback then
        cdef int64_t cookie
        cdef uint32_t flags
        if index < 0:
            return False
        remove_part(queue, part)
        lane = &self.lanes[index]
        if lane.n_flying == 0:
            lane.progress_ns = now_ns()
        append_part(&lane.flying, part)
        lane.n_flying += 1
        lane.load += part.length if part.of.kind != DISCARD else 0
        part.lane = index
        part.error = 0
        then.callback = on_end
        then.user_data = part
        then.free = NULL
        if part.of.kind == READ:
            cookie = nbd_aio_pread(lane.handle, part.buffer, part.length, part.at, then, 0)
        elif part.of.kind == WRITE:
            flags = LIBNBD_CMD_FLAG_FUA if self.can_fua and not self.can_flush else 0
            cookie = nbd_aio_pwrite(lane.handle, part.buffer, part.length, part.at, then, flags)
        elif part.of.kind == DISCARD:
            cookie = nbd_aio_trim(lane.handle, part.length, part.at, then, 0)
        else:
            cookie = nbd_aio_flush(lane.handle, then, 0)
        if cookie == -1:
            # Never sent.  Where the connection is at fault it is found out below.
            part.error = ENOTCONN if is_over(lane.handle) else max(nbd_get_errno(), 1)
            append_over(&self.over, part)
        if is_over(lane.handle):
            self._lose(index, why_over(lane.handle))
        else:
            self._watch(index)
        return True

    cdef int _choose(self, int kind) noexcept nogil:
        """A lane with room, -1 for none.  Reads keep together, since many answers are then heard at once, and
        away from writes."""
        cdef int i, best = -1
        for i in range(LANES):
            if (kind == READ and self.lanes[i].handle != NULL and self.lanes[i].n_flying < READ_PARTS
                    and self.lanes[i].load < READ_LOAD):
                return i
        for i in range(LANES - 1, -1, -1):
            if (self.lanes[i].handle != NULL and self.lanes[i].n_flying < LANE_PARTS
                    and (best < 0 or self.lanes[i].load < self.lanes[best].load
                         or (self.lanes[i].load == self.lanes[best].load
                             and self.lanes[i].n_flying < self.lanes[best].n_flying))):
                best = i
        return best

    cdef void _start_flush(self) noexcept nogil:
        """One flush for all that was written before it."""
        cdef Part *part = &self.flush.parts[0]
        while self.stages[UNFLUSHED].first != NULL:
            self._move(self.stages[UNFLUSHED].first, FLUSHING)
        self.flushing = True
        part.busy = True
        part.lane = -1
        part.length = 0
        part.prev = NULL
        part.next = self.others.first       # before what else waits
        if part.next != NULL:
            part.next.prev = part
        else:
            self.others.last = part
        self.others.first = part
        self._send_next(&self.others)

    cdef void _hear(self, int index, uint32_t events) noexcept nogil:
        """Something happened on a lane."""
        cdef Lane *lane = &self.lanes[index]
        cdef unsigned direction
        cdef int more = HEAR_MOST
        if lane.handle == NULL:
            return
        direction = nbd_aio_get_direction(lane.handle)
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
            self._lose(index, why_over(lane.handle))
        else:
            self._watch(index)
            self._settle()

    cdef void _watch(self, int index) noexcept nogil:
        """Have epoll look for what the lane waits for."""
        cdef Lane *lane = &self.lanes[index]
        cdef unsigned direction = nbd_aio_get_direction(lane.handle)
        cdef epoll_event event
        event.events = 0
        if direction & LIBNBD_AIO_DIRECTION_READ:
            event.events |= EPOLLIN
        if direction & LIBNBD_AIO_DIRECTION_WRITE:
            event.events |= EPOLLOUT
        if event.events != lane.events:
            event.data.u32 = <uint32_t> index
            lane.events = event.events
            epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, lane.fd, &event)

    cdef void _settle(self) noexcept nogil:
        """Look after all parts that ended."""
        cdef Part *part
        while self.over.first != NULL:
            part = self.over.first
            self.over.first = part.next_over
            if self.over.first == NULL:
                self.over.last = NULL
            self._ended(part)

    cdef void _ended(self, Part *part) noexcept nogil:
        cdef Request *request = part.of
        cdef Lane *lane = &self.lanes[part.lane]
        cdef int index
        remove_part(&lane.flying, part)
        lane.n_flying -= 1
        lane.load -= part.length if request.kind != DISCARD else 0
        lane.progress_ns = now_ns()
        part.lane = -1
        if part.error == ENOTCONN or part.error == ESHUTDOWN:
            # No word on this request: it goes on elsewhere.
            index = <int> (lane - self.lanes)
            self._requeue(part)
            if lane.handle != NULL:
                self._lose(index, b"the server shuts down")
            return
        part.busy = False
        if request.kind == FLUSH:
            self._flushed(part.error)
            return
        if part.error and request.result == 0:
            request.result = -part.error
        request.flying -= 1
        self._advance(request)

    cdef void _requeue(self, Part *part) noexcept nogil:
        """A part was in flight on a lane that is lost."""
        cdef Request *request = part.of
        if request.kind == FLUSH:
            part.busy = False
            self.flushing = False       # whoever waited for it is told
            return
        request.doubled = request.doubled or request.kind != READ
        append_part(&self.reads if request.kind == READ else &self.others, part)

    cdef void _advance(self, Request *request) noexcept nogil:
        """Go on with a request of which a part has ended."""
        if request.result == 0 and request.planned < request.length:
            self._plan(request)
        elif request.flying == 0:
            self._answer(request)

    cdef void _flushed(self, int error) noexcept nogil:
        cdef Request *request
        self.flushing = False
        while self.stages[FLUSHING].first != NULL:
            request = self.stages[FLUSHING].first
            request.result = -error
            self._answer(request)

    cdef void _answer(self, Request *request) noexcept nogil:
        """A request is done; its thread goes on, at once or when nothing of it can come any more."""
        if request.doubled and not self.ended:
            request.doubled = False
            request.held_until_ns = now_ns() + self.drain_ns
            self._move(request, HELD)
            return
        remove_request(&self.stages[request.stage], request)
        add32(&self.waiting, -1)
        request.next = self.answered
        self.answered = request

    cdef void _lose(self, int index, const char *reason) noexcept nogil:
        """A lane is broken, or is to be: what is in flight on it waits for another one."""
        cdef Lane *lane = &self.lanes[index]
        cdef nbd_handle *handle = lane.handle
        cdef Part *part
        lane.handle = NULL
        lane.fd = -1
        strncpy(lane.reason, reason, REASON_BYTES - 1)
        lane.lost = True
        if add32(&self.up, -1) == 0:
            self.down_ns = now_ns()
        nbd_close(handle)               # nothing is called back any more, and no buffer touched
        self._settle()
        while lane.flying.first != NULL:
            part = lane.flying.first
            remove_part(&lane.flying, part)
            part.lane = -1
            self._requeue(part)
        lane.n_flying = 0
        lane.load = 0
        self._doubt()

    cdef void _doubt(self) noexcept nogil:
        """A lane broke: the server may have crashed, and have forgotten what was not flushed."""
        cdef Request *request
        cdef int stage
        poke64(&self.losses, self.losses + 1)
        for stage in range(UNFLUSHED, FLUSHING + 1):
            while self.stages[stage].first != NULL:
                request = self.stages[stage].first
                request.result = -EAGAIN
                self._answer(request)

    cdef void _give_up(self, Request *request, int result) noexcept nogil:
        """Answer a request now, of which nothing is in flight."""
        self._withdraw(request)
        request.result = result
        request.doubled = False
        self._answer(request)

    cdef void _withdraw(self, Request *request) noexcept nogil:
        """Take back the parts that wait to be sent."""
        cdef int i
        for i in range(PARTS):
            if request.parts[i].busy and request.parts[i].lane < 0:
                remove_part(&self.reads if request.kind == READ else &self.others, &request.parts[i])
                request.parts[i].busy = False
                request.flying -= 1

    cdef void _sweep(self) noexcept nogil:
        cdef uint64_t now = now_ns()
        cdef Request *request
        cdef Request *next
        cdef int i
        for i in range(LANES):
            if (self.lanes[i].handle != NULL and self.lanes[i].n_flying
                    and now - self.lanes[i].progress_ns > self.stall_ns and now > self.lanes[i].progress_ns):
                self._lose(i, b"the server does not answer")
        request = self.stages[HELD].first
        while request != NULL:
            next = request.next
            if now >= request.held_until_ns:
                self._answer(request)
            request = next
        # Losing a lane may answer others, but reads stay where they are until they are given up here.
        request = self.stages[ACTIVE].first
        while request != NULL:
            next = request.next
            if request.deadline_ns and (now >= request.deadline_ns
                                        or (request.kind != READ and self._is_hopeless(now))):
                for i in range(PARTS):
                    # Its buffer is touched as long as the connection lives.
                    if request.parts[i].busy and request.parts[i].lane >= 0:
                        self._lose(request.parts[i].lane, b"the server does not answer in time")
                next = request.next
                if request.doubled:
                    self._beware()
                self._give_up(request, -ETIMEDOUT)
            request = next

    cdef bint _is_hopeless(self, uint64_t now) noexcept nogil:
        """Whether changes need not wait: they may fail, and there is no connection."""
        return self.write_ns != 0 and load32(&self.up) == 0 and now > self.down_ns + HOPE_NS

    cdef void _beware(self) noexcept nogil:
        """A change is given up that was sent, and may still come: others wait until it has had time."""
        if load32(&self.up) == 0:
            self.wary = True        # once it is connected
        else:
            self.quiet_until_ns = now_ns() + self.drain_ns

    cdef void _move(self, Request *request, int stage) noexcept nogil:
        remove_request(&self.stages[request.stage], request)
        request.stage = stage
        append_request(&self.stages[stage], request)


# Called by libnbd, within the calls above.

cdef int on_end(void *of, int *error) noexcept nogil:
    """A part ended; looked after when libnbd has returned.  1: libnbd may forget it."""
    cdef Part *part = <Part *> of
    part.error = error[0]
    append_over(part.of.over, part)
    return 1


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


cdef void append_over(Parts *over, Part *part) noexcept nogil:
    part.next_over = NULL
    if over.last == NULL:
        over.first = part
    else:
        over.last.next_over = part
    over.last = part


cdef void append_part(Parts *to, Part *part) noexcept nogil:
    part.next = NULL
    part.prev = to.last
    if to.last == NULL:
        to.first = part
    else:
        to.last.next = part
    to.last = part


cdef void remove_part(Parts *of, Part *part) noexcept nogil:
    if part.prev == NULL:
        of.first = part.next
    else:
        part.prev.next = part.next
    if part.next == NULL:
        of.last = part.prev
    else:
        part.next.prev = part.prev


cdef void append_request(Requests *to, Request *request) noexcept nogil:
    request.next = NULL
    request.prev = to.last
    if to.last == NULL:
        to.first = request
    else:
        to.last.next = request
    to.last = request


cdef void remove_request(Requests *of, Request *request) noexcept nogil:
    if request.prev == NULL:
        of.first = request.next
    else:
        request.prev.next = request.next
    if request.next == NULL:
        of.last = request.prev
    else:
        request.next.prev = request.prev


# The store's face.

cdef int remote_read(void *of, char *buffer, size_t length, uint64_t at) noexcept nogil:
    return (<RemoteStore> of).ask(READ, buffer, length, at, (<RemoteStore> of).read_ns)


cdef int remote_write(void *of, const char *data, size_t length, uint64_t at) noexcept nogil:
    if (<RemoteStore> of)._is_hopeless(now_ns()):
        return -ENOTCONN
    return (<RemoteStore> of).ask(WRITE, <char *> data, length, at, (<RemoteStore> of).write_ns)


cdef uint64_t remote_mark(void *of) noexcept nogil:
    return peek64(&(<RemoteStore> of).losses)


cdef int remote_commit(void *of, uint64_t mark, uint64_t at) noexcept nogil:
    return (<RemoteStore> of).ask(COMMIT, NULL, 0, mark, 0)


cdef int remote_discard(void *of, uint64_t length, uint64_t at) noexcept nogil:
    if not (<RemoteStore> of).can_trim:
        return 0
    return (<RemoteStore> of).ask(DISCARD, NULL, length, at, (<RemoteStore> of).write_ns)
