"""Being told when another process writes to the state file: the two inotify calls that Python lacks."""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t


cdef extern from "<sys/inotify.h>" nogil:
    int inotify_init1(int flags) noexcept
    int inotify_add_watch(int fd, const char *path, uint32_t mask) noexcept
    enum: IN_CLOEXEC
    enum: IN_NONBLOCK
    enum: IN_MODIFY


def watch_modify(path):
    """A non-blocking descriptor, readable once the file at `path` is written to.  Raises OSError."""
    cdef bytes raw = os.fsencode(path)
    cdef int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    if inotify_add_watch(fd, raw, IN_MODIFY) < 0:
        code = errno
        os.close(fd)
        raise OSError(code, os.strerror(code), path)
    return fd
