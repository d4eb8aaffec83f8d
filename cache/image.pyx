"""A segment's image on disk, and how it goes to the store and back.

2 MiB: the 510 chunks of the segment's content, 4096 bytes and a 16-byte tag each, so that one read brings
both; then a footer that says which write made it, for people and tools.  The content is the same as in RAM:
pieces from below, the reverse map from above.  Where all pieces are whole pages a chunk is one page, and is
sealed as that page (seal.h); a packed piece lies in one chunk or two.
Stateless; buffers and sealers are the caller's.  Functions return 0 or a negative errno.
"""

from libc.errno cimport EIO
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from swaptide.cache.entry cimport (
    CHUNKS,
    CONTENT_BYTES,
    PAGE_BYTES,
    PAGE_MASK,
    PAGE_SHIFT,
    RMAP_ENTRY_BYTES,
    SEGMENT_BYTES,
    SEGMENT_SHIFT,
    rmap_of,
)
from swaptide.cache.mapping cimport ALIGNED_FLAG, SegmentEntry
from swaptide.cache.seal cimport seal, seal_place, sealer, unseal


cdef struct Footer:
    char magic[8]
    uint64_t write
    uint32_t slot
    uint32_t count

assert SEGMENT_BYTES - IMAGE_FOOTER >= sizeof(Footer) and IMAGE_FOOTER == CHUNKS * STRIDE


cdef seal_place place_in(const Spill *spill, uint64_t write, uint32_t slot, uint32_t index,
                         uint32_t page) noexcept nogil:
    cdef seal_place place
    place.disk = spill.disk_seed
    place.write = write
    place.slot = slot
    place.index = index
    place.page = page
    return place


cdef int image_make(char *image, sealer *by, char *content, const Spill *spill, const SegmentEntry *entry,
                    uint32_t slot) noexcept nogil:
    """Lay out and seal the segment whose RAM is `content`; chunks that nothing was handed out of are zeros.

    The entry's `write` is a number that no other call for this disk has had.
    """
    cdef seal_place place = place_in(spill, entry.write, slot, 0, NO_PAGE)
    cdef uint32_t used = (entry.fill + PAGE_BYTES - 1) >> PAGE_SHIFT
    cdef uint32_t rmap = (CONTENT_BYTES - <uint32_t> entry.count * RMAP_ENTRY_BYTES) >> PAGE_SHIFT
    cdef uint32_t i
    cdef char *chunk
    cdef Footer footer
    for i in range(CHUNKS):
        chunk = image + i * STRIDE
        if used <= i < rmap:
            memset(chunk, 0, STRIDE)
            continue
        place.index = i
        place.page = NO_PAGE
        if entry.flags & ALIGNED_FLAG and i < used:
            place.page = rmap_of(content, i)[0]
        if seal(by, chunk, <unsigned char *> chunk + PAGE_BYTES, content + (i << PAGE_SHIFT), PAGE_BYTES,
                &place) != 0:
            return -EIO
    memcpy(footer.magic, b"tideseg3", 8)
    footer.write = entry.write
    footer.slot = slot
    footer.count = entry.count
    memset(image + IMAGE_FOOTER, 0, SEGMENT_BYTES - IMAGE_FOOTER)
    memcpy(image + IMAGE_FOOTER, &footer, sizeof(Footer))
    return 0


cdef bint chunk_open(char *to, sealer *by, const char *chunk, const Spill *spill, uint64_t write,
                     uint32_t slot, uint32_t index, uint32_t page) noexcept nogil:
    """Open a chunk to `to`, which may be `chunk`; False where it is not what was written there.

    `page` is the page that it is, NO_PAGE where it is not one whole page.
    """
    cdef seal_place place = place_in(spill, write, slot, index, page)
    return unseal(by, to, <const unsigned char *> chunk + PAGE_BYTES, chunk, PAGE_BYTES, &place)


cdef int image_write(const char *image, const Spill *spill, uint32_t slot) noexcept nogil:
    return spill.store.write(spill.store.of, image, SEGMENT_BYTES,
                             spill.base + (<uint64_t> slot << SEGMENT_SHIFT))


cdef int image_commit(const Spill *spill, uint64_t mark, uint32_t slot) noexcept nogil:
    """Have what was written since the mark, to the store that has this slot, be safe; it can."""
    return spill.store.commit(spill.store.of, mark, spill.base + (<uint64_t> slot << SEGMENT_SHIFT))


cdef int image_read(char *image, const Spill *spill, uint32_t slot) noexcept nogil:
    return spill.store.read(spill.store.of, image, SEGMENT_BYTES,
                            spill.base + (<uint64_t> slot << SEGMENT_SHIFT))


cdef int image_discard(const Spill *spill, uint32_t slot, uint32_t count) noexcept nogil:
    """Have the store forget `count` slots; it can."""
    return spill.store.discard(spill.store.of, <uint64_t> count << SEGMENT_SHIFT,
                               spill.base + (<uint64_t> slot << SEGMENT_SHIFT))


cdef int chunks_read(char *buffer, const Spill *spill, uint32_t slot, uint32_t index, uint32_t count,
                     char **first) noexcept nogil:
    """Read `count` chunks into an aligned buffer; `first` is where the first one lies in it."""
    cdef uint64_t at = spill.base + (<uint64_t> slot << SEGMENT_SHIFT) + <uint64_t> index * STRIDE
    cdef uint32_t align = spill.store.align
    cdef uint64_t start = at - at % align
    cdef uint64_t end = at + <uint64_t> count * STRIDE
    end += (align - end % align) % align
    first[0] = buffer + (at - start)
    return spill.store.read(spill.store.of, buffer, end - start, start)


cdef void piece_copy(char *to, const char *chunks, uint32_t first, uint32_t at,
                     uint32_t length) noexcept nogil:
    """Put together a piece that lies at `at` of its segment, out of open chunks that begin with `first`."""
    cdef uint32_t done = 0, within, part
    while done < length:
        within = (at + done) & PAGE_MASK
        part = min(length - done, PAGE_BYTES - within)
        memcpy(to + done, chunks + (((at + done) >> PAGE_SHIFT) - first) * STRIDE + within, part)
        done += part
