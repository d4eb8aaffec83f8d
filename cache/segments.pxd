"""Who owns which segment, RAM slot and disk slot; see segments.pyx."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    NO_SEGMENT = 0xffffffff
    COLD_FLAG = 1       # written by the cleaner
    BAD_FLAG = 2        # its tags do not match; the cleaner leaves it alone until a restart
    SUSPECT_FLAG = 4    # its read failed; tried again after a while

cdef enum:
    GUEST = 0
    COLD = 1
    HEADS = 2

# Asked while a writer waits for RAM: is the client that sent the request still there?
ctypedef bint (*alive_t)(void *arg) noexcept nogil

cdef struct Waiter:
    alive_t alive
    void *arg
    uint64_t stalled_ns     # how long the request waited so far

cdef struct OpenSegment:
    uint32_t segment
    uint32_t fill
    double age_sum
    uint32_t age_pieces


cdef class Segments:
    cdef Mapping map
    cdef pthread_mutex_t lock
    cdef pthread_cond_t freed
    cdef int32_t *live
    cdef int32_t *pins
    cdef int32_t *disk_pins
    cdef uint8_t *claimed
    cdef uint32_t *newer
    cdef uint32_t *older
    cdef uint32_t *free_ids
    cdef uint32_t *free_ram
    cdef uint32_t *hole_ram
    cdef uint32_t *punch_ram
    cdef uint32_t *free_disk
    cdef uint32_t n_free_ids, n_free_ram, n_hole_ram, n_punch_ram, n_free_disk
    cdef uint32_t n_suspect_disk, failed_writes     # of the free ones; writes that failed so far
    cdef uint32_t used_ids, used_ram, used_disk     # high-water marks: numbers never used lie above
    cdef uint32_t populated, populating, clean_segments, dirty_segments, writing_segments
    cdef uint32_t coldest, youngest
    cdef uint32_t waiting, gift
    cdef bint cleaner_waits
    cdef OpenSegment heads[2]
    cdef uint64_t log_clock, write_clock    # as the state file has them; what it says later is not believed
    cdef uint64_t target_bytes
    cdef uint64_t private_bytes
    cdef uint64_t charged_bytes, granted_bytes      # of the tables: counted in the limit, and usable
    cdef uint32_t host_limit
    cdef bint stopping
    cdef int kick_fd
    cdef int32_t kicked

    cdef int reserve(self, int head, uint32_t want, Waiter *waiter, uint32_t *segment,
                     uint32_t *index) noexcept nogil
    cdef int ensure_page(self, uint64_t page, Waiter *waiter) noexcept nogil
    cdef void cancel(self, uint32_t segment, int32_t pieces) noexcept nogil
    cdef void retire(self, uint64_t entry) noexcept nogil
    cdef void pin(self, uint32_t segment) noexcept nogil
    cdef void unpin(self, uint32_t segment) noexcept nogil
    cdef void disk_pin(self, uint32_t segment) noexcept nogil
    cdef void disk_unpin(self, uint32_t segment) noexcept nogil
    cdef bint wait_unpinned(self, uint32_t segment) noexcept nogil
    cdef uint64_t place(self, uint32_t segment) noexcept nogil
    cdef void set_place(self, uint32_t segment, uint64_t place) noexcept nogil
    cdef void kick(self) noexcept nogil
    cdef uint32_t limit(self) noexcept nogil
    cdef void blend_age(self, uint64_t age, uint32_t pieces) noexcept nogil

    cdef uint32_t claim_coldest(self, int state) noexcept nogil
    cdef uint32_t claim_emptiest(self, bint on_disk, int32_t below) noexcept nogil
    cdef void unclaim(self, uint32_t segment) noexcept nogil
    cdef bint begin_write(self, uint32_t segment) noexcept nogil
    cdef void end_write(self, uint32_t segment, bint ok) noexcept nogil
    cdef void drop(self, uint32_t segment) noexcept nogil
    cdef void mark(self, uint32_t segment, uint32_t flag) noexcept nogil
    cdef int populate(self, uint32_t count) noexcept nogil
    cdef int punch(self, uint32_t release) noexcept nogil
    cdef bint _take_due(self, uint32_t *slot, uint32_t *release) noexcept nogil

    cdef uint32_t _take_disk(self) noexcept nogil
    cdef void _suspect_disk(self, uint32_t slot) noexcept nogil
    cdef int _wait(self, Waiter *waiter) noexcept nogil
    cdef bint _is_cleanable(self, uint32_t segment, bint on_disk) noexcept nogil
    cdef bint _wants_grant(self) noexcept nogil
    cdef bint _lacks_cleaner_slot(self) noexcept nogil
    cdef bint _open(self, int head) noexcept nogil
    cdef void _seal(self, int head) noexcept nogil
    cdef void _reap(self, uint32_t segment) noexcept nogil
    cdef void _reap_unlocked(self, uint32_t segment) noexcept nogil
    cdef void _free(self, uint32_t segment) noexcept nogil
    cdef void _free_slot(self, uint32_t slot) noexcept nogil
    cdef void _link(self, uint32_t segment) noexcept nogil
    cdef void _unlink(self, uint32_t segment) noexcept nogil
    cdef void _tally(self, int state, int by) noexcept nogil
    cdef bint _may_take_slot(self, int head) noexcept nogil
    cdef bint _may_take_disk(self, uint32_t segment) noexcept nogil
