"""Types of the pair of spill stores; see pair.pyx."""

from typing import Self

from swaptide.cache.store import Store

class PairStore(Store):
    def __new__(cls, first: Store, second: Store, base: int, first_bytes: int) -> Self: ...
    def read_bytes(self, count: int, at: int) -> bytes: ...
    def write_bytes(self, data: bytes, at: int) -> None: ...
