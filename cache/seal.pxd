"""Declarations of seal.h."""

from libc.stdint cimport uint64_t


cdef extern from "seal.h" nogil:
    enum: SEAL_KEY_BYTES
    ctypedef struct seal_place:
        uint64_t disk
        uint64_t write
        uint64_t slot
        uint64_t index
        uint64_t page
    ctypedef struct sealer:
        pass
    int seal_init(sealer *s, const unsigned char *key) noexcept
    void seal_end(sealer *s) noexcept
    int seal(sealer *s, void *out, unsigned char *tag, const void *data, int length,
             const seal_place *place) noexcept
    int unseal(sealer *s, void *out, const unsigned char *tag, const void *data, int length,
               const seal_place *place) noexcept
