"""Latency and size histograms as the state file has them: layout, bounds, quantiles.  Values without state.

The compiled core counts (histogram.h, with the same layout; tests/unit/test_cache_histogram.py holds the two
against each other), everybody else reads.  Latency buckets are four for each power of two, as in
HdrHistogram (Tene); size buckets are powers of two.
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Final, Self

LATENCY_BUCKETS: Final = 128
SIZE_BUCKETS: Final = 16
WORDS: Final = 160
BYTES: Final = WORDS * 8

_FIRST_NS: Final = 256
_FIRST_BYTES: Final = 512
_LATENCY_SUM: Final = LATENCY_BUCKETS
_SIZE_FIRST: Final = _LATENCY_SUM + 1
_SIZE_SUM: Final = _SIZE_FIRST + SIZE_BUCKETS


def latency_bound_ns(bucket: int) -> int:
    """Exclusive upper bound of a latency bucket; the last bucket holds everything above as well."""
    octave, quarter = divmod(bucket, 4)
    return (_FIRST_NS << octave) * (4 + quarter) // 4


def size_bound_bytes(bucket: int) -> int:
    """Inclusive upper bound of a size bucket; the last bucket holds everything above as well."""
    return _FIRST_BYTES << bucket


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Requests of one kind since the disk was made, or between two readings (their difference)."""

    latency: tuple[int, ...]
    latency_sum_ns: int
    size: tuple[int, ...]
    size_sum_bytes: int

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Decode BYTES bytes of the state file; raises struct.error if there are fewer."""
        words = struct.unpack_from(f"<{WORDS}Q", raw)
        return cls(
            words[:LATENCY_BUCKETS],
            words[_LATENCY_SUM],
            words[_SIZE_FIRST:_SIZE_SUM],
            words[_SIZE_SUM],
        )

    @property
    def count(self) -> int:
        """How many requests."""
        return sum(self.latency)

    def __sub__(self, earlier: "Histogram") -> "Histogram":
        """What came after `earlier` was read."""
        return Histogram(
            _less(self.latency, earlier.latency),
            self.latency_sum_ns - earlier.latency_sum_ns,
            _less(self.size, earlier.size),
            self.size_sum_bytes - earlier.size_sum_bytes,
        )

    def quantile_seconds(self, quantile: float) -> float | None:
        """The latency that a share `quantile` (0 to 1) of the requests stayed below; None without requests.

        Interpolated inside its bucket, which is a quarter of a power of two wide.
        """
        wanted = quantile * self.count
        below = 0
        for bucket, here in enumerate(self.latency):
            if here and below + here >= wanted:
                low = latency_bound_ns(bucket - 1) if bucket else 0
                share = (wanted - below) / here
                return (low + (latency_bound_ns(bucket) - low) * share) / 1e9
            below += here
        return None

    def mean_seconds(self) -> float | None:
        """The mean latency; None without requests."""
        return self.latency_sum_ns / self.count / 1e9 if self.count else None


def _less(later: Sequence[int], earlier: Sequence[int]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(later, earlier, strict=True))
