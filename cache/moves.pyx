"""One move each: pack a segment, write one out, drop one, clean one, make or give back RAM slots.

Called by the movers in worker threads; each call releases the GIL for all of its work and allocates
nothing.  What to move, and when, is decided in movers.py.  On a frozen disk none begins anything.
"""

import errno

from libc.errno cimport EAGAIN, EBADMSG
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.atomics cimport cas64, count64, mortal, peek64, point
from swaptide.cache.codec cimport (
    CODEC_WORTH,
    pack_quick,
    pack_strong,
    packer,
    packer_end,
    packer_init,
    unpack_quick,
    unpacker,
    unpacker_end,
    unpacker_init,
)
from swaptide.cache.entry cimport (
    ABSENT,
    CHUNKS,
    CONTENT_BYTES,
    PAGE_BYTES,
    PAGE_SHIFT,
    PIECE,
    SEGMENT_BYTES,
    STRONG,
    TABLE_PIECE_PAGES,
    disk_of,
    is_piece,
    kind_of,
    length_of,
    offset_of,
    piece_entry,
    ram_of,
    rmap_of,
    segment_of,
)
from swaptide.cache.image cimport (
    NO_PAGE,
    STRIDE,
    chunk_open,
    image_commit,
    image_discard,
    image_make,
    image_read,
    image_write,
)
from swaptide.cache.log cimport Log
from swaptide.cache.mapping cimport ALIGNED_FLAG, BAD_FLAG, SUSPECT_FLAG, SegmentEntry
from swaptide.cache.seal cimport seal_end, seal_init, sealer
from swaptide.cache.segments cimport (
    COLD,
    NO_SEGMENT,
    PACK,
    SOLID,
    STRONG_PACK,
    Segments,
    Waiter,
)
from swaptide.cache.slots cimport NO_SLOT
from swaptide.cache.store cimport store_face
from swaptide.cache.words cimport (
    CLEANED_DISK_SEGMENTS,
    CLEANED_PAGES,
    CLEANED_SEGMENTS,
    DROPPED_SEGMENTS,
    MISSES,
    PACK_TRIED_PAGES,
    PACKED_TOTAL_BYTES,
    PACKED_TOTAL_PAGES,
    SPILL_READ_BYTES,
    SPILL_READ_ERRORS,
    SPILL_WRITE_ERRORS,
    SPILL_WRITTEN_BYTES,
    STRENGTHENED_SEGMENTS,
    WRITTEN_AHEAD_SEGMENTS,
)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *addr, size_t length, int advice) noexcept
    enum: MADV_DONTNEED

cdef enum:
    ADVICE_POPULATE_WRITE = 23          # Linux 5.14: an error where a plain touch would be a signal
    ADVICE_DONTNEED_LOCKED = 24         # Linux 5.18: also what mlockall locked
    MAX_SPILLERS = 16
    MAX_PACKERS = 16
    # Segments of one spiller that a store is asked to keep at once: until then they hold their RAM.
    COMMIT_BATCH = 4
    # Of a segment's pages, how many are tried before all of them are; and with how few that shrink it is
    # left as it is.
    SAMPLE = 16
    SAMPLE_LEAST = 4

# A segment that a spiller has written, and where.
cdef struct Written:
    uint32_t segment
    uint32_t slot

cdef struct Packing:
    packer by
    unpacker undo
    char page[PAGE_BYTES]
    char piece[PAGE_BYTES]
    bint all_shrink     # of those that were tried of the segment under way


