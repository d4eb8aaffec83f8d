"""`swaptide plan`: its commands work, and it agrees with the daemon about what can be freed."""

import json
import os
import pathlib
import shlex
from typing import Any

from tests.real import daemons

MIB = 1 << 20


def plan(daemon: daemons.Daemon, *words: str) -> dict[str, Any]:
    done = daemon.run("plan", *words, "--config", str(daemon.config), "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if told["possible"] else 1), done
    return told


def fill(report: dict[str, Any], size: int) -> None:
    """Write what does not shrink."""
    with daemons.client(report) as client:
        for at in range(0, size, MIB):
            client.pwrite(os.urandom(MIB), at)


def test_what_it_says_can_be_done(daemon: daemons.Daemon) -> None:
    told = plan(daemon, "--guests", "2", "--guest-memory", "64M", "--swap", "96M")
    assert told["possible"] and len(told["commands"]) == 2
    for command in told["commands"]:
        words = shlex.split(command)
        assert words[0] == "swaptide"
        daemon.ok(*words[1:])
    for name in ("g1", "g2"):
        report = daemon.show(name)
        assert report["size_bytes"] == told["plan"]["size_bytes"]
        assert report["cap_bytes"] == told["plan"]["cap_bytes"]
        assert report["floor_bytes"] == told["plan"]["floor_bytes"]
        assert pathlib.Path(report["spill"]).stat().st_size == told["plan"]["spill_bytes"]
    # A whole disk fits into its cap.
    fill(daemon.show("g1"), 96 * MIB)
    report = daemon.show("g1")
    assert report["ram_bytes"] <= report["cap_bytes"]
    assert report["spilled_bytes"] == 0


def test_what_can_be_freed(daemon: daemons.Daemon) -> None:
    fill(daemon.add("g1", size=96 * MIB, ram="128M"), 64 * MIB)
    report = daemon.show()
    above = report["ram_bytes"] - report["floor_bytes"]
    told = plan(daemon, "--free", "32M")
    assert told["possible"] and told["plan"] is None
    (freed,) = told["freed"]
    assert sum(freed[key] for key in ("dropped_bytes", "packed_bytes", "spilled_bytes")) >= 32 * MIB
    assert abs(freed["possible_bytes"] - above) <= 8 * MIB
    target = freed["targets"]["g1"]
    daemon.ok("disk", "set", "g1", "--ram", str(target))
    assert daemon.show()["ram_bytes"] <= target
    # Now it is measured.
    shown = daemon.run("plan", "--free", "1G", "--config", str(daemon.config))
    assert shown.returncode == 1 and shown.stderr == ""
    assert "as measured by the disks here" in shown.stdout and "with every cache at its floor" in shown.stdout


def test_mistakes(daemon: daemons.Daemon) -> None:
    for words, status, why in (
        (("--guests", "0"), 2, "--guests"),
        (("--guests", "x"), 2, "--guests"),
        (("--guest-memory", "0"), 2, "zero"),
        (("--other", "1G"), 2, "--other is for --host-memory"),
        (("--swap", "32T"), 1, "is more than 17592186044416"),
        (("--host-memory", "4G", "--reserve", "4G"), 1, "all that the host has"),
        (("--config", "/no/such"), 1, "/no/such"),
    ):
        done = daemon.run("plan", *words)
        assert done.returncode == status and done.stdout == "", done
        assert why in done.stderr and done.stderr.count("\n") == 1, done
