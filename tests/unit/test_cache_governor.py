"""What is made of control words, and of what the movers measured."""

import asyncio
import time
from typing import Any, cast

import pytest

from swaptide.cache import geometry, layout
from swaptide.cache.governor import Governor
from swaptide.cache.movers import Movers, Orders
from swaptide.cache.rates import FIRST_GAIN, Rates


def test_orders_are_what_the_words_say() -> None:
    later = time.monotonic_ns() + 10**10
    for index, name in enumerate(layout.COMPRESS):
        assert Governor._orders(index, 250, later) == Orders(name, 0.25, later / 1e9)
    assert Governor._orders(1, 0, 0).deadline is None
    assert [Governor._orders(1, 0, 0, word).frozen for word in range(4)] == [False, True, False, True]


def test_words_that_make_no_sense_order_nothing_harmful() -> None:
    assert Governor._orders(1 << 63, 1 << 63, 0, (1 << 63) + 1) == Orders("none", 1.0, None)


def test_a_deadline_that_is_over_binds_nobody() -> None:
    assert Governor._orders(1, 250, time.monotonic_ns() - 1).deadline is None


def test_rates_follow_what_was_measured() -> None:
    rates = Rates(4, 2)
    for _ in range(200):
        rates.packed(0.010, geometry.CONTENT_BYTES // 4)
        rates.spilled(0.020)
    assert rates.gain == pytest.approx(0.75)
    assert rates.pack_slots_per_second == pytest.approx(2 * 0.75 / 0.010)
    assert rates.spill_slots_per_second == pytest.approx(4 / 0.020)


class OnePacks:
    """Moves of which each packs a segment to these bytes; 0 where it turns out not to shrink."""

    def __init__(self, *to_bytes: int) -> None:
        self._left = list(to_bytes)
        self._total = 12345  # before this process

    def packed_bytes(self) -> int:
        return self._total

    def pack(self, _worker: int, _keep: int, _strong: bool) -> int:
        self._total += self._left.pop(0)
        return 1


def test_what_does_not_shrink_says_nothing_about_packing() -> None:
    stiff = OnePacks(0, 0, 0)
    rates = packed_by(stiff, 3)
    assert rates.gain == FIRST_GAIN


def test_each_packing_counts_its_own_bytes() -> None:
    half = geometry.CONTENT_BYTES // 2
    rates = packed_by(OnePacks(*[half, 0] * 40), 80)
    assert rates.gain == pytest.approx(0.5, abs=0.01)


def packed_by(moves: OnePacks, times: int) -> Rates:
    async def body() -> Rates:
        mover = Movers(cast(Any, moves), cast(Any, None), -1)
        for _ in range(times):
            await mover._pack(0, 4)
        return mover.rates

    return asyncio.run(body())
