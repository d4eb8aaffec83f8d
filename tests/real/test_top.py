"""`swaptide top` on a real daemon: for scripts, on a terminal of 80 columns, and while the daemon is away."""

import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real import daemons, hosts, loads

MIB = daemons.MIB
RAM_MIB = 48
PRESSURE = "some avg10=1.25 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture(scope="module")
def daemon() -> Iterator[daemons.Daemon]:
    """One with a disk that is full in every tier, under load, on a host of 1 GiB."""
    with daemons.directory() as root, hosts.made_up(root, 1024 * MIB) as host:
        (host.proc / "pressure").mkdir()
        pressure = host.proc / "pressure/memory"
        pressure.touch()
        with daemons.serving(root, proc_dir=str(host.proc), host_reserve="128M") as running:
            running.add("g1", size=192 * MIB, ram=f"{RAM_MIB}M")
            # Not before the daemon has tried to write its trigger into it.
            daemons.wait_for(lambda: str(pressure) in running.log.read_text(), running.log.read_text)
            pressure.write_text(PRESSURE)
            report = running.show("g1")
            with daemons.client(report) as handle:
                handle.pwrite(b"\x55" * MIB, 128 * MIB)
            with loads.loaded(report):
                yield running


def test_once_for_scripts(daemon: daemons.Daemon) -> None:
    view: dict[str, Any] = {}

    def has_read_everywhere() -> bool:
        """On a busy host its client may have read nothing in half a second, or from one tier alone."""
        nonlocal view
        view = json.loads(daemon.ok("top", "--once", "--json", "--interval", "500ms"))
        share = view["disks"][0]["hit_share"]
        return share is not None and 0 < share < 1 and view["disks"][0]["taken_bytes_per_second"] > 0

    daemons.wait_for(has_read_everywhere, lambda: str(view))
    (disk,) = view["disks"]
    report = daemon.show()
    assert 0.5 <= view["interval_seconds"] < 60
    assert (disk["name"], disk["size_bytes"], disk["cap_bytes"]) == ("g1", 192 * MIB, RAM_MIB * MIB)
    assert disk["raw_bytes"] > 0 and disk["spilled_bytes"] > 0 and disk["same_bytes"] == MIB
    stored = disk["raw_bytes"] + disk["packed_bytes"] + disk["spilled_bytes"]
    assert stored == pytest.approx(report["stored_pages"] * 4096, rel=0.1)
    assert 0 < disk["read_p50_seconds"] <= disk["read_p99_seconds"]
    assert disk["returned_bytes_per_second"] > disk["taken_bytes_per_second"] > 0
    host = view["host"]
    assert host["balloon"] is True and host["pressure_percent"] == 1.25
    (room,) = host["rooms"]
    assert (room["name"], room["size_bytes"], room["reserve_bytes"]) == ("host", 1024 * MIB, 128 * MIB)
    assert 0 < room["free_bytes"] < 1024 * MIB - disk["raw_bytes"] // 2


