"""Segments cleaned: what lives in one is moved out of it, from RAM or from disk, so that it dies.

One thread at a time.  Runs without the GIL, in the movers' threads, and allocates nothing.
"""

import errno

from libc.errno cimport EAGAIN, EBADMSG
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport count64
from swaptide.cache.claims cimport Claims
from swaptide.cache.entry cimport (
    ABSENT,
    CHUNKS,
    CONTENT_BYTES,
    PAGE_BYTES,
    PAGE_SHIFT,
    SEGMENT_BYTES,
    TABLE_PIECE_PAGES,
    disk_of,
    is_piece,
    kind_of,
    length_of,
    offset_of,
    ram_of,
    rmap_of,
    segment_of,
)
from swaptide.cache.image cimport NO_PAGE, STRIDE, chunk_open, image_read
from swaptide.cache.log cimport Log
from swaptide.cache.mapping cimport ALIGNED_FLAG, BAD_FLAG, SUSPECT_FLAG, SegmentEntry
from swaptide.cache.relocate cimport live_entry, move_piece
from swaptide.cache.seal cimport seal_end, seal_init
from swaptide.cache.segments cimport COLD
from swaptide.cache.words cimport (
    CLEANED_DISK_SEGMENTS,
    CLEANED_PAGES,
    CLEANED_SEGMENTS,
    SPILL_READ_BYTES,
    SPILL_READ_ERRORS,
)


cdef class Cleaner:
    """Cleans one segment at a time.  `key` is the disk's, None where it is not encrypted."""

    def __cinit__(self, Log log, Claims claims, const unsigned char[:] key):
        cdef void *memory
        self.log = log
        self.segments = log.segments
        self.claims = claims
        if posix_memalign(&memory, PAGE_BYTES, 2 * SEGMENT_BYTES) != 0:
            raise MemoryError()
        memset(memory, 0, 2 * SEGMENT_BYTES)
        self.memory = <char *> memory
        if seal_init(&self.by, &key[0] if key is not None else NULL) != 0:
            raise OSError(errno.ENOTSUP, "OpenSSL has no AES-256-GCM")

    def __dealloc__(self):
        seal_end(&self.by)
        free(self.memory)

    cdef int clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil:
        """Clean one segment, as `Moves.clean` says; 1, 0 where there is none, or -errno."""
        cdef uint32_t segment = self.claims.claim_to_clean(on_disk, below, by_age)
        cdef uint64_t place
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.claims.unclaim(segment)
            return 0
        place = self.segments.place(segment)
        if ram_of(place):
            result = self._move_live(segment, self.log.content(segment),
                                     self.log.map.segment_table[segment].count, NULL, 0)
        else:
            result = self._clean_from_disk(segment, disk_of(place) - 1)
        if result == -EBADMSG:
            self.claims.mark(segment, BAD_FLAG)
        elif result < 0 and result != -EAGAIN:
            self.claims.mark(segment, SUSPECT_FLAG)
            if disk_of(place):
                self.claims.cannot_read(disk_of(place) - 1)
        elif result >= 0:
            count64(&self.log.map.counters[CLEANED_SEGMENTS], 1)
            if not ram_of(place):
                count64(&self.log.map.counters[CLEANED_DISK_SEGMENTS], 1)
            count64(&self.log.map.counters[CLEANED_PAGES], result)
            result = 1
        self.claims.unclaim(segment)
        return 0 if result == -EAGAIN else result

    cdef int _clean_from_disk(self, uint32_t segment, uint32_t slot) noexcept nogil:
        cdef char *image = self.memory
        cdef char *content = image + SEGMENT_BYTES
        cdef SegmentEntry *entry = &self.log.map.segment_table[segment]
        cdef uint32_t count = entry.count
        cdef int result
        if self.segments.live_bytes(segment) == 0:
            return 0
        result = image_read(image, &self.log.fetcher.spill, slot)
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
                                                 &self.by, image + i * STRIDE,
                                                 &self.log.fetcher.spill, entry.write, slot, i, page) else 2
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
            old = live_entry(self.log, segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            if image != NULL:
                page_of_chunk = page if entry.flags & ALIGNED_FLAG else <uint32_t> NO_PAGE
                if not self._open_chunks(image, content, entry, slot, offset_of(old),
                                         offset_of(old) + length_of(old), page_of_chunk):
                    failed += 1
                    continue
            result = move_piece(self.log, COLD, page, old, kind_of(old), content + offset_of(old),
                                length_of(old))
            if result < 0:
                return result
            moved += result
        if failed:
            count64(&self.log.map.counters[SPILL_READ_ERRORS], failed)
            return -EBADMSG
        return moved
