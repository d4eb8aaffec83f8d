"""Type of the movers' claims; see claims.pyx."""

from typing import Self

from swaptide.cache.segments import Segments

class Claims:
    def __new__(cls, segments: Segments) -> Self: ...
