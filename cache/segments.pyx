"""The life of segments: who owns which number, RAM slot and disk slot, and when they may be used again.

One mutex, `lock`, covers the heads, the free lists, the age list and every change of a place; it is
held for well under a microsecond and never across a copy, an I/O or a wait for the GIL.  Live counts
and pins are atomic and need no lock.  The state machine and the proofs are in docs/design.md.

Everything here runs without the GIL, in the threads of nbdkit and in the movers' threads.
"""

from libc.errno cimport EAGAIN, ENOMEM, ESHUTDOWN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport write

from swaptide.cache.ages cimport AGE_BUCKETS, AGE_LIVE, age_bucket
from swaptide.cache.atomics cimport (
    add32,
    add64,
    count64,
    load32,
    load64,
    load64s,
    mortal,
    peek64,
    point,
    poke64,
    relax,
    store32,
    store64,
)
from swaptide.cache.entry cimport (
    CLEAN,
    CONTENT_BYTES,
    DIRTY,
    DISK,
    DYING,
    MAX_COUNT,
    OPEN,
    PAGE_BYTES,
    RMAP_ENTRY_BYTES,
    SEGMENT_BYTES,
    WRITING,
    disk_of,
    is_piece,
    length_of,
    place_of,
    ram_of,
    segment_of,
    state_of,
)
from swaptide.cache.histogram cimport now_ns
from swaptide.cache.mapping cimport (
    ALIGNED_FLAG,
    BAD_FLAG,
    COLD_FLAG,
    PACKED_FLAG,
    SOLID_FLAG,
    STRONG_FLAG,
    SUSPECT_FLAG,
    Mapping,
    SegmentEntry,
)
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
from swaptide.cache.slots cimport NO_SLOT, Slots
from swaptide.cache.words cimport FROZEN_WAITS, LOG_CLOCK, STALLS, WRITE_CLOCK

cdef enum:
    # Disk slots that only segments written by the cleaner may take: with these the cleaner can
    # always finish what frees more (docs/design.md, "Neither pool can wedge").
    CLEANER_DISK_SLOTS = 4
    # While RAM is taken back and writers wait, every fourth slot that comes free goes to them.
    GIFT_EVERY = 4
    # How often a waiting writer looks whether its client is still there, in nanoseconds.
    WAIT_NS = 20000000
    # The same for one that waits for a thaw, which may take long; an end or a new client wakes it at once.
    THAW_NS = 100000000
    # Tables grow by grants of this many bytes, each charged to the target before it may be used.
    GRANT_BYTES = 2097152
    # Fewer slots than these cannot work; private memory that grows beyond all plans must not wedge
    # a disk that is at its floor (geometry.MIN_RAM_SLOTS, less the two of tolerance).
    LEAST_SLOTS = 6
    # What a piece costs beyond its own bytes, when it is judged what cleaning a segment gains: its place in
    # the reverse map, and one of MAX_COUNT.  So weighed, no segment that is full of live pieces of any length
    # weighs less than CONTENT_BYTES, and one of whole pages that lacks a page does.
    PIECE_WEIGHT = 16
    # A segment of the cleaner whose pieces are smaller than this on average counts as packed; in bytes.
    MOSTLY_PACKED = 3072


