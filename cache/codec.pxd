"""Declarations of codec.h."""


cdef extern from "codec.h" nogil:
    enum: CODEC_WORTH
    enum: CODEC_LEAST
    ctypedef struct packer:
        pass
    ctypedef struct unpacker:
        pass
    int packer_init(packer *p) noexcept
    void packer_end(packer *p) noexcept
    int unpacker_init(unpacker *u) noexcept
    void unpacker_end(unpacker *u) noexcept
    int pack_quick(packer *p, const void *page, void *to) noexcept
    int pack_strong(packer *p, const void *page, void *to, int room) noexcept
    int unpack_quick(const void *data, int length, void *page) noexcept
    int unpack_strong(unpacker *u, const void *data, int length, void *page) noexcept
