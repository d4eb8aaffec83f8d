"""A segment's image on disk, and the direct I/O that moves it.

2 MiB: 508 times a page and its 16-byte tag, so that one read brings both; then the reverse map, which
the cleaner needs; then a footer with the segment's generation, its slot and the tag of the reverse map.
Stateless; buffers are the caller's.  Functions return 0 or a negative errno.
"""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t

from swaptide.cache.entry cimport PAGE_BYTES, PAGE_SHIFT, PIECES, RMAP_OFFSET, SEGMENT_BYTES, SEGMENT_SHIFT


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset) noexcept
    ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset) noexcept

cdef extern from "tag.h" nogil:
    ctypedef struct tag_place:
        uint64_t disk
        uint64_t generation
        uint64_t slot
        uint64_t index
    void tag_make(unsigned char *out, const void *data, size_t length, const tag_place *place) noexcept
    int tag_matches(const unsigned char *tag, const void *data, size_t length,
                    const tag_place *place) noexcept

cdef enum:
    RMAP_BYTES = PIECES * 8
    RMAP_INDEX = 0xffff         # the reverse map's own place in the tag

cdef struct Footer:
    char magic[8]
    uint64_t generation
    uint32_t slot
    uint32_t count
    unsigned char rmap_tag[16]

assert SEGMENT_BYTES - IMAGE_FOOTER >= sizeof(Footer)
assert IMAGE_RMAP == PIECES * STRIDE and IMAGE_FOOTER == IMAGE_RMAP + RMAP_BYTES


cdef tag_place place_in(const SpillFile *spill, uint64_t generation, uint32_t slot,
                        uint32_t index) noexcept nogil:
    cdef tag_place place
    place.disk = spill.disk_seed
    place.generation = generation
    place.slot = slot
    place.index = index
    return place


cdef void image_make(char *image, const char *pages, const SpillFile *spill, uint64_t generation,
                     uint32_t slot, uint32_t count) noexcept nogil:
    """Lay out the RAM segment at `pages` as its image; pieces from `count` on are left out."""
    cdef tag_place place = place_in(spill, generation, slot, 0)
    cdef uint32_t i
    cdef Footer footer
    for i in range(count):
        place.index = i
        memcpy(image + i * STRIDE, pages + (i << PAGE_SHIFT), PAGE_BYTES)
        tag_make(<unsigned char *> image + i * STRIDE + PAGE_BYTES, image + i * STRIDE, PAGE_BYTES, &place)
    memset(image + count * STRIDE, 0, (PIECES - count) * STRIDE)
    memcpy(image + IMAGE_RMAP, pages + RMAP_OFFSET, RMAP_BYTES)
    memset(image + IMAGE_FOOTER, 0, SEGMENT_BYTES - IMAGE_FOOTER)
    memcpy(footer.magic, b"tideseg1", 8)
    footer.generation = generation
    footer.slot = slot
    footer.count = count
    place.index = RMAP_INDEX
    tag_make(footer.rmap_tag, image + IMAGE_RMAP, RMAP_BYTES, &place)
    memcpy(image + IMAGE_FOOTER, &footer, sizeof(Footer))


cdef bint image_check(const char *image, const SpillFile *spill, uint64_t generation,
                      uint32_t slot) noexcept nogil:
    """Is this image of that life of the segment, its reverse map whole?  Pieces are checked one by one."""
    cdef Footer footer
    cdef tag_place place
    memcpy(&footer, image + IMAGE_FOOTER, sizeof(Footer))
    if memcmp(footer.magic, b"tideseg1", 8) != 0 or footer.generation != generation or footer.slot != slot:
        return False
    place = place_in(spill, generation, slot, RMAP_INDEX)
    return tag_matches(footer.rmap_tag, image + IMAGE_RMAP, RMAP_BYTES, &place)


cdef bint piece_check(const char *piece, const SpillFile *spill, uint64_t generation, uint32_t slot,
                      uint32_t index) noexcept nogil:
    cdef tag_place place = place_in(spill, generation, slot, index)
    return tag_matches(<const unsigned char *> piece + PAGE_BYTES, piece, PAGE_BYTES, &place)


cdef int image_write(const char *image, const SpillFile *spill, uint32_t slot) noexcept nogil:
    cdef off_t at = <off_t> (spill.base + (<uint64_t> slot << SEGMENT_SHIFT))
    cdef size_t done = 0
    cdef ssize_t n
    while done < SEGMENT_BYTES:
        n = pwrite(spill.fd, image + done, SEGMENT_BYTES - done, at + <off_t> done)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        if n == 0:
            return -EIO
        # A short direct write may end off the alignment: go back to where it can go on.
        done += <size_t> n
        done -= done % spill.align
        if n < <ssize_t> spill.align and done < SEGMENT_BYTES:
            return -EIO
    return 0


cdef int read_full(const SpillFile *spill, char *buffer, size_t length, off_t at) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t n
    while done < length:
        n = pread(spill.fd, buffer + done, length - done, at + <off_t> done)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        if n == 0 or (n % spill.align and done + <size_t> n < length):
            return -EIO     # the file was cut short under us
        done += <size_t> n
    return 0


cdef int image_read(char *image, const SpillFile *spill, uint32_t slot) noexcept nogil:
    return read_full(spill, image, SEGMENT_BYTES, <off_t> (spill.base + (<uint64_t> slot << SEGMENT_SHIFT)))


cdef int pieces_read(char *buffer, const SpillFile *spill, uint32_t slot, uint32_t index, uint32_t count,
                     char **first) noexcept nogil:
    """Read `count` pieces into an aligned buffer; `first` is where the first one lies in it."""
    cdef uint64_t at = spill.base + (<uint64_t> slot << SEGMENT_SHIFT) + <uint64_t> index * STRIDE
    cdef uint64_t start = at - at % spill.align
    cdef uint64_t end = at + <uint64_t> count * STRIDE
    end += (spill.align - end % spill.align) % spill.align
    first[0] = buffer + (at - start)
    return read_full(spill, buffer, end - start, <off_t> start)
