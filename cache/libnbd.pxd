"""The part of libnbd's C interface (libnbd(3), 1.14 and later) that the core uses."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "<libnbd.h>" nogil:
    cdef struct nbd_handle:
        pass
    ctypedef struct nbd_completion_callback:
        int (*callback)(void *user_data, int *error) noexcept nogil
        void *user_data
        void (*free)(void *user_data) noexcept nogil
    enum:
        LIBNBD_SIZE_MINIMUM
        LIBNBD_SIZE_PREFERRED
        LIBNBD_SIZE_MAXIMUM
        LIBNBD_AIO_DIRECTION_READ
        LIBNBD_AIO_DIRECTION_WRITE
        LIBNBD_CMD_FLAG_FUA
        LIBNBD_TLS_ALLOW
    nbd_handle *nbd_create() noexcept
    void nbd_close(nbd_handle *h) noexcept
    const char *nbd_get_error() noexcept
    int nbd_get_errno() noexcept
    int nbd_set_uri_allow_local_file(nbd_handle *h, bint allow) noexcept
    int nbd_set_pread_initialize(nbd_handle *h, bint request) noexcept
    int nbd_set_request_structured_replies(nbd_handle *h, bint request) noexcept
    int nbd_aio_connect_uri(nbd_handle *h, const char *uri) noexcept
    int nbd_poll(nbd_handle *h, int timeout) noexcept
    int nbd_aio_is_ready(nbd_handle *h) noexcept
    int nbd_aio_is_connecting(nbd_handle *h) noexcept
    int nbd_aio_is_dead(nbd_handle *h) noexcept
    int nbd_aio_is_closed(nbd_handle *h) noexcept
    int nbd_aio_get_fd(nbd_handle *h) noexcept
    unsigned nbd_aio_get_direction(nbd_handle *h) noexcept
    int nbd_aio_notify_read(nbd_handle *h) noexcept
    int nbd_aio_notify_write(nbd_handle *h) noexcept
    int nbd_aio_command_completed(nbd_handle *h, int64_t cookie) noexcept
    int64_t nbd_aio_pread(nbd_handle *h, void *buf, size_t count, uint64_t offset,
                          nbd_completion_callback completion, uint32_t flags) noexcept
    int64_t nbd_aio_pwrite(nbd_handle *h, const void *buf, size_t count, uint64_t offset,
                           nbd_completion_callback completion, uint32_t flags) noexcept
    int64_t nbd_aio_trim(nbd_handle *h, uint64_t count, uint64_t offset, nbd_completion_callback completion,
                         uint32_t flags) noexcept
    int64_t nbd_aio_zero(nbd_handle *h, uint64_t count, uint64_t offset, nbd_completion_callback completion,
                         uint32_t flags) noexcept
    int64_t nbd_aio_flush(nbd_handle *h, nbd_completion_callback completion, uint32_t flags) noexcept
    int nbd_aio_disconnect(nbd_handle *h, uint32_t flags) noexcept
    int64_t nbd_get_size(nbd_handle *h) noexcept
    int64_t nbd_get_block_size(nbd_handle *h, int size_type) noexcept
    int nbd_is_read_only(nbd_handle *h) noexcept
    int nbd_can_multi_conn(nbd_handle *h) noexcept
    int nbd_can_flush(nbd_handle *h) noexcept
    int nbd_can_fua(nbd_handle *h) noexcept
    int nbd_can_trim(nbd_handle *h) noexcept
    int nbd_can_zero(nbd_handle *h) noexcept
