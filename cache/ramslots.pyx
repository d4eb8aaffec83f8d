"""RAM slots: which are free, without memory, or to be given back; and how many the limits allow.

All of it belongs to whoever holds the lock of the turnstile, but for the calls of the movers' Python side,
which take it.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from swaptide.cache.entry cimport PAGE_BYTES, SEGMENT_BYTES
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from swaptide.cache.turnstile cimport Turnstile

cdef enum:
    # While RAM is taken back and writers wait, every fourth slot that comes free goes to them.
    GIFT_EVERY = 4
    # Tables grow by grants of this many bytes, each charged to the target before it may be used.
    GRANT_BYTES = 2097152
    # Fewer slots than these cannot work; private memory that grows beyond all plans must not wedge
    # a disk that is at its floor (geometry.MIN_RAM_SLOTS, less the two of tolerance).
    LEAST_SLOTS = 6


cdef class RamSlots:
    """The RAM slots of one disk, all without memory at first.  Writers that wait do so at `turnstile`."""

    def __cinit__(self, Mapping map, Turnstile turnstile):
        self.map = map
        self.turnstile = turnstile
        # Zeroed lazily by the kernel: what is never used costs nothing.
        self.free = <uint32_t *> calloc(map.ram_slots, 4)
        self.holes = <uint32_t *> calloc(map.ram_slots, 4)
        self.due = <uint32_t *> calloc(map.ram_slots, 4)
        if self.free == NULL or self.holes == NULL or self.due == NULL:
            raise MemoryError()
        self.host_limit = map.ram_slots
        self.keep_free = 1
        self.granted_bytes = min(map.metadata_bytes() + GRANT_BYTES, map.tables_bytes)
        self.charged_bytes = self.granted_bytes

    def __dealloc__(self):
        free(self.free)
        free(self.holes)
        free(self.due)

    cdef uint32_t limit(self) noexcept nogil:
        """How many RAM slots the target allows, the tables and private memory counted."""
        cdef uint64_t other = self.charged_bytes + self.private_bytes
        cdef uint64_t slots = 0
        if self.target_bytes > other:
            slots = (self.target_bytes - other) / SEGMENT_BYTES
        if slots > self.host_limit:
            slots = self.host_limit
        if slots < LEAST_SLOTS:
            return LEAST_SLOTS
        return <uint32_t> slots if slots < self.map.ram_slots else self.map.ram_slots

    cdef bint has_grant(self) noexcept nogil:
        """Whether the tables may grow by a piece."""
        return self.map.metadata_bytes() + PAGE_BYTES <= self.granted_bytes

    cdef bint wants_grant(self) noexcept nogil:
        """Whether the tables soon want to grow beyond what they may."""
        return (self.granted_bytes < self.map.metadata_bytes() + GRANT_BYTES / 2
                and self.granted_bytes < self.map.tables_bytes)

    cdef uint32_t take(self) noexcept nogil:
        """Take a free slot, of which there has to be one."""
        self.n_free -= 1
        return self.free[self.n_free]

    cdef void give(self, uint32_t slot) noexcept nogil:
        """A slot came free: it stays so, or is due to be given back."""
        cdef bint stays = self.populated - self.n_due <= self.limit()
        if not stays and self.n_free < self.keep_free:
            stays = True    # the cleaner's, or the packers': see Segments._may_take_slot
        elif not stays and self.turnstile.waiting:
            self.gift += 1
            stays = self.gift % GIFT_EVERY == 0
        if stays:
            self.free[self.n_free] = slot
            self.n_free += 1
            if self.turnstile.waiting:
                self.turnstile.wake()
        else:
            self.due[self.n_due] = slot
            self.n_due += 1
            self.turnstile.kick()

    cdef bint take_hole(self, uint32_t *slot) noexcept nogil:
        """Take a slot that is without memory, to be given some: it counts as populated from now on."""
        if self.n_holes:
            self.n_holes -= 1
            slot[0] = self.holes[self.n_holes]
        elif self.used < self.map.ram_slots:
            slot[0] = self.used
            self.used += 1
        else:
            return False
        self.populated += 1
        return True

    cdef void give_hole(self, uint32_t slot) noexcept nogil:
        """A slot's memory was given back, or could not be had."""
        self.populated -= 1
        self.holes[self.n_holes] = slot
        self.n_holes += 1

    cdef bint take_due(self, uint32_t *slot, uint32_t *release) noexcept nogil:
        """Take a slot that is to be given back: one that is due, or a free one while there are more than
        allowed, or while `release` says so; it still counts as populated.
        """
        while self.n_due and self.populated - self.n_due < self.limit():
            # The target rose meanwhile: use it instead.
            self.n_due -= 1
            self.give(self.due[self.n_due])
        if self.n_due:
            self.n_due -= 1
            slot[0] = self.due[self.n_due]
            return True
        if self.n_free <= self.keep_free or (self.populated <= self.limit() and release[0] == 0):
            return False
        if self.populated <= self.limit():
            release[0] -= 1
        slot[0] = self.take()
        return True

    # For the movers' Python side.

    def set_budget(self, uint64_t target_bytes, uint64_t private_bytes):
        """The target, and the private memory beyond the base that counts against it; both in bytes."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.target_bytes = target_bytes
        self.private_bytes = private_bytes
        pthread_mutex_unlock(&self.turnstile.lock)
        self.turnstile.kick()

    def set_keep_free(self, uint32_t count):
        """How many free slots stay while RAM is taken back: one, and more while packers work."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.keep_free = count
        pthread_mutex_unlock(&self.turnstile.lock)

    def set_host_limit(self, uint32_t slots):
        """What the host (its cgroups) allows in all, whatever the target says."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.host_limit = slots
        pthread_mutex_unlock(&self.turnstile.lock)

    def grant_tables(self):
        """Let the tables grow further where they soon want to: charge first, grant once there is room.

        Called at every look of the movers; a charge that does not fit yet makes them give slots back.
        Returns the bytes granted.
        """
        cdef uint64_t before
        pthread_mutex_lock(&self.turnstile.lock)
        before = self.granted_bytes
        if self.wants_grant():
            self.charged_bytes = min(self.granted_bytes + GRANT_BYTES, self.map.tables_bytes)
            if self.populated <= self.limit():
                self.granted_bytes = self.charged_bytes
                self.turnstile.wake()
        before = self.granted_bytes - before
        pthread_mutex_unlock(&self.turnstile.lock)
        return before
