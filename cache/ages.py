"""Buckets of age in the log: how many segments were begun since the one that a page lies in.

The same buckets count what is read (how old it was) and what lives (how old it is).  Together they are a
disk's miss-ratio curve: a read hits in RAM of a certain size if what lives and is younger fits into it.
Four buckets to the octave, as segments.pyx counts; tests hold the two against each other.
"""

from typing import Final

BUCKETS: Final = 64
# Ages below this have a bucket each; from there on an octave has so many.
_FINE: Final = 4


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
