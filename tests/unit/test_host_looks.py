"""What two looks at a daemon say together: rates and quantiles of what came between, and what is wrong."""

import json
from typing import Any

import pytest

from swaptide.cache import histogram
from swaptide.host import looks

MIB = 1 << 20


def latency(**kinds: tuple[int, float]) -> dict[str, Any]:
    return {kind: {"count": count, "mean_seconds": mean} for kind, (count, mean) in kinds.items()}


def disk(name: str = "g1", **changed: Any) -> dict[str, Any]:
    zeros = ("hits", "misses", "read_bytes", "write_bytes", "raw_bytes", "packed_pages", "spilled_bytes")
    more = ("same_filled_pages", "degraded", "ram_blocked", "disk_slots_used", "reserved_bytes", "ram_bytes")
    return {
        "name": name,
        "id": "one",
        "state": "running",
        "error": None,
        "size_bytes": 1024 * MIB,
        "cap_bytes": 256 * MIB,
        "target_bytes": 128 * MIB,
        "packing_ratio": None,
        "latency": latency(stall=(0, None)),  # type: ignore[arg-type]
        "latency_counts": {"hit": {}, "miss": {}, "write": {}, "stall": {}},
        **dict.fromkeys((*zeros, *more), 0),
        **changed,
    }


def look(at: float, *disks: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """As it comes out of the control socket, where JSON makes strings of all keys."""
    host = {
        "balloon": True,
        "reason": "steady",
        "rooms": [{"name": "host", "free_bytes": 8 << 30, "size_bytes": 16 << 30, "reserve_bytes": 1 << 30}],
        "pressure_percent": 0.0,
        "held_bytes": 0,
        "wanted_bytes": None,
        **changed.pop("host", {}),
    }
    raw = {"at_seconds": at, "host": host, "disks": list(disks), "guests": [], **changed}
    found: dict[str, Any] = json.loads(json.dumps(raw))
    return found


def test_one_look_has_no_rates() -> None:
    view = looks.compare(None, look(5.0, disk(hits=10, read_bytes=4096)))
    assert view.interval_seconds is None
    (only,) = view.disks
    assert only.hit_share is None and only.read_p99_seconds is None
    assert only.returned_bytes_per_second is None and only.stall_seconds_per_second is None


def test_rates_are_of_what_came_between() -> None:
    before = disk(hits=1000, misses=1000, read_bytes=8 * MIB, write_bytes=MIB)
    after = disk(hits=1300, misses=1100, read_bytes=10 * MIB, write_bytes=5 * MIB)
    (only,) = looks.compare(look(5.0, before), look(7.0, after)).disks
    assert only.hit_share == 0.75
    assert (only.returned_bytes_per_second, only.taken_bytes_per_second) == (MIB, 2 * MIB)


def test_quantiles_are_of_what_came_between_and_of_all_reads() -> None:
    slow, quick = 60, 20
    before = disk(latency_counts={"hit": {slow: 5000}, "miss": {}, "write": {}, "stall": {}})
    after = disk(
        latency_counts={"hit": {slow: 5000, quick: 90}, "miss": {slow: 10}, "write": {quick: 1}, "stall": {}}
    )
    (only,) = looks.compare(look(5.0, before), look(6.0, after)).disks

    def bounds(bucket: int) -> tuple[float, float]:
        return histogram.latency_bound_ns(bucket - 1) / 1e9, histogram.latency_bound_ns(bucket) / 1e9

    for found, bucket in (
        (only.read_p50_seconds, quick),
        (only.read_p99_seconds, slow),
        (only.write_p99_seconds, quick),
    ):
        low, high = bounds(bucket)
        assert found is not None and low <= found <= high


def test_stall_is_the_time_waited_in_each_second() -> None:
    before = disk(latency=latency(stall=(4, 0.5)))
    after = disk(latency=latency(stall=(6, 0.75)))
    (only,) = looks.compare(look(5.0, before), look(7.0, after)).disks
    assert only.stall_seconds_per_second == pytest.approx((6 * 0.75 - 4 * 0.5) / 2)


@pytest.mark.parametrize(
    "before",
    [
        disk("another"),
        disk(id="before it was cleared"),
        disk(hits=11),
        disk(id=None),
        disk(latency_counts={}),
    ],
)
def test_a_disk_that_begins_anew_has_no_rates(before: dict[str, Any]) -> None:
    (only,) = looks.compare(look(5.0, before), look(6.0, disk(hits=10))).disks
    assert only.hit_share is None and only.taken_bytes_per_second is None


def test_a_clock_that_stands_still_gives_no_rates() -> None:
    view = looks.compare(look(5.0, disk()), look(5.0, disk()))
    assert view.interval_seconds is None and view.disks[0].taken_bytes_per_second is None


def test_a_disk_that_never_ran() -> None:
    never = disk(id=None, state="starting", latency=None, latency_counts={})
    view = looks.compare(look(5.0, never), look(6.0, never))
    assert not view.wrong and view.disks[0].hit_share is None


def test_guest_bytes_by_tier() -> None:
    (only,) = looks.compare(
        None, look(5.0, disk(raw_bytes=MIB, packed_pages=3, spilled_bytes=2 * MIB, same_filled_pages=5))
    ).disks
    found = (only.raw_bytes, only.packed_bytes, only.spilled_bytes, only.same_bytes)
    assert found == (MIB, 3 * 4096, 2 * MIB, 5 * 4096)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state": "failed", "error": "no such store"}, "failed: no such store"),
        ({"state": "frozen"}, "frozen"),
        ({"state": "degraded", "degraded": 1}, "degraded"),
        ({"state": "frozen", "degraded": 1}, "its store fails"),
        ({"ram_blocked": 1}, "refuses it memory"),
        ({"ram_bytes": 259 * MIB}, "more RAM than its cap"),
        ({"reserved_bytes": 200 * MIB, "disk_slots_used": 98}, "98% of its spill space"),
    ],
)
def test_what_is_wrong_with_a_disk_is_told(changed: dict[str, Any], words: str) -> None:
    wrong = looks.compare(None, look(5.0, disk(), disk("g2", **changed))).wrong
    assert wrong and {each.subject for each in wrong} == {"disk g2"}
    assert any(words in each.why for each in wrong)


