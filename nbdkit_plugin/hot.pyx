"""nbdkit's callbacks in the data path, and which connection may still change the disk.

A request whose pages are all in RAM is small work: it is done with the GIL held, since giving it up and
taking it again would cost more and wake another thread.  Large requests, and whatever may wait for the
disk or at the cap, give it up.

Connections.  nbdkit may still hold requests of a client that is gone, in its threads and in the socket,
when the client's next connection is opened.  So every connection that is not the newest proves, once for
each newer one, that its client is still there, before it changes anything; and `admit` waits until each
older connection has proved it or has no change under way (docs/design.md, "Connections").
"""

import os
import threading
import time

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINVAL, EIO, ENOSPC, EPERM, ESHUTDOWN
from libc.stdint cimport int32_t, uint32_t, uint64_t
from posix.time cimport nanosleep, timespec

from swaptide.cache.atomics cimport add32, count64, load32, load64, store32, store64
from swaptide.cache.histogram cimport (
    HISTOGRAM_HIT,
    HISTOGRAM_MISS,
    HISTOGRAM_STALL,
    HISTOGRAM_WRITE,
    count_request,
    now_ns,
)
from swaptide.cache.log cimport Log
from swaptide.cache.pthread cimport (
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)
from swaptide.cache.turnstile cimport Waiter
from swaptide.cache.words cimport (
    CONTROL_GATE,
    FLUSHES,
    GATE_ARRIVED,
    GATE_GIVEN,
    GATE_GONE,
    GATE_HANDED,
    GATE_INCOMING,
    GATE_OPEN,
    READ_BYTES,
    READS,
    TRIMS,
    WRITE_BYTES,
    WRITES,
    ZEROES,
)

import nbdkit


cdef extern from "<dlfcn.h>" nogil:
    void *dlsym(void *handle, const char *symbol) noexcept
    void *RTLD_DEFAULT

cdef extern from "<malloc.h>" nogil:
    int mallopt(int param, int value) noexcept
    enum: M_ARENA_MAX
    enum: M_MMAP_THRESHOLD

cdef extern from "threads.h" nogil:
    int kept_setup() noexcept
    void kept_keep() noexcept
    void kept_close() noexcept

ctypedef int (*nanosleep_t)(unsigned seconds, unsigned nanoseconds) noexcept nogil

cdef enum:
    MAX_REQUEST = 1048576           # geometry.MAX_REQUEST_BYTES
    SMALL_REQUEST = 8192            # copied with the GIL held
    FLAG_MAY_TRIM = 1               # NBDKIT_FLAG_MAY_TRIM; compared with nbdkit's own at import
    # What QEMU reads to guess a disk's geometry, as it starts, also with -incoming.
    GUESS_BYTES = 512
    GATE_NS = 2000000               # how often a request that waits at the gate looks again

cdef Log _log = None
cdef nanosleep_t _sleep = NULL
cdef uint64_t _newest = 0
cdef int32_t _held = 0              # whether changes wait, while the disk is handed over
cdef pthread_mutex_t _leaving
_connections = {}
_admission = threading.Lock()

if nbdkit.FLAG_MAY_TRIM != FLAG_MAY_TRIM:
    raise ImportError("nbdkit changed its flags")


cdef struct Presence:
    uint64_t confirmed      # the newest admission after which the client was seen alive
    int32_t changing        # requests under way that may change the disk


cdef class Connection:
    """One client."""

    cdef uint64_t number
    cdef Presence presence


cdef bint is_alive(void *arg) noexcept nogil:
    """Is the client of the calling thread's connection still there?  Called in nbdkit's own threads."""
    cdef Presence *presence = <Presence *> arg
    cdef uint64_t newest = load64(&_newest)
    # Sleeping for no time polls the connection for a hang-up and for the server's end.
    if _sleep(0, 0) != 0:
        return False
    store64(&presence.confirmed, newest)
    return True


cdef inline bint is_shut(bint change) noexcept nogil:
    """Whether the gate is not open, or changes are held."""
    return load64(&_log.map.control[CONTROL_GATE]) != 0 or (change and load32(&_held) != 0)


cdef int wait_at_gate(bint change, uint64_t count, uint64_t offset) noexcept nogil:
    """Wait until the gate is open.  0, or a negative errno where it will not be, or nobody waits any more."""
    cdef uint64_t gate
    while True:
        gate = load64(&_log.map.control[CONTROL_GATE])
        if gate == GATE_GIVEN or gate == GATE_GONE or gate == GATE_HANDED:
            return -EPERM if change else -EIO
        if gate == GATE_INCOMING or gate == GATE_ARRIVED:
            if not change and offset == 0 and count <= GUESS_BYTES:
                return -EIO
        elif not change or (gate == GATE_OPEN and load32(&_held) == 0):
            return 0
        if _sleep(0, GATE_NS) != 0:
            return -ESHUTDOWN


