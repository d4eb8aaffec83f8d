"""Limits of disks: what contradicts itself is refused with both numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from swaptide.balloon import limits
from swaptide.cache import geometry
from swaptide.cache.errors import UsageError
from swaptide.cache.face import Limits

MIB = 1 << 20
GIB = 1 << 30


def test_default_floor_is_the_working_minimum() -> None:
    for size in (64 * MIB, GIB, 2 * GIB):
        checked = limits.check(size, GIB)
        assert checked.floor_bytes == geometry.of_size(size).working_minimum_bytes <= 24 * MIB
        assert checked.target_bytes == checked.cap_bytes == GIB


@pytest.mark.parametrize(
    ("cap", "floor", "asked", "bound"),
    [(8 * MIB, None, "8M", "19M"), (64 * MIB, 100 * MIB, "64M", "100M"), (64 * MIB, 4 * MIB, "4M", "19M")],
)
def test_both_numbers_are_named(cap: int, floor: int | None, asked: str, bound: str) -> None:
    with pytest.raises(limits.LimitError, match=rf"{asked} .*{bound}") as caught:
        limits.check(GIB, cap, floor)
    assert caught.value.asked_bytes < caught.value.bound_bytes


def test_what_is_advised_is_accepted() -> None:
    with pytest.raises(limits.LimitError, match="give --ram 19M"):
        limits.check(GIB, MIB)
    limits.check(GIB, 19 * MIB)


@pytest.mark.parametrize("size", [0, -4096, 4095, 17 << 40])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(UsageError, match="size"):
        limits.check(size, GIB)


@given(some.integers(0, 2**50), some.integers(0, 2**40), some.integers(0, 2**40))
def test_clamped_targets_are_between(target: int, floor: int, more: int) -> None:
    within = Limits(cap_bytes=floor + more, target_bytes=0, floor_bytes=floor)
    clamped = limits.clamp(target, within)
    assert floor <= clamped <= floor + more
    assert clamped == target or target < floor or target > floor + more
