"""Declarations of ages.h."""

from libc.stdint cimport uint64_t


cdef extern from "ages.h" nogil:
    enum: AGE_BUCKETS
    enum: AGE_READS
    enum: AGE_LIVE
    unsigned age_bucket(uint64_t clock, uint64_t born) noexcept
