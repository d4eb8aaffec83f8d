"""A segment's image on disk, and the direct I/O that moves it.

2 MiB: 508 times a page and its 16-byte tag, so that one read brings both; then the reverse map, which
the cleaner needs; then a footer with the number of the write that made it, its slot and the tag of the
reverse map.  Pages and reverse map are sealed (seal.h).
Stateless; buffers and sealers are the caller's.  Functions return 0 or a negative errno.
"""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t

from swaptide.cache.entry cimport PAGE_BYTES, PAGE_SHIFT, PIECES, RMAP_OFFSET, SEGMENT_BYTES, SEGMENT_SHIFT
from swaptide.cache.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from swaptide.cache.seal cimport seal, seal_place, sealer, unseal


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset) noexcept
    ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset) noexcept

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags) noexcept
    enum: RWF_DSYNC

cdef enum:
    RMAP_BYTES = PIECES * 8
    RMAP_INDEX = 0xffff         # where the reverse map is sealed
    NO_PAGE = 0

cdef struct Footer:
    char magic[8]
    uint64_t write
    uint32_t slot
    uint32_t count
    unsigned char rmap_tag[16]

assert SEGMENT_BYTES - IMAGE_FOOTER >= sizeof(Footer)
assert IMAGE_RMAP == PIECES * STRIDE and IMAGE_FOOTER == IMAGE_RMAP + RMAP_BYTES


cdef seal_place place_in(const SpillFile *spill, uint64_t write, uint32_t slot, uint32_t index,
                         uint64_t page) noexcept nogil:
    cdef seal_place place
    place.disk = spill.disk_seed
    place.write = write
    place.slot = slot
    place.index = index
    place.page = page
    return place


cdef int image_make(char *image, sealer *by, const char *pages, const SpillFile *spill, uint64_t write,
                    uint32_t slot, uint32_t count) noexcept nogil:
    """Lay out and seal the RAM segment at `pages` as its image; pieces from `count` on are left out.

    `write` is a number that no other call for this disk has had.
    """
    cdef seal_place place = place_in(spill, write, slot, RMAP_INDEX, NO_PAGE)
    cdef uint32_t i
    cdef char *piece
    cdef const uint64_t *rmap = <const uint64_t *> (pages + RMAP_OFFSET)
    cdef Footer footer
    memcpy(footer.magic, b"tideseg2", 8)
    footer.write = write
    footer.slot = slot
    footer.count = count
    if seal(by, image + IMAGE_RMAP, footer.rmap_tag, pages + RMAP_OFFSET, RMAP_BYTES, &place) != 0:
        return -EIO
    for i in range(count):
        place.index = i
        place.page = rmap[i]
        piece = image + i * STRIDE
        if seal(by, piece, <unsigned char *> piece + PAGE_BYTES, pages + (i << PAGE_SHIFT), PAGE_BYTES,
                &place) != 0:
            return -EIO
    memset(image + count * STRIDE, 0, (PIECES - count) * STRIDE)
    memset(image + IMAGE_FOOTER, 0, SEGMENT_BYTES - IMAGE_FOOTER)
    memcpy(image + IMAGE_FOOTER, &footer, sizeof(Footer))
    return 0


cdef bint image_open(char *image, sealer *by, const SpillFile *spill, uint64_t write,
                     uint32_t slot) noexcept nogil:
    """Is this the image that `write` made?  Its reverse map is opened in place; pieces one by one."""
    cdef Footer footer
    cdef seal_place place
    memcpy(&footer, image + IMAGE_FOOTER, sizeof(Footer))
    if memcmp(footer.magic, b"tideseg2", 8) != 0 or footer.write != write or footer.slot != slot:
        return False
    place = place_in(spill, write, slot, RMAP_INDEX, NO_PAGE)
    return unseal(by, image + IMAGE_RMAP, footer.rmap_tag, image + IMAGE_RMAP, RMAP_BYTES, &place)


cdef bint piece_open(char *to, sealer *by, const char *piece, const SpillFile *spill, uint64_t write,
                     uint32_t slot, uint32_t index, uint64_t page) noexcept nogil:
    """Open a piece to `to`, which may be `piece`; False where it is not `page` as it was written there."""
    cdef seal_place place = place_in(spill, write, slot, index, page)
    return unseal(by, to, <const unsigned char *> piece + PAGE_BYTES, piece, PAGE_BYTES, &place)


cdef ssize_t write_there(const SpillFile *spill, const char *data, size_t length, off_t at) noexcept nogil:
    """As pwrite.  Data that only the page cache took may still be lost: it is written through, and one write
    after the other, since the kernel tells a failure once, to whoever asks first."""
    cdef iovec all
    cdef ssize_t n
    if spill.in_turn == NULL:
        return pwrite(spill.fd, data, length, at)
    all.iov_base = <void *> data
    all.iov_len = length
    pthread_mutex_lock(spill.in_turn)
    n = pwritev2(spill.fd, &all, 1, at, RWF_DSYNC)
    pthread_mutex_unlock(spill.in_turn)
    return n


cdef int image_write(const char *image, const SpillFile *spill, uint32_t slot) noexcept nogil:
    cdef off_t at = <off_t> (spill.base + (<uint64_t> slot << SEGMENT_SHIFT))
    cdef size_t done = 0
    cdef ssize_t n
    while done < SEGMENT_BYTES:
        n = write_there(spill, image + done, SEGMENT_BYTES - done, at + <off_t> done)
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
