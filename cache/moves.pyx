"""One move each: write a segment out, drop one, clean one, make or give back RAM slots.

Called by the movers in worker threads; each call releases the GIL for all of its work and allocates
nothing.  What to move, and when, is decided in movers.py.
"""

import errno

from libc.errno cimport EAGAIN, EBADMSG
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.atomics cimport cas64, count64, mortal, point
from swaptide.cache.entry cimport (
    CLEAN,
    DIRTY,
    PAGE_BYTES,
    PAGE_SHIFT,
    PIECE,
    PIECES,
    RMAP_OFFSET,
    SEGMENT_BYTES,
    TABLE_PIECE_PAGES,
    disk_of,
    index_of,
    kind_of,
    piece_entry,
    ram_of,
    segment_of,
)
from swaptide.cache.image cimport (
    IMAGE_RMAP,
    STRIDE,
    image_make,
    image_open,
    image_read,
    image_write,
    piece_open,
)
from swaptide.cache.log cimport Log
from swaptide.cache.seal cimport seal_end, seal_init, sealer
from swaptide.cache.segments cimport BAD_FLAG, COLD, NO_SEGMENT, SUSPECT_FLAG, Segments, Waiter
from swaptide.cache.words cimport (
    CLEANED_PAGES,
    CLEANED_SEGMENTS,
    SPILL_READ_BYTES,
    SPILL_READ_ERRORS,
    SPILL_WRITE_ERRORS,
    SPILL_WRITTEN_BYTES,
)

cdef enum:
    MAX_SPILLERS = 16


