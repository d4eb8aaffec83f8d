"""What is made of control words, and of what the movers measured."""

import time

import pytest

from swaptide.cache import geometry, layout
from swaptide.cache.governor import Governor
from swaptide.cache.movers import Orders
from swaptide.cache.rates import Rates


def test_orders_are_what_the_words_say() -> None:
    later = time.monotonic_ns() + 10**10
    for index, name in enumerate(layout.COMPRESS):
        assert Governor._orders(index, 250, later) == Orders(name, 0.25, later / 1e9)
    assert Governor._orders(1, 0, 0).deadline is None


def test_words_that_make_no_sense_order_nothing_harmful() -> None:
    assert Governor._orders(1 << 63, 1 << 63, 0) == Orders("none", 1.0, None)


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
