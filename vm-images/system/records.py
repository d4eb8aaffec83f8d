"""The records that the guest puts into Redis, and the digest that Redis has to have for them.

The guest writes them; whoever judges computes the digest without Redis, from nothing but the seed.
"""

import hashlib
import random
from collections.abc import Iterator

LEAST_BYTES, MOST_BYTES = 200, 12_000


def records(seed: int, total_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, so many bytes of values in all; the same ones for the same seed."""
    draw = random.Random(seed)
    number, left = 0, total_bytes
    while left > 0:
        value = draw.randbytes(min(left, draw.randrange(LEAST_BYTES, MOST_BYTES)))
        yield b"record:%d" % number, value
        number, left = number + 1, left - len(value)


class Digest:
    """DEBUG DIGEST of a database that holds strings only (debug.c of Redis 7, computeDatasetDigest)."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, key: bytes, value: bytes) -> None:
        """Count a record in."""
        digest = bytes(20)
        for part in (key, bytes(4), value):  # between them the type: 0 is a string
            digest = _mixed(digest, part)
        self._sum ^= int.from_bytes(hashlib.sha1(digest).digest())

    def text(self) -> str:
        """What Redis would print: the first database's number comes in as well."""
        first = int.from_bytes(_mixed(bytes(20), bytes(4)))
        return f"{self._sum ^ first:040x}"


def _mixed(digest: bytes, part: bytes) -> bytes:
    summed = int.from_bytes(digest) ^ int.from_bytes(hashlib.sha1(part).digest())
    return hashlib.sha1(summed.to_bytes(20)).digest()
