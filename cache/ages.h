/* How old in the log what was read is; ages.py has the same buckets and says what they are for.
 * Words in the state file: pages read from segments, by age, and then the bytes that live, by age.
 */
#ifndef SWAPTIDE_AGES_H
#define SWAPTIDE_AGES_H

#include <stdint.h>

enum {
    AGE_BUCKETS = 64,
    AGE_FINE_SHIFT = 2, /* four buckets to the octave; below four each age has its own */
    AGE_READS = 0,
    AGE_LIVE = AGE_BUCKETS,
    AGE_WORDS = 2 * AGE_BUCKETS
};

/* The bucket of what was begun when the log's clock was `born`; what is from the future is young. */
static inline unsigned age_bucket(uint64_t clock, uint64_t born)
{
    uint64_t age = clock > born ? clock - born : 0;
    unsigned octave, bucket;
    if (age >> AGE_FINE_SHIFT == 0)
        return (unsigned)age;
    octave = 63 - (unsigned)__builtin_clzll(age);
    bucket = ((octave - 1) << AGE_FINE_SHIFT) + ((age >> (octave - AGE_FINE_SHIFT)) & 3);
    return bucket < AGE_BUCKETS ? bucket : AGE_BUCKETS - 1;
}

#endif
