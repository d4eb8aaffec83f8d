"""The daemon's log as JSON, what it tells of a disk whose store fails, and bars at a terminal.

The terminals are ptys; every line of the daemon's log has to be an object.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import pytest

from swaptide.cache import geometry
from tests import terminal
from tests.real import daemons, server, stores

MIB = daemons.MIB
SPILL_BYTES = geometry.of_size(daemons.SIZE).spill_bytes


def objects(log: pathlib.Path) -> list[dict[str, Any]]:
    """Every line of a log, each of which has to be an object with what all have."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    for each in found:
        assert list(each)[:4] == ["time", "level", "part", "event"], each
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"]), each
        assert each["level"] in ("INFO", "WARNING", "ERROR", "CRITICAL"), each
    return found


def told(log: pathlib.Path, event: str) -> list[dict[str, Any]]:
    return [each for each in objects(log) if each["event"] == event]


def fill(report: dict[str, Any], mib: int) -> None:
    with daemons.client(report) as handle:
        for at in range(0, mib * MIB, MIB):
            handle.pwrite(os.urandom(MIB), at)


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"log_format": "json"}


def test_a_store_that_fails_and_works_again(daemon: daemons.Daemon) -> None:
    with stores.faulty(daemon.root / "store", SPILL_BYTES) as store:
        report = daemon.add("g1", "--spill", str(store.path), "--clean-ahead", "0", ram="60M")
        fill(report, 36)
        with store.refusing("write"):
            late = daemon.run("disk", "set", "g1", "--ram", "24M", "--deadline", "500ms")
            assert late.returncode == 1
            daemons.wait_for(lambda: len(told(daemon.log, "disk degraded")) == 1, daemon.log.read_text)
            assert daemon.show()["state"] == "degraded"
        daemons.wait_for(lambda: len(told(daemon.log, "disk works again")) == 1, daemon.log.read_text)
        daemons.wait_for(lambda: len(told(daemon.log, "target held late")) == 1, daemon.log.read_text)
        (begun,) = told(daemon.log, "disk degraded")
        assert (begun["name"], begun["level"]) == ("g1", "WARNING")
        assert begun["error"].startswith(f"its store {store.path}: writing to the spill store fails: ")
        assert begun["log"] == report["log"]
        (over,) = told(daemon.log, "disk works again")
        assert over["name"] == "g1" and over["after_seconds"] > 0
        (missed,) = told(daemon.log, "deadline missed")
        assert missed["ram_bytes"] > missed["target_bytes"] == 24 * MIB
        # The disk's own log, as far as it is the plugin's.
        own = [json.loads(line) for line in pathlib.Path(report["log"]).read_text().splitlines()]
        events = [each["event"] for each in own if each["part"].startswith("swaptide.")]
        assert "serving" in events and "spill write failed" in events and "spill store works again" in events
        daemon.ok("disk", "rm", "g1")
    assert [each["name"] for each in told(daemon.log, "disk removed")] == ["g1"]


def test_a_freeze_is_told_when_it_is_obeyed(daemon: daemons.Daemon) -> None:
    daemon.add()
    daemon.ok("disk", "freeze", "g1")
    daemons.wait_for(lambda: len(told(daemon.log, "disk frozen")) == 1, daemon.log.read_text)
    daemon.ok("disk", "thaw", "g1")
    daemons.wait_for(lambda: len(told(daemon.log, "disk thawed")) == 1, daemon.log.read_text)


def test_why_a_disk_does_not_start_is_told_in_either_form(daemon: daemons.Daemon) -> None:
    small = daemon.root / "small"
    small.write_bytes(b"somebody's")
    done = daemon.run("disk", "add", "g1", "--size", "64M", "--ram", "32M", "--spill", str(small))
    assert done.returncode == 1 and done.stderr.startswith(f"swaptide: spill={small}: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert all(objects(daemon.log))


@pytest.mark.parametrize("form", ["json", "text"])
def test_why_the_daemon_ends(daemon: daemons.Daemon, form: str) -> None:
    command = ["serve", "--config", str(daemon.config), "--log-format", form]
    done = daemon.run(*command)
    assert done.returncode == 1 and done.stdout == ""
    if form == "text":
        assert done.stderr == (
            f"swaptide: another daemon serves {daemon.run_dir}; end that one, or choose another --run-dir\n"
        )
        return
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["level"]) == ("daemon ended", "CRITICAL")
    assert last["error"].startswith(f"another daemon serves {daemon.run_dir}")


def test_the_form_is_shown_and_checked(daemon: daemons.Daemon) -> None:
    shown = daemon.ok("serve", "--config", str(daemon.config), "--show-config")
    assert 'log_format = "json"\n' in shown
    shown = daemon.ok("serve", "--config", str(daemon.config), "--log-format", "text", "--show-config")
    assert 'log_format = "text"\n' in shown
    refused = daemon.run("serve", "--log-format", "xml")
    assert refused.returncode == 2 and "'xml' is not one of 'text', 'json'" in refused.stderr


def test_the_plugin_alone(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="32M", log_format="json") as disk:
        # It listens before it says so.
        daemons.wait_for(lambda: "serving" in [each["event"] for each in objects(disk.log)][-1:])
        (serving,) = told(disk.log, "serving")
        assert serving["size_bytes"] == 64 * MIB and len(serving["id"]) == 36


def at_terminal(daemon: daemons.Daemon, words: Sequence[str]) -> tuple[str, str]:
    """What a command prints on a pipe, and on the terminal that it has for its standard error."""
    return terminal.run([*daemons.COMMAND, *words, "--run-dir", str(daemon.run_dir)])


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_bars_at_a_terminal_and_nowhere_else(daemon: daemons.Daemon, more: tuple[str, ...]) -> None:
    said = {}
    add = ["disk", "add", "g1", "--size", "64M", "--ram", "48M", *more]
    out, said["making g1"] = at_terminal(daemon, add)
    fill(daemon.show(), 32)
    set_out, said["g1"] = at_terminal(daemon, ["disk", "set", "g1", "--ram", "24M", *more])
    clear_out, said["clearing g1"] = at_terminal(daemon, ["disk", "clear", "g1", *more])
    remove_out, said["removing g1"] = at_terminal(daemon, ["disk", "rm", "g1", *more])
    for words, shown in said.items():
        assert f"{words}: " in shown and terminal.BAR in shown, (words, shown)
    for printed in (out, set_out, clear_out, remove_out):
        assert terminal.BAR not in printed and "\x1b" not in printed
        assert not more or isinstance(json.loads(printed), dict)
    # The same where standard error is a pipe.
    assert daemon.run(*add).stderr == ""
    fill(daemon.show(), 32)
    assert daemon.run("disk", "set", "g1", "--ram", "24M", *more).stderr == ""
    assert daemon.run("disk", "clear", "g1", *more).stderr == ""
    assert daemon.run("disk", "rm", "g1", *more).stderr == ""
