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
