"""The mapped state file, and everything that allocates or frees its memory.

Traps of tmpfs that this file exists for (docs/design.md, "Neither too much nor too late"): reading a hole
through a mapping allocates it, so table pieces are tracked in a directory and no load or store touches one
that is not there; with huge pages a first small touch may take 2 MiB, so the tables are mapped NOHUGEPAGE; a
store that cannot allocate is SIGBUS, so everything is populated by a system call that can fail.

Thread-safe: pieces only ever appear, under `grow_lock`; RAM slots are populated and punched by
whoever owns their number.
"""

import errno
import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from posix.mman cimport MAP_FAILED, MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t

from swaptide.cache.atomics cimport count64, load8, mortal, peek64, store8
from swaptide.cache.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from swaptide.cache import geometry


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *addr, size_t length, int advice) noexcept
    int mlock2(const void *addr, size_t length, unsigned flags) noexcept
    enum: MLOCK_ONFAULT
    enum: MADV_NOHUGEPAGE
    enum: MADV_HUGEPAGE
    enum: MADV_DONTDUMP
    enum: MAP_ANONYMOUS
    enum: MAP_PRIVATE
    enum: MAP_NORESERVE
    enum: PROT_NONE

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, off_t offset, off_t length) noexcept

cdef enum:
    # Linux 5.14; older headers lack the name.  Fails with an error where a plain touch would SIGBUS.
    ADVICE_POPULATE_WRITE = 23
    PUNCH_AND_KEEP_SIZE = 3
    SEGMENT_SHIFT = 21
    PAGE_SHIFT = 12


