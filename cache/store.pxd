"""What a spill store can do for the core, whatever it is; see store.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from swaptide.cache.pthread cimport pthread_mutex_t

# All of `length` bytes at `at`: 0 or a negative errno.  From any thread, without the GIL; the caller's buffer
# is not touched any more when they return.
ctypedef int (*store_read_t)(void *of, char *buffer, size_t length, uint64_t at) noexcept nogil
# The bytes are safe once what was written is committed.
ctypedef int (*store_write_t)(void *of, const char *data, size_t length, uint64_t at) noexcept nogil
# Of now: what `commit` is given for writes that began after it.
ctypedef uint64_t (*store_mark_t)(void *of) noexcept nogil
# Have all that was written since the mark be as safe as the store can make it; of a store that is two, all in
# the one that has the offset `at`.  -EAGAIN: it may be lost, though nothing failed; write it anew.
ctypedef int (*store_commit_t)(void *of, uint64_t mark, uint64_t at) noexcept nogil
# Nothing there matters any more.
ctypedef int (*store_discard_t)(void *of, uint64_t length, uint64_t at) noexcept nogil

cdef struct store_face:
    void *of
    store_read_t read
    store_write_t write
    store_mark_t mark
    store_commit_t commit       # NULL: what is written is safe at once
    store_discard_t discard     # NULL: it keeps its space whatever happens
    uint32_t align              # of offsets, lengths and buffers, in bytes; a power of two up to 4096


cdef class Store:
    cdef store_face face


cdef struct SpillFd:
    int fd
    uint32_t align
    pthread_mutex_t *in_turn    # NULL where writes are direct: an error is that of its write


cdef class FileStore(Store):
    cdef SpillFd at
    cdef pthread_mutex_t lock
