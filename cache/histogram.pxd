"""Declarations of histogram.h."""

from libc.stdint cimport uint64_t


cdef extern from "histogram.h" nogil:
    enum: HISTOGRAM_HIT
    enum: HISTOGRAM_MISS
    enum: HISTOGRAM_WRITE
    enum: HISTOGRAM_STALL
    uint64_t now_ns() noexcept
    void count_request(uint64_t *histograms, int kind, uint64_t ns, uint64_t nbytes) noexcept
