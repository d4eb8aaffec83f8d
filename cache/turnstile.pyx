"""Where clients and movers wait for each other: for memory, for a thaw, for something to do.

One mutex, `lock`, covers everything about segments and slots; it is held for well under a microsecond and
never across a copy, an I/O or a wait for the GIL.  Who waits for memory or a thaw gives it up meanwhile.

Everything but the movers' Python side runs without the GIL, in the threads of nbdkit and of the movers.
"""

from libc.errno cimport EAGAIN, ESHUTDOWN
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport write

from swaptide.cache.atomics cimport add32, count64, load32, store32
from swaptide.cache.histogram cimport now_ns
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_timedwait,
    pthread_condattr_init,
    pthread_condattr_setclock,
    pthread_condattr_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from swaptide.cache.words cimport FROZEN_WAITS, STALLS

cdef enum:
    # How often a waiting writer looks whether its client is still there, in nanoseconds.
    WAIT_NS = 20000000
    # The same for one that waits for a thaw, which may take long; an end or a new client wakes it at once.
    THAW_NS = 100000000


cdef class Turnstile:
    """Of one disk.  `kick_fd` is an eventfd that wakes the movers."""

    def __cinit__(self, Mapping map, int kick_fd):
        cdef pthread_condattr_t attr
        self.map = map
        self.kick_fd = kick_fd
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&attr)
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
        pthread_cond_init(&self.freed, &attr)

    def __dealloc__(self):
        pthread_cond_destroy(&self.freed)
        pthread_mutex_destroy(&self.lock)

    # Freezing.  Whoever changes the disk for a client does so between `enter` and `leave`, but for the time
    # that it waits for memory.  So it is still once it is frozen, nobody is in between and no mover moves.

    cdef int enter(self, Waiter *waiter) noexcept nogil:
        """Begin to change the disk for a client, which waits while it is frozen; `leave` ends it.

        0, or a negative errno as of `reserve`: then there is nothing to leave.
        """
        # First counted, then looked: who freezes does it the other way round, so one of both sees the other.
        add32(&self.changing, 1)
        if load32(&self.frozen) == 0:
            return 0
        add32(&self.changing, -1)
        return self._enter_frozen(waiter)

    cdef int _enter_frozen(self, Waiter *waiter) noexcept nogil:
        cdef int result
        pthread_mutex_lock(&self.lock)
        result = self._await_thaw(waiter)
        if result == 0:
            add32(&self.changing, 1)    # who freezes does so under the lock
        pthread_mutex_unlock(&self.lock)
        return result

    cdef void leave(self) noexcept nogil:
        add32(&self.changing, -1)

    cdef bint is_frozen(self) noexcept nogil:
        return load32(&self.frozen) != 0

    cdef int _await_thaw(self, Waiter *waiter) noexcept nogil:
        """Wait until the disk is not frozen; called with the lock, which is given up meanwhile."""
        if self.frozen and waiter != NULL:
            count64(&self.map.counters[FROZEN_WAITS], 1)
        while self.frozen:
            if self.stopping:
                return -ESHUTDOWN
            if waiter == NULL:
                return -EAGAIN
            self._sleep(THAW_NS)
            # Looked at after the last sleep as well: what was thawed may be another client's by now.
            if not self._is_alive(waiter):
                return -ESHUTDOWN
        return 0

    # Waiting for memory.

    cdef int wait(self, Waiter *waiter, bint changing) noexcept nogil:
        """Wait a little for memory; called with the lock, which is given up meanwhile.

        Who is `changing` the disk, between `enter` and `leave`, does not count as such meanwhile, and waits
        for the thaw of a frozen one as well.  0, or a negative errno to give up with.
        """
        cdef uint64_t begun
        cdef int result
        if self.stopping:
            return -ESHUTDOWN
        if waiter == NULL or (self.frozen and not changing):
            # Where nothing moves nothing comes free: the cleaner gives up in the middle, as a packer does.
            self.kick()
            return -EAGAIN
        if changing:
            add32(&self.changing, -1)
        result = 0
        if not self.frozen:
            self.kick()
            # The cleaner, which nobody's client is behind, also waits here.
            if waiter.stalled_ns == 0 and waiter.alive != NULL:
                count64(&self.map.counters[STALLS], 1)
            begun = now_ns()
            self.waiting += 1
            self._sleep(WAIT_NS)
            self.waiting -= 1
            waiter.stalled_ns += now_ns() - begun
            if not self._is_alive(waiter):
                result = -ESHUTDOWN
        if changing:
            if result == 0:
                result = self._await_thaw(waiter)
            add32(&self.changing, 1)
        return result

    cdef void _sleep(self, uint64_t nanoseconds) noexcept nogil:
        """Give the lock up for a while, or until somebody who waits is to look again."""
        cdef timespec until
        clock_gettime(CLOCK_MONOTONIC, &until)
        until.tv_nsec += nanoseconds
        if until.tv_nsec >= 1000000000:
            until.tv_sec += 1
            until.tv_nsec -= 1000000000
        pthread_cond_timedwait(&self.freed, &self.lock, &until)

    cdef bint _is_alive(self, Waiter *waiter) noexcept nogil:
        """Whether the client behind a waiter is still there; the lock is given up meanwhile."""
        cdef bint alive = True
        if waiter.alive != NULL:
            pthread_mutex_unlock(&self.lock)
            alive = waiter.alive(waiter.arg)
            pthread_mutex_lock(&self.lock)
        return alive

    cdef void wake(self) noexcept nogil:
        """Have all who wait look again; called with the lock."""
        pthread_cond_broadcast(&self.freed)

    # Waking the movers.

    cdef void kick(self) noexcept nogil:
        """Wake the movers; cheap when they are awake already."""
        cdef uint64_t one = 1
        if add32(&self.kicked, 1) == 1:
            write(self.kick_fd, &one, 8)

    def rearm(self):
        """Called by the movers before they look: kicks from now on are heard again."""
        self.kicked = 0

    def set_frozen(self, bint frozen):
        """Have clients' changes wait and moves end early, or have them go on."""
        pthread_mutex_lock(&self.lock)
        store32(&self.frozen, frozen)
        pthread_cond_broadcast(&self.freed)
        pthread_mutex_unlock(&self.lock)
        self.kick()

    def is_still(self):
        """Whether the disk is frozen and no client's change is under way; that movers rest they know."""
        return load32(&self.frozen) != 0 and load32(&self.changing) == 0

    def wake_waiters(self):
        """Have every waiting writer look at once whether its client is still there."""
        pthread_mutex_lock(&self.lock)
        pthread_cond_broadcast(&self.freed)
        pthread_mutex_unlock(&self.lock)

    def stop(self):
        """Writers that wait give up, movers that wait return."""
        pthread_mutex_lock(&self.lock)
        self.stopping = True
        pthread_cond_broadcast(&self.freed)
        pthread_mutex_unlock(&self.lock)
