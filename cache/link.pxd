"""One connection to an NBD server; see link.pyx."""

from swaptide.cache.libnbd cimport nbd_handle


cdef class Link:
    cdef nbd_handle *handle
    cdef readonly object traits

    cdef nbd_handle *take(self)