cdef class Segments:
    """All segments of one disk.  `kick_fd` is an eventfd that wakes the movers."""

    def __cinit__(self, Mapping map, int kick_fd):
        cdef uint32_t n = map.segments
        cdef pthread_condattr_t attr
        cdef int i
        self.map = map
        self.slots = Slots(map.disk_slots, map.first_slots)
        self.kick_fd = kick_fd
        # Zeroed lazily by the kernel: what is never used costs nothing.
        self.live = <int64_t *> calloc(n, 8)
        self.pins = <int32_t *> calloc(n, 4)
        self.disk_pins = <int32_t *> calloc(n, 4)
        self.claimed = <uint8_t *> calloc(n, 1)
        self.newer = <uint32_t *> calloc(n, 4)
        self.older = <uint32_t *> calloc(n, 4)
        self.free_ids = <uint32_t *> calloc(n, 4)
        self.free_ram = <uint32_t *> calloc(map.ram_slots, 4)
        self.hole_ram = <uint32_t *> calloc(map.ram_slots, 4)
        self.punch_ram = <uint32_t *> calloc(map.ram_slots, 4)
        if (self.live == NULL or self.pins == NULL or self.disk_pins == NULL or self.claimed == NULL
                or self.newer == NULL or self.older == NULL or self.free_ids == NULL or self.free_ram == NULL
                or self.hole_ram == NULL or self.punch_ram == NULL):
            raise MemoryError()
        for i in range(LISTS):
            self.coldest[i] = self.youngest[i] = NO_SEGMENT
        for i in range(HEADS):
            self.heads[i].segment = NO_SEGMENT
        self.host_limit = map.ram_slots
        self.keep_free = 1
        self.granted_bytes = min(map.metadata_bytes() + GRANT_BYTES, map.tables_bytes)
        self.charged_bytes = self.granted_bytes
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&attr)
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
        pthread_cond_init(&self.freed, &attr)

    def __dealloc__(self):
        free(self.live)
        free(self.pins)
        free(self.disk_pins)
        free(self.claimed)
        free(self.newer)
        free(self.older)
        free(self.free_ids)
        free(self.free_ram)
        free(self.hole_ram)
        free(self.punch_ram)
        pthread_cond_destroy(&self.freed)
        pthread_mutex_destroy(&self.lock)

    # Pins.  A pin holds a segment's number and its RAM slot; a disk pin holds the number and the disk
    # slot only, so that readers of a busy spilled segment never keep its RAM from being given back.

    cdef void pin(self, uint32_t segment) noexcept nogil:
        add32(&self.pins[segment], 1)

    cdef void unpin(self, uint32_t segment) noexcept nogil:
        if add32(&self.pins[segment], -1) != 0:
            return
        point("unpin: last one")
        if state_of(self.place(segment)) == DYING:
            self._reap_unlocked(segment)

    cdef void disk_pin(self, uint32_t segment) noexcept nogil:
        add32(&self.disk_pins[segment], 1)

    cdef void disk_unpin(self, uint32_t segment) noexcept nogil:
        if add32(&self.disk_pins[segment], -1) == 0 and state_of(self.place(segment)) == DYING:
            self._reap_unlocked(segment)

    cdef bint wait_unpinned(self, uint32_t segment) noexcept nogil:
        """Wait until nobody uses the segment's RAM; pins last for one copy.  False when stopping."""
        cdef int spins = 0
        cdef timespec pause
        while load32(&self.pins[segment]) != 0:
            spins += 1
            if spins < 100:
                relax()
                continue
            if self.stopping:
                return False
            pause.tv_sec = 0
            pause.tv_nsec = 20000
            nanosleep(&pause, NULL)
        return True

    cdef uint64_t place(self, uint32_t segment) noexcept nogil:
        return load64(&self.map.segment_table[segment].place)

    cdef void set_place(self, uint32_t segment, uint64_t place) noexcept nogil:
        cdef int before = state_of(self.map.segment_table[segment].place)
        cdef int kind = self._class_of(segment)
        self._tally(kind, before, -1)
        self._tally(kind, state_of(place), 1)
        store64(&self.map.segment_table[segment].place, place)

    cdef int _class_of(self, uint32_t segment) noexcept nogil:
        cdef uint16_t flags = self.map.segment_table[segment].flags
        return STIFF if flags & SOLID_FLAG else PACKED if flags & PACKED_FLAG else RAW

    cdef void _tally(self, int kind, int state, int by) noexcept nogil:
        if state == DIRTY:
            self.dirty_segments[kind] += by
        elif state == WRITING:
            self.writing_segments += by
        elif state == CLEAN:
            self.clean_segments += by

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

    # Appending.

    cdef int reserve(self, int head, uint32_t want, uint32_t length, uint64_t age, Waiter *waiter,
                     uint32_t *segment, uint32_t *offset, uint32_t *ordinal) noexcept nogil:
        """Take up to `want` pieces of `length` bytes each, one behind the other, of the head's open segment;
        the caller fills them and unpins the segment.  `age` is that of what a mover moves.

        Returns how many, or a negative errno: EAGAIN where it would have to wait and `waiter` is NULL,
        ESHUTDOWN where the client went away or the process stops.  The pieces count as live at once, so
        that the segment cannot be taken for dead before their entries are published.
        """
        cdef uint32_t got
        cdef OpenSegment *open = &self.heads[head]
        cdef SegmentEntry *entry
        cdef int result
        pthread_mutex_lock(&self.lock)
        while True:
            if open.segment != NO_SEGMENT:
                got = self._room(head, length)
                if got:
                    break
                self._seal(head)
            if self._open(head):
                continue
            self.cleaner_waits = self.cleaner_waits or head == COLD
            result = self._wait(waiter, head == GUEST)
            if head == COLD:
                self.cleaner_waits = False
            if result != 0:
                pthread_mutex_unlock(&self.lock)
                return result
        if got > want:
            got = want
        mortal("reserve: room found")
        entry = &self.map.segment_table[open.segment]
        segment[0] = open.segment
        offset[0] = entry.fill
        ordinal[0] = entry.count
        if head != GUEST:
            self._blend_age(head, age, got * length)
        entry.fill = entry.fill + got * length
        mortal("reserve: fill stored")
        entry.count = <uint16_t> (entry.count + got)
        mortal("reserve: count stored")
        add64(&self.live[open.segment], (<int64_t> got << 32) + got * length)
        add32(&self.pins[open.segment], 1)
        # Where whole pages are appended it is known to be full before the next one comes.
        if (head == GUEST or head == SOLID) and self._room(head, PAGE_BYTES) == 0:
            self._seal(head)
        pthread_mutex_unlock(&self.lock)
        return <int> got

    cdef uint32_t _room(self, int head, uint32_t length) noexcept nogil:
        """How many pieces of `length` bytes the head's open segment still has room for."""
        cdef SegmentEntry *entry = &self.map.segment_table[self.heads[head].segment]
        cdef uint32_t room = CONTENT_BYTES - entry.fill - <uint32_t> entry.count * RMAP_ENTRY_BYTES
        return min(room / (length + RMAP_ENTRY_BYTES), <uint32_t> (MAX_COUNT - entry.count))

    cdef int ensure_page(self, uint64_t page, Waiter *waiter) noexcept nogil:
        """Have the page's piece of the table; it is memory like any other: this may wait as `reserve`."""
        cdef int result = 0
        if self.map.page_ready(page):
            return 0
        pthread_mutex_lock(&self.lock)
        while True:
            if self.map.metadata_bytes() + PAGE_BYTES <= self.granted_bytes or self.map.page_ready(page):
                if self.map.page_ensure(page) == 0:
                    break
            result = self._wait(waiter, True)
            if result != 0:
                break
        if self._wants_grant():
            self.kick()
        pthread_mutex_unlock(&self.lock)
        return result

    cdef bint _wants_grant(self) noexcept nogil:
        return (self.granted_bytes < self.map.metadata_bytes() + GRANT_BYTES / 2
                and self.granted_bytes < self.map.tables_bytes)

    cdef int _wait(self, Waiter *waiter, bint changing) noexcept nogil:
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

    cdef void cancel(self, uint32_t segment, uint32_t pieces, uint32_t length) noexcept nogil:
        """Give up reserved pieces of `length` bytes each, or pieces whose entry went elsewhere."""
        if add64(&self.live[segment], -((<int64_t> pieces << 32) + <int64_t> pieces * length)) == 0:
            self._reap_unlocked(segment)

    cdef void retire(self, uint64_t entry) noexcept nogil:
        """Account an entry that was just replaced."""
        if is_piece(entry):
            self.cancel(segment_of(entry), 1, length_of(entry))

    cdef uint32_t live_bytes(self, uint32_t segment) noexcept nogil:
        return <uint32_t> load64s(&self.live[segment])

    cdef uint32_t _weight(self, uint32_t segment) noexcept nogil:
        """What lives in a segment, in bytes: see PIECE_WEIGHT."""
        cdef uint64_t live = <uint64_t> load64s(&self.live[segment])
        return <uint32_t> live + <uint32_t> (live >> 32) * PIECE_WEIGHT

    cdef bint _may_take_slot(self, int head) noexcept nogil:
        # The last free slot is the cleaner's, always: also while its segment is open, since the next one
        # is needed at the moment that one is full, in the middle of a victim.  Packers come last: they
        # give up where there is none, and leave the guest one.
        return self.n_free_ram > (0 if head == COLD else 1 if head == GUEST else 2)

    cdef bint _open(self, int head) noexcept nogil:
        cdef uint32_t segment, slot
        cdef SegmentEntry *entry
        if not self._may_take_slot(head):
            return False
        if self.n_free_ids == 0:
            if self.used_ids == self.map.segments or self.map.segment_ensure(self.used_ids) != 0:
                return False
            self.free_ids[0] = self.used_ids
            self.n_free_ids = 1
            self.used_ids += 1
        self.n_free_ids -= 1
        segment = self.free_ids[self.n_free_ids]
        self.n_free_ram -= 1
        slot = self.free_ram[self.n_free_ram]
        entry = &self.map.segment_table[segment]
        poke64(&self.log_clock, self.log_clock + 1)     # readers look at it without the lock
        store64(&self.map.counters[LOG_CLOCK], self.log_clock)
        mortal("open: number taken")
        poke64(&entry.age, self.log_clock)
        entry.fill = 0
        entry.count = 0
        if head == GUEST:
            poke64(&self.guest_opened, self.guest_opened + 1)
            entry.flags = ALIGNED_FLAG
        elif head == COLD:
            entry.flags = COLD_FLAG
        elif head == SOLID:
            entry.flags = ALIGNED_FLAG | SOLID_FLAG
        else:
            entry.flags = PACKED_FLAG | STRONG_FLAG if head == STRONG_PACK else PACKED_FLAG
        mortal("open: entry filled")
        self.set_place(segment, place_of(OPEN, slot + 1, 0))
        self.heads[head].segment = segment
        self.heads[head].age_sum = 0
        self.heads[head].age_bytes = 0
        if self.n_free_ram <= 3:
            self.kick()
        return True

    cdef void _blend_age(self, int head, uint64_t age, uint32_t nbytes) noexcept nogil:
        """A mover's open segment takes the mean age of what is moved into it: survivors stay cold.

        At once, not when it is sealed: it is read meanwhile, and a successor may find it open.
        """
        cdef OpenSegment *open = &self.heads[head]
        open.age_sum += <double> age * nbytes
        open.age_bytes += nbytes
        poke64(&self.map.segment_table[open.segment].age, <uint64_t> (open.age_sum / open.age_bytes))

    cdef void _seal(self, int head) noexcept nogil:
        cdef OpenSegment *open = &self.heads[head]
        cdef uint32_t segment = open.segment
        cdef SegmentEntry *entry = &self.map.segment_table[segment]
        if head == COLD and entry.fill < <uint64_t> entry.count * MOSTLY_PACKED:
            entry.flags = entry.flags | PACKED_FLAG
        mortal("seal: full")
        self.set_place(segment, place_of(DIRTY, ram_of(entry.place), 0))
        mortal("seal: place stored")
        self._link(segment)
        open.segment = NO_SEGMENT
        # All of it may have died while it was open.
        self._reap(segment)

    def seal_packers(self):
        """Close what the packers have open, so that it can go to disk: where RAM is short they have none."""
        cdef int head
        pthread_mutex_lock(&self.lock)
        for head in range(PACK, HEADS):
            if self.heads[head].segment != NO_SEGMENT:
                self._seal(head)
        pthread_mutex_unlock(&self.lock)

    def seal_guest(self, uint32_t fill):
        """Close the guest's segment if it is still as full as that, in bytes."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.lock)
        segment = self.heads[GUEST].segment
        if segment != NO_SEGMENT and self.map.segment_table[segment].fill == fill:
            self._seal(GUEST)
        pthread_mutex_unlock(&self.lock)

    def seal_dead(self):
        """Close what is open and holds nothing that lives, so that it is freed; returns how many."""
        cdef int head, done = 0
        pthread_mutex_lock(&self.lock)
        for head in range(HEADS):
            # What is reserved counts as live, and is reserved under the lock.
            if (self.heads[head].segment != NO_SEGMENT
                    and load64s(&self.live[self.heads[head].segment]) == 0):
                self._seal(head)
                done += 1
        pthread_mutex_unlock(&self.lock)
        return done

    # Freeing.  A segment is freed by whoever takes away the last of: its live pieces, its pins, its claim.

    cdef void _reap_unlocked(self, uint32_t segment) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self._reap(segment)
        pthread_mutex_unlock(&self.lock)

    cdef void _reap(self, uint32_t segment) noexcept nogil:
        cdef uint64_t place = self.map.segment_table[segment].place
        cdef int state = state_of(place)
        if self.claimed[segment] or load64s(&self.live[segment]) != 0:
            return
        if state == DIRTY or state == CLEAN or state == DISK:
            if state != DISK:
                self._unlink(segment)
            # From here a pin that goes away looks for DYING, and this thread looks for pins: one of
            # both sees the other (sequentially consistent).
            self.set_place(segment, place_of(DYING, ram_of(place), disk_of(place)))
            mortal("reap: dying")
        elif state != DYING:
            return
        if load32(&self.pins[segment]) == 0 and load32(&self.disk_pins[segment]) == 0:
            self._free(segment)

    cdef void _free(self, uint32_t segment) noexcept nogil:
        cdef uint64_t place = self.map.segment_table[segment].place
        mortal("free: nobody left")
        self.set_place(segment, 0)
        mortal("free: place cleared")
        if ram_of(place):
            self._free_slot(ram_of(place) - 1)
        if disk_of(place):
            self.slots.give(disk_of(place) - 1)
        self.free_ids[self.n_free_ids] = segment
        self.n_free_ids += 1

    cdef void _free_slot(self, uint32_t slot) noexcept nogil:
        cdef bint give = self.populated - self.n_punch_ram <= self.limit()
        if not give and self.n_free_ram < self.keep_free:
            give = True     # the cleaner's, or the packers': see _may_take_slot
        elif not give and self.waiting:
            self.gift += 1
            give = self.gift % GIFT_EVERY == 0
        if give:
            self.free_ram[self.n_free_ram] = slot
            self.n_free_ram += 1
            if self.waiting:
                pthread_cond_broadcast(&self.freed)
        else:
            self.punch_ram[self.n_punch_ram] = slot
            self.n_punch_ram += 1
            self.kick()

    # The age lists: sealed segments that are in RAM, coldest first; CLEAN ones have a list of their own.

    cdef int _list_of(self, uint32_t segment) noexcept nogil:
        cdef bint clean = state_of(self.map.segment_table[segment].place) == CLEAN
        return CLEANED if clean else self._class_of(segment)

    cdef void _link(self, uint32_t segment) noexcept nogil:
        cdef int kind = self._list_of(segment)
        cdef uint64_t age = self.map.segment_table[segment].age
        cdef uint32_t after, before
        if self.youngest[kind] == NO_SEGMENT or self.map.segment_table[self.youngest[kind]].age <= age:
            after = self.youngest[kind]
        else:
            # The cleaner's segments are old: look for their place from the cold end.
            before = self.coldest[kind]
            while self.map.segment_table[before].age <= age:
                before = self.newer[before]
            after = self.older[before]
        before = self.coldest[kind] if after == NO_SEGMENT else self.newer[after]
        self.older[segment] = after
        self.newer[segment] = before
        if after == NO_SEGMENT:
            self.coldest[kind] = segment
        else:
            self.newer[after] = segment
        if before == NO_SEGMENT:
            self.youngest[kind] = segment
        else:
            self.older[before] = segment

    cdef void _unlink(self, uint32_t segment) noexcept nogil:
        cdef int kind = self._list_of(segment)
        cdef uint32_t after = self.older[segment], before = self.newer[segment]
        if after == NO_SEGMENT:
            self.coldest[kind] = before
        else:
            self.newer[after] = before
        if before == NO_SEGMENT:
            self.youngest[kind] = after
        else:
            self.older[before] = after

    # What movers do.  A claim keeps every other mover, and the freeing of a dead segment, away.

    cdef uint32_t _coldest_of(self, int kind, int state, uint16_t without) noexcept nogil:
        """The coldest of a list that is in `state`, unclaimed, and has none of the flags `without`."""
        cdef uint32_t segment = self.coldest[kind]
        while segment != NO_SEGMENT:
            if (not self.claimed[segment] and state_of(self.map.segment_table[segment].place) == state
                    and not self.map.segment_table[segment].flags & without):
                break
            segment = self.newer[segment]
        return segment

    cdef uint32_t claim_clean(self) noexcept nogil:
        """Claim the coldest CLEAN segment."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.lock)
        segment = self._coldest_of(CLEANED, CLEAN, 0)
        if segment != NO_SEGMENT:
            self.claimed[segment] = 1
        pthread_mutex_unlock(&self.lock)
        return segment

    cdef uint32_t claim_for_disk(self) noexcept nogil:
        """Claim the DIRTY segment to write out: one that does not shrink, else the coldest that may go."""
        cdef uint32_t segment, best = NO_SEGMENT
        cdef int i
        cdef int order[CLASSES]
        order[0] = STIFF
        order[1] = PACKED
        order[2] = RAW
        pthread_mutex_lock(&self.lock)
        for i in range(CLASSES):
            if (self.dirty_segments[order[i]] == 0
                    or (best != NO_SEGMENT and order[0] == self._class_of(best))):
                continue
            segment = self._coldest_of(order[i], DIRTY, 0)
            while segment != NO_SEGMENT and not self._may_take_disk(segment):
                segment = self._next_dirty(segment)
            if segment != NO_SEGMENT and (best == NO_SEGMENT or self.map.segment_table[segment].age
                                          < self.map.segment_table[best].age):
                best = segment
        if best != NO_SEGMENT:
            self.claimed[best] = 1
        pthread_mutex_unlock(&self.lock)
        return best

    cdef uint32_t _next_dirty(self, uint32_t segment) noexcept nogil:
        segment = self.newer[segment]
        while segment != NO_SEGMENT and (self.claimed[segment]
                                         or state_of(self.map.segment_table[segment].place) != DIRTY):
            segment = self.newer[segment]
        return segment

    cdef uint32_t claim_to_pack(self, uint32_t keep) noexcept nogil:
        """Claim the coldest segment that may shrink, while there are more than `keep` of these."""
        cdef uint32_t segment = NO_SEGMENT
        pthread_mutex_lock(&self.lock)
        if self.dirty_segments[RAW] > keep:
            segment = self._coldest_of(RAW, DIRTY, 0)
        if segment != NO_SEGMENT:
            self.claimed[segment] = 1
        pthread_mutex_unlock(&self.lock)
        return segment

    cdef uint32_t claim_to_strengthen(self) noexcept nogil:
        """Claim the coldest packed segment that could be packed better."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.lock)
        segment = self._coldest_of(PACKED, DIRTY, STRONG_FLAG)
        if segment != NO_SEGMENT:
            self.claimed[segment] = 1
        pthread_mutex_unlock(&self.lock)
        return segment

    cdef void stiffen(self, uint32_t segment) noexcept nogil:
        """A claimed DIRTY segment turned out not to shrink: it is the first to go to disk."""
        pthread_mutex_lock(&self.lock)
        self._unlink(segment)
        self._tally(self._class_of(segment), DIRTY, -1)
        self.map.segment_table[segment].flags = self.map.segment_table[segment].flags | SOLID_FLAG
        self._tally(STIFF, DIRTY, 1)
        self._link(segment)
        pthread_mutex_unlock(&self.lock)

    cdef uint32_t claim_to_clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        """Claim a sealed segment that weighs less than `below`, in RAM or on disk.

        With `by_age` the one whose cleaning pays best: free space gained, times how long it is likely to
        stay so, over the cost of reading and writing (Rosenblum and Ousterhout, "The Design and
        Implementation of a Log-Structured File System", 1992, section 3.5).  Else the emptiest.
        """
        cdef uint32_t segment, live, best = NO_SEGMENT
        cdef double score, most = -1.0, age
        cdef uint64_t clock = peek64(&self.log_clock)
        # Looked for without the lock, since a large disk has many; judged again with it.
        for segment in range(self.used_ids):
            live = self._weight(segment)
            if live >= below or not self._is_cleanable(segment, on_disk):
                continue
            age = 1.0
            if by_age:
                age += <double> clock - <double> peek64(&self.map.segment_table[segment].age)
            score = (CONTENT_BYTES - live) * age / (CONTENT_BYTES + live)
            if score > most:
                best = segment
                most = score
        if best == NO_SEGMENT:
            return NO_SEGMENT
        pthread_mutex_lock(&self.lock)
        if self._weight(best) < below and self._is_cleanable(best, on_disk):
            self.claimed[best] = 1
        else:
            best = NO_SEGMENT
        pthread_mutex_unlock(&self.lock)
        return best

    cdef bint _is_cleanable(self, uint32_t segment, bint on_disk) noexcept nogil:
        cdef uint64_t place = self.place(segment)
        cdef int state = state_of(place)
        if self.claimed[segment] or self.map.segment_table[segment].flags & (BAD_FLAG | SUSPECT_FLAG):
            return False
        if state == DISK:
            return on_disk and not self.slots.is_out_of_reach(disk_of(place) - 1)
        return state == CLEAN or (state == DIRTY and not on_disk)

    cdef void unclaim(self, uint32_t segment) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.claimed[segment] = 0
        self._reap(segment)
        pthread_mutex_unlock(&self.lock)

    cdef bint _may_take_disk(self, uint32_t segment) noexcept nogil:
        cdef uint32_t free_slots = self.slots.usable()
        if free_slots > (0 if self.map.segment_table[segment].flags & COLD_FLAG else CLEANER_DISK_SLOTS):
            return True
        return self.slots.is_retry_due()

    cdef uint32_t claim_to_discard(self, uint32_t keep) noexcept nogil:
        """Take a free disk slot that the store may forget, one that has been free for long, while there are
        more than `keep` of these and plenty in all; NO_SLOT where not."""
        cdef uint32_t slot = NO_SLOT
        pthread_mutex_lock(&self.lock)
        if self.slots.usable() > 4 * CLEANER_DISK_SLOTS:
            slot = self.slots.take_spent(keep)
        pthread_mutex_unlock(&self.lock)
        return slot

    cdef void end_discard(self, uint32_t slot, bint ok) noexcept nogil:
        """Give such a slot back, as one that the store has forgotten or as it was."""
        pthread_mutex_lock(&self.lock)
        if ok:
            self.slots.give_blank(slot)
        else:
            self.slots.give(slot)
        pthread_mutex_unlock(&self.lock)

    cdef bint begin_write(self, uint32_t segment) noexcept nogil:
        """Mark a disk slot for a claimed DIRTY segment before its write is sent.  False: none to be had.

        The write gets a number of its own, also where the same segment is written a second time.
        """
        cdef uint32_t slot
        cdef bint may
        pthread_mutex_lock(&self.lock)
        may = self._may_take_disk(segment)
        if may:
            slot = self.slots.take()
            # Never the same twice, not for another segment and not after a restart: stored before it is used.
            self.write_clock += 1
            store64(&self.map.counters[WRITE_CLOCK], self.write_clock)
            mortal("begin write: number taken")
            self.map.segment_table[segment].write = self.write_clock
            mortal("begin write: number stored")
            self.set_place(segment,
                           place_of(WRITING, ram_of(self.map.segment_table[segment].place), slot + 1))
        pthread_mutex_unlock(&self.lock)
        return may

    cdef void end_write(self, uint32_t segment, int result) noexcept nogil:
        """A write ended, with 0 or -errno: its segment is CLEAN, or DIRTY again with its slot free; it is
        claimed still."""
        cdef uint64_t place
        pthread_mutex_lock(&self.lock)
        place = self.map.segment_table[segment].place
        mortal("end write: outcome known")
        if result == 0:
            self._unlink(segment)
            self.set_place(segment, place_of(CLEAN, ram_of(place), disk_of(place)))
            self._link(segment)
            self.slots.worked(disk_of(place) - 1)
        else:
            self.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            self.slots.give_failed(disk_of(place) - 1, -result)
        pthread_mutex_unlock(&self.lock)

    cdef bint keep(self, uint32_t segment) noexcept nogil:
        """Whether a claimed CLEAN segment is not to be dropped, since its store fails and the other one takes
        it: then it is DIRTY again, and not claimed any more.

        Nobody reads it from disk: that is for segments that are there alone, which never are CLEAN again.
        """
        cdef uint64_t place
        cdef bint kept
        if self.slots.stores == 1:
            return False
        pthread_mutex_lock(&self.lock)
        place = self.map.segment_table[segment].place
        kept = self.slots.has_refuge(self.slots.store_of(disk_of(place) - 1), CLEANER_DISK_SLOTS)
        if kept:
            self._unlink(segment)
            self.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            self._link(segment)
            self.slots.give(disk_of(place) - 1)
            self.claimed[segment] = 0
            self._reap(segment)
        pthread_mutex_unlock(&self.lock)
        return kept

    cdef void cannot_read(self, uint32_t slot) noexcept nogil:
        """A disk slot could not be read: of two stores nothing is cleaned on that one for a while."""
        pthread_mutex_lock(&self.lock)
        self.slots.not_readable(slot)
        pthread_mutex_unlock(&self.lock)

    cdef bint is_short(self) noexcept nogil:
        """Whether RAM slots are wanted, by the target or by writers."""
        cdef bint result
        pthread_mutex_lock(&self.lock)
        result = self.populated >= self.limit()
        pthread_mutex_unlock(&self.lock)
        return result

    cdef void drop(self, uint32_t segment) noexcept nogil:
        """Give up the RAM of a claimed CLEAN segment, once its last reader there has left."""
        cdef uint64_t place
        pthread_mutex_lock(&self.lock)
        place = self.map.segment_table[segment].place
        self._unlink(segment)
        self.set_place(segment, place_of(DISK, 0, disk_of(place)))
        pthread_mutex_unlock(&self.lock)
        point("drop: place stored")
        # Whoever pins from now on sees DISK; whoever pinned before may still be copying.
        if not self.wait_unpinned(segment):
            return
        pthread_mutex_lock(&self.lock)
        self._free_slot(ram_of(place) - 1)
        self.claimed[segment] = 0
        self._reap(segment)
        pthread_mutex_unlock(&self.lock)

    cdef void mark(self, uint32_t segment, uint16_t flag) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.map.segment_table[segment].flags = self.map.segment_table[segment].flags | flag
        pthread_mutex_unlock(&self.lock)

    def forgive(self):
        """Have segments whose read failed be tried again."""
        cdef uint32_t segment
        with nogil:
            for segment in range(self.used_ids):
                if self.map.segment_table[segment].flags & SUSPECT_FLAG:
                    pthread_mutex_lock(&self.lock)
                    self.map.segment_table[segment].flags = (self.map.segment_table[segment].flags
                                                             & ~<uint16_t> SUSPECT_FLAG)
                    pthread_mutex_unlock(&self.lock)

    # RAM slots.

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

    cdef int populate(self, uint32_t count) noexcept nogil:
        """Make up to `count` free slots, while the target allows.  Returns how many, or -ENOMEM."""
        cdef uint32_t slot, _i
        cdef int failed, made = 0
        for _i in range(count):
            pthread_mutex_lock(&self.lock)
            if (self.stopping or self.frozen
                    or (self.populated >= self.limit() and not self._lacks_cleaner_slot())):
                pthread_mutex_unlock(&self.lock)
                return made
            if self.n_hole_ram:
                self.n_hole_ram -= 1
                slot = self.hole_ram[self.n_hole_ram]
            elif self.used_ram < self.map.ram_slots:
                slot = self.used_ram
                self.used_ram += 1
            else:
                pthread_mutex_unlock(&self.lock)
                return made
            self.populated += 1
            pthread_mutex_unlock(&self.lock)
            failed = self.map.slot_populate(slot)
            if failed:
                self.map.slot_punch(slot, 1)
            pthread_mutex_lock(&self.lock)
            if failed:
                self.populated -= 1
                self.hole_ram[self.n_hole_ram] = slot
                self.n_hole_ram += 1
                pthread_mutex_unlock(&self.lock)
                return -ENOMEM
            self._free_slot(slot)
            pthread_mutex_unlock(&self.lock)
            made += 1
        return made

    cdef bint _lacks_cleaner_slot(self) noexcept nogil:
        """Nothing is free, nothing will come free by itself, and the cleaner has no segment to work with.

        So it may be after a restart under a lower target.  One slot over the target beats a dead disk.
        """
        return (self.n_free_ram == 0 and self.n_punch_ram == 0 and self.writing_segments == 0
                and self.clean_segments == 0 and self.heads[COLD].segment == NO_SEGMENT)

    cdef int punch(self, uint32_t release) noexcept nogil:
        """Give the slots that are due back to the host, free ones while there are more than allowed, and
        `release` more free ones.  Returns how many."""
        cdef uint32_t slot
        cdef int done = 0
        while not self.is_frozen() and self._take_due(&slot, &release):
            self.map.slot_punch(slot, 1)
            mortal("punch: memory given back")
            pthread_mutex_lock(&self.lock)
            self.populated -= 1
            self.hole_ram[self.n_hole_ram] = slot
            self.n_hole_ram += 1
            pthread_mutex_unlock(&self.lock)
            done += 1
        return done

    cdef bint _take_due(self, uint32_t *slot, uint32_t *release) noexcept nogil:
        """Take a slot that is to be given back off its list; it still counts as populated."""
        cdef bint found = True
        pthread_mutex_lock(&self.lock)
        while self.n_punch_ram and self.populated - self.n_punch_ram < self.limit():
            # The target rose meanwhile: use it instead.
            self.n_punch_ram -= 1
            self._free_slot(self.punch_ram[self.n_punch_ram])
        if self.n_punch_ram:
            self.n_punch_ram -= 1
            slot[0] = self.punch_ram[self.n_punch_ram]
        elif self.n_free_ram > self.keep_free and (self.populated > self.limit() or release[0]):
            if self.populated <= self.limit():
                release[0] -= 1
            self.n_free_ram -= 1
            slot[0] = self.free_ram[self.n_free_ram]
        else:
            found = False
        pthread_mutex_unlock(&self.lock)
        return found

    cdef void kick(self) noexcept nogil:
        """Wake the movers; cheap when they are awake already."""
        cdef uint64_t one = 1
        if add32(&self.kicked, 1) == 1:
            write(self.kick_fd, &one, 8)

    # For the movers' Python side.

    def rearm(self):
        """Called by the movers before they look: kicks from now on are heard again."""
        self.kicked = 0

    def set_budget(self, uint64_t target_bytes, uint64_t private_bytes):
        """The target, and the private memory beyond the base that counts against it; both in bytes."""
        pthread_mutex_lock(&self.lock)
        self.target_bytes = target_bytes
        self.private_bytes = private_bytes
        pthread_mutex_unlock(&self.lock)
        self.kick()

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

    def populate_now(self, uint32_t count):
        """Make free RAM slots before the movers run; raises MemoryError where the host refuses."""
        if self.populate(count) < 0:
            raise MemoryError("the host has no memory for the first segments")

    def set_keep_free(self, uint32_t count):
        """How many free RAM slots stay while RAM is taken back: one, and more while packers work."""
        pthread_mutex_lock(&self.lock)
        self.keep_free = count
        pthread_mutex_unlock(&self.lock)

    def set_host_limit(self, uint32_t slots):
        """What the host (its cgroups) allows in all, whatever the target says; in RAM slots."""
        pthread_mutex_lock(&self.lock)
        self.host_limit = slots
        pthread_mutex_unlock(&self.lock)

    def grant_tables(self):
        """Let the tables grow further where they soon want to: charge first, grant once there is room.

        Called at every look of the movers; a charge that does not fit yet makes them give slots back.
        Returns the bytes granted.
        """
        cdef uint64_t before
        pthread_mutex_lock(&self.lock)
        before = self.granted_bytes
        if self._wants_grant():
            self.charged_bytes = min(self.granted_bytes + GRANT_BYTES, self.map.tables_bytes)
            if self.populated <= self.limit():
                self.granted_bytes = self.charged_bytes
                pthread_cond_broadcast(&self.freed)
        before = self.granted_bytes - before
        pthread_mutex_unlock(&self.lock)
        return before

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

    def snapshot(self):
        """The numbers that decide what moves next, taken together: see movers.Snapshot."""
        cdef uint32_t numbers[15]
        # No Python object is made under the lock: that may run the collector, which may give up the GIL,
        # and whoever takes it may want the lock.
        pthread_mutex_lock(&self.lock)
        numbers[0] = self.limit()
        numbers[1] = self.populated
        numbers[2] = self.n_free_ram
        numbers[3] = self.n_punch_ram
        numbers[4] = self.dirty_segments[RAW] + self.dirty_segments[PACKED] + self.dirty_segments[STIFF]
        numbers[5] = self.writing_segments
        numbers[6] = self.clean_segments
        numbers[7] = self.slots.usable()
        numbers[8] = self.map.disk_slots
        numbers[9] = self.waiting
        numbers[10] = self.cleaner_waits
        numbers[11] = self.dirty_segments[RAW]
        numbers[12] = self.dirty_segments[PACKED]
        numbers[13] = (self.heads[PACK].segment != NO_SEGMENT or self.heads[SOLID].segment != NO_SEGMENT
                       or self.heads[STRONG_PACK].segment != NO_SEGMENT)
        numbers[14] = 0
        if self.heads[GUEST].segment != NO_SEGMENT:
            numbers[14] = self.map.segment_table[self.heads[GUEST].segment].fill
        pthread_mutex_unlock(&self.lock)
        return tuple([number for number in numbers])

    def spent_slots(self):
        """Free disk slots that the store still keeps the contents of.  A look without the lock."""
        return self.slots.spent()

    def disk_use(self):
        """Disk slots in use, in each store.  A look without the lock."""
        return self.slots.used()

    def store_errors(self):
        """Why each store takes no writes, an errno; 0 where it does.  A look without the lock."""
        return self.slots.errors()

    def set_store_down(self, int store, bint down):
        """Say that a store of two is known not to answer, or answers again."""
        pthread_mutex_lock(&self.lock)
        self.slots.set_down(store, down)
        pthread_mutex_unlock(&self.lock)

    def emptiest_in_ram(self):
        """Weight of the emptiest sealed segment in RAM, or of a full one.  A look without the lock."""
        cdef uint32_t segment, live, least = CONTENT_BYTES
        cdef int state
        with nogil:
            for segment in range(self.used_ids):
                live = self._weight(segment)
                if live >= least or self.claimed[segment]:
                    continue
                state = state_of(self.place(segment))
                if state == DIRTY or state == CLEAN:
                    least = live
        return least

    def count_ages(self):
        """Tell in the state file how many bytes live, by the age of their segments.  Without the lock."""
        cdef uint64_t by_age[AGE_BUCKETS]
        cdef uint64_t clock = peek64(&self.log_clock), born
        cdef uint32_t segment, live
        cdef int bucket
        with nogil:
            for bucket in range(AGE_BUCKETS):
                by_age[bucket] = 0
            for segment in range(self.used_ids):
                live = self.live_bytes(segment)
                if live:
                    born = peek64(&self.map.segment_table[segment].age)
                    by_age[age_bucket(clock, born)] += live
            for bucket in range(AGE_BUCKETS):
                poke64(&self.map.ages[AGE_LIVE + bucket], by_age[bucket])

    def tiers(self):
        """What lives where, by segments in use: whole pages in RAM, packed pages in RAM, bytes of the latter,
        pages in RAM and on disk, pages on disk only, bytes of the latter.
        """
        cdef uint64_t raw = 0, packed = 0, packed_bytes = 0, clean = 0, disk = 0, disk_bytes = 0
        cdef uint32_t segment
        cdef uint64_t place, pieces, live
        with nogil:
            for segment in range(self.used_ids):
                live = <uint64_t> load64s(&self.live[segment])
                pieces = live >> 32
                if pieces == 0:
                    continue
                place = self.place(segment)
                if not ram_of(place):
                    disk += pieces
                    disk_bytes += <uint32_t> live
                    continue
                if state_of(place) == CLEAN:
                    clean += pieces
                if self.map.segment_table[segment].flags & PACKED_FLAG:
                    packed += pieces
                    packed_bytes += <uint32_t> live
                else:
                    raw += pieces
        return raw, packed, packed_bytes, clean, disk, disk_bytes
