"""Segments written out by several workers at once, each with a staging buffer and cipher contexts.

Called by the movers in worker threads; the writing runs without the GIL and allocates nothing.
"""

import errno

from libc.errno cimport EAGAIN
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport count64, mortal, point
from swaptide.cache.claims cimport Claims
from swaptide.cache.entry cimport PAGE_BYTES, SEGMENT_BYTES, disk_of
from swaptide.cache.footprint cimport slots_punch
from swaptide.cache.image cimport image_commit, image_make, image_write
from swaptide.cache.log cimport Log
from swaptide.cache.seal cimport seal_end, seal_init
from swaptide.cache.store cimport store_face
from swaptide.cache.words cimport SPILL_WRITE_ERRORS, SPILL_WRITTEN_BYTES, WRITTEN_AHEAD_SEGMENTS

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *addr, size_t length, int advice) noexcept
    enum: MADV_DONTNEED

cdef enum:
    ADVICE_POPULATE_WRITE = 23          # Linux 5.14: an error where a plain touch would be a signal
    ADVICE_DONTNEED_LOCKED = 24         # Linux 5.18: also what mlockall locked
    # Segments of one worker that a store is asked to keep at once: until then they hold their RAM.
    COMMIT_BATCH = 4


cdef class Spiller:
    """Writes for `workers`, of whom no two calls at once may name the same.

    `key` is the disk's, None where it is not encrypted.
    """

    def __cinit__(self, Log log, Claims claims, int workers, const unsigned char[:] key):
        cdef void *memory
        cdef int i
        if workers > MAX_SPILLERS:
            raise ValueError(f"at most {MAX_SPILLERS} spillers")
        self.log = log
        self.segments = log.segments
        self.claims = claims
        self.workers = workers
        if posix_memalign(&memory, PAGE_BYTES, workers * SEGMENT_BYTES) != 0:
            raise MemoryError()
        memset(memory, 0, workers * SEGMENT_BYTES)
        self.memory = <char *> memory
        for i in range(workers):
            self.staged[i] = True
            if seal_init(&self.sealers[i], &key[0] if key is not None else NULL) != 0:
                raise OSError(errno.ENOTSUP, "OpenSSL has no AES-256-GCM")

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_SPILLERS):
            seal_end(&self.sealers[i])
        free(self.memory)

    def is_staged(self, int worker):
        """Whether a worker's staging buffer is there."""
        return bool(self.staged[worker])

    def stage(self, int worker):
        """Have a worker's staging buffer there; false where the host does not give it."""
        cdef int result = 0
        if not self.staged[worker]:
            with nogil:
                result = madvise(self.memory + worker * SEGMENT_BYTES, SEGMENT_BYTES, ADVICE_POPULATE_WRITE)
            self.staged[worker] = result == 0
        return bool(self.staged[worker])

    def unstage(self):
        """Give the staging buffers back to the host; no worker may be busy.

        Worker 0's stays, as the cleaner's does: who has to write under pressure never waits for memory to
        do it in.
        """
        cdef char *buffer
        cdef int i
        for i in range(1, self.workers):
            buffer = self.memory + i * SEGMENT_BYTES
            if self.staged[i] and (madvise(buffer, SEGMENT_BYTES, ADVICE_DONTNEED_LOCKED) == 0
                                   or madvise(buffer, SEGMENT_BYTES, MADV_DONTNEED) == 0):
                self.staged[i] = False

    cdef int spill(self, int worker, int most, bint give_back) noexcept nogil:
        """Write up to `most` dirty segments, by turn; with `give_back` drop each at once.

        How many; 0: none to be had; -errno: the store failed.  The worker's staging buffer has to be there.
        What a store has to be asked to keep is asked for some at a time.
        """
        cdef int result = 0, done = 0, n = 0, last
        cdef Written written[COMMIT_BATCH]
        cdef const store_face *store = &self.log.fetcher.spill.store
        cdef uint64_t mark = 0
        while done < most and not self.segments.turnstile.is_frozen():
            if n == 0 and store.commit != NULL:
                mark = store.mark(store.of)
            result = self._spill(worker, &written[n])
            if result <= 0:
                break
            done += 1
            if written[n].segment != NO_SEGMENT:
                n += 1
            if store.commit == NULL or n == COMMIT_BATCH:
                result = self._settle(written, n, mark, give_back)
                n = 0
                if result < 0:
                    break
            if done < most and not self.claims.is_short():
                break
        if n:
            last = self._settle(written, n, mark, give_back)
            if last < 0:
                result = last
        return result if result < 0 else done

    cdef int _spill(self, int worker, Written *written) noexcept nogil:
        """Write one segment, which is `written` then and still claimed; NO_SEGMENT if it had died."""
        cdef char *image = self.memory + worker * SEGMENT_BYTES
        cdef uint32_t segment = self.claims.claim_for_disk()
        cdef int result
        written.segment = NO_SEGMENT
        if segment == NO_SEGMENT:
            return 0
        if self.segments.live_bytes(segment) == 0 or not self.segments.wait_unpinned(segment):
            self.claims.unclaim(segment)
            return 1
        if not self.claims.begin_write(segment):
            self.claims.unclaim(segment)
            return 0
        written.slot = disk_of(self.segments.place(segment)) - 1
        point("spill: slot marked")
        result = image_make(image, &self.sealers[worker], self.log.content(segment), &self.log.fetcher.spill,
                            &self.log.map.segment_table[segment], written.slot)
        if result == 0:
            result = image_write(image, &self.log.fetcher.spill, written.slot)
        mortal("spill: written")
        if result != 0:
            self.claims.end_write(segment, result)
            self.claims.unclaim(segment)
            count64(&self.log.map.counters[SPILL_WRITE_ERRORS], 1)
            return result
        written.segment = segment
        return 1

    cdef int _settle(self, const Written *written, int n, uint64_t mark, bint give_back) noexcept nogil:
        """Have what was written kept by the stores that have it, and then be clean, or dropped.

        0 or -errno: of that store, whose part of it is as it was.
        """
        cdef int store, result = 0, failed
        for store in range(self.segments.disk.stores):
            failed = self._settle_in(store, written, n, mark, give_back)
            if failed and (result == 0 or result == -EAGAIN):
                result = failed
        return result

    cdef int _settle_in(self, int store, const Written *written, int n, uint64_t mark,
                        bint give_back) noexcept nogil:
        cdef int i, result = 0
        cdef bint any = False
        for i in range(n):
            if self.segments.disk.store_of(written[i].slot) != store:
                continue
            if not any and self.log.fetcher.spill.store.commit != NULL:
                result = image_commit(&self.log.fetcher.spill, mark, written[i].slot)
            if not any:
                mortal("spill: committed")
            any = True
            self.claims.end_write(written[i].segment, result)
            if result != 0:
                self.claims.unclaim(written[i].segment)
                continue
            count64(&self.log.map.counters[SPILL_WRITTEN_BYTES], SEGMENT_BYTES)
            if give_back and self.claims.is_short():
                # A store may fail again by now.
                if not self.claims.keep(written[i].segment):
                    self.claims.drop(written[i].segment)
                    slots_punch(self.segments, 0)
            else:
                self.claims.unclaim(written[i].segment)
            if not give_back:
                count64(&self.log.map.counters[WRITTEN_AHEAD_SEGMENTS], 1)
        if result != 0 and result != -EAGAIN:
            count64(&self.log.map.counters[SPILL_WRITE_ERRORS], 1)
        return result
