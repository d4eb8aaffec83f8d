"""State files made by hand, for tests that are the plugin themselves."""

import os
import pathlib
import uuid

from swaptide.cache import geometry, layout


class Plugin:
    """Writes the pages that a plugin writes."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        identity = layout.IDENTITY.pack(
            layout.MAGIC, layout.FORMAT_VERSION, geometry.SEGMENT_BYTES, 1 << 30, uuid.uuid4().bytes, b"g1", 0
        )
        path.write_bytes(identity.ljust(geometry.DIRECTORY_OFFSET, b"\0"))

    def put(self, name: str, value: int) -> None:
        """Set a counter."""
        with open(self.path, "r+b") as file:
            file.seek(geometry.COUNTERS_OFFSET + layout.COUNTERS.index(name) * layout.WORD.size)
            file.write(layout.WORD.pack(value))

    def use(self, size: int) -> None:
        """Let the file cost `size` bytes more than its first pages."""
        with open(self.path, "r+b") as file:
            os.ftruncate(file.fileno(), geometry.DIRECTORY_OFFSET)
            if size:
                os.posix_fallocate(file.fileno(), geometry.DIRECTORY_OFFSET, size)