cdef class Moves:
    """The moves of one disk.  `spillers` writes may be in flight at once, and one cleaning.

    `key` is the disk's, None where it is not encrypted.
    """

    cdef Log log
    cdef Segments segments
    cdef char *memory
    cdef sealer sealers[MAX_SPILLERS + 1]       # each goes with its part of the memory
    cdef int spillers

    def __cinit__(self, Log log, Segments segments, int spillers, const unsigned char[:] key):
        cdef void *memory
        cdef int i
        if spillers > MAX_SPILLERS:
            raise ValueError(f"at most {MAX_SPILLERS} spillers")
        self.log = log
        self.segments = segments
        self.spillers = spillers
        if posix_memalign(&memory, PAGE_BYTES, (spillers + 1) * SEGMENT_BYTES) != 0:
            raise MemoryError()
        memset(memory, 0, (spillers + 1) * SEGMENT_BYTES)
        self.memory = <char *> memory
        for i in range(spillers + 1):
            if seal_init(&self.sealers[i], &key[0] if key is not None else NULL) != 0:
                raise OSError(errno.ENOTSUP, "OpenSSL has no AES-256-GCM")

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_SPILLERS + 1):
            seal_end(&self.sealers[i])
        free(self.memory)

    def spill(self, int worker):
        """Write the coldest dirty segment to disk.  1: done; 0: none to be had; -errno: the store failed.

        `worker` names the staging buffer, 0 up to `spillers` - 1; no two calls at once may share one.
        """
        cdef int result
        with nogil:
            result = self._spill(worker)
        return result

    cdef int _spill(self, int worker) noexcept nogil:
        cdef char *image = self.memory + worker * SEGMENT_BYTES
        cdef uint32_t segment = self.segments.claim_coldest(DIRTY)
        cdef uint64_t place
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if self.segments.live[segment] == 0 or not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 1
        if not self.segments.begin_write(segment):
            self.segments.unclaim(segment)
            return 0
        place = self.segments.place(segment)
        point("spill: slot marked")
        result = image_make(image, &self.sealers[worker], self.log.map.slot(ram_of(place) - 1),
                            &self.log.spill, self.log.map.segment_table[segment].write, disk_of(place) - 1,
                            self.log.map.segment_table[segment].count)
        if result == 0:
            result = image_write(image, &self.log.spill, disk_of(place) - 1)
        mortal("spill: written")
        self.segments.end_write(segment, result == 0)
        if result != 0:
            count64(&self.log.map.counters[SPILL_WRITE_ERRORS], 1)
            return result
        count64(&self.log.map.counters[SPILL_WRITTEN_BYTES], SEGMENT_BYTES)
        return 1

    def drop(self, int count):
        """Give up the RAM of up to `count` clean segments, coldest first; returns how many."""
        cdef int done = 0
        cdef uint32_t segment
        with nogil:
            while done < count:
                segment = self.segments.claim_coldest(CLEAN)
                if segment == NO_SEGMENT:
                    break
                self.segments.drop(segment)
                done += 1
        return done

    def clean(self, bint on_disk, int below, int most):
        """Move the live pages out of up to `most` segments, the emptiest with fewer than `below` of them.

        A segment whose tags do not match is left alone from now on, one whose read failed for a while.

        Returns how many were cleaned; -errno where one could not be read.
        """
        cdef int result = 0, done = 0
        with nogil:
            while done < most:
                result = self._clean(on_disk, below)
                if result <= 0:
                    break
                done += 1
        return result if result < 0 else done

    cdef int _clean(self, bint on_disk, int32_t below) noexcept nogil:
        cdef uint32_t segment = self.segments.claim_emptiest(on_disk, below)
        cdef uint64_t place
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 0
        place = self.segments.place(segment)
        if ram_of(place):
            result = self._move_live(segment, self.log.map.slot(ram_of(place) - 1), True, 0)
        else:
            result = self._clean_from_disk(segment, disk_of(place) - 1)
        if result == -EBADMSG:
            self.segments.mark(segment, BAD_FLAG)
        elif result < 0 and result != -EAGAIN:
            self.segments.mark(segment, SUSPECT_FLAG)
        elif result >= 0:
            count64(&self.log.map.counters[CLEANED_SEGMENTS], 1)
            count64(&self.log.map.counters[CLEANED_PAGES], result)
            result = 1
        self.segments.unclaim(segment)
        return 0 if result == -EAGAIN else result

    cdef int _clean_from_disk(self, uint32_t segment, uint32_t slot) noexcept nogil:
        cdef char *image = self.memory + self.spillers * SEGMENT_BYTES
        cdef int result
        if self.segments.live[segment] == 0:
            return 0
        result = image_read(image, &self.log.spill, slot)
        if result == 0:
            count64(&self.log.map.counters[SPILL_READ_BYTES], SEGMENT_BYTES)
            if not image_open(image, &self.sealers[self.spillers], &self.log.spill,
                              self.log.map.segment_table[segment].write, slot):
                count64(&self.log.map.counters[SPILL_READ_ERRORS], 1)
                self._find_pages(segment, <uint64_t *> (image + IMAGE_RMAP))
        if result != 0:
            count64(&self.log.map.counters[SPILL_READ_ERRORS], 1)
            return result
        return self._move_live(segment, image, False, slot)

    cdef void _find_pages(self, uint32_t segment, uint64_t *rmap) noexcept nogil:
        """Make the reverse map of a segment anew from the page table: each page is sealed by itself."""
        cdef uint64_t page = 0, entry
        memset(rmap, 0xff, PIECES * sizeof(uint64_t))
        while page < self.log.map.pages:
            if not self.log.map.page_ready(page):
                page = (page | (TABLE_PIECE_PAGES - 1)) + 1
                continue
            entry = self.log.entry(page)
            if kind_of(entry) == PIECE and segment_of(entry) == segment:
                rmap[index_of(entry)] = page
            page += 1

    cdef int _move_live(self, uint32_t segment, char *source, bint in_ram, uint32_t slot) noexcept nogil:
        """Copy what lives of a claimed segment to the cleaner's; returns pages moved or a negative errno."""
        cdef uint64_t *rmap = <uint64_t *> (source + (RMAP_OFFSET if in_ram else IMAGE_RMAP))
        cdef uint64_t age = self.log.map.segment_table[segment].age
        cdef uint64_t write = self.log.map.segment_table[segment].write
        cdef uint32_t index, to, to_index, count = self.log.map.segment_table[segment].count
        cdef uint64_t page, old
        cdef char *piece
        cdef int moved = 0, failed = 0
        cdef Waiter patient
        patient.alive = NULL
        patient.arg = NULL
        patient.stalled_ns = 0
        for index in range(count):
            page = rmap[index]
            if page >= self.log.map.pages:
                continue
            old = piece_entry(segment, index)
            if self.log.entry(page) != old:
                continue
            piece = source + (index << PAGE_SHIFT if in_ram else index * STRIDE)
            if not in_ram and not piece_open(piece, &self.sealers[self.spillers], piece, &self.log.spill,
                                             write, slot, index, page):
                failed += 1
                continue
            if self.segments.reserve(COLD, 1, &patient, &to, &to_index) < 0:
                return -EAGAIN      # stopping
            memcpy(self.log._page_at(to, to_index), piece, PAGE_BYTES)
            self.log._rmap(to)[to_index] = page
            self.segments.blend_age(age, 1)
            point("clean: copied")
            # The source is claimed, so its number cannot come round: equal means unchanged.
            if cas64(&self.log.map.page_table[page], old, piece_entry(to, to_index)):
                mortal("clean: entry swapped")
                self.segments.cancel(segment, 1)
                moved += 1
            else:
                self.segments.cancel(to, 1)
            self.segments.unpin(to)
        if failed:
            count64(&self.log.map.counters[SPILL_READ_ERRORS], failed)
            return -EBADMSG
        return moved

    def populate(self, uint32_t count):
        """Make up to `count` free RAM slots.  How many, or -ENOMEM where the host refuses."""
        cdef int result
        with nogil:
            result = self.segments.populate(count)
        return result

    def punch(self, uint32_t release):
        """Give back all RAM slots that are due, and `release` free ones; returns how many."""
        cdef int result
        with nogil:
            result = self.segments.punch(release)
        return result
