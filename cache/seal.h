/* How a piece is sealed on disk, and opened again: encrypted and authenticated (AES-256-GCM, OpenSSL), or, where
 * a disk is encrypted below, only guarded by a checksum (XXH3, Yann Collet's xxHash).  Either way 16 bytes
 * beside it, bound to the disk, to the one write that put it there, to the disk slot, to the place in it and to the
 * page that it is: a stale or misdirected sector fails as a flipped bit does.
 *
 * The nonce (NIST SP 800-38D, 8.2.1) is the number of the write, which is never used twice under one key, and the
 * piece's index.  A sealer belongs to one thread at a time; everything that it needs is made by seal_init.
 */
#ifndef SWAPTIDE_SEAL_H
#define SWAPTIDE_SEAL_H

#define XXH_INLINE_ALL
#include <openssl/evp.h>
#include <stdint.h>
#include <string.h>
#include <xxhash.h>

enum { SEAL_KEY_BYTES = 32, SEAL_TAG_BYTES = 16, SEAL_NONCE_BYTES = 12 };

typedef struct {
    uint64_t disk;
    uint64_t write; /* the number of the write */
    uint64_t slot;
    uint64_t index;
    uint64_t page; /* which page of the disk it is: an entry that was damaged opens nothing */
} seal_place;

/* Both NULL: checksums. */
typedef struct {
    EVP_CIPHER_CTX *lock, *unlock;
} sealer;

static void seal_end(sealer *s)
{
    EVP_CIPHER_CTX_free(s->lock);
    EVP_CIPHER_CTX_free(s->unlock);
    s->lock = s->unlock = NULL;
}

/* `key` is NULL or SEAL_KEY_BYTES; -1 if OpenSSL refuses. */
static int seal_init(sealer *s, const unsigned char *key)
{
    s->lock = s->unlock = NULL;
    if (key == NULL)
        return 0;
    s->lock = EVP_CIPHER_CTX_new();
    s->unlock = EVP_CIPHER_CTX_new();
    if (s->lock != NULL && s->unlock != NULL
        && EVP_EncryptInit_ex(s->lock, EVP_aes_256_gcm(), NULL, key, NULL) == 1
        && EVP_DecryptInit_ex(s->unlock, EVP_aes_256_gcm(), NULL, key, NULL) == 1)
        return 0;
    seal_end(s);
    return -1;
}

static inline void seal_nonce(unsigned char nonce[SEAL_NONCE_BYTES], const seal_place *place)
{
    uint32_t index = (uint32_t)place->index;
    memcpy(nonce, &place->write, 8);
    memcpy(nonce + 8, &index, 4);
}

static inline void seal_checksum(unsigned char *tag, const void *data, int length, const seal_place *place)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(data, (size_t)length, XXH3_64bits(place, sizeof *place));
    memcpy(tag, &hash.low64, 8);
    memcpy(tag + 8, &hash.high64, 8);
}

/* Seal `length` bytes from `in` to `out` (not the same memory) and their tag to `tag`.  -1 if OpenSSL fails. */
static inline int seal(sealer *s, void *out, unsigned char *tag, const void *in, int length, const seal_place *place)
{
    unsigned char nonce[SEAL_NONCE_BYTES];
    int done, rest;
    if (s->lock == NULL) {
        memcpy(out, in, (size_t)length);
        seal_checksum(tag, out, length, place);
        return 0;
    }
    seal_nonce(nonce, place);
    if (EVP_EncryptInit_ex(s->lock, NULL, NULL, NULL, nonce) == 1
        && EVP_EncryptUpdate(s->lock, NULL, &done, (const unsigned char *)place, sizeof *place) == 1
        && EVP_EncryptUpdate(s->lock, out, &done, in, length) == 1
        && EVP_EncryptFinal_ex(s->lock, (unsigned char *)out + done, &rest) == 1 && done + rest == length
        && EVP_CIPHER_CTX_ctrl(s->lock, EVP_CTRL_AEAD_GET_TAG, SEAL_TAG_BYTES, tag) == 1)
        return 0;
    return -1;
}

/* Open what `seal` made, to `out`, which may be `in`.  0 where it is not what was sealed for this place; then
 * what lies at `out` means nothing and must not be used. */
static inline int unseal(sealer *s, void *out, const unsigned char *tag, const void *in, int length,
                         const seal_place *place)
{
    unsigned char buffer[SEAL_TAG_BYTES];
    int done, rest;
    if (s->unlock == NULL) {
        seal_checksum(buffer, in, length, place);
        if (memcmp(buffer, tag, SEAL_TAG_BYTES) != 0)
            return 0;
        if (out != in)
            memcpy(out, in, (size_t)length);
        return 1;
    }
    memcpy(buffer, tag, SEAL_TAG_BYTES);
    {
        unsigned char nonce[SEAL_NONCE_BYTES];
        seal_nonce(nonce, place);
        return EVP_DecryptInit_ex(s->unlock, NULL, NULL, NULL, nonce) == 1
            && EVP_CIPHER_CTX_ctrl(s->unlock, EVP_CTRL_AEAD_SET_TAG, SEAL_TAG_BYTES, buffer) == 1
            && EVP_DecryptUpdate(s->unlock, NULL, &done, (const unsigned char *)place, sizeof *place) == 1
            && EVP_DecryptUpdate(s->unlock, out, &done, in, length) == 1
            && EVP_DecryptFinal_ex(s->unlock, (unsigned char *)out + done, &rest) == 1;
    }
}

#endif
