"""What `--json` prints has the keys that docs/command.md promises, of commands that are really run."""

import json
import os
import pathlib
import re
import signal
import subprocess
from typing import Any

from swaptide.host import cli
from tests.hygiene import tree
from tests.real import daemons, machines, words

PAGE = (tree.ROOT / "docs/command.md").read_text()
ROWS = dict(
    re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", PAGE.split("## JSON")[1].split("## ")[0], re.MULTILINE)
)
CODE = re.compile(r"`([a-z0-9_]+)`")
DISK = "`disk add`, `disk show`, `disk clear`; `disk ls` has a list of these"
GUEST = "`guest add`; `guest ls` has a list of these"


def promised(row: str) -> set[str]:
    """The keys of a row, without what stands in brackets."""
    return set(CODE.findall(re.sub(r"\([^)]*\)", "", ROWS[row])))


daemon = daemons.shared()


def ask(daemon: daemons.Daemon, *words: str, status: int = 0) -> Any:
    done = daemon.run(*words, "--json")
    assert done.returncode == status, done
    return json.loads(done.stdout)


def test_every_command_with_json_has_a_row() -> None:

    told = " ".join(ROWS) + " `migrate` `receive` "
    for path, command in words.commands(cli.cli):
        if any(parameter.name == "as_json" for parameter in command.params):
            assert f"`{' '.join(path)}" in told, path


def test_disks(daemon: daemons.Daemon, tmp_path: pathlib.Path) -> None:
    made = ask(daemon, "disk", "add", "g1", "--size", "64M", "--ram", "32M")
    listed = ask(daemon, "disk", "ls")[0]
    for found in (made, listed, ask(daemon, "disk", "show", "g1"), ask(daemon, "disk", "clear", "g1")):
        assert promised(DISK) <= found.keys()
    assert promised(DISK) | {"pause_seconds"} <= ask(daemon, "disk", "restart", "g1").keys()
    changed = ask(daemon, "disk", "set", "g1", "--ram", "24M", "--deadline", "30s")
    assert promised("`disk set`") <= changed.keys() and changed["phase"] == "holds"
    for call in ("freeze", "thaw"):
        assert promised("`disk freeze`, `disk thaw`") <= ask(daemon, "disk", call, "g1").keys()
    saved = str(daemon.root / "saved")
    assert promised("`disk save`") <= ask(daemon, "disk", "save", "g1", saved).keys()
    daemon.ok("disk", "clear", "g1")
    assert promised("`disk load`") <= ask(daemon, "disk", "load", "g1", saved).keys()
    assert promised("`disk rm`") <= ask(daemon, "disk", "rm", "g1").keys()


def test_a_limit_that_does_not_hold_is_told_in_json_as_well(daemon: daemons.Daemon) -> None:
    pid = daemon.add("g2")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = ask(daemon, "disk", "set", "g2", "--ram", "24M", "--deadline", "1s", status=1)
        assert promised("`disk set`") <= found.keys() and found["phase"] == "late"
    finally:
        os.kill(pid, signal.SIGCONT)
        daemon.ok("disk", "rm", "g2", "--force")


def test_guests(daemon: daemons.Daemon) -> None:
    made = ask(daemon, "guest", "add", "vm", "--qmp", "/no/such.qmp")
    for found in (made, ask(daemon, "guest", "ls")[0]):
        assert promised(GUEST) <= found.keys()
    assert promised("`guest rm`") <= ask(daemon, "guest", "rm", "vm").keys()


def test_detach(daemon: daemons.Daemon) -> None:
    """What `attach` prints is looked at where a guest takes the disk: tests/vm/test_guests.py."""
    daemon.add("g3")
    try:
        with machines.running(daemon.root, board="pc") as vm:
            vm.wait_until_booted()
            done = daemon.run("attach", "g3", "--qmp", str(vm.qmp), "--deadline", "1s", "--json")
            assert (done.returncode, done.stdout) == (1, "") and "has not taken disk g3" in done.stderr
            vm.ask("system_reset")
            assert promised("`detach`") <= ask(daemon, "detach", "g3", "--qmp", str(vm.qmp)).keys()
    finally:
        daemon.ok("disk", "rm", "g3", "--force")


def test_reservations(daemon: daemons.Daemon) -> None:
    made = ask(daemon, "reserve", "1M")
    assert promised("`reserve SIZE`") <= made.keys() and made["granted"] is True
    assert promised("`reserve --list`, a list") <= ask(daemon, "reserve", "--list")[0].keys()
    assert promised("`reserve --release`") <= ask(daemon, "reserve", "--release", made["id"]).keys()
    refused = ask(daemon, "reserve", "15T", status=1)
    assert promised("`reserve SIZE`") <= refused.keys() and refused["granted"] is False


def test_what_is_looked_at(daemon: daemons.Daemon) -> None:
    done = daemon.run("doctor", "--json")
    found = json.loads(done.stdout)
    assert promised("`doctor`") <= found.keys() and done.returncode == int(found["bad"] > 0)
    assert {"name", "verdict", "said", "remedy"} <= found["findings"][0].keys()
    found = ask(daemon, "plan", "--host-memory", "64G", "--free", "1G", "--guests", "2")
    assert promised("`plan`") <= found.keys() and found["possible"] is True
    assert promised("`top`") <= ask(daemon, "top", "--once", "--interval", "100ms").keys()


def test_simulate(tmp_path: pathlib.Path) -> None:
    trace = str(tmp_path / "trace")
    run = [*daemons.COMMAND, "simulate", trace]
    subprocess.run([*run, "--make", "eater"], check=True, capture_output=True)
    done = subprocess.run([*run, "--json"], check=True, capture_output=True)
    assert promised("`simulate`") <= json.loads(done.stdout).keys()
