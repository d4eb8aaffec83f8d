/* How a page is packed and unpacked: LZ4 (Yann Collet), quick both ways, or zstd (the same), smaller and slower.
 * Pages are packed one by one, so that one is read without the others.
 *
 * A packer or unpacker belongs to one thread at a time; everything that it needs is made by its init.
 */
#ifndef SWAPTIDE_CODEC_H
#define SWAPTIDE_CODEC_H

#include <lz4.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum {
    CODEC_PAGE = 4096,
    /* What takes more than 7/8 of a page is not worth unpacking. */
    CODEC_WORTH = 3584,
    /* No page that is not same-filled packs to less, so that recovery can tell damage by it. */
    CODEC_LEAST = 16,
    CODEC_STRONG_LEVEL = 3
};

typedef struct {
    void *quick;
    ZSTD_CCtx *strong;
} packer;

typedef struct {
    ZSTD_DCtx *strong;
} unpacker;

static inline int unpack_quick(const void *from, int length, void *page)
{
    return LZ4_decompress_safe(from, page, length, CODEC_PAGE) == CODEC_PAGE;
}

static inline int unpack_strong(unpacker *u, const void *from, int length, void *page)
{
    return ZSTD_decompressDCtx(u->strong, page, CODEC_PAGE, from, (size_t)length) == CODEC_PAGE;
}

/* The length at `to`, which has room for CODEC_WORTH bytes; 0 where it is not worth it. */
static inline int pack_quick(packer *p, const void *page, void *to)
{
    int length = LZ4_compress_fast_extState(p->quick, page, to, CODEC_PAGE, CODEC_WORTH, 1);
    return length >= CODEC_LEAST ? length : 0;
}

/* As above; `room` is at most CODEC_WORTH. */
static inline int pack_strong(packer *p, const void *page, void *to, int room)
{
    size_t length = ZSTD_compress2(p->strong, to, (size_t)room, page, CODEC_PAGE);
    return !ZSTD_isError(length) && length >= CODEC_LEAST ? (int)length : 0;
}

static void packer_end(packer *p)
{
    free(p->quick);
    ZSTD_freeCCtx(p->strong);
    p->quick = NULL;
    p->strong = NULL;
}

/* -1 where there is no memory.  All of it is touched: a move under pressure must not allocate. */
static int packer_init(packer *p)
{
    char page[CODEC_PAGE], packed[CODEC_WORTH];
    int i;
    p->quick = malloc((size_t)LZ4_sizeofState());
    p->strong = ZSTD_createCCtx();
    if (p->quick == NULL || p->strong == NULL
        || ZSTD_isError(ZSTD_CCtx_setParameter(p->strong, ZSTD_c_compressionLevel, CODEC_STRONG_LEVEL))
        || ZSTD_isError(ZSTD_CCtx_setParameter(p->strong, ZSTD_c_contentSizeFlag, 0))) {
        packer_end(p);
        return -1;
    }
    for (i = 0; i < CODEC_PAGE; i++)
        page[i] = (char)(i * i >> 3);
    pack_quick(p, page, packed);
    pack_strong(p, page, packed, CODEC_WORTH);
    return 0;
}

static void unpacker_end(unpacker *u)
{
    ZSTD_freeDCtx(u->strong);
    u->strong = NULL;
}

static int unpacker_init(unpacker *u)
{
    char page[CODEC_PAGE], packed[CODEC_PAGE];
    size_t length;
    u->strong = ZSTD_createDCtx();
    if (u->strong == NULL)
        return -1;
    memset(page, 'x', sizeof page);
    memcpy(page, "touch every table of it", 23);
    length = ZSTD_compress(packed, sizeof packed, page, sizeof page, CODEC_STRONG_LEVEL);
    if (ZSTD_isError(length) || !unpack_strong(u, packed, (int)length, page)) {
        unpacker_end(u);
        return -1;
    }
    return 0;
}

#endif
