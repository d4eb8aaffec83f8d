"""The disk that the guest sees: reads, writes, trims and zeroes on the page table and the log.

How a page is published (docs/design.md, "Data first, entry after"): its data and its place in the reverse
map first, then its entry, with one atomic exchange; the old entry is accounted by whoever exchanged it
away.  A part of a page is read, merged and published with a compare-and-swap under a striped lock.
A reader pins the segment that an entry names and looks at the entry again: if it still names it, the
segment cannot be used for anything else before the pin is gone.

Everything with `nogil` runs in nbdkit's threads, with or without the GIL; it takes no Python object and,
but for a wait at the cap and for the disk, no time.
"""

import errno
import os

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from swaptide.cache.ages cimport AGE_READS, age_bucket
from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport (
    cas64,
    count64,
    fill_words,
    load64,
    mortal,
    page_is_same,
    peek64,
    point,
    prefetch_page,
    set_bit,
    swap64,
)
from swaptide.cache.entry cimport (
    ABSENT,
    PAGE_BYTES,
    PAGE_MASK,
    PAGE_SHIFT,
    SAME,
    STRONG,
    TABLE_PIECE_PAGES,
    is_piece,
    kind_of,
    length_of,
    offset_of,
    page_entry,
    ram_of,
    rmap_of,
    same_entry,
    same_word,
    segment_of,
)
from swaptide.cache.fetch cimport BOUNCE_CHUNKS, Fetcher
from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from swaptide.cache.segments cimport GUEST, Segments
from swaptide.cache.store cimport Store
from swaptide.cache.turnstile cimport Waiter
from swaptide.cache.words cimport (
    HITS,
    MISSES,
    PACKED_HITS,
    SAME_FILLED_PAGES,
)

cdef enum:
    PREFETCH_PAGES = 32


