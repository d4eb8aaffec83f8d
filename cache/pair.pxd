"""Two spill stores as one; see pair.pyx."""

from libc.stdint cimport uint64_t
from swaptide.cache.store cimport Store, store_face

cdef struct Both:
    store_face first
    store_face second
    uint64_t split              # what lies from there on is the second one's
    uint64_t shift              # and lies so much lower there


cdef class PairStore(Store):
    cdef Both both
    cdef Store kept_first, kept_second      # `both` has their faces
