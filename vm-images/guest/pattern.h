/* What a page of the guest's work holds: it follows from (seed, page number, generation).
 *
 * Word 0 names page and generation, so that a page found in the wrong place, or an old one, can be told from
 * garbage.  No page shares anything with another, but for the shares that are asked to be zero or of one word.
 * Pure functions.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <stdint.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

struct recipe {
    uint64_t seed, zero, same; /* the last two in percent of the pages */
};

/* Word 0, and the state that the others are drawn from: all zero for a zero page. */
struct pattern {
    uint64_t first, state, step;
};

struct difference {
    int words, first; /* how many words differ, and which is the first */
    uint64_t expected, found;
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t word_of(uint64_t state)
{
    return (state ^ (state >> 31)) * 0xff51afd7ed558ccdu;
}

static struct pattern pattern_of(const struct recipe *recipe, uint64_t page, uint32_t generation)
{
    uint64_t base = mix(recipe->seed ^ mix(page ^ ((uint64_t)generation << 40)));
    uint64_t draw = base % 100;
    if (draw < recipe->zero)
        return (struct pattern){ 0, 0, 0 };
    if (draw < recipe->zero + recipe->same)
        return (struct pattern){ word_of(base), base, 0 };
    return (struct pattern){ mix(recipe->seed) ^ (page << 32 | generation), base, 0x9e3779b97f4a7c15u };
}

static uint64_t page_name(const struct recipe *recipe, const uint64_t *at)
{
    return at[0] ^ mix(recipe->seed);
}

static void write_page(const struct recipe *recipe, uint64_t *at, uint64_t page, uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    at[0] = p.first;
    for (int i = 1; i < WORDS; i++)
        at[i] = word_of(p.state += p.step);
}

static int page_is_right(const struct recipe *recipe, const uint64_t *at, uint64_t page, uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    uint64_t difference = at[0] ^ p.first;
    for (int i = 1; i < WORDS; i++)
        difference |= at[i] ^ word_of(p.state += p.step);
    return difference == 0;
}

static struct difference compare_page(const struct recipe *recipe, const uint64_t *at, uint64_t page,
                                      uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    struct difference d = { 0, -1, 0, 0 };
    for (int i = 0; i < WORDS; i++) {
        uint64_t expected = i ? word_of(p.state += p.step) : p.first;
        uint64_t found = at[i];
        if (found != expected && d.words++ == 0)
            d.first = i, d.expected = expected, d.found = found;
    }
    return d;
}

#endif
