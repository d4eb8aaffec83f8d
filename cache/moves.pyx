"""One move each: pack a segment, write one out, drop one, clean one, make or give back RAM slots.

Called by the movers in worker threads; each call releases the GIL for all of its work and allocates
nothing.  What to move, and when, is decided in planning.py.  On a frozen disk none begins anything.
"""

from libc.stdint cimport uint32_t

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport count64, peek64
from swaptide.cache.claims cimport Claims
from swaptide.cache.cleaner cimport Cleaner
from swaptide.cache.footprint cimport slots_populate, slots_punch
from swaptide.cache.image cimport image_discard
from swaptide.cache.log cimport Log
from swaptide.cache.packer cimport Packer
from swaptide.cache.segments cimport Segments
from swaptide.cache.slots cimport NO_SLOT
from swaptide.cache.spiller cimport Spiller
from swaptide.cache.words cimport DROPPED_SEGMENTS, MISSES, PACKED_TOTAL_BYTES


cdef class Moves:
    """The moves of one disk: `spillers` writes may be in flight at once, `packers` packings, and a cleaning.

    `key` is the disk's, None where it is not encrypted.
    """

    cdef Log log
    cdef Segments segments
    cdef Claims claims
    cdef readonly Spiller spiller
    cdef Cleaner cleaner
    cdef list packers

    def __cinit__(self, Log log, Segments segments, int spillers, int packers, const unsigned char[:] key):
        self.log = log
        self.segments = segments
        self.claims = Claims(segments)
        self.spiller = Spiller(log, self.claims, spillers, key)
        self.cleaner = Cleaner(log, self.claims, key)
        self.packers = [Packer(log, self.claims) for _ in range(packers)]

    def spill(self, int worker, int most, bint give_back):
        """Write up to `most` dirty segments to disk, by turn; with `give_back` drop each at once.

        How many; 0: none to be had; -errno: the store failed.  `worker` names the staging buffer, 0 up to
        `spillers` - 1, which has to be there; no two calls at once may share one.
        """
        cdef int result
        with nogil:
            result = self.spiller.spill(worker, most, give_back)
        return result

    def drop(self, int count):
        """Give up the RAM of up to `count` clean segments, coldest first; returns how many.

        What lies in a store that fails while another works is not given up, but is to be written there.
        """
        cdef int done = 0, kept = 0
        cdef uint32_t segment
        with nogil:
            while done + kept < count and not self.segments.turnstile.is_frozen():
                segment = self.claims.claim_clean()
                if segment == NO_SEGMENT:
                    break
                if self.claims.keep(segment):
                    kept += 1
                    continue
                self.claims.drop(segment)
                done += 1
        count64(&self.log.map.counters[DROPPED_SEGMENTS], done)
        return done

    def clean(self, bint on_disk, uint32_t below, int most, bint by_age):
        """Move what lives out of up to `most` segments that weigh less than `below`.

        With `by_age` those whose cleaning pays best, else the emptiest.  A segment whose tags do not match
        is left alone from now on, one whose read failed for a while.

        Returns how many were cleaned; -errno where one could not be read.
        """
        cdef int result = 0, done = 0
        with nogil:
            while done < most and not self.segments.turnstile.is_frozen():
                result = self.cleaner.clean(on_disk, below, by_age)
                if result <= 0:
                    break
                done += 1
        return result if result < 0 else done

    def pack(self, int worker, uint32_t keep, bint strong):
        """Pack the coldest segment that may shrink, while there are more than `keep` of these.

        Pages that do not shrink are gathered in segments of their own, but for the odd one.  `worker` is one
        of the packers; no two calls at once may share one.  1: done; 2: it does not shrink, and goes to disk
        first; 0: nothing to do; -EAGAIN: no RAM slot to pack into.
        """
        cdef int result
        cdef Packer packer = self.packers[worker]
        with nogil:
            result = 0 if self.segments.turnstile.is_frozen() else packer.pack(keep, strong)
        return result

    def strengthen(self, int worker):
        """Pack the coldest packed segment anew with zstd; for idle cores.  As `pack` returns."""
        cdef int result
        cdef Packer packer = self.packers[worker]
        with nogil:
            result = 0 if self.segments.turnstile.is_frozen() else packer.strengthen()
        return result

    @property
    def discards(self):
        """Whether the store may be told what it need not keep."""
        return self.log.fetcher.spill.store.discard != NULL

    def discard(self, uint32_t keep, int most):
        """Have the store forget up to `most` free disk slots, while there are more than `keep` it knows.

        How many; -errno: the store failed.
        """
        cdef int result = 0, done = 0
        cdef uint32_t slot
        with nogil:
            while done < most and not self.segments.turnstile.is_frozen():
                slot = self.claims.claim_to_discard(keep)
                if slot == NO_SLOT:
                    break
                result = image_discard(&self.log.fetcher.spill, slot, 1)
                self.claims.end_discard(slot, result == 0)
                if result < 0:
                    break
                done += 1
        return result if result < 0 else done

    def populate(self, uint32_t count):
        """Make up to `count` free RAM slots.  How many, or -ENOMEM where the host refuses."""
        cdef int result
        with nogil:
            result = slots_populate(self.segments, count)
        return result

    def punch(self, uint32_t release):
        """Give back all RAM slots that are due, and `release` free ones; returns how many."""
        cdef int result
        with nogil:
            result = slots_punch(self.segments, release)
        return result

    def forgive(self):
        """Have segments whose read failed be tried again."""
        with nogil:
            self.claims.forgive()

    def segments_opened(self):
        """Segments that the guest began to fill so far."""
        return peek64(&self.segments.guest_opened)

    def misses(self):
        """Pages that were read from the disk so far."""
        return peek64(&self.log.map.counters[MISSES])

    def packed_bytes(self):
        """What pages were packed to so far, in bytes."""
        return peek64(&self.log.map.counters[PACKED_TOTAL_BYTES])
