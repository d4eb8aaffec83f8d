"""Declarations of atomics.h."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    uint64_t load64(const uint64_t *p) noexcept
    void store64(uint64_t *p, uint64_t v) noexcept
    uint64_t swap64(uint64_t *p, uint64_t v) noexcept
    int cas64(uint64_t *p, uint64_t expected, uint64_t v) noexcept
    void set_bit(uint64_t *map, uint64_t at) noexcept
    void count64(uint64_t *p, int64_t by) noexcept
    uint64_t peek64(const uint64_t *p) noexcept
    void poke64(uint64_t *p, uint64_t v) noexcept
    int32_t load32(const int32_t *p) noexcept
    void store32(int32_t *p, int32_t v) noexcept
    int32_t add32(int32_t *p, int32_t by) noexcept
    int64_t load64s(const int64_t *p) noexcept
    int64_t add64(int64_t *p, int64_t by) noexcept
    uint8_t load8(const uint8_t *p) noexcept
    void store8(uint8_t *p, uint8_t v) noexcept
    void relax() noexcept
    void point(const char *name) noexcept
    void mortal(const char *name) noexcept
    void prefetch_page(const void *page) noexcept
    int page_is_same(const void *page, uint32_t *word) noexcept
    void fill_words(void *to, uint32_t word, uint64_t skip, uint64_t nbytes) noexcept
