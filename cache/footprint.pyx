"""RAM slots made, and given back to the host: what changes how much memory a disk takes.

Runs without the GIL, in the movers' threads.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t

from swaptide.cache.agelists cimport NO_SEGMENT
from swaptide.cache.atomics cimport mortal
from swaptide.cache.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from swaptide.cache.segments cimport COLD, Segments


cdef int slots_populate(Segments segments, uint32_t count) noexcept nogil:
    """Make up to `count` free slots, while the target allows.  Returns how many, or -ENOMEM."""
    cdef uint32_t slot, _i
    cdef int failed, made = 0
    for _i in range(count):
        pthread_mutex_lock(&segments.turnstile.lock)
        if (segments.turnstile.stopping or segments.turnstile.frozen
                or (segments.ram.populated >= segments.ram.limit() and not lacks_cleaner_slot(segments))
                or not segments.ram.take_hole(&slot)):
            pthread_mutex_unlock(&segments.turnstile.lock)
            return made
        pthread_mutex_unlock(&segments.turnstile.lock)
        failed = segments.map.slot_populate(slot)
        if failed:
            segments.map.slot_punch(slot, 1)
        pthread_mutex_lock(&segments.turnstile.lock)
        if failed:
            segments.ram.give_hole(slot)
            pthread_mutex_unlock(&segments.turnstile.lock)
            return -ENOMEM
        segments.ram.give(slot)
        pthread_mutex_unlock(&segments.turnstile.lock)
        made += 1
    return made


cdef bint lacks_cleaner_slot(Segments segments) noexcept nogil:
    """Nothing is free, nothing will come free by itself, and the cleaner has no segment to work with.

    So it may be after a restart under a lower target.  One slot over the target beats a dead disk.
    """
    return (segments.ram.n_free == 0 and segments.ram.n_due == 0 and segments.writing_segments == 0
            and segments.clean_segments == 0 and segments.heads[COLD].segment == NO_SEGMENT)


cdef int slots_punch(Segments segments, uint32_t release) noexcept nogil:
    """Give the slots that are due back to the host, free ones while there are more than allowed, and
    `release` more free ones.  Returns how many."""
    cdef uint32_t slot
    cdef int done = 0
    while not segments.turnstile.is_frozen() and take_due(segments, &slot, &release):
        segments.map.slot_punch(slot, 1)
        mortal("punch: memory given back")
        pthread_mutex_lock(&segments.turnstile.lock)
        segments.ram.give_hole(slot)
        pthread_mutex_unlock(&segments.turnstile.lock)
        done += 1
    return done


cdef bint take_due(Segments segments, uint32_t *slot, uint32_t *release) noexcept nogil:
    cdef bint found
    pthread_mutex_lock(&segments.turnstile.lock)
    found = segments.ram.take_due(slot, release)
    pthread_mutex_unlock(&segments.turnstile.lock)
    return found
