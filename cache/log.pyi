"""Types of the disk that the guest sees; see log.pyx."""

from typing import Self

from swaptide.cache.mapping import Mapping
from swaptide.cache.segments import Segments
from swaptide.cache.store import Store

class Log:
    @property
    def size_bytes(self) -> int: ...
    def __new__(
        cls,
        map: Mapping,
        segments: Segments,
        size_bytes: int,
        store: Store,
        base: int,
        disk_seed: int,
        key: bytearray | None,
    ) -> Self: ...
    def extents(
        self, count: int, offset: int, one: bool, hole_type: int, zero_type: int
    ) -> list[tuple[int, int, int]]: ...
    def write_bytes(self, data: bytes, offset: int) -> None: ...
    def read_bytes(self, count: int, offset: int) -> bytes: ...
