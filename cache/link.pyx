"""One connection to an NBD server, for whoever may wait: every call has a limit.

The thread that calls is the one that waits, without the GIL.  Claims of an export, and the handshake of
connections that wire.pyx then drives by itself.  After an error or a limit the connection is closed.
"""

import dataclasses
import errno

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from swaptide.cache.histogram cimport now_ns
from swaptide.cache.libnbd cimport (
    LIBNBD_SIZE_MAXIMUM,
    LIBNBD_SIZE_MINIMUM,
    LIBNBD_SIZE_PREFERRED,
    nbd_aio_command_completed,
    nbd_aio_connect_uri,
    nbd_aio_disconnect,
    nbd_aio_flush,
    nbd_aio_is_closed,
    nbd_aio_is_connecting,
    nbd_aio_is_dead,
    nbd_aio_is_ready,
    nbd_aio_pread,
    nbd_aio_pwrite,
    nbd_aio_trim,
    nbd_aio_zero,
    nbd_can_flush,
    nbd_can_fua,
    nbd_can_multi_conn,
    nbd_can_trim,
    nbd_can_zero,
    nbd_close,
    nbd_completion_callback,
    nbd_create,
    nbd_get_block_size,
    nbd_get_errno,
    nbd_get_error,
    nbd_get_size,
    nbd_is_read_only,
    nbd_poll,
    nbd_set_pread_initialize,
    nbd_set_request_structured_replies,
    nbd_set_uri_allow_local_file,
)

# Where the server does not say: what every server takes (nbd's protocol, "Block sizes").
DEFAULT_MOST_BYTES = 32 << 20


