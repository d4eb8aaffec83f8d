"""Buckets of age in the log: how many segments were begun since the one that a page lies in.

The same buckets count what is read (how old it was) and what lives (how old it is).  Together they are a
disk's miss-ratio curve: a read hits in RAM of a certain size if what lives and is younger fits into it.
Four buckets to the octave, as ages.h counts; tests/unit/test_cache_ages.py holds the two against each other.
"""

import dataclasses
import struct
from typing import Final, Self

BUCKETS: Final = 64
# Ages below this have a bucket each; from there on an octave has so many.
_FINE: Final = 4
_WORDS = struct.Struct(f"<{2 * BUCKETS}Q")
BYTES: Final = _WORDS.size


def bucket(age: int) -> int:
    """The bucket of an age, in segments; the last one takes whatever is older."""
    if age < _FINE:
        return age
    octave = age.bit_length() - 1
    return min(BUCKETS - 1, (octave - 1) * _FINE + (age >> (octave - 2)) % _FINE)


def youngest(index: int) -> int:
    """The smallest age in a bucket, in segments."""
    if index < _FINE:
        return index
    octave = index // _FINE + 1
    return (_FINE + index % _FINE) << (octave - 2)


@dataclasses.dataclass(frozen=True)
class Ages:
    """What the state file says about ages, by bucket.

    `reads`: pages that were read from segments since the disk was made, in RAM or on disk, without an error;
    same-filled pages and holes are in none.  `live_bytes`: what lives now, packed pages as they are packed;
    not older than a second while the disk is served.
    """

    reads: tuple[int, ...]
    live_bytes: tuple[int, ...]

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Decode BYTES bytes of the state file; raises struct.error if there are fewer."""
        words = _WORDS.unpack_from(raw)
        return cls(words[:BUCKETS], words[BUCKETS:])
