"""Spilling to an NBD server: whatever it demands, and when it dies, stalls or is not the right one."""

import concurrent.futures
import itertools
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import nbd
import pytest

from swaptide.cache import exports, geometry, uris
from swaptide.cache.face import StateFace
from tests.real import driver, remotes, server

SIZE = 64 << 20
PAGE = 4096
SHAPE = geometry.of_size(SIZE)
FLOOR = SHAPE.working_minimum_bytes
RAM = FLOOR + (16 << 20)
DATA = random.Random(8).randbytes(SIZE)


@pytest.fixture
def remote(tmp_path: pathlib.Path) -> Iterator[remotes.Remote]:
    with remotes.serving(tmp_path / "remote", SIZE) as made:
        yield made


def serving(tmp_path: pathlib.Path, uri: str, **more: str) -> AbstractContextManager[server.Server]:
    parameters = {"ram": str(RAM), "compress": "none", **more}
    return server.serving(tmp_path, True, size=str(SIZE), spill=uri, **parameters)  # type: ignore[arg-type]


def fill(disk: server.Server, start: int = 0, end: int = SIZE) -> None:
    """Write noise, which does not shrink."""
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    for at in range(start, end, 1 << 20):
        handle.pwrite(DATA[at : at + (1 << 20)], at)
    handle.shutdown()


def check(disk: server.Server, start: int = 0, end: int = SIZE) -> None:
    """Every byte is what was written."""
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    for at in range(start, end, 1 << 20):
        assert handle.pread(1 << 20, at) == DATA[at : at + (1 << 20)], at
    handle.shutdown()


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def degraded(face: StateFace) -> bool:
    return server.fresh_counters(face)["degraded"] == 1


def test_goes_there_and_comes_back(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with serving(tmp_path, remote.uri) as disk, disk.face() as face:
        fill(disk)
        check(disk)
        counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] > SIZE / 2 and counters["misses"] > 1000
        assert counters["degraded"] == counters["spill_write_errors"] == counters["spill_read_errors"] == 0
    # Ciphertext only.
    with open(remote.path, "rb") as file:
        stored = file.read()
    assert not any(DATA[at : at + 64] in stored for at in range(0, SIZE, 1 << 20))


