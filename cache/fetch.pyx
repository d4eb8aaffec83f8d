"""Pieces brought to where they are wanted: read from disk, opened, put together and unpacked.

Runs in nbdkit's threads, with or without the GIL; a read waits for the disk and for a bounce buffer.
"""

import errno

from libc.errno cimport EIO
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.ahead cimport Ahead
from swaptide.cache.atomics cimport count64
from swaptide.cache.codec cimport unpack_quick, unpack_strong, unpacker_end, unpacker_init
from swaptide.cache.entry cimport (
    PAGE_BYTES,
    PAGE_MASK,
    PAGE_SHIFT,
    STRONG,
    disk_of,
    kind_of,
    length_of,
    offset_of,
)
from swaptide.cache.image cimport NO_PAGE, STRIDE, chunk_open, chunks_read, piece_copy
from swaptide.cache.mapping cimport ALIGNED_FLAG
from swaptide.cache.pthread cimport (
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from swaptide.cache.seal cimport seal_end, seal_init, sealer
from swaptide.cache.segments cimport Segments
from swaptide.cache.store cimport Store
from swaptide.cache.words cimport SPILL_READ_BYTES, SPILL_READ_ERRORS


cdef class Fetcher:
    """Brings the pieces of one disk.

    Disk slots begin at `base` of the store; `disk_seed` is 64 bits of the disk's id; `key` is None where the
    disk is not encrypted.
    """

    def __cinit__(self, Segments segments, Store store, uint64_t base, uint64_t disk_seed,
                  const unsigned char[:] key):
        cdef int i
        cdef void *memory
        self.map = segments.map
        self.segments = segments
        self.ahead = Ahead()
        self.ahead.counters = self.map.counters
        self.store = store
        self.spill.store = store.face
        self.spill.base = base
        self.spill.disk_seed = disk_seed
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.bounce_free, NULL)
        pthread_cond_init(&self.unpacker_free, NULL)
        if posix_memalign(&memory, PAGE_BYTES, BOUNCE_BUFFERS * BOUNCE_BYTES) != 0:
            raise MemoryError()
        # Touched now: it is part of the process's base, and a miss under pressure must not allocate.
        memset(memory, 0, BOUNCE_BUFFERS * BOUNCE_BYTES)
        self.bounce_memory = <char *> memory
        for i in range(BOUNCE_BUFFERS):
            self.bounce[i] = self.bounce_memory + i * BOUNCE_BYTES
            if seal_init(&self.sealers[i], &key[0] if key is not None else NULL) != 0:
                raise OSError(errno.ENOTSUP, "OpenSSL has no AES-256-GCM")
        self.bounces = BOUNCE_BUFFERS
        for i in range(UNPACKERS):
            if unpacker_init(&self.unpackers[i]) != 0:
                raise MemoryError()
            self.free_unpackers[i] = i
        self.n_unpackers = UNPACKERS

    def __dealloc__(self):
        cdef int i
        for i in range(UNPACKERS):
            unpacker_end(&self.unpackers[i])
        pthread_cond_destroy(&self.bounce_free)
        pthread_cond_destroy(&self.unpacker_free)
        pthread_mutex_destroy(&self.lock)
        for i in range(BOUNCE_BUFFERS):
            seal_end(&self.sealers[i])
        free(self.bounce_memory)

    cdef int read(self, char *buf, uint64_t count, uint32_t skip, uint32_t segment, uint64_t *entries,
                  uint64_t page) noexcept nogil:
        """Read pages from `page` on; their pieces lie one behind the other in a disk-pinned segment."""
        cdef uint32_t slot = disk_of(self.segments.place(segment)) - 1
        cdef uint64_t write = self.map.segment_table[segment].write, part
        cdef bint aligned = self.map.segment_table[segment].flags & ALIGNED_FLAG
        cdef uint32_t pages = <uint32_t> ((skip + count + PAGE_MASK) >> PAGE_SHIFT), i
        cdef uint32_t first = offset_of(entries[0]) >> PAGE_SHIFT
        cdef uint32_t chunks = ((offset_of(entries[pages - 1]) + length_of(entries[pages - 1]) - 1)
                                >> PAGE_SHIFT) - first + 1
        cdef char *chunk
        cdef char *plain
        cdef char *buffer = self.take_bounce()
        cdef int which = <int> ((buffer - self.bounce_memory) / BOUNCE_BYTES)
        cdef sealer *by = &self.sealers[which]
        cdef uint32_t opened = 0
        cdef int result = 0, window = self.ahead.find(&self.spill, write, slot, first, chunks, &chunk)
        if window < 0:
            result = chunks_read(buffer, &self.spill, slot, first, chunks, &chunk)
            count64(&self.map.counters[SPILL_READ_BYTES], chunks * STRIDE)
        # Where they are opened to: in place, but never in a window, which is others' as well.
        plain = chunk if window < 0 else buffer
        for i in range(pages):
            if result != 0:
                break
            part = min(<uint64_t> PAGE_BYTES - skip, count)
            if aligned:
                # A chunk is the page: opened to where it is wanted.
                if not chunk_open(buf if part == PAGE_BYTES else plain, by, chunk, &self.spill, write, slot,
                                  first + i, <uint32_t> (page + i)):
                    result = -EIO
                elif part < PAGE_BYTES:
                    memcpy(buf, plain + skip, part)
                chunk += STRIDE
                plain += STRIDE
            else:
                result = self._open_piece(buf, part, skip, entries[i], chunk, plain, first, &opened, which,
                                          slot, write)
            buf += part
            count -= part
            skip = 0
        if window >= 0:
            self.ahead.release(window)
        self.give_bounce(buffer)
        if result != 0:
            count64(&self.map.counters[SPILL_READ_ERRORS], 1)
            result = -EIO
        return result

    cdef int _open_piece(self, char *buf, uint64_t count, uint32_t skip, uint64_t entry, char *chunks,
                         char *plain, uint32_t first, uint32_t *opened, int which, uint32_t slot,
                         uint64_t write) noexcept nogil:
        """Take one piece out of `chunks`, which begin with the segment's `first`; `opened` of these lie open
        in `plain`, as far apart."""
        cdef char piece[PAGE_BYTES]
        cdef uint32_t at = offset_of(entry), length = length_of(entry)
        cdef uint32_t last = ((at + length - 1) >> PAGE_SHIFT) - first
        while opened[0] <= last:
            if not chunk_open(plain + opened[0] * STRIDE, &self.sealers[which], chunks + opened[0] * STRIDE,
                              &self.spill, write, slot, first + opened[0], NO_PAGE):
                return -EIO
            opened[0] += 1
        piece_copy(piece, plain, first, at, length)
        if length == PAGE_BYTES:
            memcpy(buf, piece + skip, count)
            return 0
        return self.unpack(buf, count, skip, entry, piece)

    cdef int unpack(self, char *buf, uint64_t count, uint32_t skip, uint64_t entry,
                    char *piece) noexcept nogil:
        """Unpack `count` bytes from `skip` on of the page whose piece this is.  0 or -EIO."""
        cdef char page[PAGE_BYTES]
        cdef char *to = buf if count == PAGE_BYTES else page
        cdef int which
        cdef bint good
        if kind_of(entry) == STRONG:
            # Who has one waits for nothing: a pin may be held meanwhile.
            which = self._take_unpacker()
            good = unpack_strong(&self.unpackers[which], piece, length_of(entry), to)
            self._give_unpacker(which)
        else:
            good = unpack_quick(piece, length_of(entry), to)
        if not good:
            return -EIO
        if to != buf:
            memcpy(buf, page + skip, count)
        return 0

    cdef char *take_bounce(self) noexcept nogil:
        cdef char *buffer
        pthread_mutex_lock(&self.lock)
        while self.bounces == 0:
            pthread_cond_wait(&self.bounce_free, &self.lock)
        self.bounces -= 1
        buffer = self.bounce[self.bounces]
        pthread_mutex_unlock(&self.lock)
        return buffer

    cdef void give_bounce(self, char *buffer) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.bounce[self.bounces] = buffer
        self.bounces += 1
        pthread_cond_signal(&self.bounce_free)
        pthread_mutex_unlock(&self.lock)

    cdef int _take_unpacker(self) noexcept nogil:
        cdef int which
        pthread_mutex_lock(&self.lock)
        while self.n_unpackers == 0:
            pthread_cond_wait(&self.unpacker_free, &self.lock)
        self.n_unpackers -= 1
        which = self.free_unpackers[self.n_unpackers]
        pthread_mutex_unlock(&self.lock)
        return which

    cdef void _give_unpacker(self, int which) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.free_unpackers[self.n_unpackers] = which
        self.n_unpackers += 1
        pthread_cond_signal(&self.unpacker_free)
        pthread_mutex_unlock(&self.lock)
