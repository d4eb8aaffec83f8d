/* The few words that Cython has none for: atomic loads, stores and exchanges on mapped memory.
 * Sequentially consistent where a pin meets a place (docs/design.md, "Pins"), relaxed for counters.
 */
#ifndef SWAPTIDE_ATOMICS_H
#define SWAPTIDE_ATOMICS_H

#include <stdint.h>
#include <string.h>
#include <sched.h>

static inline uint64_t load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t swap64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline int cas64(uint64_t *p, uint64_t expected, uint64_t v)
{
    return __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void set_bit(uint64_t *map, uint64_t at)
{
    __atomic_fetch_or(map + (at >> 6), (uint64_t)1 << (at & 63), __ATOMIC_SEQ_CST);
}
static inline void count64(uint64_t *p, int64_t by) { __atomic_fetch_add(p, (uint64_t)by, __ATOMIC_RELAXED); }
static inline uint64_t peek64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void poke64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }

static inline int32_t load32(const int32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void store32(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int32_t add32(int32_t *p, int32_t by) { return __atomic_add_fetch(p, by, __ATOMIC_SEQ_CST); }

static inline int64_t load64s(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline int64_t add64(int64_t *p, int64_t by) { return __atomic_add_fetch(p, by, __ATOMIC_SEQ_CST); }

static inline uint8_t load8(const uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* Places where another thread coming between, or a sudden death, would matter.  Built with SWAPTIDE_POINTS
 * (`make race`, `make torture`) a thread sometimes dawdles at a point, so that windows of nanoseconds are hit in
 * seconds (unless SWAPTIDE_DAWDLE=no), and the process kills itself at the place that SWAPTIDE_DIE_AT names,
 * NAME:COUNT, when it comes there for the COUNTth time.  Under a lock only death is of interest.  Else they are
 * nothing.
 */
#ifdef SWAPTIDE_POINTS
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static inline void mortal(const char *name)
{
    static const char *wanted;
    static size_t length;
    static long left;
    static int asked;
    if (!asked) {
        const char *colon;
        wanted = getenv("SWAPTIDE_DIE_AT");
        colon = wanted ? strrchr(wanted, ':') : NULL; /* a name may hold one itself */
        length = colon ? (size_t)(colon - wanted) : 0;
        left = colon ? atol(colon + 1) : 0;
        asked = 1;
    }
    if (length && strlen(name) == length && memcmp(name, wanted, length) == 0
        && __atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) == 0)
        kill(getpid(), SIGKILL);
}
static inline void point(const char *name)
{
    static __thread unsigned seed;
    struct timespec pause = {0, 0};
    mortal(name);
    if (seed == 0) {
        const char *dawdle = getenv("SWAPTIDE_DAWDLE");
        seed = dawdle && strcmp(dawdle, "no") == 0 ? 1 : ((unsigned)(uintptr_t)&pause ^ (unsigned)time(NULL)) | 2;
    }
    if (seed == 1)
        return;
    /* Mostly shorter than a copy; sometimes long enough for a whole segment to die and be filled anew. */
    switch (rand_r(&seed) % 256) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7:
        pause.tv_nsec = rand_r(&seed) % 100000;
        break;
    case 8:
        pause.tv_nsec = rand_r(&seed) % 40000000;
        break;
    default:
        return;
    }
    nanosleep(&pause, NULL);
}
#else
static inline void mortal(const char *name) { (void)name; }
static inline void point(const char *name) { (void)name; }
#endif

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Have the first lines of a page on their way before they are asked for; never faults. */
static inline void prefetch_page(const void *page)
{
    int i;
    for (i = 0; i < 512; i += 64)
        __builtin_prefetch((const char *)page + i);
}

/* Is the 4 KiB page one repeated 32-bit word?  Almost every other page says no at the first words. */
static inline int page_is_same(const void *page, uint32_t *word)
{
    const char *bytes = page;
    uint64_t first;
    uint32_t low;
    memcpy(&first, bytes, 8);
    low = (uint32_t)first;
    if ((uint32_t)(first >> 32) != low)
        return 0;
    /* A page equal to itself shifted by 8 bytes repeats its first 8 bytes all the way. */
    if (memcmp(bytes, bytes + 8, 256) != 0 || memcmp(bytes, bytes + 8, 4096 - 8) != 0)
        return 0;
    *word = low;
    return 1;
}

static inline void fill_words(void *to, uint32_t word, uint64_t skip, uint64_t bytes)
{
    /* `skip` is the offset of `to` inside its page: the pattern keeps its phase. */
    unsigned char *out = to;
    unsigned char pattern[4];
    uint64_t i;
    if (word == (word & 0xff) * 0x01010101u) {
        memset(to, (int)(word & 0xff), bytes);
        return;
    }
    memcpy(pattern, &word, 4);
    for (i = 0; i < bytes; i++)
        out[i] = pattern[(skip + i) & 3];
}

#endif
