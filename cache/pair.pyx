"""Two spill stores as one: their disk slots lie one behind the other, and nothing lies in both.

Offsets below `split` are the first store's, those from there on the second one's.  No request goes across.
Stateless: any thread, without the GIL.
"""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.store cimport Store


cdef class PairStore(Store):
    """Both begin with `base` bytes that are nobody's; the first one has `first_bytes` behind that."""

    def __cinit__(self, Store first, Store second, uint64_t base, uint64_t first_bytes):
        self.kept_first = first
        self.kept_second = second
        self.both.first = first.face
        self.both.second = second.face
        self.both.split = base + first_bytes
        self.both.shift = first_bytes
        self.face.of = &self.both
        self.face.read = pair_read
        self.face.write = pair_write
        self.face.mark = pair_mark
        self.face.commit = NULL
        self.face.discard = NULL
        if first.face.commit != NULL or second.face.commit != NULL:
            self.face.commit = pair_commit
        if first.face.discard != NULL or second.face.discard != NULL:
            self.face.discard = pair_discard
        self.face.align = max(first.face.align, second.face.align)

    def read_bytes(self, size_t count, uint64_t at):
        """`count` bytes at `at`; for tests.  Raises OSError."""
        cdef bytearray data = bytearray(count)
        cdef int result = self.face.read(self.face.of, data, count, at)
        if result < 0:
            raise OSError(-result, "read failed")
        return bytes(data)

    def write_bytes(self, bytes data, uint64_t at):
        """Write `data` at `at`; for tests.  Raises OSError."""
        cdef int result = self.face.write(self.face.of, data, len(data), at)
        if result < 0:
            raise OSError(-result, "write failed")


cdef int pair_read(void *of, char *buffer, size_t length, uint64_t at) noexcept nogil:
    cdef const Both *both = <const Both *> of
    if at < both.split:
        return both.first.read(both.first.of, buffer, length, at)
    return both.second.read(both.second.of, buffer, length, at - both.shift)


cdef int pair_write(void *of, const char *data, size_t length, uint64_t at) noexcept nogil:
    cdef const Both *both = <const Both *> of
    if at < both.split:
        return both.first.write(both.first.of, data, length, at)
    return both.second.write(both.second.of, data, length, at - both.shift)


cdef uint64_t pair_mark(void *of) noexcept nogil:
    """Both marks in one: they count lost connections, and 32 bits of that are enough for ever."""
    cdef const Both *both = <const Both *> of
    cdef uint64_t first = both.first.mark(both.first.of) if both.first.commit != NULL else 0
    cdef uint64_t second = both.second.mark(both.second.of) if both.second.commit != NULL else 0
    return second << 32 | <uint32_t> first


cdef int pair_commit(void *of, uint64_t mark, uint64_t at) noexcept nogil:
    cdef const Both *both = <const Both *> of
    if at < both.split:
        return 0 if both.first.commit == NULL else both.first.commit(both.first.of, <uint32_t> mark, at)
    if both.second.commit == NULL:
        return 0
    return both.second.commit(both.second.of, mark >> 32, at - both.shift)


cdef int pair_discard(void *of, uint64_t length, uint64_t at) noexcept nogil:
    cdef const Both *both = <const Both *> of
    if at < both.split:
        return 0 if both.first.discard == NULL else both.first.discard(both.first.of, length, at)
    if both.second.discard == NULL:
        return 0
    return both.second.discard(both.second.of, length, at - both.shift)
