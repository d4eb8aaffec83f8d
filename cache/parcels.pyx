"""A disk's pages on their way to another disk: which have changed, out of one log as they lie, into another.

A parcel is what stands for one page: 8 bytes (page, length, kind, flags) and as many bytes as `length` says,
which are the piece as the log has it, packed or whole, or the word of a same-filled page, or nothing.  A page
that lies whole is packed for the way if that shrinks it; a flag says so, and it is whole again over there.

`Outgoing` marks what clients change from its `begin` on; it and `Incoming` belong to one thread each, and
give up the GIL for all of their work.
"""

import os

from libc.errno cimport EINVAL, EIO
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munlock,
)

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport count64, load32, peek64, set_bit, store32, store64, swap64
from swaptide.cache.codec cimport (
    CODEC_LEAST,
    CODEC_WORTH,
    pack_quick,
    packer,
    packer_end,
    packer_init,
    unpack_quick,
    unpack_strong,
    unpacker,
    unpacker_end,
    unpacker_init,
)
from swaptide.cache.entry cimport (
    ABSENT,
    PAGE_BYTES,
    PAGE_SHIFT,
    PIECE,
    SAME,
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
    same_entry,
    same_word,
    segment_of,
)
from swaptide.cache.fetch cimport BOUNCE_BYTES, BOUNCE_CHUNKS, Fetcher
from swaptide.cache.image cimport NO_PAGE, STRIDE, chunk_open, chunks_read, piece_copy
from swaptide.cache.log cimport Log
from swaptide.cache.mapping cimport ALIGNED_FLAG
from swaptide.cache.segments cimport PACK, STRONG_PACK, Segments
from swaptide.cache.turnstile cimport Waiter
from swaptide.cache.words cimport SPILL_READ_BYTES, SPILL_READ_ERRORS

cdef extern from "<sys/mman.h>" nogil:
    enum: MADV_DONTNEED

cdef enum:
    WINDOW_PAGES = 16384        # sorted together, by where they lie
    # Chunks between two that are wanted which are read as well rather than asked for the second one later.
    GAP_CHUNKS = 4
    WORD_BYTES = 4
    STEP_BYTES = 1 << 30
    # Of a parcel: packed for the way only.
    WHOLE_FLAG = 1

cdef struct Head:
    uint32_t page
    uint16_t length
    uint8_t kind
    uint8_t flags

cdef struct Item:
    uint64_t where      # segment and offset, or what a page without a piece has
    uint64_t page

assert sizeof(Head) == 8


cdef int by_where(const void *a, const void *b) noexcept nogil:
    cdef uint64_t one = (<const Item *> a).where, other = (<const Item *> b).where
    return (one > other) - (one < other)


cdef uint64_t walk(Log log, uint64_t *map) noexcept nogil:
    """How many pages there are; each is marked in `map`, if there is one."""
    cdef uint64_t page = 0, found = 0
    while page < log.map.pages:
        if page % TABLE_PIECE_PAGES == 0 and not log.map.page_ready(page):
            page += TABLE_PIECE_PAGES
            continue
        if log.entry(page) != ABSENT:
            found += 1
            if map != NULL:
                set_bit(map, page)
        page += 1
    return found


