"""Segments packed: page by page into a packer's open segment, until nothing lives in them any more.

Each worker has a packer of its own.  Runs without the GIL, in the packers' threads, and allocates nothing.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint32_t, uint64_t

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport count64, point
from swaptide.cache.claims cimport Claims
from swaptide.cache.codec cimport (
    CODEC_WORTH,
    pack_quick,
    pack_strong,
    packer_end,
    packer_init,
    unpack_quick,
)
from swaptide.cache.entry cimport ABSENT, PAGE_BYTES, PIECE, STRONG, kind_of, length_of, offset_of
from swaptide.cache.log cimport Log
from swaptide.cache.relocate cimport live_entry, move_piece
from swaptide.cache.segments cimport PACK, SOLID, STRONG_PACK
from swaptide.cache.words cimport (
    PACK_TRIED_PAGES,
    PACKED_TOTAL_BYTES,
    PACKED_TOTAL_PAGES,
    STRENGTHENED_SEGMENTS,
)

cdef enum:
    # Of a segment's pages, how many are tried before all of them are; and with how few that shrink it is
    # left as it is.
    SAMPLE = 16
    SAMPLE_LEAST = 4


cdef class Packer:
    """Packs one segment at a time."""

    def __cinit__(self, Log log, Claims claims):
        self.log = log
        self.segments = log.segments
        self.claims = claims
        if packer_init(&self.by) != 0:
            raise MemoryError()

    def __dealloc__(self):
        packer_end(&self.by)

    cdef int pack(self, uint32_t keep, bint strong) noexcept nogil:
        """Pack one segment, as `Moves.pack` says."""
        cdef uint32_t segment = self.claims.claim_to_pack(keep)
        cdef int result
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.claims.unclaim(segment)
            return 0
        if not self._shrinks(segment, strong):
            self.claims.stiffen(segment)
            self.claims.unclaim(segment)
            return 2
        result = self._pack_live(segment, strong)
        self.claims.unclaim(segment)
        return result

    cdef bint _shrinks(self, uint32_t segment, bint strong) noexcept nogil:
        """Try some of a segment's live pages, from all over it."""
        cdef char *content = self.log.content(segment)
        cdef uint32_t count = self.log.map.segment_table[segment].count, ordinal = 0, page
        # Odd: what alternates shows both.
        cdef uint32_t step = (count / SAMPLE) | 1
        cdef uint64_t entry
        cdef int tried = 0, shrunk = 0
        while ordinal < count:
            entry = live_entry(self.log, segment, content, ordinal, &page)
            ordinal += step
            if entry == ABSENT:
                continue
            tried += 1
            if length_of(entry) < PAGE_BYTES or self._pack_page(content + offset_of(entry), strong):
                shrunk += 1
        # A segment of its own for the odd page costs more RAM than the page does among the others.
        self.all_shrink = shrunk == tried
        # Where too little lives to tell, packing costs nothing.
        return shrunk >= SAMPLE_LEAST or tried < SAMPLE / 2

    cdef int _pack_page(self, const char *page, bint strong) noexcept nogil:
        """Pack a page to `piece`: its length, 0 where it is not worth it."""
        if strong:
            return pack_strong(&self.by, page, self.piece, CODEC_WORTH)
        return pack_quick(&self.by, page, self.piece)

    cdef int _pack_live(self, uint32_t segment, bint strong) noexcept nogil:
        cdef char *content = self.log.content(segment)
        cdef uint32_t count = self.log.map.segment_table[segment].count, ordinal, page, length
        cdef uint64_t old
        cdef int64_t tried = 0, shrunk = 0, nbytes = 0
        cdef int head, kind, result = 1
        cdef char *piece
        for ordinal in range(count):
            old = live_entry(self.log, segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            piece = content + offset_of(old)
            length = length_of(old)
            kind = kind_of(old)
            head = PACK
            if length == PAGE_BYTES:
                tried += 1
                length = self._pack_page(piece, strong)
                if length:
                    shrunk += 1
                    nbytes += length
                    piece = self.piece
                    kind = STRONG if strong else PIECE
                else:
                    length = PAGE_BYTES
                    if not self.all_shrink:
                        head = SOLID
            point("pack: packed")
            if move_piece(self.log, head, page, old, kind, piece, length) < 0:
                result = -EAGAIN
                break
        count64(&self.log.map.counters[PACK_TRIED_PAGES], tried)
        count64(&self.log.map.counters[PACKED_TOTAL_PAGES], shrunk)
        count64(&self.log.map.counters[PACKED_TOTAL_BYTES], nbytes)
        return result

    cdef int strengthen(self) noexcept nogil:
        """Pack one packed segment anew, as `Moves.strengthen` says."""
        cdef uint32_t segment = self.claims.claim_to_strengthen(), ordinal, page, length, shorter
        cdef uint32_t count
        cdef uint64_t old
        cdef char *content
        cdef char *piece
        cdef int kind, result = 1
        if segment == NO_SEGMENT:
            return 0
        if not self.segments.wait_unpinned(segment):
            self.claims.unclaim(segment)
            return 0
        content = self.log.content(segment)
        count = self.log.map.segment_table[segment].count
        for ordinal in range(count):
            old = live_entry(self.log, segment, content, ordinal, &page)
            if old == ABSENT:
                continue
            piece = content + offset_of(old)
            length = length_of(old)
            kind = kind_of(old)
            if kind == PIECE and length < PAGE_BYTES and unpack_quick(piece, length, self.page):
                shorter = pack_strong(&self.by, self.page, self.piece, length - length / 16)
                if shorter:
                    piece = self.piece
                    length = shorter
                    kind = STRONG
            point("strengthen: packed")
            if move_piece(self.log, STRONG_PACK, page, old, kind, piece, length) < 0:
                result = -EAGAIN
                break
        if result == 1:
            count64(&self.log.map.counters[STRENGTHENED_SEGMENTS], 1)
        self.claims.unclaim(segment)
        return result
