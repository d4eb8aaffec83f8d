"""Types of the look through a state file; see inspection.pyx."""

from swaptide.cache.segments import Segments

def inspect(segments: Segments) -> tuple[int, int]: ...