cdef class Outgoing:
    """What of `log` has yet to be sent.  One for each log at a time."""

    cdef Log log
    cdef Segments segments
    cdef Fetcher fetcher
    cdef uint64_t *map
    cdef uint64_t words         # of the map
    cdef uint64_t cursor        # the next of them that is looked at
    cdef Item *window
    cdef uint32_t n, at
    cdef bint over              # the map was looked through to its end
    # What lies open, or sealed, in the bounce buffer: some chunks of one image.
    cdef char *buffer
    cdef char *chunks
    cdef uint32_t of, first, count
    cdef uint64_t write, opened
    cdef packer by
    cdef readonly uint64_t failed_page

    def __cinit__(self, Log log, Segments segments):
        cdef void *map
        self.log = log
        self.segments = segments
        self.fetcher = log.fetcher
        self.words = (log.map.pages + 63) >> 6
        # Never given back, since a writer may have looked where it is just before the end; but emptied.
        map = <void *> log.changes_map
        if map == NULL:
            map = mmap(NULL, self.words * 8, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            if map == MAP_FAILED:
                raise MemoryError()
            # Memory that is locked cannot be emptied, and there is nothing of the guest's in it.
            munlock(map, self.words * 8)
            log.changes_map = <uint64_t> map
        self.map = <uint64_t *> map
        self.window = <Item *> malloc(WINDOW_PAGES * sizeof(Item))
        if packer_init(&self.by) != 0 or self.window == NULL:
            raise MemoryError()

    def __dealloc__(self):
        packer_end(&self.by)
        free(self.window)

    def begin(self):
        """Mark everything that there is, and from now on what changes.  Returns how many pages that are."""
        cdef uint64_t marked
        with nogil:
            madvise(self.map, self.words * 8, MADV_DONTNEED)
            store64(&self.log.changes, <uint64_t> self.map)
            marked = walk(self.log, self.map)
        return marked

    def end(self):
        """Mark nothing any more."""
        with nogil:
            store64(&self.log.changes, 0)
            madvise(self.map, self.words * 8, MADV_DONTNEED)

    def stored(self):
        """How many pages the log has, same-filled ones too."""
        cdef uint64_t found
        with nogil:
            found = walk(self.log, NULL)
        return found

    def pending(self):
        """How many pages have yet to be sent, as of now."""
        cdef uint64_t i, word, found = self.n - self.at
        with nogil:
            for i in range(self.words):
                word = peek64(&self.map[i])
                while word:
                    word &= word - 1
                    found += 1
        return found

    def fill(self, unsigned char[::1] out):
        """Put the next parcels into `out`; returns their bytes and how many they are.

        (0, 0) at the end of each round, when every page that was marked as it began has been taken.  Raises
        OSError where a page cannot be read from its store; `failed_page` is which.
        """
        cdef uint64_t used = 0, pages = 0
        cdef int result
        if out.shape[0] < <Py_ssize_t> sizeof(Head) + PAGE_BYTES:
            raise ValueError("no room for a page")
        with nogil:
            result = self._fill(<char *> &out[0], out.shape[0], &used, &pages)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return used, pages

    cdef int _fill(self, char *out, uint64_t room, uint64_t *used, uint64_t *pages) noexcept nogil:
        cdef int result = 0
        if self.over and self.at == self.n:
            self.over = False
            return 0
        self.of = NO_SEGMENT
        self.buffer = self.fetcher.take_bounce()
        while room - used[0] >= sizeof(Head) + PAGE_BYTES:
            if self.at == self.n and (self.over or not self._gather()):
                break
            result = self._put(out + used[0], self.window[self.at].page)
            if result < 0:
                self.failed_page = self.window[self.at].page
                break
            self.at += 1
            used[0] += <uint64_t> result
            pages[0] += 1
        self.fetcher.give_bounce(self.buffer)
        if self.over and pages[0] == 0:
            self.over = False
        return result if result < 0 else 0

    cdef bint _gather(self) noexcept nogil:
        """Take marks off the map, and sort their pages by where they lie.  False at the end of the map."""
        cdef uint64_t word, page, entry
        cdef Item *item
        self.n = self.at = 0
        while self.cursor < self.words and self.n + 64 <= WINDOW_PAGES:
            if peek64(&self.map[self.cursor]):
                # Before the entries are loaded: what is published from here on is marked again.
                word = swap64(&self.map[self.cursor], 0)
                page = self.cursor << 6
                while word:
                    if word & 1:
                        item = &self.window[self.n]
                        entry = self.log.entry(page)
                        item.where = entry >> 15 if is_piece(entry) else 0
                        item.page = page
                        self.n += 1
                    word >>= 1
                    page += 1
            self.cursor += 1
        if self.cursor == self.words:
            self.cursor = 0
            self.over = True
        qsort(self.window, self.n, sizeof(Item), by_where)
        return self.n > 0

    cdef int _put(self, char *out, uint64_t page) noexcept nogil:
        """Put one parcel, which takes so many bytes; or -EIO."""
        cdef Head head
        cdef uint64_t entry, place
        cdef uint32_t segment, word
        cdef char packed[CODEC_WORTH]
        cdef char *to = out + sizeof(Head)
        cdef int result = 0
        head.page = <uint32_t> page
        head.flags = 0
        while True:
            entry = self.log.entry(page)
            head.kind = <uint8_t> kind_of(entry)
            head.length = 0
            if head.kind == ABSENT:
                break
            if head.kind == SAME:
                word = same_word(entry)
                memcpy(to, &word, WORD_BYTES)
                head.length = WORD_BYTES
                break
            head.length = <uint16_t> length_of(entry)
            segment = segment_of(entry)
            self.segments.pin(segment)
            if self.log.entry(page) != entry:
                self.segments.unpin(segment)
                continue
            place = self.segments.place(segment)
            if ram_of(place):
                memcpy(to, self.log.map.slot(ram_of(place) - 1) + offset_of(entry), head.length)
                self.segments.unpin(segment)
                break
            self.segments.disk_pin(segment)
            self.segments.unpin(segment)
            result = self._from_disk(to, page, entry, disk_of(place) - 1)
            self.segments.disk_unpin(segment)
            if result < 0:
                count64(&self.log.map.counters[SPILL_READ_ERRORS], 1)
                return -EIO
            break
        if head.kind == PIECE and head.length == PAGE_BYTES:
            result = pack_quick(&self.by, to, packed)
            if result > 0:
                memcpy(to, packed, result)
                head.length = <uint16_t> result
                head.flags = WHOLE_FLAG
        memcpy(out, &head, sizeof(Head))
        return <int> (sizeof(Head) + head.length)

    cdef int _from_disk(self, char *to, uint64_t page, uint64_t entry, uint32_t slot) noexcept nogil:
        """Copy a piece out of a disk-pinned segment to `to`, as it is."""
        cdef uint32_t segment = segment_of(entry), at = offset_of(entry), length = length_of(entry)
        cdef uint32_t first = at >> PAGE_SHIFT, last = (at + length - 1) >> PAGE_SHIFT, i, as_page
        cdef uint64_t write = self.log.map.segment_table[segment].write
        cdef int which = <int> ((self.buffer - self.fetcher.bounce_memory) / BOUNCE_BYTES)
        cdef char *chunk
        if (self.of != segment or self.write != write or first < self.first
                or last >= self.first + self.count):
            self.of = NO_SEGMENT
            self.count = self._find_end(segment, first, last) - first
            if chunks_read(self.buffer, &self.fetcher.spill, slot, first, self.count, &self.chunks) != 0:
                return -EIO
            count64(&self.log.map.counters[SPILL_READ_BYTES], self.count * STRIDE)
            self.of = segment
            self.write = write
            self.first = first
            self.opened = 0
        as_page = <uint32_t> page if self.log.map.segment_table[segment].flags & ALIGNED_FLAG else NO_PAGE
        for i in range(first, last + 1):
            if self.opened >> (i - self.first) & 1:
                continue
            chunk = self.chunks + (i - self.first) * STRIDE
            if not chunk_open(chunk, &self.fetcher.sealers[which], chunk, &self.fetcher.spill, write, slot, i,
                              as_page):
                return -EIO
            self.opened |= <uint64_t> 1 << (i - self.first)
        piece_copy(to, self.chunks, self.first, at, length)
        return 0

    cdef uint32_t _find_end(self, uint32_t segment, uint32_t first, uint32_t last) noexcept nogil:
        """Behind which chunk to stop reading: what is wanted next of the same segment comes along."""
        cdef uint32_t i = self.at + 1, chunk
        while i < self.n and self.window[i].where >> 21 == segment:
            chunk = <uint32_t> (self.window[i].where & 0x1fffff) >> PAGE_SHIFT
            if chunk > last + GAP_CHUNKS or chunk >= first + BOUNCE_CHUNKS:
                break
            last = max(last, chunk)
            i += 1
        return last + 1


cdef bint is_wanted(void *arg) noexcept nogil:
    return load32(<int32_t *> arg) == 0


cdef class Incoming:
    """Pages that come into `log`.  `cancel` may be called by any thread: whoever waits for room gives up."""

    cdef Log log
    cdef Segments segments
    cdef Waiter waiter
    cdef unpacker undo
    cdef int32_t cancelled

    def __cinit__(self, Log log, Segments segments):
        self.log = log
        self.segments = segments
        self.waiter.alive = is_wanted
        self.waiter.arg = &self.cancelled
        self.waiter.stalled_ns = 0
        if unpacker_init(&self.undo) != 0:
            raise MemoryError()

    def __dealloc__(self):
        unpacker_end(&self.undo)

    def cancel(self):
        """Give up."""
        store32(&self.cancelled, 1)
        self.segments.turnstile.wake_waiters()

    def stored(self):
        """How many pages the log has, same-filled ones too."""
        cdef uint64_t found
        with nogil:
            found = walk(self.log, NULL)
        return found

    def clear(self):
        """Empty the log; raises OSError where that was cancelled."""
        cdef uint64_t at = 0, part
        cdef int result = 0
        with nogil:
            while at < self.log.size_bytes and result == 0:
                part = min(<uint64_t> STEP_BYTES, self.log.size_bytes - at)
                result = self.log.discard(part, at, &self.waiter, False)
                at += part
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def take(self, const unsigned char[::1] parcels):
        """Take parcels in, and wait for room as a guest's writes do; returns how many pages they were.

        Raises ValueError for what are none, when some may have been taken, OSError where it was cancelled.
        """
        cdef uint64_t pages = 0
        cdef int result = 0
        if parcels.shape[0]:
            with nogil:
                result = self._take(<const char *> &parcels[0], parcels.shape[0], &pages)
        if result == -EINVAL:
            raise ValueError(f"parcel {pages} of {parcels.shape[0]} bytes makes no sense")
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return pages

    cdef int _take(self, const char *at, uint64_t left, uint64_t *pages) noexcept nogil:
        cdef Head head
        cdef int result
        while left:
            if left < sizeof(Head):
                return -EINVAL
            memcpy(&head, at, sizeof(Head))
            at += sizeof(Head)
            left -= sizeof(Head)
            if head.length > left or head.page >= self.log.map.pages or (
                    head.flags and (head.flags != WHOLE_FLAG or head.kind != PIECE
                                    or head.length == PAGE_BYTES)):
                return -EINVAL
            result = self.segments.turnstile.enter(&self.waiter)
            if result == 0:
                result = self._take_one(&head, at)
                self.segments.turnstile.leave()
            if result < 0:
                return result
            at += head.length
            left -= head.length
            pages[0] += 1
        return 0

    cdef int _take_one(self, const Head *head, const char *data) noexcept nogil:
        cdef uint32_t word
        cdef int result
        if head.kind == ABSENT:
            if head.length:
                return -EINVAL
            if self.log.entry(head.page) != ABSENT:
                self.log._publish(head.page, ABSENT)
            return 0
        if head.kind == SAME:
            if head.length != WORD_BYTES:
                return -EINVAL
            memcpy(&word, data, WORD_BYTES)
            result = self.segments.ensure_page(head.page, &self.waiter)
            if result == 0:
                self.log._publish(head.page, same_entry(word))
            return result
        if head.length == PAGE_BYTES and head.kind == PIECE:
            return self.log._write_pages(data, head.page, 1, &self.waiter)
        return self._take_packed(head, data)

    cdef int _take_packed(self, const Head *head, const char *data) noexcept nogil:
        cdef char page[PAGE_BYTES]
        cdef char *content
        cdef uint32_t segment, offset, ordinal
        cdef int result
        cdef int to = STRONG_PACK if head.kind == STRONG else PACK
        if head.kind > STRONG or not CODEC_LEAST <= head.length <= CODEC_WORTH:
            return -EINVAL
        if not (unpack_strong(&self.undo, data, head.length, page) if head.kind == STRONG
                else unpack_quick(data, head.length, page)):
            return -EINVAL
        if head.flags & WHOLE_FLAG:
            return self.log._write_pages(page, head.page, 1, &self.waiter)
        result = self.segments.ensure_page(head.page, &self.waiter)
        if result != 0:
            return result
        # Of the packers' slots, who never wait; where they have none it comes in as a guest's page would.
        if self.segments.reserve(to, 1, head.length, peek64(&self.segments.log_clock), NULL, &segment,
                                 &offset, &ordinal) < 0:
            return self.log._write_pages(page, head.page, 1, &self.waiter)
        content = self.log.content(segment)
        memcpy(content + offset, data, head.length)
        rmap_of(content, ordinal)[0] = head.page
        self.log._publish(head.page, piece_entry(head.kind, segment, offset, head.length))
        self.segments.unpin(segment)
        return 0
