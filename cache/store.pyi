"""Types of the spill stores; see store.pyx."""

from typing import Self

class Store: ...

class FileStore(Store):
    def __new__(cls, fd: int, align: int, direct: bool) -> Self: ...
