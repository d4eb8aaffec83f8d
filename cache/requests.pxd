"""What is asked of a spill store over NBD: requests, the parts they are cut into, and lists of both.

Nothing here locks; traffic.pyx says who may touch what.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *sem, int shared, unsigned value) noexcept
    int sem_wait(sem_t *sem) noexcept
    int sem_post(sem_t *sem) noexcept
    int sem_destroy(sem_t *sem) noexcept

cdef enum:
    PARTS = 16              # of one request that wait or are in flight at once

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

# Lives on the stack of the thread that waits for it; belongs to the store until `done` is posted.
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
    uint64_t asked_ns
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


cdef inline void append_over(Parts *over, Part *part) noexcept nogil:
    part.next_over = NULL
    if over.last == NULL:
        over.first = part
    else:
        over.last.next_over = part
    over.last = part


cdef inline Part *take_over(Parts *over) noexcept nogil:
    """The first of them, NULL where there is none."""
    cdef Part *part = over.first
    if part != NULL:
        over.first = part.next_over
        if over.first == NULL:
            over.last = NULL
    return part


cdef inline void append_part(Parts *to, Part *part) noexcept nogil:
    part.next = NULL
    part.prev = to.last
    if to.last == NULL:
        to.first = part
    else:
        to.last.next = part
    to.last = part


cdef inline void prepend_part(Parts *to, Part *part) noexcept nogil:
    part.prev = NULL
    part.next = to.first
    if to.first == NULL:
        to.last = part
    else:
        to.first.prev = part
    to.first = part


cdef inline void remove_part(Parts *of, Part *part) noexcept nogil:
    if part.prev == NULL:
        of.first = part.next
    else:
        part.prev.next = part.next
    if part.next == NULL:
        of.last = part.prev
    else:
        part.next.prev = part.prev


cdef inline void append_request(Requests *to, Request *request) noexcept nogil:
    request.next = NULL
    request.prev = to.last
    if to.last == NULL:
        to.first = request
    else:
        to.last.next = request
    to.last = request


cdef inline void remove_request(Requests *of, Request *request) noexcept nogil:
    if request.prev == NULL:
        of.first = request.next
    else:
        request.prev.next = request.next
    if request.next == NULL:
        of.last = request.prev
    else:
        request.next.prev = request.prev
