"""Types of the `nbdkit` module, which exists only inside an nbdkit process (nbdkit-python-plugin(3)).

Only what nbdkit 1.32 to 1.42 have in common.
"""

from typing import Final

THREAD_MODEL_SERIALIZE_CONNECTIONS: Final[int]
THREAD_MODEL_SERIALIZE_ALL_REQUESTS: Final[int]
THREAD_MODEL_SERIALIZE_REQUESTS: Final[int]
THREAD_MODEL_PARALLEL: Final[int]

FLAG_MAY_TRIM: Final[int]
FLAG_FUA: Final[int]
FLAG_REQ_ONE: Final[int]
FLAG_FAST_ZERO: Final[int]

FUA_NONE: Final[int]
FUA_EMULATE: Final[int]
FUA_NATIVE: Final[int]

CACHE_NONE: Final[int]
CACHE_EMULATE: Final[int]
CACHE_NATIVE: Final[int]

EXTENT_HOLE: Final[int]
EXTENT_ZERO: Final[int]

def debug(msg: str, /) -> None: ...
def export_name() -> str: ...
def set_error(err: int, /) -> None: ...
def parse_size(size: str, /) -> int: ...
def shutdown() -> None: ...
