"""Who owns which disk slot, and which store the next one is taken of.

One store has all slots, or two share them: the numbers of the second one follow those of the first.  A slot
for a segment is taken of the first store as long as it has one and works, else of the second.  One that fails
is tried again, with one segment after growing pauses, and once that can be written it is as good as before.
Where both fail it is as with a single one that does: each write is tried.

Everything here is called with the lock of the segments, but for what says that it is a look without it.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from swaptide.cache.histogram cimport now_ns

cdef enum:
    # How long a failing store is left alone, at first and at most, in nanoseconds.
    FIRST_PAUSE_NS = 100000000
    LONGEST_PAUSE_NS = 5000000000
    # How long nothing is cleaned on a store of two where that could not be read.
    UNREADABLE_NS = 5000000000


cdef class Slots:
    """`slots` disk slots, the first `first` of them in the first store: all where it is the only one."""

    def __cinit__(self, uint32_t slots, uint32_t first):
        cdef int i
        self.stores = 1 if first == slots else 2
        # Zeroed lazily by the kernel: what is never used costs nothing.
        self.free = <uint32_t *> calloc(slots, 4)
        self.blank = <uint32_t *> calloc(slots, 4)
        if self.free == NULL or self.blank == NULL:
            raise MemoryError()
        self.pools[0].end = first
        self.pools[1].begin = first
        self.pools[1].end = slots
        for i in range(STORES):
            self.pools[i].next = self.pools[i].begin
            self.pools[i].free = self.free + self.pools[i].begin
            self.pools[i].blank = self.blank + self.pools[i].begin

    def __dealloc__(self):
        free(self.free)
        free(self.blank)

    cdef int store_of(self, uint32_t slot) noexcept nogil:
        """Which store has it, 0 or 1.  Needs no lock."""
        return slot >= self.pools[0].end

    cdef bint fails(self, int store) noexcept nogil:
        return self.pools[store].error != 0 or self.pools[store].down

    cdef uint32_t usable(self) noexcept nogil:
        """Free slots of the stores that work; of both where neither does."""
        cdef uint32_t first = count_free(&self.pools[0]), second
        if self.stores == 1:
            return first
        second = count_free(&self.pools[1])
        if self.fails(0) == self.fails(1):
            return first + second
        return second if self.fails(0) else first

    cdef bint is_retry_due(self) noexcept nogil:
        """Whether the next slot is one that tries a failing store again."""
        return self._due() >= 0

    cdef bint has_refuge(self, int store, uint32_t beyond) noexcept nogil:
        """Whether this store fails, and the other one works and has more than `beyond` free slots."""
        return (self.stores > 1 and self.fails(store) and not self.fails(1 - store)
                and count_free(&self.pools[1 - store]) > beyond)

    cdef uint32_t take(self) noexcept nogil:
        """Take a slot that nothing lies in: one that could not be written last time comes last.

        There is one.  Where only such are left they are tried one after the other: some may be good again.
        """
        cdef Pool *pool = &self.pools[self._choose() if self.stores > 1 else 0]
        cdef uint32_t slot, at
        if pool.n_free > pool.n_suspect:
            at = pool.n_free - 1
        elif pool.n_blank:
            pool.n_blank -= 1
            return pool.blank[pool.n_blank]
        elif pool.next < pool.end:
            slot = pool.next
            pool.next += 1
            return slot
        else:
            at = pool.failed_writes % pool.n_free
            pool.n_suspect -= 1
        slot = pool.free[at]
        pool.n_free -= 1
        pool.free[at] = pool.free[pool.n_free]
        return slot

    cdef int _choose(self) noexcept nogil:
        """Which store to take a slot of; it has one."""
        cdef int i = self._due()
        cdef Pool *pool
        if i >= 0:
            pool = &self.pools[i]
            pool.pause_ns = min(2 * pool.pause_ns, <uint64_t> LONGEST_PAUSE_NS)
            pool.retry_ns = now_ns() + pool.pause_ns    # nobody else meanwhile
            return i
        for i in range(STORES):
            if count_free(&self.pools[i]) and not self.fails(i):
                return i
        for i in range(STORES):
            if count_free(&self.pools[i]) and not self.pools[i].down:
                return i
        return 0 if count_free(&self.pools[0]) else 1

    cdef int _due(self) noexcept nogil:
        """A store of two that is to be tried again, -1 for none."""
        cdef int i
        for i in range(STORES if self.stores > 1 else 0):
            if (self.pools[i].error and not self.pools[i].down and count_free(&self.pools[i])
                    and now_ns() >= self.pools[i].retry_ns):
                return i
        return -1

    cdef void give(self, uint32_t slot) noexcept nogil:
        """Nothing lies there any more."""
        cdef Pool *pool = &self.pools[self.store_of(slot)]
        pool.free[pool.n_free] = slot
        pool.n_free += 1

    cdef void give_failed(self, uint32_t slot, int error) noexcept nogil:
        """It could not be written, for that errno; of EAGAIN nobody is to blame."""
        cdef Pool *pool = &self.pools[self.store_of(slot)]
        pool.free[pool.n_free] = pool.free[pool.n_suspect]
        pool.free[pool.n_suspect] = slot
        pool.n_suspect += 1
        pool.n_free += 1
        pool.failed_writes += 1
        if error == EAGAIN:
            return
        if pool.error == 0:
            pool.pause_ns = FIRST_PAUSE_NS
        pool.error = error
        pool.retry_ns = now_ns() + pool.pause_ns

    cdef void worked(self, uint32_t slot) noexcept nogil:
        """It was written."""
        self.pools[self.store_of(slot)].error = 0

    cdef uint32_t take_spent(self, uint32_t keep) noexcept nogil:
        """Take a free slot that its store still keeps the contents of, one that has been free for long, while
        it has more than `keep` of these; NO_SLOT where none has."""
        cdef uint32_t slot
        cdef int i
        cdef Pool *pool
        for i in range(self.stores):
            pool = &self.pools[i]
            if pool.n_free <= pool.n_suspect + keep or (self.stores > 1 and self.fails(i)):
                continue
            slot = pool.free[pool.n_suspect]
            pool.n_free -= 1
            pool.free[pool.n_suspect] = pool.free[pool.n_free]
            return slot
        return NO_SLOT

    cdef void give_blank(self, uint32_t slot) noexcept nogil:
        """Its store has forgotten it."""
        cdef Pool *pool = &self.pools[self.store_of(slot)]
        pool.blank[pool.n_blank] = slot
        pool.n_blank += 1

    cdef uint32_t spent(self) noexcept nogil:
        """Free slots that the stores still keep the contents of.  A look without the lock."""
        cdef uint32_t found = 0
        cdef int i
        for i in range(self.stores):
            found += self.pools[i].n_free - min(self.pools[i].n_suspect, self.pools[i].n_free)
        return found

    cdef bint is_out_of_reach(self, uint32_t slot) noexcept nogil:
        """Whether reading it would likely fail, or wait long.  A look without the lock."""
        cdef Pool *pool
        if self.stores == 1:
            return False
        pool = &self.pools[self.store_of(slot)]
        return pool.down or (pool.unreadable_until_ns != 0 and now_ns() < pool.unreadable_until_ns)

    cdef void not_readable(self, uint32_t slot) noexcept nogil:
        """A read of it failed."""
        self.pools[self.store_of(slot)].unreadable_until_ns = now_ns() + UNREADABLE_NS

    def adopt(self, taken):
        """Begin with these slots in use, a set; for one thread, before anybody else looks."""
        cdef int i
        cdef uint32_t slot
        for i in range(self.stores):
            mine = [each for each in taken if self.pools[i].begin <= each < self.pools[i].end]
            self.pools[i].next = max(mine) + 1 if mine else self.pools[i].begin
            for slot in range(self.pools[i].begin, self.pools[i].next):
                if slot not in taken:
                    self.give(slot)

    def used(self):
        """How many are in use in each store.  A look without the lock."""
        return tuple([self.pools[i].end - self.pools[i].begin - count_free(&self.pools[i])
                      for i in range(self.stores)])

    def errors(self):
        """Why the last write to each store failed, an errno; 0 where it did not.  A look without the lock."""
        return tuple([self.pools[i].error for i in range(self.stores)])

    # For tests of the choice alone, without segments.

    def take_now(self):
        """As `take`; None where none may be taken."""
        return self.take() if self.usable() or self.is_retry_due() else None

    def give_now(self, uint32_t slot, int error=0):
        """As `give`, or `give_failed` with an errno."""
        if error:
            self.give_failed(slot, error)
        else:
            self.give(slot)

    def worked_now(self, uint32_t slot):
        """As `worked`."""
        self.worked(slot)

    def set_down(self, int store, bint down):
        """Say that a store is known not to answer, or answers again: then what failed before says nothing."""
        if self.pools[store].down and not down:
            self.pools[store].error = 0
        self.pools[store].down = down


cdef uint32_t count_free(const Pool *pool) noexcept nogil:
    return pool.n_free + pool.n_blank + pool.end - pool.next
