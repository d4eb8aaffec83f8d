/* What a page of the guest's work holds: it follows from (seed, page number, generation).
 *
 * Word 0 names page and generation, so that a page found in the wrong place, or an old one, can be told from
 * garbage.  No page shares anything with another, but for the shares that are asked to be zero or of one word,
 * and for the alphabet that the compressible part of each page is written in.  Pure functions, but for
 * make_alphabet, which is called once before them.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <stdint.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define LETTERS 16 /* drawn with the top 4 bits of a word */

struct recipe {
    uint64_t seed, zero, same; /* the last two in percent of the pages */
    uint64_t compress;         /* percent of the words of a page that are letters */
    uint64_t alphabet[LETTERS];
};

/* Word 0, the state that the others are drawn from (all zero for a zero page), and where the letters end. */
struct pattern {
    uint64_t first, state, step;
    int letters_end;
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

/* The one a page is of in parts: a compressor finds each letter again a few words back. */
static void make_alphabet(struct recipe *recipe)
{
    for (int i = 0; i < LETTERS; i++)
        recipe->alphabet[i] = mix(recipe->seed + 0x100 + i);
}

static inline uint64_t letter_of(const struct recipe *recipe, uint64_t state)
{
    return recipe->alphabet[word_of(state) >> 60];
}

static struct pattern pattern_of(const struct recipe *recipe, uint64_t page, uint32_t generation)
{
    uint64_t base = mix(recipe->seed ^ mix(page ^ ((uint64_t)generation << 40)));
    uint64_t draw = base % 100;
    if (draw < recipe->zero)
        return (struct pattern){ 0, 0, 0, 1 };
    if (draw < recipe->zero + recipe->same)
        return (struct pattern){ word_of(base), base, 0, 1 };
    return (struct pattern){ mix(recipe->seed) ^ (page << 32 | generation), base, 0x9e3779b97f4a7c15u,
                             1 + (int)(recipe->compress * (WORDS - 1) / 100) };
}

static uint64_t page_name(const struct recipe *recipe, const uint64_t *at)
{
    return at[0] ^ mix(recipe->seed);
}

static void write_page(const struct recipe *recipe, uint64_t *at, uint64_t page, uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    int i = 1;
    at[0] = p.first;
    for (; i < p.letters_end; i++)
        at[i] = letter_of(recipe, p.state += p.step);
    for (; i < WORDS; i++)
        at[i] = word_of(p.state += p.step);
}

static int page_is_right(const struct recipe *recipe, const uint64_t *at, uint64_t page, uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    uint64_t difference = at[0] ^ p.first;
    int i = 1;
    for (; i < p.letters_end; i++)
        difference |= at[i] ^ letter_of(recipe, p.state += p.step);
    for (; i < WORDS; i++)
        difference |= at[i] ^ word_of(p.state += p.step);
    return difference == 0;
}

static struct difference compare_page(const struct recipe *recipe, const uint64_t *at, uint64_t page,
                                      uint32_t generation)
{
    struct pattern p = pattern_of(recipe, page, generation);
    struct difference d = { 0, -1, 0, 0 };
    for (int i = 0; i < WORDS; i++) {
        uint64_t state = i ? p.state += p.step : 0;
        uint64_t expected = i == 0 ? p.first : i < p.letters_end ? letter_of(recipe, state) : word_of(state);
        uint64_t found = at[i];
        if (found != expected && d.words++ == 0)
            d.first = i, d.expected = expected, d.found = found;
    }
    return d;
}

#endif