cdef class Moves:
    """The moves of one disk: `spillers` writes may be in flight at once, `packers` packings, and a cleaning.

    `key` is the disk's, None where it is not encrypted.
    """

    cdef Log log
    cdef Segments segments
    cdef char *memory
    cdef bint staged[MAX_SPILLERS]              # whether that part of the memory is there
    cdef sealer sealers[MAX_SPILLERS + 1]       # each goes with its part of the memory
    cdef Packing packings[MAX_PACKERS]
    cdef uint8_t opened[CHUNKS]                 # of the segment that is cleaned from disk: 1 open, 2 damaged
    cdef int spillers, packers

    def __cinit__(self, Log log, Segments segments, int spillers, int packers, const unsigned char[:] key):
        cdef void *memory
        cdef int i
        if spillers > MAX_SPILLERS or packers > MAX_PACKERS:
            raise ValueError(f"at most {MAX_SPILLERS} spillers and {MAX_PACKERS} packers")
        self.log = log
        self.segments = segments
        self.spillers = spillers
        self.packers = packers
        # One image for each spiller; an image and what is opened of it for the cleaner.
        if posix_memalign(&memory, PAGE_BYTES, (spillers + 2) * SEGMENT_BYTES) != 0:
            raise MemoryError()
        memset(memory, 0, (spillers + 2) * SEGMENT_BYTES)
        self.memory = <char *> memory
        for i in range(spillers):
            self.staged[i] = True
        for i in range(spillers + 1):
            if seal_init(&self.sealers[i], &key[0] if key is not None else NULL) != 0:
                raise OSError(errno.ENOTSUP, "OpenSSL has no AES-256-GCM")
        for i in range(packers):
            if packer_init(&self.packings[i].by) != 0 or unpacker_init(&self.packings[i].undo) != 0:
                raise MemoryError()

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_SPILLERS + 1):
            seal_end(&self.sealers[i])
        for i in range(MAX_PACKERS):
            packer_end(&self.packings[i].by)
            unpacker_end(&self.packings[i].undo)
        free(self.memory)

    def is_staged(self, int worker):
        """Whether a worker's staging buffer is there."""
        return bool(self.staged[worker])

    def stage(self, int worker):
        """Have a worker's staging buffer there; false where the host does not give it."""
        cdef int result = 0
        if not self.staged[worker]:
            with nogil:
                result = madvise(self.memory + worker * SEGMENT_BYTES, SEGMENT_BYTES, ADVICE_POPULATE_WRITE)
            self.staged[worker] = result == 0
        return bool(self.staged[worker])

    def unstage(self):
        """Give the staging buffers back to the host; no worker may be busy.

        Worker 0's and the cleaner's stay: who has to write under pressure never waits for memory to do it in.
        """
        cdef char *buffer
        cdef int i
        for i in range(1, self.spillers):
            buffer = self.memory + i * SEGMENT_BYTES
            if self.staged[i] and (madvise(buffer, SEGMENT_BYTES, ADVICE_DONTNEED_LOCKED) == 0
                                   or madvise(buffer, SEGMENT_BYTES, MADV_DONTNEED) == 0):
                self.staged[i] = False

    def spill(self, int worker, int most, bint give_back):
        """Write up to `most` dirty segments to disk, by turn; with `give_back` drop each at once.

        How many; 0: none to be had; -errno: the store failed.  `worker` names the staging buffer, 0 up to
        `spillers` - 1, which has to be there; no two calls at once may share one.  What a store has to be
        asked to keep is asked for some at a time.
        """
        cdef int result = 0, done = 0, n = 0, last
        cdef Written written[COMMIT_BATCH]
        cdef const store_face *store = &self.log.spill.store
        cdef uint64_t mark = 0
        with nogil:
            while done < most and not self.segments.is_frozen():
                if n == 0 and store.commit != NULL:
                    mark = store.mark(store.of)
                result = self._spill(worker, &written[n])
                if result <= 0:
                    break
                done += 1
                if written[n].segment != NO_SEGMENT:
                    n += 1
                if store.commit == NULL or n == COMMIT_BATCH:
                    result = self._settle(written, n, mark, give_back)
                    n = 0
                    if result < 0:
                        break
                if done < most and not self.segments.is_short():
                    break
            if n:
                last = self._settle(written, n, mark, give_back)
                if last < 0:
                    result = last
        return result if result < 0 else done

    cdef int _spill(self, int worker, Written *written) noexcept nogil:
        """Write one segment, which is `written` then and still claimed; NO_SEGMENT if it had died."""
        cdef char *image = self.memory + worker * SEGMENT_BYTES
        cdef uint32_t segment = self.segments.claim_for_disk()
        cdef int result
        written.segment = NO_SEGMENT
        if segment == NO_SEGMENT:
            return 0
        if self.segments.live_bytes(segment) == 0 or not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 1
        if not self.segments.begin_write(segment):
            self.segments.unclaim(segment)
            return 0
        written.slot = disk_of(self.segments.place(segment)) - 1
        point("spill: slot marked")
        result = image_make(image, &self.sealers[worker], self.log.content(segment), &self.log.spill,
                            &self.log.map.segment_table[segment], written.slot)
        if result == 0:
            result = image_write(image, &self.log.spill, written.slot)
        mortal("spill: written")
        if result != 0:
            self.segments.end_write(segment, result)
            self.segments.unclaim(segment)
            count64(&self.log.map.counters[SPILL_WRITE_ERRORS], 1)
            return result
        written.segment = segment
        return 1

    cdef int _settle(self, const Written *written, int n, uint64_t mark, bint give_back) noexcept nogil:
        """Have what was written kept by the stores that have it, and then be clean, or dropped.

        0 or -errno: of that store, whose part of it is as it was.
        """
        cdef int store, result = 0, failed
        for store in range(self.segments.slots.stores):
            failed = self._settle_in(store, written, n, mark, give_back)
            if failed and (result == 0 or result == -EAGAIN):
                result = failed
        return result

    cdef int _settle_in(self, int store, const Written *written, int n, uint64_t mark,
                        bint give_back) noexcept nogil:
        cdef int i, result = 0
        cdef bint any = False
        for i in range(n):
            if self.segments.slots.store_of(written[i].slot) != store:
                continue
            if not any and self.log.spill.store.commit != NULL:
                result = image_commit(&self.log.spill, mark, written[i].slot)
            if not any:
                mortal("spill: committed")
            any = True
            self.segments.end_write(written[i].segment, result)
            if result != 0:
                self.segments.unclaim(written[i].segment)
                continue
            count64(&self.log.map.counters[SPILL_WRITTEN_BYTES], SEGMENT_BYTES)
            if give_back and self.segments.is_short():
                # A store may fail again by now.
                if not self.segments.keep(written[i].segment):
                    self.segments.drop(written[i].segment)
                    self.segments.punch(0)
            else:
                self.segments.unclaim(written[i].segment)
            if not give_back:
                count64(&self.log.map.counters[WRITTEN_AHEAD_SEGMENTS], 1)
        if result != 0 and result != -EAGAIN:
            count64(&self.log.map.counters[SPILL_WRITE_ERRORS], 1)
        return result

    def drop(self, int count):
        """Give up the RAM of up to `count` clean segments, coldest first; returns how many.

        What lies in a store that fails while another works is not given up, but is to be written there.
        """
        cdef int done = 0, kept = 0
        cdef uint32_t segment
        with nogil:
            while done + kept < count and not self.segments.is_frozen():
                segment = self.segments.claim_clean()
                if segment == NO_SEGMENT:
                    break
                if self.segments.keep(segment):
                    kept += 1
                    continue
                self.segments.drop(segment)
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
            while done < most and not self.segments.is_frozen():
                result = self._clean(on_disk, below, by_age)
                if result <= 0:
                    break
                done += 1
        return result if result < 0 else done

    cdef int _clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        cdef uint32_t segment = self.segments.claim_to_clean(on_disk, below, by_age)
        cdef uint64_t place
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 0
        place = self.segments.place(segment)
        if ram_of(place):
            result = self._move_live(segment, self.log.content(segment),
                                     self.log.map.segment_table[segment].count, NULL, 0)
        else:
            result = self._clean_from_disk(segment, disk_of(place) - 1)
        if result == -EBADMSG:
            self.segments.mark(segment, BAD_FLAG)
        elif result < 0 and result != -EAGAIN:
            self.segments.mark(segment, SUSPECT_FLAG)
            if disk_of(place):
                self.segments.cannot_read(disk_of(place) - 1)
        elif result >= 0:
            count64(&self.log.map.counters[CLEANED_SEGMENTS], 1)
            if not ram_of(place):
                count64(&self.log.map.counters[CLEANED_DISK_SEGMENTS], 1)
            count64(&self.log.map.counters[CLEANED_PAGES], result)
            result = 1
        self.segments.unclaim(segment)
        return 0 if result == -EAGAIN else result

    cdef int _clean_from_disk(self, uint32_t segment, uint32_t slot) noexcept nogil:
        cdef char *image = self.memory + self.spillers * SEGMENT_BYTES
        cdef char *content = image + SEGMENT_BYTES
        cdef SegmentEntry *entry = &self.log.map.segment_table[segment]
        cdef uint32_t count = entry.count
        cdef int result
        if self.segments.live_bytes(segment) == 0:
            return 0
        result = image_read(image, &self.log.spill, slot)
        if result != 0:
            count64(&self.log.map.counters[SPILL_READ_ERRORS], 1)
            return result
        count64(&self.log.map.counters[SPILL_READ_BYTES], SEGMENT_BYTES)
        memset(self.opened, 0, CHUNKS)
        # Whatever the footer says: what is open already is not opened over the map that is made anew.
        if not self._open_chunks(image, content, entry, slot, <char *> rmap_of(content, count) + 4 - content,
                                 CONTENT_BYTES, NO_PAGE):
            count64(&self.log.map.counters[SPILL_READ_ERRORS], 1)
            count = self._find_pages(segment, content)
        return self._move_live(segment, content, count, image, slot)

    cdef bint _open_chunks(self, char *image, char *content, SegmentEntry *entry, uint32_t slot,
                           uint64_t start, uint64_t end, uint32_t page) noexcept nogil:
        """Open what is not open yet of the bytes [start, end) of a segment's content."""
        cdef uint32_t i
        for i in range(<uint32_t> (start >> PAGE_SHIFT), <uint32_t> ((end + PAGE_BYTES - 1) >> PAGE_SHIFT)):
            if self.opened[i] == 0:
                self.opened[i] = 1 if chunk_open(content + (<uint64_t> i << PAGE_SHIFT),
                                                 &self.sealers[self.spillers], image + i * STRIDE,
                                                 &self.log.spill, entry.write, slot, i, page) else 2
            if self.opened[i] == 2:
                return False
        return True

    cdef uint32_t _find_pages(self, uint32_t segment, char *content) noexcept nogil:
        """Make the reverse map of a segment anew from the page table: what lies there is sealed by itself.

        Returns how many pages there are.
        """
        cdef uint64_t page = 0, entry
        cdef uint32_t found = 0, most = self.log.map.segment_table[segment].count
        while page < self.log.map.pages and found < most:
            if not self.log.map.page_ready(page):
                page = (page | (TABLE_PIECE_PAGES - 1)) + 1
                continue
            entry = self.log.entry(page)
            if is_piece(entry) and segment_of(entry) == segment:
                rmap_of(content, found)[0] = <uint32_t> page
                found += 1
            page += 1
        return found

    cdef uint64_t _live_entry(self, uint32_t segment, char *content, uint32_t ordinal,
                              uint32_t *page) noexcept nogil:
        """The entry of the `ordinal`-th page in a claimed segment's reverse map, ABSENT where it is dead."""
        cdef uint64_t entry
        page[0] = rmap_of(content, ordinal)[0]
        if page[0] >= self.log.map.pages:
            return ABSENT
        entry = self.log.entry(page[0])
        return entry if is_piece(entry) and segment_of(entry) == segment else ABSENT

    cdef int _move_live(self, uint32_t segment, char *content, uint32_t count, char *image,
                        uint32_t slot) noexcept nogil:
        """Copy what lives of a claimed segment to the cleaner's; returns pages moved or a negative errno.

        `image` is NULL where the content lies in RAM; else pieces are opened out of it as they are needed.
        """
        cdef SegmentEntry *entry = &self.log.map.segment_table[segment]
        cdef uint32_t ordinal, page, page_of_chunk
        cdef uint64_t old
        cdef int moved = 0, failed = 0, result
        for ordinal in range(count):
            old = self._live_entry(segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            if image != NULL:
                page_of_chunk = page if entry.flags & ALIGNED_FLAG else <uint32_t> NO_PAGE
                if not self._open_chunks(image, content, entry, slot, offset_of(old),
                                         offset_of(old) + length_of(old), page_of_chunk):
                    failed += 1
                    continue
            result = self._move_piece(COLD, page, old, kind_of(old), content + offset_of(old), length_of(old))
            if result < 0:
                return result
            moved += result
        if failed:
            count64(&self.log.map.counters[SPILL_READ_ERRORS], failed)
            return -EBADMSG
        return moved

    cdef int _move_piece(self, int head, uint32_t page, uint64_t old, int kind, char *piece,
                         uint32_t length) noexcept nogil:
        """Have `piece` stand for a page of a claimed segment instead of its `old` entry.

        1, 0 where the page was overwritten meanwhile, or -EAGAIN: stopping, or no slot for a packer, or none
        for the cleaner of a frozen disk.
        """
        cdef uint32_t to, offset, ordinal, segment = segment_of(old)
        cdef char *content
        cdef int result = 0
        cdef Waiter patient
        patient.alive = NULL
        patient.arg = NULL
        patient.stalled_ns = 0
        if self.segments.reserve(head, 1, length, self.log.map.segment_table[segment].age,
                                 &patient if head == COLD else NULL, &to, &offset, &ordinal) < 0:
            return -EAGAIN
        content = self.log.content(to)
        memcpy(content + offset, piece, length)
        rmap_of(content, ordinal)[0] = page
        point("move: copied")
        # The source is claimed, so its number cannot come round: equal means unchanged.
        if cas64(&self.log.map.page_table[page], old, piece_entry(kind, to, offset, length)):
            mortal("move: entry swapped")
            self.segments.retire(old)
            result = 1
        else:
            self.segments.cancel(to, 1, length)
        self.segments.unpin(to)
        return result

    # Packing.

    def pack(self, int worker, uint32_t keep, bint strong):
        """Pack the coldest segment that may shrink, while there are more than `keep` of these.

        Pages that do not shrink are gathered in segments of their own, but for the odd one.  `worker` is one
        of the packers; no two calls at once may share one.  1: done; 2: it does not shrink, and goes to disk
        first; 0: nothing to do; -EAGAIN: no RAM slot to pack into.
        """
        cdef int result
        with nogil:
            result = 0 if self.segments.is_frozen() else self._pack(&self.packings[worker], keep, strong)
        return result

    cdef int _pack(self, Packing *with_, uint32_t keep, bint strong) noexcept nogil:
        cdef uint32_t segment = self.segments.claim_to_pack(keep)
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 0
        if not self._shrinks(with_, segment, strong):
            self.segments.stiffen(segment)
            self.segments.unclaim(segment)
            return 2
        result = self._pack_live(with_, segment, strong)
        self.segments.unclaim(segment)
        return result

    cdef bint _shrinks(self, Packing *with_, uint32_t segment, bint strong) noexcept nogil:
        """Try some of a segment's live pages, from all over it."""
        cdef char *content = self.log.content(segment)
        cdef uint32_t count = self.log.map.segment_table[segment].count, ordinal = 0, page
        # Odd: what alternates shows both.
        cdef uint32_t step = (count / SAMPLE) | 1
        cdef uint64_t entry
        cdef int tried = 0, shrunk = 0
        while ordinal < count:
            entry = self._live_entry(segment, content, ordinal, &page)
            ordinal += step
            if entry == ABSENT:
                continue
            tried += 1
            if length_of(entry) < PAGE_BYTES or self._pack_page(with_, content + offset_of(entry), strong):
                shrunk += 1
        # A segment of its own for the odd page costs more RAM than the page does among the others.
        with_.all_shrink = shrunk == tried
        # Where too little lives to tell, packing costs nothing.
        return shrunk >= SAMPLE_LEAST or tried < SAMPLE / 2

    cdef int _pack_page(self, Packing *with_, const char *page, bint strong) noexcept nogil:
        """Pack a page to the packing's `piece`: its length, 0 where it is not worth it."""
        if strong:
            return pack_strong(&with_.by, page, with_.piece, CODEC_WORTH)
        return pack_quick(&with_.by, page, with_.piece)

    cdef int _pack_live(self, Packing *with_, uint32_t segment, bint strong) noexcept nogil:
        cdef char *content = self.log.content(segment)
        cdef uint32_t count = self.log.map.segment_table[segment].count, ordinal, page, length
        cdef uint64_t old
        cdef int64_t tried = 0, shrunk = 0, nbytes = 0
        cdef int head, kind, result = 1
        cdef char *piece
        for ordinal in range(count):
            old = self._live_entry(segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            piece = content + offset_of(old)
            length = length_of(old)
            kind = kind_of(old)
            head = PACK
            if length == PAGE_BYTES:
                tried += 1
                length = self._pack_page(with_, piece, strong)
                if length:
                    shrunk += 1
                    nbytes += length
                    piece = with_.piece
                    kind = STRONG if strong else PIECE
                else:
                    length = PAGE_BYTES
                    if not with_.all_shrink:
                        head = SOLID
            point("pack: packed")
            if self._move_piece(head, page, old, kind, piece, length) < 0:
                result = -EAGAIN
                break
        count64(&self.log.map.counters[PACK_TRIED_PAGES], tried)
        count64(&self.log.map.counters[PACKED_TOTAL_PAGES], shrunk)
        count64(&self.log.map.counters[PACKED_TOTAL_BYTES], nbytes)
        return result

    def strengthen(self, int worker):
        """Pack the coldest packed segment anew with zstd; for idle cores.  As `pack` returns."""
        cdef int result
        with nogil:
            result = 0 if self.segments.is_frozen() else self._strengthen(&self.packings[worker])
        return result

    cdef int _strengthen(self, Packing *with_) noexcept nogil:
        cdef uint32_t segment = self.segments.claim_to_strengthen(), ordinal, page, length, shorter
        cdef uint32_t count
        cdef uint64_t old
        cdef char *content
        cdef char *piece
        cdef int kind, result = 1
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.segments.unclaim(segment)
            return 0
        content = self.log.content(segment)
        count = self.log.map.segment_table[segment].count
        for ordinal in range(count):
            old = self._live_entry(segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            piece = content + offset_of(old)
            length = length_of(old)
            kind = kind_of(old)
            if kind == PIECE and length < PAGE_BYTES and unpack_quick(piece, length, with_.page):
                shorter = pack_strong(&with_.by, with_.page, with_.piece, length - length / 16)
                if shorter:
                    piece = with_.piece
                    length = shorter
                    kind = STRONG
            point("strengthen: packed")
            if self._move_piece(STRONG_PACK, page, old, kind, piece, length) < 0:
                result = -EAGAIN
                break
        if result == 1:
            count64(&self.log.map.counters[STRENGTHENED_SEGMENTS], 1)
        self.segments.unclaim(segment)
        return result

    @property
    def discards(self):
        """Whether the store may be told what it need not keep."""
        return self.log.spill.store.discard != NULL

    def discard(self, uint32_t keep, int most):
        """Have the store forget up to `most` free disk slots, while there are more than `keep` it knows.

        How many; -errno: the store failed.
        """
        cdef int result = 0, done = 0
        cdef uint32_t slot
        with nogil:
            while done < most and not self.segments.is_frozen():
                slot = self.segments.claim_to_discard(keep)
                if slot == NO_SLOT:
                    break
                result = image_discard(&self.log.spill, slot, 1)
                self.segments.end_discard(slot, result == 0)
                if result < 0:
                    break
                done += 1
        return result if result < 0 else done

    def segments_opened(self):
        """Segments that the guest began to fill so far."""
        return peek64(&self.segments.guest_opened)

    def misses(self):
        """Pages that were read from the disk so far."""
        return peek64(&self.log.map.counters[MISSES])

    def packed_bytes(self):
        """What pages were packed to so far, in bytes."""
        return peek64(&self.log.map.counters[PACKED_TOTAL_BYTES])

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
