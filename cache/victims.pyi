"""Type of the cleaner's choice; see victims.pyx."""

from typing import Self

from swaptide.cache.segments import Segments

class Victims:
    def __new__(cls, segments: Segments) -> Self: ...
