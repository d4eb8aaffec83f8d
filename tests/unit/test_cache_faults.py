"""Faults that once wedged the pools or passed a wrong byte, each with the moves that led there."""

import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from swaptide.cache import engine, face, geometry, keys, planning, statefile
from swaptide.cache.errors import BusyError, SetupError

PAGE = 4096
SIZE = 64 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
SEGMENT = geometry.SEGMENT_BYTES
NOISE = random.Random(5).randbytes(1 << 20)


class Disk:
    """A disk in this process, with its files; `engine` may be started or moved by hand."""

    def __init__(self, where: pathlib.Path, state: pathlib.Path) -> None:
        self.spill = where / "spill"
        self.state = state

    def prepare(self, ram_bytes: int) -> engine.Engine:
        """The engine, not started."""
        settings = engine.Settings(SIZE, ram_bytes, FLOOR, state=self.state, spill=self.spill)
        return engine.Engine.prepare(settings)


@pytest.fixture()
def disk(tmp_path: pathlib.Path) -> Iterator[Disk]:
    """Files of one disk, its state on tmpfs."""
    state = pathlib.Path(f"/dev/shm/swaptide-test-faults-{os.getpid()}")
    yield Disk(tmp_path, state)
    state.unlink(missing_ok=True)


def fill(made: engine.Engine, size: int = SIZE) -> None:
    """Write all pages with contents that are not same-filled."""
    for at in range(0, size, 1 << 20):
        made.log.write_bytes(NOISE, at)


