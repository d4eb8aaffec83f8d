"""How far the erasing of a spill is, told to whoever waits for it."""

import asyncio
import fcntl
import os
import pathlib
import stat
import time
import uuid
from typing import Any

import pytest

from swaptide.cache import spillfile
from swaptide.host import spills, steps, zeros

TOTAL = 64 << 20


def erase(
    monkeypatch: pytest.MonkeyPatch, work: Any, patience_seconds: float = 60.0
) -> tuple[list[str], list[dict[str, Any]]]:
    """What became of it, and what was told."""
    told: list[dict[str, Any]] = []

    def body(path: pathlib.Path, disk_id: str, plain_bytes: int, progress: zeros.Progress) -> None:
        work(progress, told)

    monkeypatch.setattr(spills, "_release", body)
    monkeypatch.setattr(steps, "TELL_SECONDS", 0.001)
    monkeypatch.setattr(spills, "LIMIT_SECONDS", patience_seconds)
    monkeypatch.setattr(spills, "_STEP_SECONDS", patience_seconds)
    release = spills.release("/spill", "id", plain_bytes=TOTAL, told=steps.Steps(told.append))
    return asyncio.run(release), told


def wait_until_told(told: list[dict[str, Any]], done: int) -> None:
    end = time.monotonic() + 60
    while not any(step["done_bytes"] == done for step in told):
        assert time.monotonic() < end
        time.sleep(0.001)


def test_each_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(progress: zeros.Progress, told: list[dict[str, Any]]) -> None:
        progress.total_bytes = TOTAL
        for done in range(0, TOTAL + 1, TOTAL // 4):
            progress.done_bytes = done
            wait_until_told(told, done)

    trouble, told = erase(monkeypatch, work)
    assert trouble == []
    assert told[0]["doing"] == "erasing its spill" and told[0]["total_bytes"] == 0
    assert {step["doing"] for step in told[1:]} == {"zeroing its device"}
    parts = [step["done_bytes"] for step in told[1:]]
    assert parts == sorted(parts) and {TOTAL // 4, TOTAL // 2, TOTAL} <= set(parts)
    assert all(step["total_bytes"] == TOTAL for step in told[1:])
    assert told[-1]["elapsed_seconds"] >= told[0]["elapsed_seconds"] >= 0


@pytest.mark.parametrize("total", [0, TOTAL])
def test_a_store_that_does_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    ended: list[bool] = []

    def work(progress: zeros.Progress, told: list[dict[str, Any]]) -> None:
        progress.total_bytes = total
        end = time.monotonic() + 60
        while not ended and time.monotonic() < end:
            time.sleep(0.01)

    try:
        trouble, _ = erase(monkeypatch, work, 0.2)
    finally:
        ended.append(True)
    assert len(trouble) == 1 and "its store does not answer" in trouble[0]
    assert ("its contents stay" in trouble[0]) == bool(total)


def test_a_device_is_nobody_elses_before_it_is_emptied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A file stands for it."""
    device, disk_id = tmp_path / "device", str(uuid.uuid4())
    device.write_bytes(spillfile.pack(spillfile.SpillHeader(disk_id, "", "")).ljust(1 << 20, b"x"))
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    monkeypatch.setattr(spillfile, "release", lambda path, disk_id: None)
    taken: list[bool] = []

    def discard(fd: int, start: int, end: int) -> bool:
        other = os.open(device, os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append(True)
        except BlockingIOError:
            taken.append(False)
        finally:
            os.close(other)
        return True

    monkeypatch.setattr(zeros, "discard", discard)
    spills._release(device, disk_id, 0, zeros.Progress())
    assert taken == [False]


def test_whoever_is_given_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in its store may go on much later, when the place is another disk's."""
    seen: list[zeros.Progress] = []

    def work(progress: zeros.Progress, told: list[dict[str, Any]]) -> None:
        seen.append(progress)
        end = time.monotonic() + 20
        while not progress.abandoned:
            assert time.monotonic() < end
            time.sleep(0.001)

    trouble, _ = erase(monkeypatch, work, 0.2)
    assert len(trouble) == 1 and "does not answer" in trouble[0]
    assert seen[0].abandoned
