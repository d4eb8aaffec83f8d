"""Leaving without an error: what happens on SIGTERM, SIGINT, SIGQUIT and SIGHUP before nbdkit's own handler.

nbdkit answers requests that arrive while it quits with ESHUTDOWN, and waits for its clients to go.  A
guest takes such an answer for a broken disk; a closed connection it takes for a restart, and waits.
So the clients' sockets are shut down first: what was not answered by then is sent again to the successor.
"""

import os
import stat

from libc cimport errno
from libc.stdint cimport uintptr_t
from posix.signal cimport sigaction, sigaction_t, sigemptyset


cdef extern from "<signal.h>" nogil:
    enum: SIGHUP
    enum: SIGINT
    enum: SIGQUIT
    enum: SIGTERM

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length) noexcept
    int shutdown(int fd, int how) noexcept
    enum: SOL_SOCKET
    enum: SO_ACCEPTCONN
    enum: SHUT_RDWR

ctypedef void (*handler_t)(int number) noexcept nogil

cdef enum:
    MAX_FD = 4096       # one descriptor for each client, a few for everything else
    SIGNALS = 4

cdef sigaction_t _before[64]
cdef unsigned char _ours[MAX_FD]


cdef void on_signal(int number) noexcept nogil:
    """Only calls that are safe in a signal handler."""
    cdef int fd, listening, saved = errno.errno
    cdef socklen_t length
    for fd in range(3, MAX_FD):
        length = sizeof(int)
        if _ours[fd] or getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 or listening:
            continue
        shutdown(fd, SHUT_RDWR)
    # Neither SIG_DFL (0) nor SIG_IGN (1), but nbdkit's own.
    if <uintptr_t> _before[number].sa_handler > 1:
        (<handler_t> <void *> _before[number].sa_handler)(number)
    errno.errno = saved


def is_socket(fd):
    """Whether `fd` is a socket now; what listed it may be closed already."""
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def hang_up_first():
    """Install the handlers.  Every socket that is open now is taken for the server's own, not a client's."""
    cdef sigaction_t action
    cdef int number
    cdef int[SIGNALS] numbers = [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
    for name in os.listdir("/proc/self/fd"):
        if int(name) < MAX_FD and is_socket(int(name)):
            _ours[int(name)] = 1
    for number in numbers:
        sigemptyset(&action.sa_mask)
        action.sa_flags = 0
        action.sa_handler = <void (*)(int) noexcept nogil> on_signal
        if sigaction(number, &action, &_before[number]) != 0:
            raise OSError("cannot install the signal handlers")
