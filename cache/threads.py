"""Names for our threads, as `top -H` and perf show them: nbdkit's own serve requests, ours move pages."""

import ctypes
from typing import Final

# prctl(2); the kernel keeps 15 bytes
_SET_NAME: Final = 15
MOVER: Final = "swaptide-mover"
PACKER: Final = "swaptide-packer"
LOOP: Final = "swaptide-loop"
STORE: Final = "swaptide-store"
METRICS: Final = "swaptide-scrape"
JOB: Final = "swaptide-job"


def call_me(name: str) -> None:
    """Give the calling thread a name."""
    ctypes.CDLL(None).prctl(_SET_NAME, name.encode(), 0, 0, 0)