cdef class Mapping:
    """Maps the state file `fd` laid out as `shape`, a geometry.Geometry; keeps the descriptor, not owning it.

    `create` populates the header pages of a fresh file.  Raises OSError when the host refuses the memory.
    """

    def __cinit__(self):
        self.tables = NULL
        self.pool = NULL
        pthread_mutex_init(&self.grow_lock, NULL)

    def __init__(self, int fd, shape, bint create):
        self.fd = fd
        self.pages = shape.pages
        self.segments = shape.segments
        self.ram_slots = shape.ram_slots
        self.disk_slots = shape.disk_slots
        self.first_slots = shape.first_slots
        self.tables_bytes = shape.tables_end
        self.pool_offset = shape.pool_offset
        self.pool_bytes = shape.ram_slots << SEGMENT_SHIFT
        self.directory_offset = geometry.DIRECTORY_OFFSET
        self.directory_pages = shape.directory_bytes
        self.segment_table_offset = shape.segment_table_offset
        self.page_table_offset = shape.page_table_offset
        self._map()
        if create:
            self._populate_header(shape.segment_table_offset)
        self._count_pieces()

    def __dealloc__(self):
        if self.tables != NULL:
            munmap(self.tables, self.tables_bytes)
        if self.pool != NULL:
            munmap(self.pool, self.pool_bytes)
        pthread_mutex_destroy(&self.grow_lock)

    cdef int _map(self) except -1:
        cdef void *where = mmap(NULL, self.tables_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if where == MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno))
        self.tables = <char *> where
        madvise(self.tables, self.tables_bytes, MADV_NOHUGEPAGE)
        self.pool = self._map_pool()
        # Guest memory has no business in a core dump.
        madvise(self.pool, self.pool_bytes, MADV_DONTDUMP)
        madvise(self.pool, self.pool_bytes, MADV_HUGEPAGE)
        self.control = <uint64_t *> (self.tables + <uint64_t> geometry.CONTROL_OFFSET)
        self.counters = <uint64_t *> (self.tables + <uint64_t> geometry.COUNTERS_OFFSET)
        self.histograms = <uint64_t *> (self.tables + <uint64_t> geometry.HISTOGRAMS_OFFSET)
        self.ages = <uint64_t *> (self.tables + <uint64_t> geometry.AGES_OFFSET)
        self.directory = <uint8_t *> (self.tables + self.directory_offset)
        self.segment_table = <SegmentEntry *> (self.tables + self.segment_table_offset)
        self.page_table = <uint64_t *> (self.tables + self.page_table_offset)
        return 0

    cdef char *_map_pool(self) except NULL:
        # Aligned to a huge page in memory as it is in the file, else none can be mapped whole.
        cdef uint64_t span = self.pool_bytes + (1 << SEGMENT_SHIFT)
        cdef void *room = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        cdef uintptr_t start
        cdef void *where
        if room == MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno))
        start = (<uintptr_t> room + (1 << SEGMENT_SHIFT) - 1) & ~(<uintptr_t> (1 << SEGMENT_SHIFT) - 1)
        where = mmap(<void *> start, self.pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                     self.fd, <off_t> self.pool_offset)
        if where == MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno))
        if start > <uintptr_t> room:
            munmap(room, start - <uintptr_t> room)
        munmap(<void *> (start + self.pool_bytes), <uintptr_t> room + span - start - self.pool_bytes)
        return <char *> where

    def _populate_header(self, uint64_t length):
        if madvise(self.tables, length, ADVICE_POPULATE_WRITE) != 0:
            raise OSError(errno.ENOMEM, "the host has no memory for the state file's tables")

    cdef int _count_pieces(self) except -1:
        cdef uint64_t i, n = (self.tables_bytes - self.segment_table_offset) >> PAGE_SHIFT
        self.table_pieces = 0
        for i in range(n):
            self.table_pieces += load8(&self.directory[i])
        return 0

    # Table pieces: 4 KiB each, segment table first, page table behind it, one directory byte each.

    cdef bint page_ready(self, uint64_t page) noexcept nogil:
        cdef uint64_t index = (self.page_table_offset - self.segment_table_offset + page * 8) >> PAGE_SHIFT
        return load8(&self.directory[index]) != 0

    cdef int page_ensure(self, uint64_t page) noexcept nogil:
        cdef uint64_t index = (self.page_table_offset - self.segment_table_offset + page * 8) >> PAGE_SHIFT
        if load8(&self.directory[index]):
            return 0
        return self._grow(index)

    cdef bint segment_ready(self, uint32_t segment) noexcept nogil:
        return load8(&self.directory[(<uint64_t> segment * sizeof(SegmentEntry)) >> PAGE_SHIFT]) != 0

    cdef int segment_ensure(self, uint32_t segment) noexcept nogil:
        cdef uint64_t index = (<uint64_t> segment * sizeof(SegmentEntry)) >> PAGE_SHIFT
        if load8(&self.directory[index]):
            return 0
        return self._grow(index)

    cdef int _grow(self, uint64_t index) noexcept nogil:
        cdef int result = 0
        cdef char *where = self.tables + self.segment_table_offset + (index << PAGE_SHIFT)
        pthread_mutex_lock(&self.grow_lock)
        if not load8(&self.directory[index]):
            if madvise(where, 1 << PAGE_SHIFT, ADVICE_POPULATE_WRITE) == 0:
                mortal("grow: piece made")
                # The piece is there, zeroed, before anybody may look at it.
                store8(&self.directory[index], 1)
                count64(&self.table_pieces, 1)
            else:
                result = -1
        pthread_mutex_unlock(&self.grow_lock)
        return result

    # RAM slots: 2 MiB each, one huge page where the host gives one.

    cdef char *slot(self, uint32_t slot) noexcept nogil:
        return self.pool + (<uint64_t> slot << SEGMENT_SHIFT)

    cdef int slot_populate(self, uint32_t slot) noexcept nogil:
        return madvise(self.slot(slot), 1 << SEGMENT_SHIFT, ADVICE_POPULATE_WRITE)

    cdef int slot_punch(self, uint32_t first, uint32_t count) noexcept nogil:
        return fallocate(self.fd, PUNCH_AND_KEEP_SIZE,
                         <off_t> (self.pool_offset + (<uint64_t> first << SEGMENT_SHIFT)),
                         <off_t> (<uint64_t> count << SEGMENT_SHIFT))

    cdef uint64_t metadata_bytes(self) noexcept nogil:
        return self.segment_table_offset + (peek64(&self.table_pieces) << PAGE_SHIFT)

    def lock_on_fault(self):
        """Have the kernel keep in RAM what gets there; locks are not inherited by a fork.  Raises OSError."""
        # Not mlock, which would make every page of a sparse pool.
        if (mlock2(self.tables, self.tables_bytes, MLOCK_ONFAULT) != 0
                or mlock2(self.pool, self.pool_bytes, MLOCK_ONFAULT) != 0):
            raise OSError(c_errno, os.strerror(c_errno))

    # Words, for the Python parts of this room.

    def control_word(self, int index):
        """The control word at `index` of layout.CONTROL."""
        return peek64(&self.control[index])

    def set_control_word(self, int index, uint64_t value):
        """Store a control word; only at creation, later the daemon owns them."""
        self.control[index] = value

    def counter_word(self, int index):
        """The counter at `index` of layout.COUNTERS."""
        return peek64(&self.counters[index])

    def set_counter_word(self, int index, uint64_t value):
        """Store a counter that Python code owns (gauges; never one that the hot path adds to)."""
        self.counters[index] = value

    def write_text(self, Py_ssize_t start, Py_ssize_t most, bytes raw):
        """Store words for people, at `start` of the header, and nothing else in the `most` bytes there."""
        cdef Py_ssize_t i
        for i in range(most):
            self.tables[start + i] = raw[i] if i < len(raw) else 0

    def write_identity(self, bytes raw):
        """Write the identity page, the last step of making a state file."""
        cdef Py_ssize_t i
        for i in range(len(raw)):
            self.tables[i] = raw[i]
