"""Who owns which segment, RAM slot and disk slot; see segments.pyx."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from swaptide.cache.mapping cimport Mapping
from swaptide.cache.pthread cimport pthread_cond_t, pthread_mutex_t
from swaptide.cache.slots cimport Slots

cdef enum:
    NO_SEGMENT = 0xffffffff

# Who appends to an open segment of its own.
cdef enum:
    GUEST = 0
    COLD = 1        # the cleaner: pieces of any kind
    PACK = 2        # the packers
    SOLID = 3       # the packers: pages that do not shrink
    STRONG_PACK = 4  # the packers: packed anew, better
    HEADS = 5

# Sealed segments in RAM are listed by what is best done with them.
cdef enum:
    RAW = 0         # may shrink
    PACKED = 1      # has shrunk
    STIFF = 2       # does not shrink: the first to go to disk
    CLASSES = 3
    CLEANED = 3     # is on disk as well
    LISTS = 4

# Asked while a writer waits for RAM: is the client that sent the request still there?
ctypedef bint (*alive_t)(void *arg) noexcept nogil

cdef struct Waiter:
    alive_t alive
    void *arg
    uint64_t stalled_ns     # how long the request waited so far

cdef struct OpenSegment:
    uint32_t segment
    double age_sum
    uint64_t age_bytes


cdef class Segments:
    cdef Mapping map
    cdef Slots slots                # on disk
    cdef pthread_mutex_t lock
    cdef pthread_cond_t freed
    cdef int32_t frozen, changing   # whether nothing may change; requests that do
    cdef int64_t *live      # pieces << 32 | their bytes
    cdef int32_t *pins
    cdef int32_t *disk_pins
    cdef uint8_t *claimed
    cdef uint32_t *newer
    cdef uint32_t *older
    cdef uint32_t *free_ids
    cdef uint32_t *free_ram
    cdef uint32_t *hole_ram
    cdef uint32_t *punch_ram
    cdef uint32_t n_free_ids, n_free_ram, n_hole_ram, n_punch_ram
    cdef uint32_t used_ids, used_ram    # high-water marks: numbers never used lie above
    cdef uint32_t populated, populating, clean_segments, writing_segments
    cdef uint32_t dirty_segments[3]     # by class
    cdef uint32_t coldest[4]
    cdef uint32_t youngest[4]
    cdef uint32_t waiting, gift
    cdef bint cleaner_waits
    cdef OpenSegment heads[5]
    cdef uint64_t log_clock, write_clock    # as the state file has them; what it says later is not believed
    cdef uint64_t target_bytes
    cdef uint64_t private_bytes
    cdef uint64_t charged_bytes, granted_bytes      # of the tables: counted in the limit, and usable
    cdef uint32_t host_limit, keep_free
    cdef uint64_t guest_opened      # segments that the guest began to fill, since this process started
    cdef bint stopping
    cdef int kick_fd
    cdef int32_t kicked

    cdef int enter(self, Waiter *waiter) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef bint is_frozen(self) noexcept nogil
    cdef int reserve(self, int head, uint32_t want, uint32_t length, uint64_t age, Waiter *waiter,
                     uint32_t *segment, uint32_t *offset, uint32_t *ordinal) noexcept nogil
    cdef int ensure_page(self, uint64_t page, Waiter *waiter) noexcept nogil
    cdef void cancel(self, uint32_t segment, uint32_t pieces, uint32_t length) noexcept nogil
    cdef uint32_t live_bytes(self, uint32_t segment) noexcept nogil
    cdef uint32_t _weight(self, uint32_t segment) noexcept nogil
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

    cdef uint32_t claim_clean(self) noexcept nogil
    cdef uint32_t claim_to_discard(self, uint32_t keep) noexcept nogil
    cdef void end_discard(self, uint32_t slot, bint ok) noexcept nogil
    cdef uint32_t claim_for_disk(self) noexcept nogil
    cdef uint32_t claim_to_pack(self, uint32_t keep) noexcept nogil
    cdef uint32_t claim_to_strengthen(self) noexcept nogil
    cdef uint32_t claim_to_clean(self, bint on_disk, uint32_t below, bint by_age) noexcept nogil
    cdef void stiffen(self, uint32_t segment) noexcept nogil
    cdef uint32_t _next_dirty(self, uint32_t segment) noexcept nogil
    cdef uint32_t _coldest_of(self, int kind, int state, uint16_t without) noexcept nogil
    cdef void unclaim(self, uint32_t segment) noexcept nogil
    cdef bint begin_write(self, uint32_t segment) noexcept nogil
    cdef void end_write(self, uint32_t segment, int result) noexcept nogil
    cdef bint keep(self, uint32_t segment) noexcept nogil
    cdef void cannot_read(self, uint32_t slot) noexcept nogil
    cdef bint is_short(self) noexcept nogil
    cdef void drop(self, uint32_t segment) noexcept nogil
    cdef void mark(self, uint32_t segment, uint16_t flag) noexcept nogil
    cdef int populate(self, uint32_t count) noexcept nogil
    cdef int punch(self, uint32_t release) noexcept nogil
    cdef bint _take_due(self, uint32_t *slot, uint32_t *release) noexcept nogil

    cdef int _enter_frozen(self, Waiter *waiter) noexcept nogil
    cdef int _await_thaw(self, Waiter *waiter) noexcept nogil
    cdef int _wait(self, Waiter *waiter, bint changing) noexcept nogil
    cdef void _sleep(self, uint64_t nanoseconds) noexcept nogil
    cdef bint _is_alive(self, Waiter *waiter) noexcept nogil
    cdef void _blend_age(self, int head, uint64_t age, uint32_t nbytes) noexcept nogil
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
    cdef void _tally(self, int kind, int state, int by) noexcept nogil
    cdef int _list_of(self, uint32_t segment) noexcept nogil
    cdef int _class_of(self, uint32_t segment) noexcept nogil
    cdef uint32_t _room(self, int head, uint32_t length) noexcept nogil
    cdef bint _may_take_slot(self, int head) noexcept nogil
    cdef bint _may_take_disk(self, uint32_t segment) noexcept nogil
