"""A disk whose process keeps dying: served all the same, and shown; back-off where nothing was served."""

import asyncio
import os
import pathlib
import signal
import time

import pytest

from swaptide.host import deaths, definitions, estate, supervisor
from tests.real import daemons

MIB = daemons.MIB
PATTERN = bytes(range(256)) * 16


def read(report: dict[str, object]) -> None:
    with daemons.client(report) as handle:
        assert handle.pread(len(PATTERN), 4096) == PATTERN


def test_one_that_served_is_back_at_once_however_often_it_dies(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with daemons.client(report) as handle:
        handle.pwrite(PATTERN, 4096)
    took = []
    for number in range(1, 6):
        os.kill(report["pid"], signal.SIGKILL)
        begin = time.monotonic()
        read(report)  # waits in the queue, and is the request that this process has answered
        took.append(time.monotonic() - begin)
        report = daemon.wait_running(not_pid=report["pid"])
        assert report["restarts"] == number
        assert report["state"] == ("running" if number < deaths.TOO_MANY else "unstable")
    # One restart may be slow on a busy host; where each is later than the one before, all would take as long.
    assert any(seconds < 0.5 * 2**number for number, seconds in enumerate(took[2:], 2)), took
    assert "nbdkit died 5 times within 60 s" in report["error"] and report["log"] in report["error"]
    assert daemon.log.read_text().count("state=unstable") == 1
    # It is shown, and otherwise as good as any.
    daemon.ok("disk", "set", "g1", "--ram", "28M")
    daemon.ok("disk", "restart", "g1")
    after = daemon.show()
    assert (after["restarts"], after["state"]) == (5, "unstable")
    read(after)


def test_a_restart_that_was_asked_for_is_no_death(daemon: daemons.Daemon) -> None:
    daemon.add()
    for _ in range(deaths.TOO_MANY + 1):
        daemon.ok("disk", "restart", "g1")
    report = daemon.show()
    assert (report["restarts"], report["state"], report["error"]) == (0, "running", None)


def test_one_that_serves_nothing_is_restarted_ever_more_slowly(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    pauses = []
    for _ in range(3):
        os.kill(report["pid"], signal.SIGKILL)
        begin = time.monotonic()
        report = daemon.wait_running(not_pid=report["pid"])
        pauses.append(time.monotonic() - begin)
    assert all(seconds >= 0.5 * 2**number for number, seconds in enumerate(pauses)), pauses


def test_steady_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(deaths, "WINDOW_SECONDS", 600.0)  # however long the deaths take
    caplog.set_level("INFO", "swaptide.host.supervisor")

    async def body(root: pathlib.Path) -> None:
        disk = estate.fresh_paths(plain_disk(), chosen := daemons.config_of(root), root)
        chosen.run_dir.mkdir()
        keeper = supervisor.Keeper(chosen, root, disk, saved)
        keeper.start()
        try:
            await keeper.started()
            for _ in range(deaths.TOO_MANY):
                await kill(keeper)
            assert keeper.state is supervisor.State.UNSTABLE and keeper.serves
            monkeypatch.setattr(deaths, "WINDOW_SECONDS", 1.0)
            await kill(keeper)  # the next one is watched for so long
            while keeper.state is supervisor.State.UNSTABLE:
                await asyncio.sleep(0.05)
            assert (keeper.state, keeper.error) == (supervisor.State.RUNNING, "")
            await kill(keeper)
            assert keeper.state is supervisor.State.RUNNING and keeper.deaths.total == deaths.TOO_MANY + 2
        finally:
            await keeper.stop()

    daemons.require("nbdkit")
    with daemons.directory() as root:
        asyncio.run(asyncio.wait_for(body(root), 3 * daemons.WAIT_SECONDS))
    assert [record.getMessage() for record in caplog.records if "unstable" in record.getMessage()] == [
        f"disk changed name=g1 state=unstable error='nbdkit died 3 times within 600 s;"
        f" look for the reason in {root / 'run' / 'g1.log'}'"
    ]


async def kill(keeper: supervisor.Keeper) -> None:
    """Kill the disk's process once it has answered a request, and wait for the next one."""
    old = keeper.process
    assert old is not None
    await asyncio.to_thread(ask, str(keeper.socket_path))
    os.kill(old.pid, signal.SIGKILL)
    while keeper.process in (None, old) or not keeper.serves:
        await asyncio.sleep(0.02)


def ask(path: str) -> None:
    with daemons.client({"id": "", "socket": path}) as handle:
        handle.pread(4096, 0)


async def saved(definition: definitions.Definition) -> None:
    return None


def plain_disk() -> definitions.Definition:
    return definitions.Definition(
        name="g1",
        size_bytes=64 * MIB,
        cap_bytes=32 * MIB,
        floor_bytes=24 * MIB,
        weight=100,
        compress="lz4",
        encrypt=False,
        swap_label=None,
        spill_path="",
        spill_chosen=False,
        state_path="",
    )
