"""What movers take hold of, and what becomes of it: the moves of segments between their states.

A claim keeps every other mover, and the freeing of a dead segment, away; its owner gives it up with
`unclaim`, or with what ends in that.  Looks at many segments are taken without the lock and judged again with
it.  Runs without the GIL, in the movers' threads.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from swaptide.cache.agelists cimport CLASSES, CLEANED, NO_SEGMENT, PACKED, RAW, STIFF
from swaptide.cache.atomics cimport mortal, point, store64
from swaptide.cache.entry cimport (
    CLEAN,
    DIRTY,
    DISK,
    WRITING,
    disk_of,
    place_of,
    ram_of,
    state_of,
)
from swaptide.cache.mapping cimport COLD_FLAG, SOLID_FLAG, STRONG_FLAG, SUSPECT_FLAG
from swaptide.cache.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from swaptide.cache.segments cimport Segments
from swaptide.cache.slots cimport NO_SLOT
from swaptide.cache.victims cimport KEPT, Victims
from swaptide.cache.words cimport WRITE_CLOCK

cdef enum:
    # Disk slots that only segments written by the cleaner may take: with these the cleaner can
    # always finish what frees more (docs/design.md, "Neither pool can wedge").
    CLEANER_DISK_SLOTS = 4


cdef class Claims:
    """Claims on the segments of one disk."""

    def __cinit__(self, Segments segments):
        self.segments = segments
        self.map = segments.map
        self.turnstile = segments.turnstile
        self.lists = segments.lists
        self.ram = segments.ram
        self.disk = segments.disk
        self.victims = Victims(segments)

    # Taking hold.

    cdef uint32_t claim_clean(self) noexcept nogil:
        """Claim the coldest CLEAN segment."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.turnstile.lock)
        segment = self._coldest_of(CLEANED, CLEAN, 0)
        if segment != NO_SEGMENT:
            self.segments.claimed[segment] = 1
        pthread_mutex_unlock(&self.turnstile.lock)
        return segment

    cdef uint32_t claim_for_disk(self) noexcept nogil:
        """Claim the DIRTY segment to write out: one that does not shrink, else the coldest that may go."""
        cdef uint32_t segment, best = NO_SEGMENT
        cdef int i
        cdef int order[CLASSES]
        order[0] = STIFF
        order[1] = PACKED
        order[2] = RAW
        pthread_mutex_lock(&self.turnstile.lock)
        for i in range(CLASSES):
            if (self.segments.dirty_segments[order[i]] == 0
                    or (best != NO_SEGMENT and order[0] == self.segments.class_of(best))):
                continue
            segment = self._coldest_of(order[i], DIRTY, 0)
            while segment != NO_SEGMENT and not self._may_take_disk(segment):
                segment = self._next_dirty(segment)
            if segment != NO_SEGMENT and (best == NO_SEGMENT or self.map.segment_table[segment].age
                                          < self.map.segment_table[best].age):
                best = segment
        if best != NO_SEGMENT:
            self.segments.claimed[best] = 1
        pthread_mutex_unlock(&self.turnstile.lock)
        return best

    cdef uint32_t _next_dirty(self, uint32_t segment) noexcept nogil:
        segment = self.lists.newer[segment]
        while segment != NO_SEGMENT and (self.segments.claimed[segment]
                                         or state_of(self.map.segment_table[segment].place) != DIRTY):
            segment = self.lists.newer[segment]
        return segment

    cdef bint _may_take_disk(self, uint32_t segment) noexcept nogil:
        cdef uint32_t free_slots = self.disk.usable()
        if free_slots > (0 if self.map.segment_table[segment].flags & COLD_FLAG else CLEANER_DISK_SLOTS):
            return True
        return self.disk.is_retry_due()

    cdef uint32_t claim_to_pack(self, uint32_t keep) noexcept nogil:
        """Claim the coldest segment that may shrink, while there are more than `keep` of these."""
        cdef uint32_t segment = NO_SEGMENT
        pthread_mutex_lock(&self.turnstile.lock)
        if self.segments.dirty_segments[RAW] > keep:
            segment = self._coldest_of(RAW, DIRTY, 0)
        if segment != NO_SEGMENT:
            self.segments.claimed[segment] = 1
        pthread_mutex_unlock(&self.turnstile.lock)
        return segment

    cdef uint32_t claim_to_strengthen(self) noexcept nogil:
        """Claim the coldest packed segment that could be packed better."""
        cdef uint32_t segment
        pthread_mutex_lock(&self.turnstile.lock)
        segment = self._coldest_of(PACKED, DIRTY, STRONG_FLAG)
        if segment != NO_SEGMENT:
            self.segments.claimed[segment] = 1
        pthread_mutex_unlock(&self.turnstile.lock)
        return segment

    cdef uint32_t _coldest_of(self, int kind, int state, uint16_t without) noexcept nogil:
        """The coldest of a list that is in `state`, unclaimed, and has none of the flags `without`."""
        cdef uint32_t segment = self.lists.coldest[kind]
        while segment != NO_SEGMENT:
            if (not self.segments.claimed[segment]
                    and state_of(self.map.segment_table[segment].place) == state
                    and not self.map.segment_table[segment].flags & without):
                break
            segment = self.lists.newer[segment]
        return segment

    cdef uint32_t claim_to_clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        """Claim a sealed segment that weighs less than `below`, in RAM or on disk: see Victims.next.

        One thread at a time.
        """
        cdef uint32_t segment, _i
        cdef bint found
        for _i in range(2 * KEPT):
            # Looked for without the lock, since a large disk has many; judged again with it.
            segment = self.victims.next(on_disk, below, by_age)
            if segment == NO_SEGMENT:
                break
            pthread_mutex_lock(&self.turnstile.lock)
            found = self.victims.suits(segment, on_disk, below)
            if found:
                self.segments.claimed[segment] = 1
            pthread_mutex_unlock(&self.turnstile.lock)
            if found:
                return segment
        return NO_SEGMENT

    cdef void unclaim(self, uint32_t segment) noexcept nogil:
        pthread_mutex_lock(&self.turnstile.lock)
        self.segments.claimed[segment] = 0
        self.segments.reap(segment)
        pthread_mutex_unlock(&self.turnstile.lock)

    # What becomes of what is claimed.

    cdef void stiffen(self, uint32_t segment) noexcept nogil:
        """A claimed DIRTY segment turned out not to shrink: it is the first to go to disk."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.segments.unlink(segment)
        self.segments.tally(self.segments.class_of(segment), DIRTY, -1)
        self.map.segment_table[segment].flags = self.map.segment_table[segment].flags | SOLID_FLAG
        self.segments.tally(STIFF, DIRTY, 1)
        self.segments.link(segment)
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef void mark(self, uint32_t segment, uint16_t flag) noexcept nogil:
        pthread_mutex_lock(&self.turnstile.lock)
        self.map.segment_table[segment].flags = self.map.segment_table[segment].flags | flag
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef void forgive(self) noexcept nogil:
        """Have segments whose read failed be tried again."""
        cdef uint32_t segment
        for segment in range(self.segments.used_ids):
            if self.map.segment_table[segment].flags & SUSPECT_FLAG:
                pthread_mutex_lock(&self.turnstile.lock)
                self.map.segment_table[segment].flags = (self.map.segment_table[segment].flags
                                                         & ~<uint16_t> SUSPECT_FLAG)
                pthread_mutex_unlock(&self.turnstile.lock)

    cdef bint begin_write(self, uint32_t segment) noexcept nogil:
        """Mark a disk slot for a claimed DIRTY segment before its write is sent.  False: none to be had.

        The write gets a number of its own, also where the same segment is written a second time.
        """
        cdef uint32_t slot
        cdef uint64_t place
        cdef bint may
        pthread_mutex_lock(&self.turnstile.lock)
        may = self._may_take_disk(segment)
        if may:
            slot = self.disk.take()
            # Never the same twice, not for another segment and not after a restart: stored before it is used.
            self.segments.write_clock += 1
            store64(&self.map.counters[WRITE_CLOCK], self.segments.write_clock)
            mortal("begin write: number taken")
            self.map.segment_table[segment].write = self.segments.write_clock
            mortal("begin write: number stored")
            place = self.map.segment_table[segment].place
            self.segments.set_place(segment, place_of(WRITING, ram_of(place), slot + 1))
        pthread_mutex_unlock(&self.turnstile.lock)
        return may

    cdef void end_write(self, uint32_t segment, int result) noexcept nogil:
        """A write ended, with 0 or -errno: its segment is CLEAN, or DIRTY again with its slot free; it is
        claimed still."""
        cdef uint64_t place
        pthread_mutex_lock(&self.turnstile.lock)
        place = self.map.segment_table[segment].place
        mortal("end write: outcome known")
        if result == 0:
            self.segments.unlink(segment)
            self.segments.set_place(segment, place_of(CLEAN, ram_of(place), disk_of(place)))
            self.segments.link(segment)
            self.disk.worked(disk_of(place) - 1)
        else:
            self.segments.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            self.disk.give_failed(disk_of(place) - 1, -result)
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef bint keep(self, uint32_t segment) noexcept nogil:
        """Whether a claimed CLEAN segment is not to be dropped, since its store fails and the other one takes
        it: then it is DIRTY again, and not claimed any more.

        Nobody reads it from disk: that is for segments that are there alone, which never are CLEAN again.
        """
        cdef uint64_t place
        cdef bint kept
        if self.disk.stores == 1:
            return False
        pthread_mutex_lock(&self.turnstile.lock)
        place = self.map.segment_table[segment].place
        kept = self.disk.has_refuge(self.disk.store_of(disk_of(place) - 1), CLEANER_DISK_SLOTS)
        if kept:
            self.segments.unlink(segment)
            self.segments.set_place(segment, place_of(DIRTY, ram_of(place), 0))
            self.segments.link(segment)
            self.disk.give(disk_of(place) - 1)
            self.segments.claimed[segment] = 0
            self.segments.reap(segment)
        pthread_mutex_unlock(&self.turnstile.lock)
        return kept

    cdef void drop(self, uint32_t segment) noexcept nogil:
        """Give up the RAM of a claimed CLEAN segment, once its last reader there has left."""
        cdef uint64_t place
        pthread_mutex_lock(&self.turnstile.lock)
        place = self.map.segment_table[segment].place
        self.segments.unlink(segment)
        self.segments.set_place(segment, place_of(DISK, 0, disk_of(place)))
        pthread_mutex_unlock(&self.turnstile.lock)
        point("drop: place stored")
        # Whoever pins from now on sees DISK; whoever pinned before may still be copying.
        if not self.segments.wait_unpinned(segment):
            return
        pthread_mutex_lock(&self.turnstile.lock)
        self.ram.give(ram_of(place) - 1)
        self.segments.claimed[segment] = 0
        self.segments.reap(segment)
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef bint is_short(self) noexcept nogil:
        """Whether RAM slots are wanted, by the target or by writers."""
        cdef bint result
        pthread_mutex_lock(&self.turnstile.lock)
        result = self.ram.populated >= self.ram.limit()
        pthread_mutex_unlock(&self.turnstile.lock)
        return result

    cdef void cannot_read(self, uint32_t slot) noexcept nogil:
        """A disk slot could not be read: of two stores nothing is cleaned on that one for a while."""
        pthread_mutex_lock(&self.turnstile.lock)
        self.disk.not_readable(slot)
        pthread_mutex_unlock(&self.turnstile.lock)

    cdef uint32_t claim_to_discard(self, uint32_t keep) noexcept nogil:
        """Take a free disk slot that the store may forget, one that has been free for long, while there are
        more than `keep` of these and plenty in all; NO_SLOT where not."""
        cdef uint32_t slot = NO_SLOT
        pthread_mutex_lock(&self.turnstile.lock)
        if self.disk.usable() > 4 * CLEANER_DISK_SLOTS:
            slot = self.disk.take_spent(keep)
        pthread_mutex_unlock(&self.turnstile.lock)
        return slot

    cdef void end_discard(self, uint32_t slot, bint ok) noexcept nogil:
        """Give such a slot back, as one that the store has forgotten or as it was."""
        pthread_mutex_lock(&self.turnstile.lock)
        if ok:
            self.disk.give_blank(slot)
        else:
            self.disk.give(slot)
        pthread_mutex_unlock(&self.turnstile.lock)
