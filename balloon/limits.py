"""What limits a disk may have: floor <= target <= cap, none below what the disk needs to work.

Pure functions; sizes are in bytes.
"""

from swaptide.cache import geometry
from swaptide.cache.errors import UsageError
from swaptide.cache.face import Limits

# Far above any host's RAM, and far below what a word of the state file holds.
MAX_BYTES = 4 * geometry.MAX_SIZE_BYTES
_MIB = 1 << 20


class LimitError(UsageError):
    """Limits that contradict each other; `asked_bytes` is what was asked, `bound_bytes` what forbids it."""

    def __init__(self, message: str, asked_bytes: int, bound_bytes: int) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes
        self.bound_bytes = bound_bytes


def default_floor(size_bytes: int) -> int:
    """The floor of a disk whose operator names none; raises UsageError for a size that cannot be."""
    try:
        return geometry.of_size(size_bytes).working_minimum_bytes
    except ValueError as error:
        raise UsageError(f"{error}; give a size such as 4G") from error


def check(size_bytes: int, cap_bytes: int, floor_bytes: int | None = None) -> Limits:
    """The limits of a disk with this cap and floor (None: the default), the target at the cap.

    Raises LimitError, naming both numbers, if they contradict each other or the disk's needs.
    """
    minimum = default_floor(size_bytes)
    floor = minimum if floor_bytes is None else floor_bytes
    if floor < minimum:
        raise LimitError(
            f"floor {_mib(floor)} is below the {_mib(minimum)} that a disk of this size needs to work;"
            f" give --floor {_mib(minimum)} or more",
            floor,
            minimum,
        )
    if cap_bytes < floor:
        raise LimitError(
            f"ram {_mib(cap_bytes)} is below the floor {_mib(floor)}; give --ram {_mib(floor)} or more"
            + (", or lower the floor" if floor > minimum else ""),
            cap_bytes,
            floor,
        )
    if cap_bytes > MAX_BYTES:
        raise LimitError(
            f"ram {_mib(cap_bytes)} is more than {_mib(MAX_BYTES)}; give --ram {_mib(MAX_BYTES)} or less",
            cap_bytes,
            MAX_BYTES,
        )
    return Limits(cap_bytes=cap_bytes, target_bytes=cap_bytes, floor_bytes=floor)


def clamp(target_bytes: int, limits: Limits) -> int:
    """`target_bytes` moved into floor..cap."""
    return max(limits.floor_bytes, min(target_bytes, limits.cap_bytes))


def _mib(size_bytes: int) -> str:
    # Rounded up, so that a minimum that is named can also be given.
    return f"{-(-size_bytes // _MIB)}M"
