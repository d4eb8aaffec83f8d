"""The life of segments: who owns which number, RAM slot and disk slot, and when they may be used again.

One mutex, the turnstile's, covers the heads, the free lists, the age lists and every change of a place.  Live
counts and pins are atomic and need no lock.  The state machine and the proofs are in docs/design.md.

Everything but what is for Python runs without the GIL, in the threads of nbdkit and in the movers' threads.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport nanosleep, timespec

from swaptide.cache.agelists cimport CLEANED, NO_SEGMENT, PACKED, RAW, STIFF, AgeLists
from swaptide.cache.atomics cimport (
    add32,
    add64,
    load32,
    load64,
    load64s,
    mortal,
    point,
    poke64,
    relax,
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
    WRITING,
    disk_of,
    is_piece,
    length_of,
    place_of,
    ram_of,
    segment_of,
    state_of,
)
from swaptide.cache.mapping cimport (
    ALIGNED_FLAG,
    COLD_FLAG,
    PACKED_FLAG,
    SOLID_FLAG,
    STRONG_FLAG,
    Mapping,
    SegmentEntry,
)
from swaptide.cache.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from swaptide.cache.ramslots cimport RamSlots
from swaptide.cache.slots cimport Slots
from swaptide.cache.turnstile cimport Turnstile, Waiter
from swaptide.cache.words cimport LOG_CLOCK

cdef enum:
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
        cdef int head
        self.map = map
        self.turnstile = Turnstile(map, kick_fd)
        self.lists = AgeLists(map)
        self.ram = RamSlots(map, self.turnstile)
        self.disk = Slots(map.disk_slots, map.first_slots)
        # Zeroed lazily by the kernel: what is never used costs nothing.
        self.live = <int64_t *> calloc(n, 8)
        self.pins = <int32_t *> calloc(n, 4)
        self.disk_pins = <int32_t *> calloc(n, 4)
        self.claimed = <uint8_t *> calloc(n, 1)
        self.free_ids = <uint32_t *> calloc(n, 4)
        if (self.live == NULL or self.pins == NULL or self.disk_pins == NULL or self.claimed == NULL
                or self.free_ids == NULL):
            raise MemoryError()
        for head in range(HEADS):
            self.heads[head].segment = NO_SEGMENT

    def __dealloc__(self):
        free(self.live)
        free(self.pins)
        free(self.disk_pins)
        free(self.claimed)
        free(self.free_ids)

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
            if self.turnstile.stopping:
                return False
            pause.tv_sec = 0
            pause.tv_nsec = 20000
            nanosleep(&pause, NULL)
        return True

    # Places, how many segments are in which, and the lists of those that are sealed and in RAM.

    cdef uint64_t place(self, uint32_t segment) noexcept nogil:
        return load64(&self.map.segment_table[segment].place)

    cdef void set_place(self, uint32_t segment, uint64_t place) noexcept nogil:
        cdef int before = state_of(self.map.segment_table[segment].place)
        cdef int kind = self.class_of(segment)
        self.tally(kind, before, -1)
        self.tally(kind, state_of(place), 1)
        store64(&self.map.segment_table[segment].place, place)

    cdef int class_of(self, uint32_t segment) noexcept nogil:
        cdef uint16_t flags = self.map.segment_table[segment].flags
        return STIFF if flags & SOLID_FLAG else PACKED if flags & PACKED_FLAG else RAW

    cdef void tally(self, int kind, int state, int by) noexcept nogil:
        if state == DIRTY:
            self.dirty_segments[kind] += by
        elif state == WRITING:
            self.writing_segments += by
        elif state == CLEAN:
            self.clean_segments += by

    cdef int _list_of(self, uint32_t segment) noexcept nogil:
        cdef bint clean = state_of(self.map.segment_table[segment].place) == CLEAN
        return CLEANED if clean else self.class_of(segment)

    cdef void link(self, uint32_t segment) noexcept nogil:
        self.lists.link(self._list_of(segment), segment)

    cdef void unlink(self, uint32_t segment) noexcept nogil:
        self.lists.unlink(self._list_of(segment), segment)

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
        pthread_mutex_lock(&self.turnstile.lock)
        while True:
            if open.segment != NO_SEGMENT:
                got = self._room(head, length)
                if got:
                    break
                self._seal(head)
            if self._open(head):
                continue
            self.cleaner_waits = self.cleaner_waits or head == COLD
            result = self.turnstile.wait(waiter, head == GUEST)
            if head == COLD:
                self.cleaner_waits = False
            if result != 0:
                pthread_mutex_unlock(&self.turnstile.lock)
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
        pthread_mutex_unlock(&self.turnstile.lock)
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
        pthread_mutex_lock(&self.turnstile.lock)
        while True:
            if self.ram.has_grant() or self.map.page_ready(page):
                if self.map.page_ensure(page) == 0:
                    break
            result = self.turnstile.wait(waiter, True)
            if result != 0:
                break
        if self.ram.wants_grant():
            self.turnstile.kick()
        pthread_mutex_unlock(&self.turnstile.lock)
        return result

    cdef bint _may_take_slot(self, int head) noexcept nogil:
        # The last free slot is the cleaner's, always: also while its segment is open, since the next one
        # is needed at the moment that one is full, in the middle of a victim.  Packers come last: they
        # give up where there is none, and leave the guest one.
        return self.ram.n_free > (0 if head == COLD else 1 if head == GUEST else 2)

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
        slot = self.ram.take()
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
        if self.ram.n_free <= 3:
            self.turnstile.kick()
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
        self.link(segment)
        open.segment = NO_SEGMENT
        # All of it may have died while it was open.
        self.reap(segment)

    def seal_packers(self):
        """Close what the packers have open, so that it can go to disk: where RAM is short they have none."""
        cdef int head
        pthread_mutex_lock(&self.turnstile.lock)
        for head in range(PACK, HEADS):
            if self.heads[head].segment != NO_SEGMENT:
                self._seal(head)
        pthread_mutex_unlock(&self.turnstile.lock)

    def seal_guest(self, uint32_t fill):
        """Close the guest's segment if it is still as full as that, in bytes."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.turnstile.lock)
        segment = self.heads[GUEST].segment
        if segment != NO_SEGMENT and self.map.segment_table[segment].fill == fill:
            self._seal(GUEST)
        pthread_mutex_unlock(&self.turnstile.lock)

    def seal_dead(self):
        """Close what is open and holds nothing that lives, so that it is freed; returns how many."""
        cdef int head, done = 0
        pthread_mutex_lock(&self.turnstile.lock)
        for head in range(HEADS):
            # What is reserved counts as live, and is reserved under the lock.
            if (self.heads[head].segment != NO_SEGMENT
                    and load64s(&self.live[self.heads[head].segment]) == 0):
                self._seal(head)
                done += 1
        pthread_mutex_unlock(&self.turnstile.lock)
        return done

    # Freeing.  A segment is freed by whoever takes away the last of: its live pieces, its pins, its claim.

    cdef uint32_t live_bytes(self, uint32_t segment) noexcept nogil:
        return <uint32_t> load64s(&self.live[segment])

    cdef uint32_t weight(self, uint32_t segment) noexcept nogil:
        """What lives in a segment, in bytes: see PIECE_WEIGHT."""
        cdef uint64_t live = <uint64_t> load64s(&self.live[segment])
        return <uint32_t> live + <uint32_t> (live >> 32) * PIECE_WEIGHT

    cdef void cancel(self, uint32_t segment, uint32_t pieces, uint32_t length) noexcept nogil:
        """Give up reserved pieces of `length` bytes each, or pieces whose entry went elsewhere."""
        if add64(&self.live[segment], -((<int64_t> pieces << 32) + <int64_t> pieces * length)) == 0:
            self._reap_unlocked(segment)

    cdef void retire(self, uint64_t entry) noexcept nogil:
        """Account an entry that was just replaced."""
        if is_piece(entry):
            self.cancel(segment_of(entry), 1, length_of(entry))

    cdef void _reap_unlocked(self, uint32_t segment) noexcept nogil:
        pthread_mutex_lock(&self.turnstile.lock)
        self.reap(segment)
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef void reap(self, uint32_t segment) noexcept nogil:
        cdef uint64_t place = self.map.segment_table[segment].place
        cdef int state = state_of(place)
        if self.claimed[segment] or load64s(&self.live[segment]) != 0:
            return
        if state == DIRTY or state == CLEAN or state == DISK:
            if state != DISK:
                self.unlink(segment)
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
            self.ram.give(ram_of(place) - 1)
        if disk_of(place):
            self.disk.give(disk_of(place) - 1)
        self.free_ids[self.n_free_ids] = segment
        self.n_free_ids += 1

    # For the movers' Python side.

    def snapshot(self):
        """The numbers that decide what moves next, taken together: see planning.Snapshot."""
        cdef uint32_t numbers[15]
        # No Python object is made under the lock: that may run the collector, which may give up the GIL,
        # and whoever takes it may want the lock.
        pthread_mutex_lock(&self.turnstile.lock)
        numbers[0] = self.ram.limit()
        numbers[1] = self.ram.populated
        numbers[2] = self.ram.n_free
        numbers[3] = self.ram.n_due
        numbers[4] = self.dirty_segments[RAW] + self.dirty_segments[PACKED] + self.dirty_segments[STIFF]
        numbers[5] = self.writing_segments
        numbers[6] = self.clean_segments
        numbers[7] = self.disk.usable()
        numbers[8] = self.map.disk_slots
        numbers[9] = self.turnstile.waiting
        numbers[10] = self.cleaner_waits
        numbers[11] = self.dirty_segments[RAW]
        numbers[12] = self.dirty_segments[PACKED]
        numbers[13] = (self.heads[PACK].segment != NO_SEGMENT or self.heads[SOLID].segment != NO_SEGMENT
                       or self.heads[STRONG_PACK].segment != NO_SEGMENT)
        numbers[14] = 0
        if self.heads[GUEST].segment != NO_SEGMENT:
            numbers[14] = self.map.segment_table[self.heads[GUEST].segment].fill
        pthread_mutex_unlock(&self.turnstile.lock)
        return tuple([number for number in numbers])

    def spent_slots(self):
        """Free disk slots that the store still keeps the contents of.  A look without the lock."""
        return self.disk.spent()

    def disk_use(self):
        """Disk slots in use, in each store.  A look without the lock."""
        return self.disk.used()

    def store_errors(self):
        """Why each store takes no writes, an errno; 0 where it does.  A look without the lock."""
        return self.disk.errors()

    def set_store_down(self, int store, bint down):
        """Say that a store of two is known not to answer, or answers again."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.disk.set_down(store, down)
        pthread_mutex_unlock(&self.turnstile.lock)