class Overwriter:
    """A thread that overwrites random ones of the first `pages`; `done` counts them."""

    def __init__(self, made: engine.Engine, pages: int = SIZE // PAGE) -> None:
        self.done = 0
        self.pages = pages
        self._made = made
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        chooser = random.Random(1)
        while not self._stop:
            start = chooser.randrange(200) * PAGE
            try:
                self._made.log.write_bytes(NOISE[start:][:PAGE], chooser.randrange(self.pages) * PAGE)
            except OSError:
                return  # the engine was stopped under us
            self.done += 1

    def goes_on(self, seconds: float = 60.0) -> bool:
        """Whether another thousand writes are done within the time."""
        until, deadline = self.done + 1000, time.monotonic() + seconds
        while self.done < until and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.done >= until

    def stop(self) -> None:
        """End the thread; a waiting write is ended by stopping the engine."""
        self._stop = True


def test_a_lost_write_is_an_error_not_what_lay_there_before(disk: Disk, tmp_path: pathlib.Path) -> None:
    """Two segments in one disk slot, one after the other; the drive drops the write of the second."""
    made = disk.prepare(64 << 20)
    moves = made.moves
    made.segments.ram.set_budget(1 << 40, 0)
    made.moves.populate(12)
    pieces = geometry.PIECES_PER_SEGMENT

    def write_segment(first: int) -> None:
        for page in range(first, first + pieces):
            made.log.write_bytes(random.Random(page).randbytes(PAGE), page * PAGE)

    write_segment(0)
    assert moves.spill(0, 1, False) == 1 and moves.drop(1) == 1
    write_segment(1000)
    made.log.write_bytes(bytes(PAGE), 3000 * PAGE)
    for page in range(pieces):
        made.log.write_bytes(bytes(PAGE), page * PAGE)  # the first dies, its slot is free
    elsewhere = os.open(tmp_path / "lost", os.O_RDWR | os.O_CREAT)
    os.ftruncate(elsewhere, geometry.of_size(SIZE).spill_bytes)
    real = os.dup(made.spill_fd)
    os.dup2(elsewhere, made.spill_fd)
    assert moves.spill(0, 1, False) == 1
    os.dup2(real, made.spill_fd)
    assert moves.drop(1) == 1
    with pytest.raises(OSError, match="Input/output error"):
        made.log.read_bytes(PAGE, 1000 * PAGE)
    os.close(real)
    os.close(elsewhere)
    made.stop()


def test_a_second_of_read_errors_does_not_stop_the_cleaner_for_ever(disk: Disk) -> None:
    made = disk.prepare(FLOOR + 4 * SEGMENT)
    made.start()
    fill(made)
    made.set_target(FLOOR)
    load = Overwriter(made)
    try:
        assert load.goes_on()
        real = os.dup(made.spill_fd)
        blind = os.open(disk.spill, os.O_WRONLY)
        os.dup2(blind, made.spill_fd)  # reads fail, writes work
        assert wait_until(lambda: made.counter("spill_read_errors") > 0)
        time.sleep(1)
        os.dup2(real, made.spill_fd)
        assert load.goes_on()
        os.close(real)
        os.close(blind)
    finally:
        load.stop()
        made.stop()


def test_an_unreadable_disk_does_not_keep_dead_space_in_ram_from_being_used(disk: Disk) -> None:
    """Few disk slots are left, none on disk can be cleaned, but a few hot pages die in RAM all the time."""
    made = disk.prepare(FLOOR + 4 * SEGMENT)
    made.start()
    fill(made)
    load = Overwriter(made)
    try:
        assert wait_until(
            lambda: planning.Snapshot(*made.segments.snapshot()).disk_free <= planning.DISK_LOW_LEAST
        )
        real = os.dup(made.spill_fd)
        blind = os.open(disk.spill, os.O_WRONLY)
        load.pages = 800
        os.dup2(blind, made.spill_fd)  # reads fail, writes work
        assert load.goes_on()
        assert load.goes_on()
        os.dup2(real, made.spill_fd)
        os.close(real)
        os.close(blind)
    finally:
        load.stop()
        made.stop()


def test_a_restart_under_a_lower_target_finds_room_for_the_cleaner(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died when only the cleaner could have gone on, with its slot unused; the target fell meanwhile."""
    plan = planning.plan

    def without_cleaner(
        now: planning.Snapshot, busy: planning.Busy, wish: planning.Wish, _emptiest: int
    ) -> planning.Plan:
        return plan(now, busy, wish, geometry.CONTENT_BYTES)._replace(clean_disk=False)

    monkeypatch.setattr(planning, "plan", without_cleaner)
    made = disk.prepare(FLOOR + 2 * SEGMENT)
    made.start()
    fill(made)
    load = Overwriter(made)
    assert wait_until(lambda: is_stuck(made)), made.segments.snapshot()
    load.stop()
    made.stop()
    monkeypatch.setattr(planning, "plan", plan)
    with face.StateFace(disk.state) as opened:
        opened.set_limits(target_bytes=FLOOR)
    again = disk.prepare(FLOOR + 2 * SEGMENT)
    again.start()
    load = Overwriter(again)
    try:
        assert load.goes_on()
    finally:
        load.stop()
        again.stop()


def is_stuck(made: engine.Engine) -> bool:
    """Writers wait, nothing is under way, and the disk slots that are left are the cleaner's."""
    now = planning.Snapshot(*made.segments.snapshot())
    return now.waiting > 0 and now.writing == 0 and now.clean == 0 and now.disk_free <= 4


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_tables_do_not_grow_past_the_target(disk: Disk) -> None:
    """Same-filled pages all over a large disk make tables, and nothing else, at the guest's own speed."""
    size = 2 << 30
    shape = geometry.of_size(size)
    target = shape.working_minimum_bytes + 8 * SEGMENT
    made = engine.Engine.prepare(engine.Settings(size, target, state=disk.state, spill=disk.spill))
    made.start()
    try:
        fill(made, 64 << 20)
        worst = 0
        for at in range(64 << 20, size, 2 << 20):
            made.log.write_bytes(b"\x07" * PAGE, at)
            worst = max(worst, disk.state.stat().st_blocks * 512)
        assert worst <= target
    finally:
        made.stop()


def test_of_two_who_make_one_disk_the_second_harms_nothing(disk: Disk, tmp_path: pathlib.Path) -> None:
    limits = face.Limits(FLOOR, FLOOR, FLOOR)
    late = statefile.create(disk.state, SIZE, "late", limits, encrypted=False)
    first = statefile.create(disk.state, SIZE, "first", limits, encrypted=False)
    first.publish()
    with pytest.raises(BusyError, match="meanwhile"):
        late.publish()
    late.discard()
    with face.StateFace(disk.state) as opened:
        assert opened.identity.disk_id == first.identity.disk_id
    first.discard()
    assert not disk.state.exists()


KILLED = """
import os, pathlib, sys
from swaptide.cache import engine, statefile
statefile.StateFile.publish = lambda self: os._exit(9)
size, ram, state, spill = sys.argv[1:]
engine.Engine.prepare(
    engine.Settings(int(size), int(ram), int(ram), state=pathlib.Path(state), spill=pathlib.Path(spill))
)
"""


def test_a_key_whose_disk_never_got_its_name_goes_with_the_draft(disk: Disk) -> None:
    words = [str(SIZE), str(FLOOR), str(disk.state), str(disk.spill)]
    assert subprocess.run([sys.executable, "-P", "-c", KILLED, *words], check=False).returncode == 9
    (draft,) = disk.state.parent.glob(f".{disk.state.name}.*.new")
    old = statefile.id_of_draft(disk.state, draft)
    assert old is not None
    keys.find(old)
    made = disk.prepare(FLOOR)
    try:
        assert not draft.exists()
        with pytest.raises(SetupError):
            keys.find(old)
    finally:
        made.abandon()


def test_a_state_file_of_another_boot_is_refused(disk: Disk) -> None:
    made = disk.prepare(FLOOR)
    made.stop()
    with open(disk.spill, "r+b") as file:
        file.seek(32)
        file.write(b"00000000-0000-0000-0000-000000000000")
    with pytest.raises(SetupError, match="host restarted"):
        disk.prepare(FLOOR)
