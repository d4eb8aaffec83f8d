"""What the host has to spare, and how fast it packs and writes: what the movers go by."""

import os
import pathlib
import threading
import time

import pytest

from swaptide.cache import geometry, idle, movers, rates


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture()
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of the real one."""
    return Clock(monkeypatch)


def stat_of(where: pathlib.Path, idle_ticks: int, waiting_ticks: int) -> pathlib.Path:
    """A made-up /proc/stat of two cores."""
    path = where / "stat"
    first = f"cpu  500 3 200 {idle_ticks} {waiting_ticks} 0 7 0 0 0"
    path.write_text(f"{first}\ncpu0 250 1 100 1 1 0 3 0 0 0\nintr 99\n")
    return path


def test_no_core_is_idle_before_the_first_look_is_over(tmp_path: pathlib.Path, clock: Clock) -> None:
    looked = idle.Idle(stat_of(tmp_path, 1000, 0))
    stat_of(tmp_path, 2000, 0)
    clock.now += idle.LOOK_SECONDS / 2
    assert looked.now().cores == 0


@pytest.mark.parametrize(
    ("ticks", "waiting", "cores"), [(100, 0, 1.0), (50, 50, 1.0), (0, 0, 0.0), (200, 0, 2.0)]
)
def test_ticks_without_work_are_idle_cores(
    tmp_path: pathlib.Path, clock: Clock, ticks: int, waiting: int, cores: float
) -> None:
    looked = idle.Idle(stat_of(tmp_path, 1000, 20))
    stat_of(tmp_path, 1000 + ticks, 20 + waiting)
    clock.now += 1
    assert looked.now().cores == pytest.approx(cores)
    stat_of(tmp_path, 99999, 0)
    clock.now += idle.LOOK_SECONDS / 2
    assert looked.now().cores == pytest.approx(cores)  # as of the last look


def test_a_core_counts_as_of_the_last_look_only(tmp_path: pathlib.Path, clock: Clock) -> None:
    looked = idle.Idle(stat_of(tmp_path, 0, 0))
    for ticks, cores in ((100, 1.0), (100, 0.0), (150, 0.5)):
        stat_of(tmp_path, ticks, 0)
        clock.now += 1
        assert looked.now().cores == pytest.approx(cores)


def test_where_it_cannot_be_told_no_core_is_idle(tmp_path: pathlib.Path, clock: Clock) -> None:
    looked = idle.Idle(stat_of(tmp_path, 0, 0))
    stat_of(tmp_path, 100, 0).rename(tmp_path / "gone")
    clock.now += 1
    assert looked.now().cores == 0
    stat_of(tmp_path, 400, 0)
    clock.now += 1
    assert looked.now().cores == pytest.approx(2.0)  # over both seconds


def test_this_host_can_be_asked() -> None:
    assert idle.Idle().now().cores == 0


def test_rates_follow_what_was_measured() -> None:
    measured = rates.Rates(4, 2)
    for _ in range(200):
        measured.spilled(0.02)
        measured.packed(0.01, geometry.CONTENT_BYTES // 4)
    assert measured.spill_slots_per_second == pytest.approx(200, rel=0.01)
    assert measured.pack_slots_per_second == pytest.approx(2 * 0.75 / 0.01, rel=0.01)
    assert measured.packed_in(2.0) == pytest.approx(300 * rates.RELIED_SHARE, rel=0.01)


def test_one_odd_measurement_changes_little() -> None:
    measured = rates.Rates(1, 1)
    before = measured.spill_slots_per_second
    measured.spilled(rates.FIRST_SPILL_SECONDS * 2)
    assert measured.spill_slots_per_second == pytest.approx(before / 1.1)


def test_what_does_not_shrink_frees_nothing() -> None:
    measured = rates.Rates(4, 2)
    for _ in range(300):
        measured.packed(0.01, 2 * geometry.CONTENT_BYTES)
    assert measured.packed_in(10) == pytest.approx(0, abs=0.01)


def test_a_deadline_that_is_over_leaves_no_time() -> None:
    assert rates.Rates(4, 2).packed_in(-3) == 0


@pytest.mark.parametrize(("before", "after"), [(0, movers.PACKER_NICENESS), (12, 12)])
def test_packers_give_way_and_never_become_less_nice(before: int, after: int) -> None:
    found: list[int] = []

    def body() -> None:
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, before)
        movers._be_modest()
        found.append(os.getpriority(os.PRIO_PROCESS, me))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [after]


def test_what_was_filled_lately_is_forgotten_after_two_seconds() -> None:
    measured = rates.Rates(4, 2)
    assert measured.recent(0, 100.0) == 0
    assert measured.recent(16, 100.05) == 16
    assert measured.recent(16, 101.9) == 16
    assert measured.recent(20, 101.95) == 20
    assert measured.recent(20, 102.5) == 4
    assert measured.recent(20, 103.0) == 4
    assert measured.recent(20, 104.5) == 0


def test_what_was_filled_between_two_looks_that_lie_far_apart_is_recent() -> None:
    measured = rates.Rates(4, 2)
    assert measured.recent(5, 10.0) == 0
    assert measured.recent(9, 60.0) == 4
    assert measured.recent(9, 61.0) == 4
    assert measured.recent(9, 62.1) == 0