cdef class Log:
    """A disk of `size_bytes` over a mapping, its segments and a spill store.

    Disk slots begin at `base` of the store; `disk_seed` is 64 bits of the disk's id; `key` is None where the
    disk is not encrypted.
    """

    def __cinit__(self, Mapping map, Segments segments, uint64_t size_bytes, Store store, uint64_t base,
                  uint64_t disk_seed, const unsigned char[:] key):
        cdef int i
        self.map = map
        self.segments = segments
        self.size_bytes = size_bytes
        self.fetcher = Fetcher(segments, store, base, disk_seed, key)
        for i in range(STRIPES):
            pthread_mutex_init(&self.stripes[i], NULL)

    def __dealloc__(self):
        cdef int i
        for i in range(STRIPES):
            pthread_mutex_destroy(&self.stripes[i])

    cdef uint64_t entry(self, uint64_t page) noexcept nogil:
        if not self.map.page_ready(page):
            return ABSENT
        return load64(&self.map.page_table[page])

    # Reads.

    cdef int read(self, char *buf, uint64_t count, uint64_t offset, bint may_wait, uint64_t *done,
                  uint64_t *missed) noexcept nogil:
        """Read within the disk; `missed` is set to the number of pages that came from its disk.

        0, -EIO, or -EAGAIN where it would go to the disk and must not: go on behind the `done` bytes.
        """
        cdef Tally tally
        cdef int result
        tally.hits = tally.missed = tally.aged = 0
        tally.bucket = 0
        done[0] = 0
        result = self._read(buf, count, offset, may_wait, done, &tally)
        if tally.aged:
            count64(&self.map.ages[AGE_READS + tally.bucket], <int64_t> tally.aged)
        if tally.hits:
            count64(&self.map.counters[HITS], <int64_t> tally.hits)
        if tally.missed:
            count64(&self.map.counters[MISSES], <int64_t> tally.missed)
        missed[0] = tally.missed
        return result

    cdef void _count_age(self, Tally *tally, uint64_t born, uint32_t pages) noexcept nogil:
        cdef uint32_t bucket = age_bucket(peek64(&self.segments.log_clock), born)
        if bucket != tally.bucket:
            if tally.aged:
                count64(&self.map.ages[AGE_READS + tally.bucket], <int64_t> tally.aged)
            tally.bucket = bucket
            tally.aged = 0
        tally.aged += pages

    cdef int _read(self, char *buf, uint64_t count, uint64_t offset, bint may_wait, uint64_t *done,
                   Tally *tally) noexcept nogil:
        cdef uint64_t entry, part
        cdef int result
        if count > PAGE_BYTES:
            self._prefetch(offset >> PAGE_SHIFT, (count + PAGE_MASK) >> PAGE_SHIFT)
        while count:
            part = PAGE_BYTES - (offset & PAGE_MASK)
            if part > count:
                part = count
            entry = self.entry(offset >> PAGE_SHIFT)
            if is_piece(entry):
                part = 0
                result = self._read_piece(buf, count, offset, entry, may_wait, &part, tally)
                if result != 0:
                    return result
            elif kind_of(entry) == SAME:
                fill_words(buf, same_word(entry), offset & 3, part)
                tally.hits += 1
            else:
                memset(buf, 0, part)
                tally.hits += 1
            done[0] += part
            buf += part
            offset += part
            count -= part
        return 0

    cdef void _prefetch(self, uint64_t page, uint64_t pages) noexcept nogil:
        """Have pages that lie apart in RAM on their way together: each alone would wait for its own TLB and
        cache misses.  Nothing is pinned, since nothing is touched; what moves meanwhile costs a wasted line.
        """
        cdef uint64_t last = page + min(pages, <uint64_t> PREFETCH_PAGES), before = 0, entry, place
        while page < last:
            entry = self.entry(page)
            if is_piece(entry) and entry != before + (<uint64_t> PAGE_BYTES << 15):
                place = self.segments.place(segment_of(entry))
                if ram_of(place):
                    prefetch_page(self.map.slot(ram_of(place) - 1) + offset_of(entry))
            before = entry
            page += 1

    cdef int _read_piece(self, char *buf, uint64_t count, uint64_t offset, uint64_t entry, bint may_wait,
                         uint64_t *done, Tally *tally) noexcept nogil:
        """Read as many pages as lie back to back from here; `done` stays 0 if the entry changed meanwhile."""
        cdef uint64_t page = offset >> PAGE_SHIFT, place, span, born
        cdef uint64_t entries[BOUNCE_CHUNKS]
        cdef uint32_t segment = segment_of(entry), skip = offset & PAGE_MASK, run = 1
        cdef int result = 0
        point("read: entry loaded")
        self.segments.pin(segment)
        if self.entry(page) != entry:
            self.segments.unpin(segment)
            return 0
        # Entries loaded from here on that name this segment are safe: it is pinned.
        place = self.segments.place(segment)
        born = peek64(&self.map.segment_table[segment].age)
        point("read: place loaded")
        if not ram_of(place):
            if may_wait:
                self.segments.disk_pin(segment)
            self.segments.unpin(segment)
            if not may_wait:
                return -EAGAIN
            point("read: disk pinned")
            entries[0] = entry
            run = self._find_run(entries, page, (skip + count + PAGE_MASK) >> PAGE_SHIFT)
            span = min(run * <uint64_t> PAGE_BYTES - skip, count)
            result = self.fetcher.read(buf, span, skip, segment, entries, page)
            self.segments.disk_unpin(segment)
            tally.missed += run
        elif length_of(entry) == PAGE_BYTES:
            while run * <uint64_t> PAGE_BYTES - skip < count:
                if self.entry(page + run) != entry + (<uint64_t> run << (PAGE_SHIFT + 15)):
                    break
                run += 1
            span = min(run * <uint64_t> PAGE_BYTES - skip, count)
            memcpy(buf, self.map.slot(ram_of(place) - 1) + offset_of(entry) + skip, span)
            self.segments.unpin(segment)
            tally.hits += run
        else:
            span = min(<uint64_t> PAGE_BYTES - skip, count)
            # Unpacking takes longer than a copy: one page may be done where the caller must not wait.
            if not may_wait and (count > PAGE_BYTES or kind_of(entry) == STRONG):
                self.segments.unpin(segment)
                return -EAGAIN
            result = self.fetcher.unpack(buf, span, skip, entry,
                                         self.map.slot(ram_of(place) - 1) + offset_of(entry))
            self.segments.unpin(segment)
            tally.hits += 1
            count64(&self.map.counters[PACKED_HITS], 1)
        done[0] = span
        if result == 0:
            self._count_age(tally, born, run)
        return result

    cdef uint32_t _find_run(self, uint64_t *entries, uint64_t page, uint64_t pages) noexcept nogil:
        """How many pages from `page` on, whose entry is the first of `entries`, lie one behind the other in a
        segment that is pinned, and within one bounce buffer; their entries are filled in."""
        cdef uint64_t first = offset_of(entries[0]) >> PAGE_SHIFT, entry, end
        cdef uint32_t run = 1
        while run < pages and run < BOUNCE_CHUNKS:
            entry = self.entry(page + run)
            end = offset_of(entries[run - 1]) + length_of(entries[run - 1])
            if (not is_piece(entry) or segment_of(entry) != segment_of(entries[0]) or offset_of(entry) != end
                    or ((end + length_of(entry) - 1) >> PAGE_SHIFT) - first >= BOUNCE_CHUNKS):
                break
            entries[run] = entry
            run += 1
        return run

    # Writes.

    cdef int write(self, const char *buf, uint64_t count, uint64_t offset, Waiter *waiter,
                   bint may_wait) noexcept nogil:
        """Write within the disk.  0, or a negative errno; -EAGAIN where it would wait and must not.

        Without `may_wait` only whole pages are taken.  On an error any of the pages may have been written.
        """
        cdef int result = self.segments.turnstile.enter(waiter if may_wait else NULL)
        if result == 0:
            result = self._write(buf, count, offset, waiter, may_wait)
            self.segments.turnstile.leave()
        return result

    cdef int _write(self, const char *buf, uint64_t count, uint64_t offset, Waiter *waiter,
                    bint may_wait) noexcept nogil:
        cdef uint64_t part
        cdef int result = 0
        while count and result == 0:
            part = offset & PAGE_MASK
            if part == 0 and count >= PAGE_BYTES:
                part = count & ~<uint64_t> PAGE_MASK
                result = self._write_pages(buf, offset >> PAGE_SHIFT, part >> PAGE_SHIFT,
                                           waiter if may_wait else NULL)
            else:
                part = PAGE_BYTES - part
                if part > count:
                    part = count
                if not may_wait:
                    return -EAGAIN
                result = self._write_part(buf, <uint32_t> part, offset >> PAGE_SHIFT, offset & PAGE_MASK,
                                          waiter)
            buf += part
            offset += part
            count -= part
        return result

    cdef int _write_pages(self, const char *buf, uint64_t page, uint64_t pages,
                          Waiter *waiter) noexcept nogil:
        cdef uint32_t segment, offset, ordinal, word = 0
        cdef uint64_t run, i
        cdef char *content
        cdef int got
        while pages:
            got = self.segments.ensure_page(page, waiter)
            if got != 0:
                return got
            if page_is_same(buf, &word):
                self._publish(page, same_entry(word))
                page += 1
                pages -= 1
                buf += PAGE_BYTES
                continue
            run = 1
            # A run ends where its table would have to grow: that may wait, and whoever waits holds nothing.
            while (run < pages and self.map.page_ready(page + run)
                    and not page_is_same(buf + (run << PAGE_SHIFT), &word)):
                run += 1
            got = self.segments.reserve(GUEST, <uint32_t> run, PAGE_BYTES, 0, waiter, &segment, &offset,
                                        &ordinal)
            if got < 0:
                return got
            point("write: reserved")
            content = self.content(segment)
            memcpy(content + offset, buf, <uint64_t> got << PAGE_SHIFT)
            point("write: copied")
            for i in range(<uint64_t> got):
                rmap_of(content, <uint32_t> (ordinal + i))[0] = <uint32_t> (page + i)
            mortal("write: reverse map stored")
            for i in range(<uint64_t> got):
                self._publish(page + i, page_entry(segment, <uint32_t> (ordinal + i)))
            self.segments.unpin(segment)
            page += <uint64_t> got
            pages -= <uint64_t> got
            buf += <uint64_t> got << PAGE_SHIFT
        return 0

    cdef void _publish(self, uint64_t page, uint64_t entry) noexcept nogil:
        cdef uint64_t old = swap64(&self.map.page_table[page], entry)
        point("publish: exchanged")
        self._note_change(page)
        self._count_same(old, entry)
        self.segments.retire(old)

    cdef void _note_change(self, uint64_t page) noexcept nogil:
        """A client's change of a page is published.  Who sends the disk makes the map known before they load
        entries, and here it is looked for after the entry's exchange: one of both sees the other."""
        cdef uint64_t map = load64(&self.changes)
        if map:
            set_bit(<uint64_t *> map, page)

    cdef void _count_same(self, uint64_t old, uint64_t new) noexcept nogil:
        cdef int by = (kind_of(new) == SAME) - (kind_of(old) == SAME)
        if by:
            count64(&self.map.counters[SAME_FILLED_PAGES], by)

    cdef int _write_part(self, const char *buf, uint32_t count, uint64_t page, uint32_t skip,
                         Waiter *waiter) noexcept nogil:
        """Merge `count` bytes (zeros where `buf` is NULL) into a page: read, merge, compare and swap."""
        cdef uint32_t segment, offset, ordinal, old_segment = NO_SEGMENT, word = 0
        cdef uint64_t old, new
        cdef char *to
        cdef int result
        result = self.segments.ensure_page(page, waiter)
        if result != 0:
            return result
        # Room first: whoever waits for RAM holds no pin and no stripe.
        result = self.segments.reserve(GUEST, 1, PAGE_BYTES, 0, waiter, &segment, &offset, &ordinal)
        if result < 0:
            return result
        to = self.content(segment) + offset
        rmap_of(self.content(segment), ordinal)[0] = <uint32_t> page
        pthread_mutex_lock(&self.stripes[page % STRIPES])
        while True:
            old = load64(&self.map.page_table[page])
            result = self._load_page(to, page, old, &old_segment)
            if result == -EAGAIN:
                continue
            if result != 0:
                break
            if buf == NULL:
                memset(to + skip, 0, count)
            else:
                memcpy(to + skip, buf, count)
            new = page_entry(segment, ordinal)
            if page_is_same(to, &word):
                new = same_entry(word)
            point("write part: merged")
            # The old segment is still pinned: its number cannot have come round to the same entry.
            if cas64(&self.map.page_table[page], old, new):
                self._note_change(page)
                self._count_same(old, new)
                self.segments.retire(old)
                break
            if old_segment != NO_SEGMENT:
                self.segments.disk_unpin(old_segment)
        pthread_mutex_unlock(&self.stripes[page % STRIPES])
        if old_segment != NO_SEGMENT:
            self.segments.disk_unpin(old_segment)
        if result != 0 or kind_of(new) == SAME:
            self.segments.cancel(segment, 1, PAGE_BYTES)
        self.segments.unpin(segment)
        return result

    cdef int _load_page(self, char *to, uint64_t page, uint64_t entry, uint32_t *pinned) noexcept nogil:
        """Copy a page's old contents to `to`; its segment stays disk-pinned as `pinned`.

        -EAGAIN if the entry changed under us, -EIO if the page cannot be read.
        """
        cdef uint32_t segment
        cdef uint64_t place
        cdef int result
        pinned[0] = NO_SEGMENT
        if kind_of(entry) == SAME:
            fill_words(to, same_word(entry), 0, PAGE_BYTES)
            return 0
        if not is_piece(entry):
            memset(to, 0, PAGE_BYTES)
            return 0
        segment = segment_of(entry)
        self.segments.pin(segment)
        if load64(&self.map.page_table[page]) != entry:
            self.segments.unpin(segment)
            return -EAGAIN
        self.segments.disk_pin(segment)
        pinned[0] = segment
        place = self.segments.place(segment)
        if ram_of(place):
            if length_of(entry) == PAGE_BYTES:
                memcpy(to, self.map.slot(ram_of(place) - 1) + offset_of(entry), PAGE_BYTES)
                result = 0
            else:
                result = self.fetcher.unpack(to, PAGE_BYTES, 0, entry,
                                             self.map.slot(ram_of(place) - 1) + offset_of(entry))
            self.segments.unpin(segment)
            return result
        self.segments.unpin(segment)
        return self.fetcher.read(to, PAGE_BYTES, 0, segment, &entry, page)

    # Trims and zeroes.

    cdef int discard(self, uint64_t count, uint64_t offset, Waiter *waiter, bint keep) noexcept nogil:
        """Make the range read as zeros.  With `keep` its pages stay allocated (as same-filled entries)."""
        cdef int result = self.segments.turnstile.enter(waiter)
        if result == 0:
            result = self._discard(count, offset, waiter, keep)
            self.segments.turnstile.leave()
        return result

    cdef int _discard(self, uint64_t count, uint64_t offset, Waiter *waiter, bint keep) noexcept nogil:
        cdef uint64_t page, part, skip, old
        cdef int result
        while count:
            page = offset >> PAGE_SHIFT
            skip = offset & PAGE_MASK
            part = PAGE_BYTES - skip
            if part > count:
                part = count
            if not keep and not self.map.page_ready(page):
                # The whole table piece is absent already.
                part = (TABLE_PIECE_PAGES - page % TABLE_PIECE_PAGES) * PAGE_BYTES - skip
                if part > count:
                    part = count
            elif part == PAGE_BYTES:
                if keep:
                    result = self.segments.ensure_page(page, waiter)
                    if result != 0:
                        return result
                    self._publish(page, same_entry(0))
                elif load64(&self.map.page_table[page]) != ABSENT:
                    self._publish(page, ABSENT)
            else:
                old = self.entry(page)
                if (is_piece(old) or (kind_of(old) == SAME and same_word(old) != 0)
                        or (keep and old == ABSENT)):
                    result = self._write_part(NULL, <uint32_t> part, page, <uint32_t> skip, waiter)
                    if result != 0:
                        return result
            offset += part
            count -= part
        return 0

    # Extents.

    def extents(self, uint64_t count, uint64_t offset, bint one, int hole_type, int zero_type):
        """Runs of equal kind as (offset, length, type) from `offset` on; only the first with `one`.

        Absent pages are holes that read as zeros; same-filled pages of zeros read as zeros but are no
        holes.  At most 65,536 runs are returned; the client asks again for the rest.
        """
        cdef uint64_t end = offset + count, at = offset, start = offset, page, entry
        cdef int kind, current = -1
        result = []
        while at < end and len(result) < 65536:
            page = at >> PAGE_SHIFT
            entry = self.entry(page)
            kind = 0
            if kind_of(entry) == ABSENT:
                kind = hole_type | zero_type
            elif entry == same_entry(0):
                kind = zero_type
            if kind != current and at > start:
                result.append((start, at - start, current))
                start = at
                if one:
                    return result
            current = kind
            if self.map.page_ready(page):
                at = (page + 1) << PAGE_SHIFT
            else:
                at = (page - page % TABLE_PIECE_PAGES + TABLE_PIECE_PAGES) << PAGE_SHIFT
        if at > end:
            at = end
        if at > start:
            result.append((start, at - start, current))
        return result

    # For Python code that is not in a hurry: making a disk, tests.

    def write_bytes(self, bytes data, uint64_t offset):
        """Write `data` at `offset`; raises OSError."""
        cdef int result
        cdef const char *raw = data
        cdef uint64_t count = len(data)
        cdef Waiter waiter
        waiter.alive = NULL
        waiter.arg = NULL
        waiter.stalled_ns = 0
        if offset + count > self.size_bytes:
            raise OSError(errno.ENOSPC, "beyond the end of the disk")
        with nogil:
            result = self.write(raw, count, offset, &waiter, True)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def read_bytes(self, uint64_t count, uint64_t offset):
        """Read `count` bytes at `offset`; raises OSError."""
        cdef int result
        cdef bytearray data = bytearray(count)
        cdef char *raw = data
        cdef uint64_t done, missed
        if offset + count > self.size_bytes:
            raise OSError(errno.EINVAL, "beyond the end of the disk")
        with nogil:
            result = self.read(raw, count, offset, True, &done, &missed)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return bytes(data)

    # Helpers.

    cdef char *content(self, uint32_t segment) noexcept nogil:
        """Where a segment lies in RAM; it has a RAM slot, and the caller a pin or a claim."""
        return self.map.slot(ram_of(self.segments.place(segment)) - 1)
