"""`swaptide disk freeze` and `thaw`, and what the other commands make of a frozen disk."""

import json
import os
import pathlib
import re
import signal
import subprocess

import nbd
import pytest

from swaptide.cache import face
from tests.real import daemons

MIB = daemons.MIB
PAGE = 4096
OLD, NEW = b"old." * 1024, b"new." * 1024


class Writer:
    """A client with a write under way."""

    def __init__(self, report: dict[str, object]) -> None:
        self.handle = nbd.NBD()
        self.handle.set_export_name(str(report["id"]))
        self.handle.connect_unix(str(report["socket"]))
        self._waits = pathlib.Path(str(report["state_file"]))
        self._cookie = 0

    def write(self) -> None:
        """Write, and see it wait."""
        with face.StateFace(self._waits) as state:
            before = state.counters()["frozen_waits"]
            self._cookie = self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(NEW)), PAGE)
            while self.handle.poll(50):
                pass
            daemons.wait_for(lambda: state.counters()["frozen_waits"] > before)

    def is_answered(self) -> bool:
        self.handle.poll(10)
        return bool(self.handle.aio_command_completed(self._cookie))

    def read(self) -> bytes:
        return bytes(self.handle.pread(PAGE, PAGE))


def prepared(daemon: daemons.Daemon, *more: str, ram: str = "64M") -> dict[str, object]:
    """A disk with something on it."""
    report = daemon.add("g1", *more, ram=ram)
    with daemons.client(report) as handle:
        handle.pwrite(OLD, PAGE)
    return report


def fill(report: dict[str, object], mib: int) -> None:
    with daemons.client(report) as handle:
        for at in range(MIB, mib * MIB, MIB):
            handle.pwrite(os.urandom(MIB), at)


def blocks(report: dict[str, object]) -> int:
    """Memory of the cache itself; the process's own comes and goes with its clients."""
    with face.StateFace(pathlib.Path(str(report["state_file"]))) as state:
        return state.state_blocks_bytes()


def word(report: dict[str, object]) -> tuple[bool, bool]:
    """Whether it is to stand still, and whether it does."""
    with face.StateFace(pathlib.Path(str(report["state_file"]))) as state:
        return state.is_frozen(), state.counters()["frozen_seen"] % 2 == 1