cdef inline bint begin_change(Presence *presence) noexcept nogil:
    # First counted, then looked: `admit` does it the other way round, so one of both sees the other.
    add32(&presence.changing, 1)
    return load64(&presence.confirmed) == load64(&_newest) or is_alive(presence)


cdef int begin_change_shut(Presence *presence) noexcept nogil:
    """As `begin_change`, which was called, where the gate turned out to be shut.  0 or a negative errno."""
    cdef int result
    while True:
        add32(&presence.changing, -1)
        result = wait_at_gate(True, 0, 0)
        # Begun in any case, since it will be ended.
        if not begin_change(presence):
            return -ESHUTDOWN
        if result != 0 or not is_shut(True):
            return result


cdef inline void end_change(Presence *presence) noexcept nogil:
    add32(&presence.changing, -1)


cdef void leave_in_turn() noexcept nogil:
    """Return to nbdkit one after the other when the client is gone.

    nbdkit 1.32 ends with a failed assertion when two threads send on a connection that just broke: the
    first one's failure closes the socket under the second.  The first marks the connection dead within
    microseconds, and whoever comes later sends nothing.
    """
    cdef timespec pause
    pause.tv_sec = 0
    pause.tv_nsec = 3000000
    pthread_mutex_lock(&_leaving)
    nanosleep(&pause, NULL)
    pthread_mutex_unlock(&_leaving)


def serve(Log log):
    """Serve `log` from now on."""
    global _log, _sleep
    _sleep = <nanosleep_t> dlsym(RTLD_DEFAULT, b"nbdkit_nanosleep")
    if _sleep == NULL:
        raise OSError("this nbdkit exports no nbdkit_nanosleep; 1.32 or later is needed")
    pthread_mutex_init(&_leaving, NULL)
    if kept_setup() != 0:
        raise OSError("no pthread key left")
    # One heap each for nbdkit's many threads would grow with every reconnect.
    mallopt(M_ARENA_MAX, 2)
    # Their request buffers go back to the host as soon as a connection ends.
    mallopt(M_MMAP_THRESHOLD, 131072)
    _log = log


def stop_keeping():
    """Thread states that still live are left to the end of the process."""
    with nogil:
        kept_close()


def admit(wake_waiters):
    """A new connection, once nothing of a client that is gone can change the disk any more.

    `wake_waiters` makes writers that wait at the cap look after their clients.
    """
    global _newest
    cdef Connection connection = Connection(), other
    with _admission:
        connection.number = load64(&_newest) + 1
        connection.presence.confirmed = connection.number
        older = list(_connections.values())
        store64(&_newest, connection.number)
        _connections[connection.number] = connection
    wake_waiters()
    for item in older:
        other = item
        while load32(&other.presence.changing) and load64(&other.presence.confirmed) < connection.number:
            time.sleep(0.0005)
            wake_waiters()
    return connection


def pause(double seconds):
    """Let less than a second go by; False once the calling thread's client is gone or the server ends."""
    cdef unsigned nanoseconds = <unsigned> (seconds * 1e9)
    cdef int result
    with nogil:
        result = _sleep(0, nanoseconds)
    return result == 0


def hold(bint held):
    """Have clients' changes wait before they begin, or go on.  In force at once; see `is_still`."""
    store32(&_held, held)


def is_still():
    """Whether no client's change is under way.  While changes are held it stays so."""
    cdef Connection connection
    with _admission:
        connections = list(_connections.values())
    for item in connections:
        connection = item
        if load32(&connection.presence.changing):
            return False
    return True


def dismiss(Connection connection):
    """The connection is closed; nbdkit has no request of it left."""
    with _admission:
        _connections.pop(connection.number, None)


cdef int fail(int result) except -1:
    nbdkit.set_error(-result)
    raise OSError(-result, os.strerror(-result))


cdef inline void count_stall(Waiter *waiter, uint64_t count) noexcept nogil:
    if waiter.stalled_ns:
        count_request(_log.map.histograms, HISTOGRAM_STALL, waiter.stalled_ns, count)


cdef int check(uint64_t count, uint64_t offset, int beyond) except -1:
    if count > MAX_REQUEST:
        fail(-EINVAL)
    if offset + count > _log.size_bytes:
        fail(-beyond)
    return 0


