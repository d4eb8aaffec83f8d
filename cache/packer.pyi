"""Type of the packers; see packer.pyx."""

from typing import Self

from swaptide.cache.claims import Claims
from swaptide.cache.log import Log

class Packer:
    def __new__(cls, log: Log, claims: Claims) -> Self: ...
