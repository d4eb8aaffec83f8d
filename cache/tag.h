/* The tag beside every piece on disk: a 128-bit checksum (XXH3, Yann Collet's xxHash) whose seed binds
 * the disk, the segment's generation, the disk slot and the place in it, so that a stale or misdirected
 * sector fails as a flipped bit does.  It guards against faults, not against an adversary.
 */
#ifndef SWAPTIDE_TAG_H
#define SWAPTIDE_TAG_H

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <string.h>

typedef struct {
    uint64_t disk;
    uint64_t generation;
    uint64_t slot;
    uint64_t index;
} tag_place;

static inline void tag_make(unsigned char out[16], const void *data, size_t length, const tag_place *place)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(data, length, XXH3_64bits(place, sizeof *place));
    memcpy(out, &hash.low64, 8);
    memcpy(out + 8, &hash.high64, 8);
}

static inline int tag_matches(const unsigned char *tag, const void *data, size_t length, const tag_place *place)
{
    unsigned char expected[16];
    tag_make(expected, data, length, place);
    return memcmp(tag, expected, 16) == 0;
}

#endif
