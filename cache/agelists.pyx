"""Sealed segments that are in RAM, in lists by what is best done with them, each coldest first.

All of it belongs to whoever holds the lock of the turnstile.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from swaptide.cache.mapping cimport Mapping


cdef class AgeLists:
    """The lists of one disk.  A segment is in one at most, and keeps its age as long as it is."""

    def __cinit__(self, Mapping map):
        cdef uint32_t n = map.segments
        cdef int kind
        self.map = map
        # Zeroed lazily by the kernel: what is never used costs nothing.
        self.newer = <uint32_t *> calloc(n, 4)
        self.older = <uint32_t *> calloc(n, 4)
        if self.newer == NULL or self.older == NULL:
            raise MemoryError()
        for kind in range(LISTS):
            self.coldest[kind] = self.youngest[kind] = NO_SEGMENT

    def __dealloc__(self):
        free(self.newer)
        free(self.older)

    cdef void link(self, int kind, uint32_t segment) noexcept nogil:
        cdef uint64_t age = self.map.segment_table[segment].age
        cdef uint32_t after, before
        if self.youngest[kind] == NO_SEGMENT or self.map.segment_table[self.youngest[kind]].age <= age:
            after = self.youngest[kind]
        else:
            # The cleaner's segments are old: look for their place from the cold end.
            before = self.coldest[kind]
            while self.map.segment_table[before].age <= age:
                before = self.newer[before]
            after = self.older[before]
        before = self.coldest[kind] if after == NO_SEGMENT else self.newer[after]
        self.older[segment] = after
        self.newer[segment] = before
        if after == NO_SEGMENT:
            self.coldest[kind] = segment
        else:
            self.newer[after] = segment
        if before == NO_SEGMENT:
            self.youngest[kind] = segment
        else:
            self.older[before] = segment

    cdef void unlink(self, int kind, uint32_t segment) noexcept nogil:
        cdef uint32_t after = self.older[segment], before = self.newer[segment]
        if after == NO_SEGMENT:
            self.coldest[kind] = before
        else:
            self.newer[after] = before
        if before == NO_SEGMENT:
            self.youngest[kind] = after
        else:
            self.older[before] = after
