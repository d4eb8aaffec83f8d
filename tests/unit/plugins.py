"""State files made by hand, for tests that are the plugin themselves."""

import os
import pathlib
import struct
import uuid

from swaptide.cache import geometry, histogram, layout


class Plugin:
    """Writes the pages that a plugin writes."""

    def __init__(self, path: pathlib.Path, slots: tuple[int, int] | None = None) -> None:
        """`slots` for a disk with two spill stores, as of face.Identity."""
        self.path = path
        identity = layout.IDENTITY.pack(
            layout.MAGIC,
            layout.FORMAT_VERSION,
            geometry.SEGMENT_BYTES,
            1 << 30,
            uuid.uuid4().bytes,
            b"g1",
            layout.flags_of(False, slots),
        )
        path.write_bytes(identity.ljust(geometry.DIRECTORY_OFFSET, b"\0"))

    def put(self, name: str, value: int) -> None:
        """Set a counter."""
        with open(self.path, "r+b") as file:
            file.seek(geometry.COUNTERS_OFFSET + layout.COUNTERS.index(name) * layout.WORD.size)
            file.write(layout.WORD.pack(value))

    def put_histogram(self, name: str, found: histogram.Histogram) -> None:
        """Set the latencies of one of layout.HISTOGRAMS."""
        words = (*found.latency, found.latency_sum_ns, *found.size, found.size_sum_bytes)
        with open(self.path, "r+b") as file:
            file.seek(geometry.HISTOGRAMS_OFFSET + layout.HISTOGRAMS.index(name) * histogram.BYTES)
            file.write(struct.pack(f"<{len(words)}Q", *words))

    def use(self, size: int) -> None:
        """Let the file cost `size` bytes more than its first pages."""
        with open(self.path, "r+b") as file:
            os.ftruncate(file.fileno(), geometry.DIRECTORY_OFFSET)
            if size:
                os.posix_fallocate(file.fileno(), geometry.DIRECTORY_OFFSET, size)
