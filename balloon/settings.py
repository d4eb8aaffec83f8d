"""The constants of the control law; each with its reason in docs/design.md.  Pure data."""

import math
from collections.abc import Mapping

import msgspec

from swaptide.balloon import curves, division
from swaptide.cache.errors import UsageError

MIB = 1 << 20


class Settings(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds, shares from 0 to 1."""

    # How far ahead the fall of free memory is drawn out, at most to so much of a room.
    ahead_seconds: float = 1.0
    ahead_share: float = 1 / 4
    smooth_seconds: float = 0.3
    # One step beyond what is missing while a trigger fires, believed where less than this of a room is spare.
    pressure_share: float = 1 / 16
    pressure_least_bytes: int = 32 * MIB
    plenty_share: float = 1 / 8
    # Growth: after so long without pressure, by so much of the smallest room per second.
    quiet_seconds: float = 5.0
    grow_share: float = 1 / 32
    grow_least_bytes: int = 16 * MIB
    # The dead band, of the smallest room: less than this is not worth growing for.
    band_share: float = 1 / 64
    band_least_bytes: int = 16 * MIB
    # A disk is given no more licence than this beyond what it has while others want it too.
    headroom_share: float = 1 / 4
    headroom_least_bytes: int = 64 * MIB
    # Moving RAM between disks: a step of all their RAM at a time, not for less than a share of a disk's
    # own, nor where it is worth less than a share of what those who get it read.
    move_seconds: float = 1.0
    move_share: float = 1 / 32
    move_least_bytes: int = 16 * MIB
    move_band_share: float = 1 / 32
    move_band_least_bytes: int = 8 * MIB
    move_worth_share: float = 1 / 400
    half_life_seconds: float = curves.HALF_LIFE_SECONDS
    look_seconds: float = 0.9
    fairness: float = division.FAIRNESS
    # A disk that does not fall for so long is not counted on.
    stuck_seconds: float = 2.0
    # Guests' RAM is taken when the floors were not enough for so long.
    take_after_seconds: float = 2.0


def of(given: Mapping[str, float]) -> Settings:
    """The settings with some replaced; raises UsageError for what is none, or no size, time or share."""
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name, value in given.items():
        if name not in fields:
            raise UsageError(f"setting '{name}' is none; the settings are {', '.join(sorted(fields))}")
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"setting {name}={value:g} must be a number from 0 up")
        if name.endswith("_share") and value > 1:
            raise UsageError(f"setting {name}={value:g} is a share, from 0 to 1")
        if name.endswith("_bytes") and value > 1 << 60:
            raise UsageError(f"setting {name}={value:g} is more than {1 << 60} bytes")
    whole = {name: int(value) if name.endswith("_bytes") else float(value) for name, value in given.items()}
    return Settings(**whole)  # type: ignore[arg-type]
