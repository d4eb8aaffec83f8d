"""Two spill stores: the second used when the first is full, fails, dies or stalls; takeovers, refusals."""

import os
import pathlib
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import nbd
import pytest

from swaptide.cache import geometry
from swaptide.cache.face import StateFace
from tests.real import driver, remotes, server, stores

SIZE = 64 << 20
MIB = 1 << 20
SHAPE = geometry.of_size(SIZE)
LOW = SHAPE.working_minimum_bytes
RAM = LOW + (16 << 20)
FIRST_SLOTS = 10
FIRST_BYTES = geometry.store_bytes(FIRST_SLOTS)
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def remote(tmp_path: pathlib.Path) -> Iterator[remotes.Remote]:
    with remotes.serving(tmp_path / "remote", SIZE) as made:
        yield made


def serving(
    tmp_path: pathlib.Path, spill: str, *, eager: bool = False, ram: str = str(RAM), spill_timeout: str = "12"
) -> AbstractContextManager[server.Server]:
    """A disk of noise; an `eager` one takes its host for idle."""
    return server.serving(
        tmp_path,
        eager=eager,
        size=str(SIZE),
        ram=ram,
        spill=spill,
        spill_timeout=spill_timeout,
        compress="none",
    )


def file_first(tmp_path: pathlib.Path, remote: remotes.Remote) -> str:
    return f"{tmp_path}/first,size={FIRST_BYTES},{remote.uri}"


def until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def loaded(load: driver.Driver) -> bool:
    """True, after a little more load."""
    load.run(250)
    return True


def use(face: StateFace) -> tuple[int, int]:
    """Slots in use in the first and the second."""
    counters = server.fresh_counters(face)
    return counters["disk_slots_used"] - counters["second_slots_used"], counters["second_slots_used"]


def usable(face: StateFace) -> int:
    """How many stores take writes."""
    return server.fresh_counters(face)["usable_stores"]


def trouble(face: StateFace) -> str:
    """Why the disk is degraded, empty where it is not.  The counter says the same, but while it changes."""
    for _ in range(5):
        degraded = server.fresh_counters(face)["degraded"]
        found = face.trouble()
        if bool(found) == bool(degraded):
            return found
    raise AssertionError(f"degraded is {degraded}, trouble {found!r}")


def set_limit(face: StateFace, limit: int) -> None:
    face.set_limits(cap_bytes=limit, target_bytes=limit)


def fill(load: driver.Driver, face: StateFace, least: int = 3_000) -> None:
    """Load until the disk is full of what was written."""
    load.run(least)
    while server.fresh_counters(face)["stored_pages"] < SHAPE.pages // 2:
        load.run(500)


@contextmanager
def no_file_writes(disk: server.Server) -> Iterator[None]:
    """The process writes to no file meanwhile (EFBIG), to its sockets as ever."""
    resource.prlimit(disk.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(disk.pid, resource.RLIMIT_FSIZE, UNLIMITED)


def test_the_second_takes_what_the_first_has_no_room_for(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, file_first(tmp_path, remote)) as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=3, connections=1)
        fill(load, face)
        set_limit(face, LOW)
        server.wait_until_holds(face, LOW)
        first, second = use(face)
        assert first >= FIRST_SLOTS - 1 and second > 0
        load.run(3_000)
        load.check_all()
        load.close()
        counters = server.fresh_counters(face)
        assert counters["misses"] > 0 and counters["degraded"] == 0
        assert counters["spill_write_errors"] == counters["spill_read_errors"] == 0
        assert counters["reserved_bytes"] == FIRST_BYTES + SHAPE.spill_bytes
    assert (tmp_path / "first").stat().st_size == FIRST_BYTES
    assert remote.path.stat().st_blocks * 512 > second * geometry.SEGMENT_BYTES // 2


def test_the_second_takes_what_a_failing_file_refuses(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    place = f"{tmp_path}/file"
    with serving(tmp_path, f"{place},{remote.uri}") as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=4, connections=1)
        fill(load, face)
        before = use(face)
        assert before[0] > 0 and before[1] == 0
        with no_file_writes(disk):
            set_limit(face, LOW)
            load.run(2_000)
            until(lambda: "File too large" in trouble(face), "degraded")
            assert trouble(face) == f"spill={place}: writing fails: File too large"
            server.wait_until_holds(face, LOW)
            assert use(face)[1] > 0
            load.check_all()
        # What is written next tells that it works again, and it is preferred.
        until(lambda: loaded(load) and not trouble(face), "the end of degraded")
        first = use(face)[0]
        until(lambda: loaded(load) and use(face)[0] > first, "writes to the first")
        load.check_all()
        load.close()
        assert server.fresh_counters(face)["spill_read_errors"] == 0
    log = disk.log.read_text()
    assert f"spill write failed spill={place}" in log and f"spill store works again spill={place}" in log