def pread(Connection connection, buf, uint64_t offset, uint32_t flags):
    """Read len(buf) bytes at `offset` into `buf`."""
    cdef Py_buffer view
    cdef uint64_t begun = now_ns(), done = 0, missed = 0
    cdef int result = -EAGAIN
    kept_keep()
    PyObject_GetBuffer(buf, &view, PyBUF_WRITABLE)
    try:
        check(view.len, offset, EINVAL)
        if is_shut(False):
            with nogil:
                result = wait_at_gate(False, view.len, offset)
            if result == 0:
                result = -EAGAIN
        elif view.len <= SMALL_REQUEST:
            result = _log.read(<char *> view.buf, view.len, offset, False, &done, &missed)
        if result == -EAGAIN:
            with nogil:
                result = _log.read(<char *> view.buf + done, view.len - done, offset + done, True, &done,
                                   &missed)
        count64(&_log.map.counters[READS], 1)
        count64(&_log.map.counters[READ_BYTES], view.len)
        if result == 0:
            count_request(_log.map.histograms, HISTOGRAM_MISS if missed else HISTOGRAM_HIT,
                          now_ns() - begun, view.len)
    finally:
        PyBuffer_Release(&view)
    if result == -ESHUTDOWN:
        with nogil:
            leave_in_turn()
    if result != 0:
        fail(result)


def pwrite(Connection connection, buf, uint64_t offset, uint32_t flags):
    """Write `buf` at `offset`; what is acknowledged is in the state file."""
    cdef Py_buffer view
    cdef Waiter waiter
    cdef uint64_t begun = now_ns()
    cdef int result = -EAGAIN
    kept_keep()
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    waiter.alive = is_alive
    waiter.arg = &connection.presence
    waiter.stalled_ns = 0
    try:
        check(view.len, offset, ENOSPC)
        if not begin_change(&connection.presence):
            result = -ESHUTDOWN
        elif is_shut(True):
            with nogil:
                result = begin_change_shut(&connection.presence)
            if result == 0:
                result = -EAGAIN
        elif view.len <= SMALL_REQUEST:
            result = _log.write(<const char *> view.buf, view.len, offset, &waiter, False)
        if result == -EAGAIN:
            with nogil:
                result = _log.write(<const char *> view.buf, view.len, offset, &waiter, True)
        end_change(&connection.presence)
        count64(&_log.map.counters[WRITES], 1)
        count64(&_log.map.counters[WRITE_BYTES], view.len)
        if result == 0:
            count_request(_log.map.histograms, HISTOGRAM_WRITE, now_ns() - begun, view.len)
            count_stall(&waiter, view.len)
    finally:
        PyBuffer_Release(&view)
    if result == -ESHUTDOWN:
        with nogil:
            leave_in_turn()
    if result != 0:
        fail(result)


cdef int discard(Connection connection, uint32_t count, uint64_t offset, bint keep) except -1:
    cdef Waiter waiter
    cdef int result = -ESHUTDOWN
    kept_keep()
    if offset + count > _log.size_bytes:
        fail(-EINVAL)
    waiter.alive = is_alive
    waiter.arg = &connection.presence
    waiter.stalled_ns = 0
    with nogil:
        if begin_change(&connection.presence):
            result = begin_change_shut(&connection.presence) if is_shut(True) else 0
        if result == 0:
            result = _log.discard(count, offset, &waiter, keep)
        end_change(&connection.presence)
        if result == -ESHUTDOWN:
            leave_in_turn()
    if result != 0:
        fail(result)
    count_stall(&waiter, count)
    return 0


def trim(Connection connection, uint32_t count, uint64_t offset, uint32_t flags):
    """Free the range; it reads as zeros from now on."""
    discard(connection, count, offset, False)
    count64(&_log.map.counters[TRIMS], 1)


def zero(Connection connection, uint32_t count, uint64_t offset, uint32_t flags):
    """Make the range zeros; a hole where the client allows it."""
    discard(connection, count, offset, not flags & FLAG_MAY_TRIM)
    count64(&_log.map.counters[ZEROES], 1)


def flush(Connection connection, uint32_t flags):
    """Nothing to do: what was acknowledged survives this process, and is not promised to survive the host."""
    kept_keep()
    count64(&_log.map.counters[FLUSHES], 1)


def extents(Connection connection, uint32_t count, uint64_t offset, uint32_t flags):
    """Holes and zeroes in the range, as (offset, length, type)."""
    cdef int result = 0
    kept_keep()
    if is_shut(False):
        with nogil:
            result = wait_at_gate(False, count, offset)
        if result != 0:
            fail(result)
    return _log.extents(count, offset, bool(flags & nbdkit.FLAG_REQ_ONE), nbdkit.EXTENT_HOLE,
                        nbdkit.EXTENT_ZERO)
