/* Where a request's latency and size are counted; histogram.py has the same layout and says how to read it.
 * Relaxed atomic adds into the mapped state file: always on, no lock, nothing to set up.
 */
#ifndef SWAPTIDE_HISTOGRAM_H
#define SWAPTIDE_HISTOGRAM_H

#include <stdint.h>
#include <time.h>

#include "atomics.h"

enum {
    LATENCY_BUCKETS = 128,
    LATENCY_FIRST_SHIFT = 8, /* all below 256 ns is one bucket */
    SIZE_BUCKETS = 16,
    SIZE_FIRST_SHIFT = 9, /* up to 512 bytes is one bucket */
    LATENCY_SUM = LATENCY_BUCKETS,
    SIZE_FIRST = LATENCY_SUM + 1,
    SIZE_SUM = SIZE_FIRST + SIZE_BUCKETS,
    HISTOGRAM_WORDS = 160 /* SIZE_SUM + 1, rounded up to whole cache lines */
};

/* In the order of layout.HISTOGRAMS. */
enum { HISTOGRAM_HIT, HISTOGRAM_MISS, HISTOGRAM_WRITE, HISTOGRAM_STALL };

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Four buckets for each power of two: a quantile is right within an eighth. */
static inline unsigned latency_bucket(uint64_t ns)
{
    unsigned octave, bucket;
    if (ns >> LATENCY_FIRST_SHIFT == 0)
        return 0;
    octave = 63 - (unsigned)__builtin_clzll(ns);
    bucket = (octave - LATENCY_FIRST_SHIFT) * 4 + ((ns >> (octave - 2)) & 3) + 1;
    return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static inline unsigned size_bucket(uint64_t bytes)
{
    unsigned bucket;
    if (bytes <= 1u << SIZE_FIRST_SHIFT)
        return 0;
    bucket = 64 - (unsigned)__builtin_clzll(bytes - 1) - SIZE_FIRST_SHIFT;
    return bucket < SIZE_BUCKETS ? bucket : SIZE_BUCKETS - 1;
}

static inline void count_request(uint64_t *histograms, int kind, uint64_t ns, uint64_t bytes)
{
    uint64_t *words = histograms + kind * HISTOGRAM_WORDS;
    count64(&words[latency_bucket(ns)], 1);
    count64(&words[LATENCY_SUM], (int64_t)ns);
    count64(&words[SIZE_FIRST + size_bucket(bytes)], 1);
    count64(&words[SIZE_SUM], (int64_t)bytes);
}

#endif
