"""`swaptide doctor` on this machine: with a daemon and without, and what it says is so."""

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

import swaptide
from swaptide.cache import geometry
from tests.real import daemons


def doctor(daemon: daemons.Daemon, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its status, and findings by name."""
    done = daemon.run("doctor", *words, "--config", str(daemon.config), "--json")
    told = json.loads(done.stdout)
    assert sum(told[each] for each in ("ok", "warn", "bad")) == len(told["findings"])
    assert done.returncode == (1 if told["bad"] else 0), done
    return done.returncode, {each["name"]: each for each in told["findings"]}


def test_a_daemon_and_its_disks(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    _, found = doctor(daemon)
    assert daemon.process is not None
    said = f"pid {daemon.process.pid}, version {swaptide.__version__}, 1 disk"
    assert found["daemon"]["said"] == said
    version = subprocess.run(["nbdkit", "--version"], capture_output=True, text=True, check=True).stdout
    assert found["nbdkit"]["verdict"] == "ok"
    assert found["nbdkit"]["said"].startswith(f"{version.split()[1]}, with Python 3.")
    assert os.uname().release in found["kernel"]["said"]
    assert found["disk g1"]["said"] == f"serves, pid {report['pid']}, no guest"
    assert found["socket of g1"]["verdict"] == found["memory of g1"]["verdict"] == "ok"
    assert report["spill"] in found["spill of g1"]["said"]
    assert found["metrics"]["said"] == "off, as configured"
    if (daemon.run_dir / "mem").is_mount():
        assert found["tmpfs"]["verdict"] == "ok" and str(daemon.run_dir) in found["tmpfs"]["said"]
    with daemons.client(report):
        _, found = doctor(daemon, "g1")
        assert found["disk g1"]["said"] == f"serves, pid {report['pid']}, connected"
    assert "nbdkit" not in found


def test_a_disk_whose_process_is_older_than_what_is_installed(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    assert report["version"] == swaptide.__version__
    assert doctor(daemon, "g1")[1]["process of g1"]["verdict"] == "ok"
    for older, said in (("0.0.9", "0.0.9"), ("", "an older one")):
        with open(report["state_file"], "r+b") as state:
            state.seek(geometry.VERSION_OFFSET)
            state.write(older.encode().ljust(geometry.VERSION_BYTES, b"\0"))
        status, found = doctor(daemon, "g1")
        version = found["process of g1"]
        assert status == 0 and version["verdict"] == "warn"
        assert version["said"] == f"pid {report['pid']} is version {said}, this is {swaptide.__version__}"
        remedy = version["remedy"].partition(";")[0]
        assert remedy == "swaptide disk restart g1"
        daemon.ok(*remedy.split()[1:])
        report = daemon.show()
        assert report["version"] == swaptide.__version__
        assert doctor(daemon, "g1")[1]["process of g1"]["verdict"] == "ok"


def test_a_disk_that_root_serves_since_nobody_else_can(root: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to serve as somebody else")
    root.chmod(0o700)
    with daemons.serving(root) as daemon:
        pid = daemon.add()["pid"]
        status, found = doctor(daemon, "g1")
        process = found["process of g1"]
        assert status == 0 and process["verdict"] == "warn"
        assert process["said"].startswith(f"pid {pid} is root's")
        root.chmod(0o755)
        daemon.stop()
        daemon.start()
        daemon.ok("disk", "restart", "g1")
        _, found = doctor(daemon, "g1")
        assert found["process of g1"]["verdict"] == "ok"


def test_what_has_to_be_mended_is_status_1(daemon: daemons.Daemon) -> None:
    spill = pathlib.Path(daemon.add()["spill"])
    spill.rename(spill.with_suffix(".away"))
    status, found = doctor(daemon, "g1")
    assert status == 1 and found["spill of g1"]["verdict"] == "bad"
    shown = daemon.run("doctor", "g1", "--config", str(daemon.config))
    assert shown.returncode == 1 and shown.stderr == ""
    lines = shown.stdout.splitlines()
    (line,) = [number for number, line in enumerate(lines) if line.startswith("bad ")]
    assert str(spill) in lines[line] and lines[line + 1].strip().startswith("mend: put it back")
    assert " 1 to be mended" in lines[-1]
    spill.with_suffix(".away").rename(spill)
    assert (
        doctor(daemon, "g1")[1]["spill of g1"]["verdict"] != "bad"
    )  # a virtual disk may pass for a slow one
    daemon.ok("disk", "freeze", "g1")
    frozen = doctor(daemon, "g1")[1]["disk g1"]
    assert (frozen["verdict"], frozen["remedy"]) == ("warn", "swaptide disk thaw g1")
    daemon.stop()
    status, found = doctor(daemon)
    assert status == 1 and found["daemon"]["verdict"] == "bad"
    assert "swaptide serve" in found["daemon"]["remedy"]
    for words, why in ((("nope",), "no daemon answers"), (("g1", "g2"), "unexpected extra argument")):
        done = daemon.run("doctor", *words)
        assert done.returncode == (1 if words == ("nope",) else 2)
        assert why in done.stderr and done.stderr.count("\n") == 1
    daemon.start()
    done = daemon.run("doctor", "nope")
    assert done.returncode == 1 and "the disks are: g1" in done.stderr


def test_somebody_else(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    daemon.add("g1", "--socket-owner", "nobody")
    _, found = doctor(daemon, "g1")
    assert found["socket of g1"]["said"] == "nobody may connect"
    os.chmod(daemon.run_dir, 0o750)
    assert "may not pass" in doctor(daemon, "g1")[1]["socket of g1"]["said"]
    os.chmod(daemon.run_dir, 0o755)


def test_the_metrics_port(root: pathlib.Path) -> None:
    with daemons.serving(root, metrics="127.0.0.1:0") as daemon:
        assert "kernel chooses" in doctor(daemon)[1]["metrics"]["said"]
