"""Contenders take turns fairly, and one that fails is out."""

import contextlib
import pathlib

import pytest

from bench import measure


def laboratory(told: list[str]) -> measure.Lab:
    plan = measure.Plan(rounds=3, seconds=0.1, quick=True)
    return measure.Lab(plan, pathlib.Path(), contextlib.ExitStack(), told.append)


def test_the_order_rotates() -> None:
    order: list[str] = []
    measure.take_turns(laboratory([]), ["a", "b", "c"], 4, order.append)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


def test_values_are_in_the_order_of_the_rounds() -> None:
    counts = {"a": 0, "b": 10}

    def count(name: str) -> int:
        counts[name] += 1
        return counts[name]

    values, failed = measure.take_turns(laboratory([]), ["a", "b"], 3, count)
    assert (values, failed) == ({"a": [1, 2, 3], "b": [11, 12, 13]}, {})


def test_who_fails_is_out_with_all_values() -> None:
    asked: list[str] = []

    def fail_later(name: str) -> int:
        asked.append(name)
        if name == "b" and asked.count("b") == 2:
            raise measure.ContenderError("it went away")
        return 1

    told: list[str] = []
    values, failed = measure.take_turns(laboratory(told), ["a", "b"], 3, fail_later)
    assert (values, failed) == ({"a": [1, 1, 1]}, {"b": "it went away"})
    assert asked.count("b") == 2
    assert told[0] == "round 1 of 3, a" and told[-1] == "round 3 of 3, a"


def test_other_errors_are_not_a_contenders() -> None:
    def broken(name: str) -> int:
        raise RuntimeError("the row is wrong")

    with pytest.raises(RuntimeError, match="the row is wrong"):
        measure.take_turns(laboratory([]), ["a"], 1, broken)