def test_json_is_a_line_for_each_look_until_it_is_ended(daemon: daemons.Daemon) -> None:
    command = [*daemons.COMMAND, "top", "--json", "--interval", "200ms", "--run-dir", str(daemon.run_dir)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        end, works = time.monotonic() + daemons.WAIT_SECONDS, 0
        while works < 3:  # looks in which its client, on a busy host, came to work
            assert time.monotonic() < end
            (disk,) = json.loads(running.stdout.readline())["disks"]
            works += disk["returned_bytes_per_second"] > 0
    finally:
        running.terminate()
        running.communicate(timeout=daemons.WAIT_SECONDS)


def test_it_ends_quietly_when_nobody_reads_on(daemon: daemons.Daemon) -> None:
    command = [*daemons.COMMAND, "top", "--json", "--interval", "100ms", "--run-dir", str(daemon.run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None and running.stderr is not None
            assert running.stdout.readline().startswith("{")
            running.stdout.close()
            assert running.wait(daemons.WAIT_SECONDS) == 0
            assert running.stderr.read() == ""
        finally:
            running.kill()


def test_once_for_people_fits_eighty_columns(daemon: daemons.Daemon) -> None:
    shown: list[str] = []
    row = ""

    def has_a_rate() -> bool:
        nonlocal shown, row
        shown = daemon.ok("top", "--once").splitlines()
        assert max(map(len, shown)) <= 80
        row = next(line for line in shown if line.startswith("g1"))
        return "%" in row

    daemons.wait_for(has_a_rate, lambda: str(shown))
    assert row.split()[2:4][1] == f"{RAM_MIB}M"
    assert any("1.2%" in line and "balloon" in line for line in shown), shown


def test_mistakes_are_told(daemon: daemons.Daemon) -> None:
    done = daemon.run("top", "--once", "nothing")
    assert done.returncode == 1 and done.stderr == "swaptide: there is no disk 'nothing'; the disks are: g1\n"
    assert daemon.run("top", "--interval", "1ms").returncode == 2
    nobody = subprocess.run(
        [*daemons.COMMAND, "top", "--run-dir", str(daemon.root / "nobody")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert nobody.returncode == 1 and "no daemon answers" in nobody.stderr
    assert nobody.stderr.count("\n") == 1


class Terminal:
    """The command on a terminal of 80 by 24; `seen` is all that it wrote."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = ""
        self.process = subprocess.Popen(
            [*daemons.COMMAND, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )

    def wait(self, words: str) -> None:
        """Read until it has written `words` from now on."""
        start, end = len(self.seen), time.monotonic() + daemons.WAIT_SECONDS
        while words not in self.seen[start:]:
            assert time.monotonic() < end, f"no {words!r} in {self.seen[start:]!r}"
            assert self.process.poll() is None, self.seen
            self._read(0.1)

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def end(self) -> int:
        """Its exit status; what it wrote until then is read as well."""
        end = time.monotonic() + daemons.WAIT_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.wait(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            self.seen += os.read(self._master, 65536).decode(errors="replace")
        return bool(ready)


@contextlib.contextmanager
def on_a_terminal(daemon: daemons.Daemon, *more: str) -> Iterator[Terminal]:
    terminal = Terminal("top", "--interval", "200ms", "--run-dir", str(daemon.run_dir), *more)
    try:
        yield terminal
    finally:
        terminal.close()


def test_live_until_q(daemon: daemons.Daemon) -> None:
    with on_a_terminal(daemon) as terminal:
        for words in ("g1", "█", "g1", "%"):  # the second look has rates
            terminal.wait(words)
        terminal.press("q")
        assert terminal.end() == 0
        assert "\x1b[?1049h" in terminal.seen and terminal.seen.rindex("\x1b[?1049l") > terminal.seen.index(
            "g1"
        )
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_interrupted_it_leaves_the_terminal_as_it_was(daemon: daemons.Daemon) -> None:
    with on_a_terminal(daemon) as terminal:
        terminal.wait("g1")
        terminal.process.send_signal(2)
        assert terminal.end() == 130
        assert "\x1b[?1049l" in terminal.seen and "Traceback" not in terminal.seen
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_it_goes_on_when_the_daemon_comes_back(daemon: daemons.Daemon) -> None:
    with on_a_terminal(daemon) as terminal:
        terminal.wait("g1")
        daemon.stop()
        terminal.wait("no daemon answers")
        daemon.start()
        terminal.wait("with ")  # the title, which the complaint stood in for
        terminal.press("q")
        assert terminal.end() == 0


def test_a_disk_that_fails_is_told(daemon: daemons.Daemon) -> None:
    daemon.ok("disk", "freeze", "g1")
    try:
        view = json.loads(daemon.ok("top", "--once", "--json", "--interval", "100ms"))
        assert {"subject": "disk g1", "why": "frozen"} in view["wrong"]
        assert "! disk g1: frozen" in daemon.ok("top", "--once", "--interval", "100ms")
    finally:
        daemon.ok("disk", "thaw", "g1")


def test_without_a_balloon_the_host_is_told_all_the_same() -> None:
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(daemons.directory())
        proc = stack.enter_context(hosts.made_up(root, 256 * MIB, 100 * MIB)).proc
        settings: dict[str, Any] = {"proc_dir": str(proc), "host_reserve": "16M", "balloon": False}
        running = stack.enter_context(daemons.serving(root, **settings))
        view = json.loads(running.ok("top", "--once", "--json", "--interval", "100ms"))
        assert view["host"]["balloon"] is False and view["host"]["reason"] is None
        assert view["host"]["rooms"][0]["free_bytes"] == 156 * MIB
        assert view["disks"] == [] and "balloon off" in running.ok("top", "--once", "--interval", "100ms")
