"""A spill store over NBD; see remote.pyx."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from swaptide.cache.libnbd cimport nbd_handle
from swaptide.cache.pthread cimport pthread_mutex_t
from swaptide.cache.store cimport Store


cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *sem, int shared, unsigned value) noexcept
    int sem_wait(sem_t *sem) noexcept
    int sem_post(sem_t *sem) noexcept
    int sem_destroy(sem_t *sem) noexcept

cdef enum:
    LANES = 4               # connections, where the server knows how to serve several as one
    PARTS = 16              # of one request that wait or are in flight at once
    REASON_BYTES = 200

# What is asked for.
cdef enum:
    READ = 0
    WRITE = 1
    DISCARD = 2
    COMMIT = 3
    FLUSH = 4               # the store's own, for all commits that wait

# Where a request is.
cdef enum:
    ACTIVE = 0              # its parts are waiting or in flight
    UNFLUSHED = 1           # a commit that waits for the next flush
    FLUSHING = 2            # one that came before the flush that is in flight
    HELD = 3                # done, but what a lost connection holds of it might still come
    STAGES = 4

cdef struct Parts:
    Part *first
    Part *last

cdef struct Part:
    Request *of
    Part *next              # in a queue, or in flight on a lane
    Part *prev
    Part *next_over
    char *buffer
    uint64_t at
    uint64_t length
    int lane                # -1: not in flight
    int error               # once it ended
    bint busy

# Lives on the stack of the thread that waits for it; belongs to the loop until `done` is posted.
cdef struct Request:
    Parts *over             # where its parts go when they end
    Request *next
    Request *prev
    int kind
    int stage
    char *buffer
    uint64_t length
    uint64_t at             # of a commit: the losses before its writes
    uint64_t planned        # bytes that have been cut into parts
    uint64_t deadline_ns    # 0: it waits for ever
    uint64_t held_until_ns
    uint32_t flying         # parts that wait or are in flight
    int result
    bint doubled            # a part of it may be on its way twice
    sem_t done
    Part parts[PARTS]

cdef struct Requests:
    Request *first
    Request *last

cdef struct Lane:
    nbd_handle *handle      # NULL: not connected
    Parts flying
    uint32_t n_flying
    uint64_t load           # bytes in flight
    uint64_t progress_ns    # when something was answered last, or the first of what is in flight was sent
    uint32_t events         # as epoll knows them
    int fd
    bint lost               # and not told of yet
    char reason[REASON_BYTES]


cdef class RemoteStore(Store):
    # Any thread:
    cdef pthread_mutex_t lock
    cdef Request *incoming_first
    cdef Request *incoming_last
    cdef bint ended
    cdef int32_t up, waiting        # lanes; requests that are not answered
    cdef uint64_t losses            # lanes so far that broke
    cdef int kick_fd
    # Whoever holds this one, the loop's thread or one that asks:
    cdef pthread_mutex_t work
    cdef int epoll_fd
    cdef Lane lanes[LANES]
    cdef Parts reads, others, over
    cdef Request *answered          # their threads are not woken yet
    cdef Requests stages[STAGES]
    cdef Request flush
    cdef bint flushing, wary
    cdef uint64_t quiet_until_ns
    # Set before the first request:
    cdef uint64_t read_ns, stall_ns, drain_ns
    cdef uint64_t write_ns          # 0: changes wait for ever
    cdef uint64_t down_ns           # since when there is no lane, where there is none
    # As the server wants it:
    cdef uint64_t most_bytes, least_bytes
    cdef bint can_flush, can_fua, can_trim

    cdef int ask(self, int kind, char *buffer, uint64_t length, uint64_t at,
                 uint64_t patience_ns) noexcept nogil
    cdef void _kick(self) noexcept nogil
    cdef void _take_in(self) noexcept nogil
    cdef void _combine(self) noexcept nogil
    cdef void _leave_work(self) noexcept nogil
    cdef bint _has_mail(self) noexcept nogil
    cdef void _plan(self, Request *request) noexcept nogil
    cdef void _send_all(self) noexcept nogil
    cdef bint _send_next(self, Parts *queue) noexcept nogil
    cdef int _choose(self, int kind) noexcept nogil
    cdef void _start_flush(self) noexcept nogil
    cdef bint _attach(self, int index, nbd_handle *handle) noexcept nogil
    cdef void _hear(self, int index, uint32_t events) noexcept nogil
    cdef void _watch(self, int index) noexcept nogil
    cdef void _settle(self) noexcept nogil
    cdef void _requeue(self, Part *part) noexcept nogil
    cdef void _ended(self, Part *part) noexcept nogil
    cdef void _advance(self, Request *request) noexcept nogil
    cdef void _flushed(self, int error) noexcept nogil
    cdef void _answer(self, Request *request) noexcept nogil
    cdef void _lose(self, int index, const char *reason) noexcept nogil
    cdef void _doubt(self) noexcept nogil
    cdef bint _is_hopeless(self, uint64_t now) noexcept nogil
    cdef void _beware(self) noexcept nogil
    cdef void _take_commit(self, Request *request) noexcept nogil
    cdef void _withdraw(self, Request *request) noexcept nogil
    cdef void _give_up(self, Request *request, int result) noexcept nogil
    cdef void _sweep(self) noexcept nogil
    cdef void _move(self, Request *request, int stage) noexcept nogil