def test_what_is_well_is_not_told() -> None:
    nearly = disk(ram_bytes=257 * MIB, reserved_bytes=200 * MIB, disk_slots_used=90)
    guest = {"name": "vm1", "error": None, "age_seconds": 4.0}
    assert not looks.compare(None, look(5.0, nearly, guests=[guest])).wrong


def test_what_is_wrong_with_host_and_guests_is_told() -> None:
    low = {"name": "host", "free_bytes": 1, "size_bytes": 4096, "reserve_bytes": 2}
    guests = [
        {"name": "vm1", "error": "monitor has closed", "age_seconds": None},
        {"name": "vm2", "error": None, "age_seconds": 99.0},
    ]
    found = looks.compare(
        None, look(5.0, guests=guests, host={"rooms": [low], "pressure_percent": 12.0})
    ).wrong
    assert [each.subject for each in found] == ["host", "host", "guest vm1", "guest vm2"]
    assert "less memory is free" in found[0].why and "12 %" in found[1].why
    assert found[2].why == "monitor has closed" and "99 s" in found[3].why


def test_disks_are_chosen_and_sorted() -> None:
    view = looks.compare(
        None, look(5.0, disk("a", ram_bytes=1), disk("b", ram_bytes=2), disk("c", ram_bytes=2))
    )

    def by_ram(each: looks.Disk) -> int:
        return -each.ram_bytes

    assert [each.name for each in looks.chosen(view, (), by_ram).disks] == ["b", "c", "a"]
    assert [each.name for each in looks.chosen(view, ("c", "a"), by_ram).disks] == ["c", "a"]


def test_json_has_all_of_it() -> None:
    made = json.loads(json.dumps(looks.compare(look(5.0, disk()), look(6.0, disk(state="failed"))).as_dict()))
    assert made["interval_seconds"] == 1.0 and made["host"]["reason"] == "steady"
    assert made["disks"][0]["name"] == "g1" and made["wrong"] == [{"subject": "disk g1", "why": "failed"}]
