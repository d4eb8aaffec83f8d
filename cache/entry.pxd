"""The 8-byte page entry and the segment's place word: how they are packed.

entry: bits 0-1 kind; same-filled: bits 32-63 the repeated word; piece: bits 2-14 length in bytes,
bits 15-35 byte offset in the segment, bits 36-63 segment number.  A piece of 4096 bytes is the page itself,
a shorter one is packed: with LZ4 (PIECE) or zstd (STRONG).
place: bits 0-3 state, bits 4-31 RAM slot + 1, bits 32-59 disk slot + 1; 0 is a free segment.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PAGE_SHIFT = 12
    PAGE_BYTES = 4096
    PAGE_MASK = 4095
    SEGMENT_SHIFT = 21
    SEGMENT_BYTES = 2097152
    PIECES = 509            # geometry.PIECES_PER_SEGMENT: whole pages that fit
    CHUNKS = 510            # of 4096 bytes, each sealed by itself on disk
    CONTENT_BYTES = 2088960  # CHUNKS * PAGE_BYTES: pieces from below, the reverse map from above
    RMAP_ENTRY_BYTES = 4
    MAX_COUNT = 65535       # pieces of one segment, however small
    TABLE_PIECE_PAGES = 512  # page entries in one 4 KiB table piece

cdef enum:
    ABSENT = 0
    SAME = 1
    PIECE = 2
    STRONG = 3

cdef enum:
    FREE = 0
    OPEN = 1        # being filled; writers hold pins
    DIRTY = 2       # full or closed, in RAM only
    WRITING = 3     # its disk slot is marked, the write is on its way
    CLEAN = 4       # in RAM and on disk
    DISK = 5        # on disk only
    DYING = 6       # nothing in it lives; the last pin frees it


cdef inline uint64_t same_entry(uint32_t word) noexcept nogil:
    return SAME | (<uint64_t> word << 32)


cdef inline uint32_t same_word(uint64_t entry) noexcept nogil:
    return <uint32_t> (entry >> 32)


cdef inline uint64_t piece_entry(int kind, uint32_t segment, uint32_t offset,
                                 uint32_t length) noexcept nogil:
    return <uint64_t> kind | (<uint64_t> length << 2) | (<uint64_t> offset << 15) | (<uint64_t> segment << 36)


cdef inline uint64_t page_entry(uint32_t segment, uint32_t index) noexcept nogil:
    """The entry of a whole page, the `index`-th of a segment that holds nothing else."""
    return piece_entry(PIECE, segment, index << PAGE_SHIFT, PAGE_BYTES)


cdef inline int kind_of(uint64_t entry) noexcept nogil:
    return <int> (entry & 3)


cdef inline uint32_t segment_of(uint64_t entry) noexcept nogil:
    return <uint32_t> (entry >> 36)


cdef inline uint32_t offset_of(uint64_t entry) noexcept nogil:
    return <uint32_t> ((entry >> 15) & 0x1fffff)


cdef inline uint32_t length_of(uint64_t entry) noexcept nogil:
    return <uint32_t> ((entry >> 2) & 0x1fff)


cdef inline bint is_piece(uint64_t entry) noexcept nogil:
    return kind_of(entry) >= PIECE


cdef inline uint32_t *rmap_of(char *content, uint32_t ordinal) noexcept nogil:
    """Where a segment's reverse map says which page its `ordinal`-th piece is; it grows downwards."""
    return <uint32_t *> (content + CONTENT_BYTES) - 1 - ordinal


cdef inline uint64_t place_of(int state, uint32_t ram_plus_1, uint32_t disk_plus_1) noexcept nogil:
    return <uint64_t> state | (<uint64_t> ram_plus_1 << 4) | (<uint64_t> disk_plus_1 << 32)


cdef inline int state_of(uint64_t place) noexcept nogil:
    return <int> (place & 15)


cdef inline uint32_t ram_of(uint64_t place) noexcept nogil:
    return <uint32_t> ((place >> 4) & 0xfffffff)


cdef inline uint32_t disk_of(uint64_t place) noexcept nogil:
    return <uint32_t> ((place >> 32) & 0xfffffff)
