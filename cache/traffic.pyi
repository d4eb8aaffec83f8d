"""Types of what travels to a spill store over NBD; see traffic.pyx."""

from swaptide.cache.store import Store

class Traffic(Store): ...
