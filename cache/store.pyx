"""Where spilled segments go: the face that the core sees of any store, and the file or device behind it.

A store is called from many threads at once, by its function pointers, without the GIL.  Over the network it
is remote.pyx.
"""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport off_t

from swaptide.cache.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset) noexcept
    ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset) noexcept

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags) noexcept
    enum: RWF_DSYNC


cdef class Store:
    """A store; `face` is what the core takes of it, and holds as long as the object lives."""


cdef class FileStore(Store):
    """A file or block device, open as `fd` for I/O with offsets and buffers aligned to `align` bytes.

    It is `direct`, or goes through the page cache.  The descriptor stays the caller's.
    """

    def __cinit__(self, int fd, uint32_t align, bint direct):
        pthread_mutex_init(&self.lock, NULL)
        self.at.fd = fd
        self.at.align = align
        self.at.in_turn = NULL if direct else &self.lock
        self.face.of = &self.at
        self.face.read = file_read
        self.face.write = file_write
        self.face.mark = NULL
        self.face.commit = NULL
        self.face.discard = NULL    # its space is reserved
        self.face.align = align

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)


cdef int file_read(void *of, char *buffer, size_t length, uint64_t at) noexcept nogil:
    cdef SpillFd *to = <SpillFd *> of
    cdef size_t done = 0
    cdef ssize_t n
    while done < length:
        n = pread(to.fd, buffer + done, length - done, <off_t> (at + done))
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        if n == 0 or (n % to.align and done + <size_t> n < length):
            return -EIO     # the file was cut short under us
        done += <size_t> n
    return 0


cdef ssize_t write_there(SpillFd *to, const char *data, size_t length, off_t at) noexcept nogil:
    """As pwrite.  Data that only the page cache took may still be lost: it is written through, and one write
    after the other, since the kernel tells a failure once, to whoever asks first."""
    cdef iovec all
    cdef ssize_t n
    if to.in_turn == NULL:
        return pwrite(to.fd, data, length, at)
    all.iov_base = <void *> data
    all.iov_len = length
    pthread_mutex_lock(to.in_turn)
    n = pwritev2(to.fd, &all, 1, at, RWF_DSYNC)
    pthread_mutex_unlock(to.in_turn)
    return n


cdef int file_write(void *of, const char *data, size_t length, uint64_t at) noexcept nogil:
    cdef SpillFd *to = <SpillFd *> of
    cdef size_t done = 0
    cdef ssize_t n
    while done < length:
        n = write_there(to, data + done, length - done, <off_t> (at + done))
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        if n == 0:
            return -EIO
        # A short direct write may end off the alignment: go back to where it can go on.
        done += <size_t> n
        done -= done % to.align
        if n < <ssize_t> to.align and done < length:
            return -EIO
    return 0
