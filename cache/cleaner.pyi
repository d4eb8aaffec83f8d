"""Type of the cleaner; see cleaner.pyx."""

from typing import Self

from swaptide.cache.claims import Claims
from swaptide.cache.log import Log

class Cleaner:
    def __new__(cls, log: Log, claims: Claims, key: bytearray | None) -> Self: ...