@pytest.mark.parametrize("away", [0.0, 5.0])
def test_a_server_that_dies_loses_nothing(
    tmp_path: pathlib.Path, remote: remotes.Remote, away: float
) -> None:
    with serving(tmp_path, remote.uri) as disk, disk.face() as face:
        fill(disk, 0, SIZE // 2)
        written = threading.Thread(target=fill, args=(disk, SIZE // 2, SIZE))
        written.start()
        time.sleep(0.05)
        remote.stop()
        until(lambda: degraded(face), "degraded")
        read = threading.Thread(target=check, args=(disk, 0, SIZE // 2))
        read.start()
        time.sleep(away)
        remote.start()
        written.join(60)
        read.join(60)
        assert not written.is_alive() and not read.is_alive()
        until(lambda: not degraded(face), "the end of degraded")
        check(disk)
        assert server.fresh_counters(face)["spill_read_errors"] == 0
    text = disk.log.read_text()
    assert "spill server lost" in text and "spill server works again" in text


def test_a_server_that_stalls_is_given_up_and_taken_again(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, remote.uri, spill_timeout="8") as disk, disk.face() as face:
        fill(disk)
        begun = time.monotonic()
        with remote.stalled():
            handle = nbd.NBD()
            handle.connect_uri(disk.uri)
            with pytest.raises(nbd.Error) as error:
                handle.pread(1 << 20, 0)
            assert error.value.errno == "EIO" and 6 < time.monotonic() - begun < 60
            until(lambda: degraded(face), "degraded")
            handle.shutdown()
        until(lambda: remote.keep() and not degraded(face), "the end of degraded")
        remote.keep_during(lambda: check(disk))
    assert "does not answer" in disk.log.read_text()


def test_a_server_that_answers_reads_and_no_writes_is_trouble(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, remote.uri, spill_timeout="16") as disk, disk.face() as face:
        fill(disk)
        # One connection, so that it is never silent, and stays; and threads for all writes that hang there.
        remote.options = ["-t", "128"]
        remote.filters = ["multi-conn", "delay"]
        remote.parameters = ["multi-conn-mode=disable", "delay-write=600"]
        remote.restart()
        until(lambda: "works again" in disk.log.read_text(), "the connection")
        written = threading.Thread(target=fill, args=(disk, 0, SIZE))
        written.start()
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        place = itertools.cycle(range(0, SIZE, 1 << 20))

        def told() -> bool:
            at = next(place)
            assert handle.pread(1 << 20, at) == DATA[at : at + (1 << 20)]
            return "spill server answers no writes" in disk.log.read_text()

        until(told, "a line of the log")
        assert degraded(face) and face.trouble() == f"spill={remote.uri}: its server answers no writes"
        told()
        assert degraded(face), "as long as it goes on, whatever else is answered"
        remote.filters, remote.parameters = [], []
        remote.restart()
        until(lambda: not degraded(face), "the end of degraded")
        written.join(60)
        assert not written.is_alive()
        handle.shutdown()
        check(disk)
        assert server.fresh_counters(face)["spill_read_errors"] == 0
        until(lambda: "spill server answers writes again" in disk.log.read_text(), "its end in the log")


def test_reads_wait_for_so_long_and_no_longer(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with serving(tmp_path, remote.uri, spill_timeout="4") as disk:
        fill(disk)
        begun = time.monotonic()
        remote.stop()
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        with pytest.raises(nbd.Error) as error:
            handle.pread(1 << 20, 0)
        assert error.value.errno == "EIO" and 3 < time.monotonic() - begun < 60
        handle.shutdown()
        remote.start()
        until(lambda: "works again" in disk.log.read_text(), "the server")
        check(disk)


def test_a_process_that_is_killed_has_a_successor(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with serving(tmp_path, remote.uri) as disk:
        fill(disk)
        for _ in range(3):
            writing = threading.Thread(target=_fill_until_dead, args=(disk,))
            writing.start()
            time.sleep(0.1)
            disk.stop(signal.SIGKILL)
            writing.join()
            disk.start()
            remote.keep_during(lambda: check(disk))


def _fill_until_dead(disk: server.Server) -> None:
    try:
        while True:
            fill(disk)
    except nbd.Error:
        pass


def test_a_successor_serves_what_is_in_ram_without_the_server(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, remote.uri) as disk, disk.face() as face:
        fill(disk)
        remote.stop()
        disk.stop(signal.SIGKILL)
        disk.start()
        until(lambda: degraded(face), "degraded")
        check(disk, SIZE - (4 << 20), SIZE)  # written last
        remote.start()
        until(lambda: not degraded(face), "the server")
        check(disk)


def test_limits_while_the_server_is_gone(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    """What can be done without it is done; the rest waits, and the limit holds when it is back."""
    # What is written ahead could be dropped without the server.
    more = {"ram": "128M", "compress": "lz4", "clean_ahead": "0%"}
    with serving(tmp_path, remote.uri, **more) as disk, disk.face() as face:
        fill(disk)
        remote.stop()
        until(lambda: degraded(face), "degraded")
        face.set_limits(cap_bytes=RAM, target_bytes=RAM)
        time.sleep(1.0)
        assert face.ram_bytes() > RAM
        remote.start()
        server.wait_until_holds(face, RAM)
        check(disk)


def test_errors_of_the_server_are_those_of_a_disk(tmp_path: pathlib.Path) -> None:
    trigger = tmp_path / "no-write"
    parameters = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%", f"error-pwrite-file={trigger}"]
    with (
        remotes.serving(tmp_path / "remote", SIZE, filters=["error"], parameters=parameters) as remote,
        serving(tmp_path, remote.uri, ram="128M") as disk,
        disk.face() as face,
    ):
        fill(disk)
        trigger.touch()
        face.set_limits(cap_bytes=RAM, target_bytes=RAM)
        until(lambda: server.fresh_counters(face)["spill_write_errors"] > 3, "write errors")
        until(lambda: degraded(face), "degraded")
        trigger.unlink()
        server.wait_until_holds(face, RAM)
        until(lambda: not degraded(face), "the end of degraded")
        check(disk)


# Filters of nbdkit, and their parameters.
SERVERS: dict[str, tuple[list[str], list[str]]] = {
    "one connection": (["multi-conn"], ["multi-conn-mode=disable"]),
    "blocks of 4 KiB": (
        ["blocksize-policy"],
        [
            "blocksize-minimum=4096",
            "blocksize-preferred=64K",
            "blocksize-maximum=64K",
            "blocksize-error-policy=error",
        ],
    ),
    "blocks of 512 bytes": (
        ["blocksize-policy"],
        [
            "blocksize-minimum=512",
            "blocksize-preferred=4096",
            "blocksize-maximum=1M",
            "blocksize-error-policy=error",
        ],
    ),
    "late": (["delay"], ["rdelay=2ms", "wdelay=3ms"]),
    "slow": (["rate"], ["connection-rate=800M"]),
    "in trouble": (
        ["retry-request", "error"],
        ["error-rate=1%", "retry-request-retries=5", "retry-request-delay=1"],
    ),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_any_server_will_do(tmp_path: pathlib.Path, kind: str) -> None:
    filters, parameters = SERVERS[kind]
    with (
        remotes.serving(tmp_path / "remote", SIZE, filters=filters, parameters=parameters) as remote,
        serving(tmp_path, remote.uri) as disk,
        disk.face() as face,
    ):
        fill(disk)
        check(disk)
        counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] > SIZE / 2
        assert counters["spill_write_errors"] == counters["spill_read_errors"] == 0


def test_what_is_trimmed_is_forgotten(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with serving(tmp_path, remote.uri) as disk:
        fill(disk)
        full = remote.path.stat().st_blocks * 512
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        handle.trim(SIZE, 0)
        handle.shutdown()
        until(lambda: remote.path.stat().st_blocks * 512 < full / 2, "space that comes back")
        fill(disk)
        check(disk)


# What is refused, each in one line that names the export and what is wrong.


def refusal(tmp_path: pathlib.Path, uri: str, **more: str) -> str:
    with pytest.raises(server.Ended) as ended, serving(tmp_path, uri, **more):
        pass
    lines = [each for each in str(ended.value).splitlines() if "nbdkit: error:" in each]
    return lines[-1]


def test_too_small(tmp_path: pathlib.Path) -> None:
    with remotes.serving(tmp_path / "remote", SIZE, size=SIZE) as remote:
        line = refusal(tmp_path, remote.uri)
        assert f"{SIZE} bytes" in line and f"{SHAPE.spill_bytes} are needed" in line and remote.uri in line


def test_read_only(tmp_path: pathlib.Path) -> None:
    with remotes.serving(tmp_path / "remote", SIZE, options=["-r"]) as remote:
        line = refusal(tmp_path, remote.uri)
        assert "read-only" in line and remote.uri in line


def test_wrong_export(tmp_path: pathlib.Path) -> None:
    with remotes.serving(
        tmp_path / "remote",
        SIZE,
        filters=["exportname"],
        parameters=["exportname=right", "exportname-strict=true"],
    ) as remote:
        wrong = f"nbd+unix:///wrong?socket={remote.socket}"
        line = refusal(tmp_path, wrong)
        assert wrong in line and "check the name of the export" in line
        right = f"nbd+unix:///right?socket={remote.socket}"
        with serving(tmp_path, right) as disk:
            fill(disk, 0, 1 << 20)


def test_no_server(tmp_path: pathlib.Path) -> None:
    uri = f"nbd+unix:///?socket={tmp_path}/nothing"
    line = refusal(tmp_path, uri)
    assert uri in line and os.strerror(2) in line


def test_something_else_is_not_overwritten(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    with open(remote.path, "r+b") as file:
        file.seek(5000)
        file.write(b"a file system")
    line = refusal(tmp_path, remote.uri)
    assert "not swaptide's" in line
    with serving(tmp_path, remote.uri, force="yes") as disk:
        fill(disk)
        check(disk)


def test_an_export_in_use_is_refused_and_a_stale_one_only_forced(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with serving(tmp_path, remote.uri) as disk:
        fill(disk)
        line = refusal(other, remote.uri)
        with disk.face() as face:
            assert f"belongs to the disk {face.identity.disk_id}" in line
        assert "in use by the disk" in refusal(other, remote.uri, force="yes")
        check(disk)
        disk.stop(signal.SIGKILL)
        assert "belongs to the disk" in refusal(other, remote.uri)
        with serving(other, remote.uri, force="yes") as thief:
            fill(thief)
            check(thief)
            # The old one finds that it is not its own any more, and leaves it alone.
            with pytest.raises(server.Ended, match="not the export of this disk"):
                disk.start()
            check(thief)


def test_an_export_that_was_replaced_is_not_written_to(
    tmp_path: pathlib.Path, remote: remotes.Remote
) -> None:
    with serving(tmp_path, remote.uri, spill_timeout="4") as disk:
        fill(disk)
        remote.stop()
        kept = remote.path.rename(tmp_path / "kept")
        remote.path.touch()
        os.truncate(remote.path, SHAPE.spill_bytes)
        remote.start()
        until(lambda: "not the export of this disk" in disk.log.read_text(), "the refusal")
        assert not any(remote.path.read_bytes())
        remote.stop()
        kept.rename(remote.path)
        remote.start()
        until(lambda: "works again" in disk.log.read_text(), "the server")
        check(disk)


def test_released_when_it_came_to_nothing(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    refusal(tmp_path, remote.uri, swap_label="much too long a label for a swap disk")
    with serving(tmp_path, remote.uri) as disk:
        fill(disk)
        with disk.face() as face:
            disk_id = face.identity.disk_id
    owner = exports.owner_of(uris.parse(remote.uri))
    assert owner is not None and owner.header.disk_id == disk_id
    exports.release(uris.parse(remote.uri), disk_id)
    owner = exports.owner_of(uris.parse(remote.uri))
    assert owner is not None and owner.is_nobody
    with serving(tmp_path, remote.uri) as disk:
        fill(disk)
        check(disk)


def test_torn_connections_while_a_random_load_runs(tmp_path: pathlib.Path, remote: remotes.Remote) -> None:
    """The server dies, stalls and comes back all the time."""
    chooser = random.Random(3)
    with serving(tmp_path, remote.uri, compress="lz4") as disk, disk.face() as face:
        load = driver.Driver(disk.uri, SIZE, seed=31)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            # In a thread of its own: a server ends with the thread that started it.
            running = pool.submit(load.run, 6_000)
            while not running.done():
                time.sleep(chooser.uniform(0.2, 1.5))
                if chooser.random() < 0.6:
                    remote.restart(chooser.choice((0.0, 0.0, 0.5)))
                else:
                    with remote.stalled():
                        time.sleep(chooser.uniform(0.0, 0.7))
            running.result()
        load.check_all()
        load.close()
        counters = server.fresh_counters(face)
        assert counters["misses"] > 0 and counters["spill_read_errors"] == 0