def test_a_second_that_fails_is_not_missed_while_the_first_has_room(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, f"{remote.uri},{tmp_path}/file") as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=4, connections=1)
        with no_file_writes(disk):
            fill(load, face)
            set_limit(face, LOW)
            server.wait_until_holds(face, LOW)
            load.check_all()
            first, second = use(face)
            assert trouble(face) == "" and first > 0 == second
        load.close()


def test_a_device_that_fails_and_mends(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with (
        stores.faulty(tmp_path / "store", FIRST_BYTES) as store,
        serving(tmp_path, f"{store.path},{remote.uri}") as disk,
        disk.face() as face,
    ):
        load = driver.Driver(disk.uri, SIZE, seed=5, connections=1)
        with store.refusing("write"):
            fill(load, face)
            set_limit(face, LOW)
            server.wait_until_holds(face, LOW)
            assert usable(face) == 1 and use(face)[1] > 0
            assert trouble(face) == f"spill={store.path}: writing fails: Input/output error"
            # Nothing stays there: a slot is taken only for as long as the store is tried again.
            until(lambda: use(face)[0] == 0, "an empty first")
        until(lambda: loaded(load) and use(face)[0] > 0, "writes to the first")
        until(lambda: loaded(load) and not trouble(face), "the end of degraded")
        assert usable(face) == 2
        load.check_all()
        load.close()


def kept_ahead(disk: server.Server, face: StateFace) -> driver.Driver:
    """All of the disk written, once, so that all is in RAM; some of it on the first store as well."""
    load = driver.Driver(disk.uri, SIZE, seed=6, connections=1)
    load.model[:] = random.Random(6).randbytes(SIZE)
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    for at in range(0, SIZE, MIB):
        handle.pwrite(bytes(load.model[at : at + MIB]), at)
    handle.shutdown()
    until(lambda: use(face)[0] > 3, "writes ahead of need")
    assert server.fresh_counters(face)["spilled_bytes"] == 0
    return load


def test_a_server_that_dies_is_replaced_by_the_second_and_taken_again(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    spill = f"{remote.uri},{tmp_path}/second"
    with serving(tmp_path, spill, eager=True, ram="256M") as disk, disk.face() as face:
        load = kept_ahead(disk, face)
        remote.stop()
        until(lambda: remote.uri in trouble(face), "degraded")
        assert trouble(face).startswith(f"spill={remote.uri}: ")
        set_limit(face, LOW)
        server.wait_until_holds(face, LOW)
        assert use(face)[1] > 0
        # What was in RAM and on the server is on the second now: nothing waits for the server.
        load.check_all()
        load.run(1_000)
        load.check_all()
        remote.start()
        until(lambda: not trouble(face), "the end of degraded")
        before = use(face)[0]
        until(lambda: loaded(load) and use(face)[0] > before, "writes to the first")
        load.check_all()
        load.close()
        assert server.fresh_counters(face)["spill_read_errors"] == 0


def test_what_lies_on_a_dead_server_is_an_error_and_not_another_byte(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, f"{remote.uri},{tmp_path}/second", spill_timeout="4") as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=7, connections=1)
        fill(load, face)
        set_limit(face, LOW)
        server.wait_until_holds(face, LOW)
        remote.stop()
        with pytest.raises(Exception, match="Input/output error"):
            load.check_all()
        load.close()
        remote.start()
        load.resume(disk.uri)
        until(lambda: not trouble(face), "the end of degraded")
        load.check_all()
        load.close()


def test_a_write_that_comes_late_meets_nobody(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    """The server stalls with writes on their way, which are given up, and goes on with them later."""
    with (
        serving(tmp_path, f"{remote.uri},{tmp_path}/second", ram="96M", spill_timeout="4") as disk,
        disk.face() as face,
    ):
        load = driver.Driver(disk.uri, SIZE, seed=8, connections=1)

        def go_on() -> None:
            until(lambda: loaded(load) and not trouble(face), "the end of degraded")
            load.run(500)
            load.check_all()

        fill(load, face)
        for turn in range(3):
            set_limit(face, 96 * MIB)
            load.run(1_000)
            with remote.stalled():
                set_limit(face, LOW)
                server.wait_until_holds(face, LOW)
                until(lambda: remote.uri in trouble(face), "degraded")
            remote.keep_during(go_on)  # which may need it before it ends
            assert use(face)[1] > 0, turn
        load.close()
        assert server.fresh_counters(face)["spill_read_errors"] == 0


def test_kills_in_the_middle(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    chance = random.Random(9)
    with serving(tmp_path, file_first(tmp_path, remote), ram=str(LOW + (8 << 20))) as disk:
        load = driver.Driver(disk.uri, SIZE, seed=9, connections=1)
        with disk.face() as face:
            fill(load, face)
        for turn in range(6):
            deadline = time.monotonic() + chance.uniform(0.05, 0.6)

            def kill(_: int, deadline: float = deadline) -> None:
                if time.monotonic() > deadline and disk.process is not None:
                    disk.process.send_signal(signal.SIGKILL)

            assert load.run_until_dead(50_000, kill)
            disk.stop(signal.SIGKILL)
            if turn % 2:
                remote.restart()
            disk.start()
            load.resume(disk.uri)
            remote.keep_during(load.check_all)
        with disk.face() as face:
            first, second = use(face)
            assert first > 0 and second > 0
        load.close()


def test_a_successor_comes_up_while_the_first_is_away(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    spill = f"{remote.uri},{tmp_path}/second"
    with serving(tmp_path, spill, eager=True, ram="256M") as disk, disk.face() as face:
        load = kept_ahead(disk, face)
        load.close()
        remote.stop()
        disk.stop(signal.SIGKILL)
        disk.start()
        load.resume(disk.uri)
        until(lambda: remote.uri in trouble(face), "degraded")
        set_limit(face, LOW)
        server.wait_until_holds(face, LOW)
        load.check_all()
        assert use(face)[1] > 0
        remote.start()
        until(lambda: not trouble(face), "the end of degraded")
        load.check_all()
        load.close()


def test_what_is_trimmed_the_server_forgets(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    """The first store keeps its space, the second is a server that can be told."""
    first_bytes = geometry.store_bytes(2)
    spill = f"{tmp_path}/first,size={first_bytes},{remote.uri}"
    with serving(tmp_path, spill) as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=12, connections=1)
        fill(load, face)
        set_limit(face, LOW)
        server.wait_until_holds(face, LOW)
        load.close()
        before = remote.path.stat().st_blocks * 512
        # Some free slots are left as they are, for the next writes.
        least = 10 * geometry.SEGMENT_BYTES
        assert before > least
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        handle.trim(SIZE, 0)
        until(lambda: remote.path.stat().st_blocks * 512 <= least, "trims")
        assert handle.pread(MIB, 0) == bytes(MIB)
        handle.shutdown()
        until(lambda: use(face) == (0, 0), "free slots")
    assert (tmp_path / "first").stat().st_blocks * 512 >= first_bytes


def test_other_stores_are_refused(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    spill = file_first(tmp_path, remote)
    with serving(tmp_path, spill) as disk:
        disk.stop()
        first = spill.rpartition(",")[0]
        for other, why in (
            (f"{remote.uri},{tmp_path}/first", "the second store of this disk, named as the first one"),
            (f"{tmp_path}/first", "has two stores; name both"),
            (remote.uri, "has two stores; name both"),
            (f"{first},{tmp_path}/gone", "put it back"),
        ):
            disk.parameters["spill"] = other
            with pytest.raises(server.Ended, match=why):
                disk.start()
        disk.parameters["spill"] = spill
        disk.start()


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[server.Server]:
    """One that is not started, and never comes up."""
    made = server.Server(tmp_path, {"size": str(SIZE), "ram": str(RAM)})
    yield made
    made.stop(signal.SIGKILL)
    assert made.state is not None
    shutil.rmtree(made.state.parent)


@pytest.mark.parametrize("stores_given", ["files", "file and export", "devices"])
def test_too_small_together(tmp_path: pathlib.Path, disk: server.Server, stores_given: str) -> None:
    sizes = [geometry.store_bytes(each) for each in (FIRST_SLOTS, SHAPE.disk_slots - FIRST_SLOTS - 1)]

    def refused(spill: str) -> str:
        disk.parameters["spill"] = spill
        with pytest.raises(server.Ended) as error:
            disk.start()
        return str(error.value)

    said = f"{sizes[0]} and {sizes[1]} bytes, together {sum(sizes)}"
    if stores_given == "files":
        assert said in refused(f"{tmp_path}/a,size={sizes[0]},{tmp_path}/b,size={sizes[1]}")
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    elif stores_given == "file and export":
        with remotes.serving(tmp_path / "remote", SIZE, size=sizes[1]) as remote:
            assert said in refused(f"{tmp_path}/a,size={sizes[0]},{remote.uri}")
            assert f"{sizes[1]} bytes, {sizes[1] + MIB} are to be used" in refused(
                f"{tmp_path}/a,{remote.uri},size={sizes[1] + MIB}"
            )
    else:
        for name, nbytes in zip("ab", sizes, strict=True):
            (tmp_path / name).touch()
            os.truncate(tmp_path / name, nbytes)
        with stores.loop(tmp_path / "a") as one, stores.loop(tmp_path / "b") as other:
            assert said in refused(f"{one},{other}")


def test_the_same_export_under_two_names(disk: server.Server, remote: remotes.Remote) -> None:
    disk.parameters["spill"] = f"{remote.uri},{remote.uri.replace('///', '///same')}"
    with pytest.raises(server.Ended, match="the same store as the first one"):
        disk.start()
    disk.parameters["spill"] = f"{remote.uri},{remote.path}"
    with pytest.raises(server.Ended, match="the same store as the first one"):
        disk.start()
