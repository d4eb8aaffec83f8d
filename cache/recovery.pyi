"""Types of recovery.pyx."""

from swaptide.cache.segments import Segments

def recover(segments: Segments, taken: int) -> int: ...