class LinkError(OSError):
    """The connection, or what was asked over it, failed; `strerror` is one line without the URI."""


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a server says of an export.  Sizes in bytes; a request is at least `least_bytes`, at most
    `most_bytes`, and best `preferred_bytes`, and a multiple of the first."""

    size_bytes: int
    least_bytes: int
    preferred_bytes: int
    most_bytes: int
    read_only: bool
    multi: bool
    flush: bool
    fua: bool
    trim: bool
    zero: bool


cdef class Link:
    """Connected to `uri` when it is made.  Raises LinkError, after `limit_seconds` with ETIMEDOUT."""

    def __cinit__(self, str uri, double limit_seconds):
        cdef bytes raw = uri.encode()
        cdef const char *text = raw
        cdef int result
        cdef uint64_t until = now_ns() + <uint64_t> (limit_seconds * 1e9)
        with nogil:
            self.handle = nbd_create()
        if self.handle == NULL:
            raise MemoryError()
        nbd_set_uri_allow_local_file(self.handle, True)
        nbd_set_pread_initialize(self.handle, False)
        # A read is all or nothing here, and simple replies are fewer packets.
        nbd_set_request_structured_replies(self.handle, False)
        with nogil:
            result = nbd_aio_connect_uri(self.handle, text)
        if result != 0:
            self._fail()
        while nbd_aio_is_connecting(self.handle):
            self._wait(until)
        if not nbd_aio_is_ready(self.handle):
            self._fail()
        self.traits = self._ask()

    def __dealloc__(self):
        if self.handle != NULL:
            nbd_close(self.handle)

    def close(self):
        """Leave; a server that listens is told so."""
        cdef void *before = self.handle
        if before != NULL:
            self.handle = NULL
            with nogil:
                nbd_aio_disconnect(<nbd_handle *> before, 0)
                nbd_close(<nbd_handle *> before)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef nbd_handle *take(self):
        """The handle, which is the caller's from now on; NULL where it is gone."""
        cdef nbd_handle *handle = self.handle
        self.handle = NULL
        return handle

    def read(self, size_t count, uint64_t at, double limit_seconds):
        """`count` bytes at `at`."""
        cdef bytearray data = bytearray(count)
        cdef char *raw = data
        cdef nbd_completion_callback nothing
        memset(&nothing, 0, sizeof(nothing))
        self._check()
        # `data` lives until the command has ended, or the handle is closed.
        self._await(nbd_aio_pread(self.handle, raw, count, at, nothing, 0), limit_seconds)
        return bytes(data)

    def write(self, bytes data, uint64_t at, double limit_seconds):
        """Write `data` at `at`."""
        cdef const char *raw = data
        cdef nbd_completion_callback nothing
        memset(&nothing, 0, sizeof(nothing))
        self._check()
        self._await(nbd_aio_pwrite(self.handle, raw, len(data), at, nothing, 0), limit_seconds)

    def flush(self, double limit_seconds):
        """Have it all written for good, where the server knows how."""
        cdef nbd_completion_callback nothing
        memset(&nothing, 0, sizeof(nothing))
        self._check()
        if self.traits.flush:
            self._await(nbd_aio_flush(self.handle, nothing, 0), limit_seconds)

    def trim(self, uint64_t count, uint64_t at, double limit_seconds):
        """Have the server forget that part."""
        cdef nbd_completion_callback nothing
        memset(&nothing, 0, sizeof(nothing))
        self._check()
        self._await(nbd_aio_trim(self.handle, count, at, nothing, 0), limit_seconds)

    def zero(self, uint64_t count, uint64_t at, double limit_seconds):
        """Have that part read as zeros."""
        cdef nbd_completion_callback nothing
        memset(&nothing, 0, sizeof(nothing))
        self._check()
        self._await(nbd_aio_zero(self.handle, count, at, nothing, 0), limit_seconds)

    def _check(self):
        if self.handle == NULL:
            raise LinkError(errno.ENOTCONN, "the connection is closed")

    def _await(self, int64_t cookie, double limit_seconds):
        cdef uint64_t until = now_ns() + <uint64_t> (limit_seconds * 1e9)
        cdef int result
        if cookie == -1:
            self._fail()
        while True:
            result = nbd_aio_command_completed(self.handle, cookie)
            if result == 1:
                return
            if result < 0:
                self._fail()
            self._wait(until)

    def _wait(self, uint64_t until):
        """Let something happen; raises after the limit."""
        cdef uint64_t now = now_ns()
        cdef int result
        if now >= until:
            self.close_at_once()
            raise LinkError(errno.ETIMEDOUT, "the server does not answer")
        cdef int patience = <int> min((until - now) / 1000000 + 1, 1000)
        with nogil:
            result = nbd_poll(self.handle, patience)
        if result < 0 or nbd_aio_is_dead(self.handle) or nbd_aio_is_closed(self.handle):
            self._fail()

    def _fail(self):
        """Close it, and raise what libnbd says."""
        cdef bint ended = nbd_aio_is_closed(self.handle) > 0
        cdef int code = 0 if ended else nbd_get_errno()
        cdef const char *said = NULL if ended else nbd_get_error()
        text = "the server closed the connection" if said == NULL else said.decode("utf-8", "replace")
        self.close_at_once()
        raise LinkError(code or errno.EIO, told(text))

    def close_at_once(self):
        """Leave without a word."""
        if self.handle != NULL:
            nbd_close(self.handle)
            self.handle = NULL

    def _ask(self):
        cdef int64_t least = nbd_get_block_size(self.handle, LIBNBD_SIZE_MINIMUM)
        cdef int64_t preferred = nbd_get_block_size(self.handle, LIBNBD_SIZE_PREFERRED)
        cdef int64_t most = nbd_get_block_size(self.handle, LIBNBD_SIZE_MAXIMUM)
        return Traits(
            size_bytes=nbd_get_size(self.handle),
            least_bytes=max(1, least),
            preferred_bytes=preferred if preferred > 0 else 4096,
            most_bytes=min(most, DEFAULT_MOST_BYTES) if most > 0 else DEFAULT_MOST_BYTES,
            read_only=nbd_is_read_only(self.handle) == 1,
            multi=nbd_can_multi_conn(self.handle) == 1,
            flush=nbd_can_flush(self.handle) == 1,
            fua=nbd_can_fua(self.handle) == 1,
            trim=nbd_can_trim(self.handle) == 1,
            zero=nbd_can_zero(self.handle) == 1,
        )


def told(str text):
    """What libnbd says, without the names of its functions, in one line."""
    head, colon, rest = text.partition(": ")
    while colon and head.startswith("nbd_"):
        text = rest
        head, colon, rest = text.partition(": ")
    return " ".join(text.split())
