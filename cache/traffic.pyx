"""What becomes of the requests to a spill store over NBD: cut into parts, sent over the lanes, settled.

All of it belongs to whoever holds `work`: the thread of the store's loop, or one that asks (remote.pyx).

A lane that breaks, or does not answer for too long, is closed, and what was in flight on it is sent again:
reads, writes and trims may be done twice.  But never twice *apart*: what a broken connection holds may still
reach the disk, so a write that was sent twice is answered only when that has had time to come, and its slot
is nobody else's before.  Where there is a cache behind the server, what was written is committed by a flush,
one for all who wait for it; what was not when a lane broke is to be written anew, since the server may have
crashed.
"""

from libc.errno cimport EAGAIN, ENOTCONN, ESHUTDOWN, ETIMEDOUT
from libc.stdint cimport uint64_t

from swaptide.cache.atomics cimport add32, load32, peek64, poke64, store32
from swaptide.cache.histogram cimport now_ns
from swaptide.cache.requests cimport (
    ACTIVE,
    COMMIT,
    DISCARD,
    FLUSH,
    FLUSHING,
    HELD,
    PARTS,
    READ,
    UNFLUSHED,
    append_part,
    append_request,
    prepend_part,
    remove_part,
    remove_request,
    take_over,
)
from swaptide.cache.wire cimport lane_close, lane_done, lane_hear, lane_open, lane_send

cdef enum:
    # A segment is cut into as many as keep several connections, and the server's threads, busy.
    PART_BYTES = 262144
    # In flight on one lane at most.
    LANE_PARTS = 64
    # Reads go to the first lane that has less than this.
    READ_PARTS = 32
    READ_LOAD = 524288
    # Where there is another store to write to, how long one without a connection is waited for.
    HOPE_NS = 1000000000


cdef class Traffic(Store):
    """Requests in all stages, and the lanes that they travel on."""

    def __cinit__(self):
        self.most_bytes = PART_BYTES
        self.least_bytes = 1
        self.flush.kind = FLUSH
        self.flush.over = &self.over
        self.flush.parts[0].of = &self.flush

    def __dealloc__(self):
        cdef int i
        for i in range(LANES):
            if self.lanes[i].handle != NULL:
                lane_close(&self.lanes[i], b"ended")

    cdef void _accept(self, Request *request) noexcept nogil:
        """One that came in."""
        add32(&self.waiting, 1)
        append_request(&self.stages[ACTIVE], request)
        if request.kind == COMMIT:
            self._take_commit(request)
        else:
            self._plan(request)

    cdef bint _attach(self, int index, nbd_handle *handle, int epoll_fd) noexcept nogil:
        """Use a connection as a lane; False where it cannot be watched."""
        if not lane_open(&self.lanes[index], handle, <uint32_t> index, epoll_fd):
            return False
        if self.wary:
            self.wary = False
            self.quiet_until_ns = now_ns() + self.drain_ns
        add32(&self.up, 1)
        self._send_all()
        self._settle()
        return True

    cdef void _set_size(self, uint64_t least_bytes, uint64_t most_bytes) noexcept nogil:
        """What the server takes at once."""
        self.least_bytes = least_bytes
        self.most_bytes = max(least_bytes, min(most_bytes, <uint64_t> PART_BYTES) / least_bytes * least_bytes)

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
        cdef const char *fault
        if index < 0:
            return False
        remove_part(queue, part)
        fault = lane_send(&self.lanes[index], part, self.can_fua and not self.can_flush)
        if fault != NULL:
            self._lose(index, fault)
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
        """One flush for all that was written before it, before what else waits."""
        cdef Part *part = &self.flush.parts[0]
        while self.stages[UNFLUSHED].first != NULL:
            self._move(self.stages[UNFLUSHED].first, FLUSHING)
        self.flushing = True
        part.busy = True
        part.lane = -1
        part.length = 0
        prepend_part(&self.others, part)
        self._send_next(&self.others)

    cdef void _hear(self, int index, uint32_t events) noexcept nogil:
        """Something happened on a lane."""
        cdef const char *fault
        if self.lanes[index].handle == NULL:
            return
        fault = lane_hear(&self.lanes[index], events)
        if fault != NULL:
            self._lose(index, fault)
        else:
            self._settle()

    cdef void _settle(self) noexcept nogil:
        """Look after all parts that ended."""
        cdef Part *part = take_over(&self.over)
        while part != NULL:
            self._ended(part)
            part = take_over(&self.over)

    cdef void _ended(self, Part *part) noexcept nogil:
        cdef Request *request = part.of
        cdef Lane *lane = &self.lanes[part.lane]
        lane_done(lane, part)
        if part.error == ENOTCONN or part.error == ESHUTDOWN:
            # No word on this request: it goes on elsewhere.
            self._requeue(part)
            if lane.handle != NULL:
                self._lose(<int> lane.index, b"the server shuts down")
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
        cdef Part *part
        lane_close(lane, reason)
        if add32(&self.up, -1) == 0:
            self.down_ns = now_ns()
        self._settle()
        while lane.flying.first != NULL:
            part = lane.flying.first
            lane_done(lane, part)
            self._requeue(part)
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
        cdef uint64_t now = now_ns(), stall_ns = peek64(&self.stall_ns)
        cdef Request *request
        cdef Request *next
        cdef int i
        for i in range(LANES):
            if (self.lanes[i].handle != NULL and self.lanes[i].n_flying
                    and now - self.lanes[i].progress_ns > stall_ns and now > self.lanes[i].progress_ns):
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
        store32(&self.late, self._is_late(now, stall_ns))

    cdef bint _is_hopeless(self, uint64_t now) noexcept nogil:
        """Whether changes need not wait: they may fail, and there is no connection."""
        return peek64(&self.write_ns) != 0 and load32(&self.up) == 0 and now > self.down_ns + HOPE_NS

    cdef void _beware(self) noexcept nogil:
        """A change is given up that was sent, and may still come: others wait until it has had time."""
        if load32(&self.up) == 0:
            self.wary = True        # once it is connected
        else:
            self.quiet_until_ns = now_ns() + self.drain_ns

    cdef bint _is_late(self, uint64_t now, uint64_t stall_ns) noexcept nogil:
        """Whether a write waits for longer than a server may be silent: over however many connections, and
        whatever else it answers."""
        cdef Request *request
        cdef int stage
        for stage in range(STAGES):
            request = self.stages[stage].first
            while request != NULL:
                if request.kind != READ and now > request.asked_ns and now - request.asked_ns > stall_ns:
                    return True
                request = request.next
        return False

    cdef void _move(self, Request *request, int stage) noexcept nogil:
        remove_request(&self.stages[request.stage], request)
        request.stage = stage
        append_request(&self.stages[stage], request)

    cdef bint _end(self) noexcept nogil:
        """Give everything up; whether a change was among it."""
        cdef Request *request
        cdef bint cut = False
        cdef int i
        for i in range(LANES):
            if self.lanes[i].handle != NULL:
                self._lose(i, b"ended")
        for i in range(STAGES):
            while self.stages[i].first != NULL:
                request = self.stages[i].first
                cut = cut or request.kind != READ
                self._give_up(request, -ESHUTDOWN)
        # What was given up before may come as well.
        return cut or self.wary or now_ns() < self.quiet_until_ns