def test_writes_wait_and_go_on(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    assert (report["frozen"], report["state"]) == (False, "running")
    said = daemon.ok("disk", "freeze", "g1")
    assert re.fullmatch(
        r"disk g1 stands still after [0-9.]+ s; writes to it wait for `swaptide disk thaw g1`\n", said
    )
    assert word(report) == (True, True)
    guest = Writer(report)
    guest.write()
    frozen = daemon.show()
    assert (frozen["frozen"], frozen["state"], frozen["frozen_waits"]) == (True, "frozen", 1)
    assert "frozen_seen" not in frozen
    assert re.search(r"^g1 .* frozen$", daemon.ok("disk", "ls"), re.MULTILINE)
    assert re.search(r"^frozen +yes$", daemon.ok("disk", "show", "g1"), re.MULTILINE)
    assert guest.read() == OLD and not guest.is_answered()
    again = json.loads(daemon.ok("disk", "freeze", "g1", "--json"))
    assert (again["name"], again["frozen"]) == ("g1", True)
    assert daemon.ok("disk", "thaw", "g1") == "disk g1 goes on\n"
    daemons.wait_for(guest.is_answered)
    assert guest.read() == NEW
    thawed = json.loads(daemon.ok("disk", "thaw", "g1", "--json"))
    assert (thawed["name"], thawed["frozen"]) == ("g1", False)
    assert (daemon.show()["frozen"], daemon.show()["state"]) == (False, "running")
    guest.handle.shutdown()


def test_limits_of_a_frozen_disk_hold_after_the_thaw(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    fill(report, 48)
    daemon.ok("disk", "freeze", "g1")
    before = blocks(report)
    for more in ((), ("--deadline", "30s")):
        done = daemon.run("disk", "set", "g1", "--ram", "28M", *more, "--json")
        assert done.returncode == 1
        assert re.fullmatch(
            r"swaptide: disk g1 is frozen and uses [0-9.]+M of RAM; the limit 28M is in force, and holds only"
            r" after `swaptide disk thaw g1`\n",
            done.stderr,
        )
        outcome = json.loads(done.stdout)
        assert (outcome["phase"], outcome["target_bytes"]) == ("frozen", 28 * MIB)
    assert (daemon.show()["cap_bytes"], blocks(report)) == (28 * MIB, before)
    # What it is within already holds.
    assert "is within 128M" in daemon.ok("disk", "set", "g1", "--ram", "128M")
    daemon.run("disk", "set", "g1", "--ram", "28M")
    daemon.ok("disk", "thaw", "g1")
    daemons.wait_for(lambda: daemon.show()["ram_bytes"] <= 28 * MIB)


def test_a_squeeze_that_is_frozen_ends(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    fill(report, 48)
    pid = report["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)  # so that the limit cannot hold
    try:
        command = [*daemons.COMMAND, "disk", "set", "g1", "--ram", "28M", "--run-dir", str(daemon.run_dir)]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        daemons.wait_for(lambda: daemon.show()["target_bytes"] == 28 * MIB)
        with face.StateFace(pathlib.Path(str(report["state_file"]))) as state:
            state.set_frozen(True)
        _, said = waiting.communicate(timeout=daemons.WAIT_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert waiting.returncode == 1 and "is frozen" in said
    daemon.ok("disk", "thaw", "g1")
    daemons.wait_for(lambda: daemon.show()["ram_bytes"] <= 28 * MIB)


@pytest.mark.parametrize("killed", ["disk", "daemon", "both"])
def test_a_kill_thaws_nothing(daemon: daemons.Daemon, killed: str) -> None:
    report = prepared(daemon)
    daemon.ok("disk", "freeze", "g1")
    pid = report["pid"]
    assert isinstance(pid, int)
    if killed != "disk":
        daemon.stop(signal.SIGKILL)
    if killed != "daemon":
        os.kill(pid, signal.SIGKILL)
    if killed != "disk":
        daemon.start()

    def is_back() -> bool:
        """Its death may not have been noticed yet."""
        shown = daemon.show()
        return bool(shown["state"] == "frozen" and (shown["pid"] == pid) == (killed == "daemon"))

    daemons.wait_for(is_back, daemon.log.read_text)
    guest = Writer(daemon.show())
    assert guest.read() == OLD
    guest.write()
    assert guest.read() == OLD and not guest.is_answered()
    daemon.ok("disk", "thaw", "g1")
    daemons.wait_for(guest.is_answered)
    assert guest.read() == NEW
    guest.handle.shutdown()


def test_a_restart_keeps_it_frozen_and_no_write_is_answered(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    daemon.ok("disk", "freeze", "g1")
    guest = Writer(report)
    guest.write()
    after = json.loads(daemon.ok("disk", "restart", "g1", "--json"))
    assert (after["frozen"], after["state"]) == (True, "frozen") and after["pid"] != report["pid"]
    with pytest.raises(nbd.Error, match="disconnect|dead|closed|reset|not connected"):
        while not guest.is_answered():
            pass
    guest = Writer(after)
    assert guest.read() == OLD
    daemon.ok("disk", "thaw", "g1")
    guest.handle.pwrite(NEW, PAGE)
    assert guest.read() == NEW
    guest.handle.shutdown()


def test_a_cleared_disk_is_not_frozen(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    daemon.ok("disk", "freeze", "g1")
    guest = Writer(report)
    guest.write()
    daemon.ok("disk", "clear", "g1", "--force")
    after = daemon.show()
    assert (after["frozen"], after["state"]) == (False, "running") and after["id"] != report["id"]
    with daemons.client(after) as handle:
        assert handle.pread(PAGE, PAGE) == bytes(PAGE)
        handle.pwrite(NEW, PAGE)


def test_a_frozen_disk_is_removed(daemon: daemons.Daemon) -> None:
    before = daemon.files()
    report = prepared(daemon)
    daemon.ok("disk", "freeze", "g1")
    guest = Writer(report)
    guest.write()
    refused = daemon.run("disk", "rm", "g1")
    assert refused.returncode == 1 and "1 client(s) connected" in refused.stderr
    daemon.ok("disk", "rm", "g1", "--force")
    assert daemon.files() == before
    assert not daemons.is_alive(int(str(report["pid"])))


def test_a_disk_that_does_not_run_is_frozen_from_when_it_does(daemon: daemons.Daemon) -> None:
    report = prepared(daemon)
    state = pathlib.Path(str(report["state_file"]))
    spill = pathlib.Path(str(report["spill"]))
    hidden = spill.with_suffix(".hidden")
    spill.rename(hidden)
    pid = report["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    daemons.wait_for(lambda: daemon.show()["state"] == "failed", daemon.log.read_text)
    done = daemon.run("disk", "freeze", "g1")
    assert done.returncode == 1
    assert done.stderr.startswith("swaptide: disk g1 does not run (")
    assert done.stderr.endswith("); it stands still from when it does\n")
    with face.StateFace(state) as opened:
        assert opened.is_frozen()
    assert daemon.show()["frozen"] is True
    hidden.rename(spill)
    daemons.wait_for(lambda: daemon.show()["state"] == "frozen", daemon.log.read_text)
    daemon.ok("disk", "thaw", "g1")
    guest = Writer(daemon.show())
    assert guest.read() == OLD
    guest.handle.shutdown()


def test_a_disk_that_is_not_there(daemon: daemons.Daemon) -> None:
    for call in ("freeze", "thaw"):
        done = daemon.run("disk", call, "nobody")
        assert done.returncode == 1
        assert done.stderr == "swaptide: there is no disk 'nobody'; the disks are: none\n"


@pytest.mark.parametrize(("call", "what"), [("freeze", "frozen"), ("thaw", "thawed")])
def test_what_is_interrupted_goes_on_and_says_so(daemon: daemons.Daemon, call: str, what: str) -> None:
    report = prepared(daemon)
    if call == "thaw":
        daemon.ok("disk", "freeze", "g1")
    pid = report["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)  # it answers nobody
    try:
        command = [*daemons.COMMAND, "disk", call, "g1", "--run-dir", str(daemon.run_dir)]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        daemons.wait_for(lambda: word(report)[0] == (call == "freeze"))
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=daemons.WAIT_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert waiting.returncode == 130
    assert said.startswith(f"swaptide: interrupted; disk g1 is being {what} all the same")
    daemons.wait_for(lambda: word(report)[1] == (call == "freeze"))
