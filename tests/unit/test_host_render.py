"""What the command prints about one disk."""

from typing import Any

import pytest

from swaptide.host import render


def latency(count: int, p50: float | None, p99: float | None) -> dict[str, Any]:
    return {"count": count, "mean_seconds": p50, "p50_seconds": p50, "p99_seconds": p99}


def test_latencies_are_one_line_for_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {
        "hit": latency(5, 3.21e-6, 0.0009996),
        "miss": latency(1, 0.0125, 12.5),
        "stall": latency(0, None, None),
    }
    render.disk({"name": "g1", "ram_bytes": 2 << 20, "latency": kinds, "error": None})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "name           g1",
        "ram            2M",
        "error          -",
        "hit latency    median 3.21 µs, p99 1 ms of 5 requests since the disk was made",
        "miss latency   median 12.5 ms, p99 12.5 s of 1 requests since the disk was made",
        "stall latency  no requests yet",
    ]


def test_a_disk_that_never_ran_has_no_latencies(capsys: pytest.CaptureFixture[str]) -> None:
    render.disk({"name": "g1", "latency": None})
    assert capsys.readouterr().out == "name  g1\n"


def test_what_is_on_or_off_is_said_as_the_option_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    render.disk({"encrypt": True, "dry": False, "restarts": 0, "latency": None})
    assert capsys.readouterr().out == "encrypt   yes\ndry       no\nrestarts  0\n"


def test_packing_and_tiers_of_one_disk(capsys: pytest.CaptureFixture[str]) -> None:
    render.disk(
        {
            "clean_ahead_percent": 25,
            "packing_ratio": 2.85,
            "spill_bytes_per_second": 1 << 30,
            "raw_hits": 900,
            "packed_hits": 75,
            "misses": 25,
            "latency": None,
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "clean ahead      25%",
        "packing ratio    2.85",
        "spill speed      1G/s",
        "raw hits         900",
        "packed hits      75",
        "misses           25",
        "pages read from  RAM 90.0%, packed in RAM 7.5%, disk 2.5%",
    ]


def listed(**changed: Any) -> dict[str, Any]:
    sizes = ("size_bytes", "cap_bytes", "target_bytes", "ram_bytes", "packed_bytes", "spilled_bytes")
    return {
        "name": "g1",
        **dict.fromkeys(sizes, 2 << 30),
        "connections": 1,
        "pid": 4242,
        "state": "running",
        **changed,
    }


@pytest.mark.parametrize(("name", "shown"), [("g1", True), ("a-longer-guest-name", False)])
def test_the_list_shows_what_is_packed_where_it_fits(
    capsys: pytest.CaptureFixture[str], name: str, shown: bool
) -> None:
    render.disks([listed(), listed(name=name, packed_bytes=12 << 20)])
    lines = capsys.readouterr().out.splitlines()
    assert ("PACKED" in lines[0].split()) is shown and ("12M" in lines[2]) is shown
    assert max(map(len, lines)) <= 80
