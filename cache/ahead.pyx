"""Read-ahead along the log: who reads a segment's chunks in order gets the next ones with them.

Pages that a guest swapped out together lie together, and tend to come back together.  A read that begins
where the last one of the same segment ended (or a little behind it) doubles what is read at once, up to 128
KiB; reads at random places never do.  Where what was read ahead is not asked for before it makes room, the
most is halved, down to nothing for a while.  (As in Linux's file read-ahead: Wu Fengguang and others, "On the
design of a new Linux readahead framework", 2008.)

What is kept here is as it lies on disk, sealed: it is opened by whoever asks, each for itself.  A window is
known by the number of the write that made its segment, which is never another's.  Memory is made at the
start.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.atomics cimport count64
from swaptide.cache.entry cimport CHUNKS, PAGE_BYTES
from swaptide.cache.image cimport STRIDE, Spill, chunks_read
from swaptide.cache.pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from swaptide.cache.words cimport READ_AHEAD_HITS, READ_AHEAD_PAGES, SPILL_READ_BYTES

cdef enum:
    FIRST_CHUNKS = 8        # the first time that a read goes on where another ended
    GAP_CHUNKS = 2          # so much may be left out between them: dead pieces
    RETRY_READS = 256       # reads that went on, after which it is tried again


cdef class Ahead:
    """Windows for one disk; `counters` are its words."""

    def __cinit__(self):
        cdef void *memory
        cdef int i
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.filled, NULL)
        self.most = WINDOW_CHUNKS
        if posix_memalign(&memory, PAGE_BYTES, WINDOWS * WINDOW_BYTES) != 0:
            raise MemoryError()
        memset(memory, 0, WINDOWS * WINDOW_BYTES)
        self.memory = <char *> memory
        for i in range(WINDOWS):
            self.windows[i].memory = self.memory + i * WINDOW_BYTES

    def __dealloc__(self):
        free(self.memory)
        pthread_cond_destroy(&self.filled)
        pthread_mutex_destroy(&self.lock)

    cdef int find(self, const Spill *spill, uint64_t write, uint32_t slot, uint32_t first, uint32_t count,
                  char **chunks) noexcept nogil:
        """The window that holds `count` chunks of a disk-pinned segment, and where in it they are; read now
        if they are read in order.  -1: none, read them yourself.  Give it back with `release`.
        """
        cdef Window *window
        cdef uint32_t size
        cdef int result
        pthread_mutex_lock(&self.lock)
        self.tick += 1
        window = self._holding(write, first, count)
        size = self._follow(write, first, count)
        if window != NULL:
            window.users += 1
            while window.filling:
                pthread_cond_wait(&self.filled, &self.lock)
            if window.write == write:
                window.used += count
                window.tick = self.tick
                chunks[0] = window.start + <uint64_t> (first - window.first) * STRIDE
                pthread_mutex_unlock(&self.lock)
                count64(&self.counters[READ_AHEAD_HITS], count)
                return <int> (window - self.windows)
            window.users -= 1       # it could not be read
        if size <= count:
            pthread_mutex_unlock(&self.lock)
            return -1
        window = self._take()
        if window == NULL:
            pthread_mutex_unlock(&self.lock)
            return -1
        size = min(size, <uint32_t> CHUNKS - first)
        window.write = write
        window.first = first
        window.count = size
        window.used = window.wanted = count
        window.users = 1
        window.tick = self.tick
        window.filling = True
        pthread_mutex_unlock(&self.lock)
        result = chunks_read(window.memory, spill, slot, first, size, &window.start)
        pthread_mutex_lock(&self.lock)
        window.filling = False
        if result != 0:
            # What is bad may be what nobody asked for.
            window.write = 0
            window.users -= 1
        pthread_cond_broadcast(&self.filled)
        pthread_mutex_unlock(&self.lock)
        if result != 0:
            return -1
        count64(&self.counters[SPILL_READ_BYTES], size * STRIDE)
        count64(&self.counters[READ_AHEAD_PAGES], size - count)
        chunks[0] = window.start
        return <int> (window - self.windows)

    cdef void release(self, int window) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.windows[window].users -= 1
        pthread_mutex_unlock(&self.lock)

    cdef Window *_holding(self, uint64_t write, uint32_t first, uint32_t count) noexcept nogil:
        cdef int i
        cdef Window *window
        for i in range(WINDOWS):
            window = &self.windows[i]
            if (window.write == write and window.first <= first
                    and first + count <= window.first + window.count):
                return window
        return NULL

    cdef uint32_t _follow(self, uint64_t write, uint32_t first, uint32_t count) noexcept nogil:
        """Chunks to read at once: more than 0 where this read goes on where another ended."""
        cdef int i
        cdef Stream *stream = &self.streams[0]
        for i in range(STREAMS):
            if (self.streams[i].write == write and self.streams[i].next <= first
                    and first <= self.streams[i].next + GAP_CHUNKS):
                stream = &self.streams[i]
                stream.size = min(2 * stream.size if stream.size else <uint32_t> FIRST_CHUNKS,
                                  <uint32_t> WINDOW_CHUNKS)
                self.asked += 1
                if self.most == 0 and self.asked % RETRY_READS == 0:
                    self.most = FIRST_CHUNKS
                break
            if self.streams[i].tick < stream.tick:
                stream = &self.streams[i]
        else:
            stream.write = write
            stream.size = 0
        stream.next = first + count
        stream.tick = self.tick
        return min(stream.size, self.most)

    cdef Window *_take(self) noexcept nogil:
        """The window that was asked for longest ago and that nobody uses; learns from how it went."""
        cdef int i
        cdef Window *window = NULL
        cdef uint32_t ahead
        for i in range(WINDOWS):
            if self.windows[i].users == 0 and (window == NULL or self.windows[i].tick < window.tick):
                window = &self.windows[i]
        if window != NULL and window.write != 0:
            ahead = window.count - window.wanted
            if (window.used - window.wanted) * 2 >= ahead:
                self.most = min(max(2 * self.most, <uint32_t> FIRST_CHUNKS), <uint32_t> WINDOW_CHUNKS)
            elif (window.used - window.wanted) * 4 < ahead:
                self.most = self.most / 2 if self.most > FIRST_CHUNKS else 0
            window.write = 0
        return window
