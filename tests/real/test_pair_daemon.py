"""Disks of the daemon with two spill stores: made, shown, killed, removed; what is refused."""

import os
import pathlib
import signal
from typing import Any

import pytest

from swaptide.cache import geometry, spillfile
from tests.real import daemons, remotes
from tests.real.spilling import check, fill, owner

SHAPE = geometry.of_size(daemons.SIZE)
FIRST_BYTES = geometry.store_bytes(8)


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"balloon": False}


def test_a_life(daemon: daemons.Daemon, root: pathlib.Path, remote: remotes.Remote) -> None:
    first = root / "spill,first"
    spill = f"{str(first).replace(',', ',,')},size={FIRST_BYTES},{remote.uri}"
    report = daemon.add("g1", "--spill", spill)
    assert report["spill"] == spill and report["reserved_bytes"] == FIRST_BYTES + SHAPE.spill_bytes
    header = spillfile.read_header(first)
    assert header is not None and header.disk_id == owner(remote) == report["id"]
    fill(daemon)
    os.kill(report["pid"], signal.SIGKILL)
    daemon.wait_running(not_pid=report["pid"])
    remote.keep_during(lambda: check(daemon))
    shown = daemon.show()
    assert 0 < shown["second_slots_used"] < shown["disk_slots_used"]
    daemon.ok("disk", "restart", "g1")
    check(daemon)
    daemon.ok("disk", "clear", "g1")
    header = spillfile.read_header(first)
    assert header is not None and header.disk_id == owner(remote) == daemon.show()["id"] != report["id"]
    daemon.ok("disk", "rm", "g1")
    assert not first.exists() and owner(remote) is None


def test_a_server_that_is_gone(daemon: daemons.Daemon, root: pathlib.Path, remote: remotes.Remote) -> None:
    second = root / "second"
    daemon.add("g1", "--spill", f"{remote.uri},{second}", ram="160M")
    fill(daemon)
    remote.stop()
    daemons.wait_for(lambda: daemon.show()["state"] == "degraded")
    assert remote.uri in daemon.show()["error"] and str(second) not in daemon.show()["error"]
    daemons.wait_for(lambda: "disk degraded name=g1" in daemon.log.read_text())
    daemon.ok("disk", "set", "g1", "--ram", "32M")  # holds, with the second alone
    check(daemon)
    assert daemon.show()["second_slots_used"] > 0
    removed = daemon.run("disk", "rm", "g1")
    assert f"spill={remote.uri} is not erased" in removed.stdout + removed.stderr
    assert not second.exists()
    remote.start()
    assert owner(remote) is not None


@pytest.mark.parametrize(
    ("spill", "why"),
    [
        ("{root}/a,{root}/b,{root}/c", "3 stores, at most 2"),
        ("{root}/a,{root}/a", "twice the same store"),
        ("{root}/a,", "must be a path or URI"),
        ("{root}/a,size=1G", "size= is for one of two stores"),
        ("{root}/a,size=much,{root}/b", "not a size"),
        ("{root}/a,size=1M,{root}/b", "1048576 bytes, at least"),
        ("{root}/a,size=20M,{root}/b,size=20M", "together 41943040, "),
        ("{root}/a,nbd://user:pass@host/", "a password in it"),
    ],
)
def test_what_is_refused(daemon: daemons.Daemon, root: pathlib.Path, spill: str, why: str) -> None:
    given = spill.format(root=root)
    refused = daemon.run("disk", "add", "g1", "--size", "64M", "--ram", "32M", "--spill", given)
    assert refused.returncode != 0 and why in refused.stderr and "pass@" not in refused.stderr
    assert daemon.run("disk", "show", "g1").returncode != 0
    assert not (root / "a").exists() and not (root / "b").exists()
