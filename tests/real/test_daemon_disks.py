"""What the calls of the command do to real disks: made, shown, squeezed, cleared, removed."""

import json
import mmap
import os
import pathlib
import re
import signal
import stat
import subprocess
from collections.abc import Iterator

import nbd
import pytest

from tests.real import daemons, interrupts

MIB = daemons.MIB
FIELDS = {
    *("name", "id", "size_bytes", "cap_bytes", "target_bytes", "floor_bytes", "ram_bytes", "base_bytes"),
    *("raw_bytes", "packed_bytes", "spilled_bytes", "clean_bytes", "reserved_bytes", "stored_pages"),
    *("packed_pages", "packing_ratio", "raw_hits", "packed_hits", "written_ahead_segments"),
    *("same_filled_pages", "reads", "writes", "hits", "misses", "spill_written_bytes", "spill_read_bytes"),
    *("pid", "socket", "state"),
}

daemon = daemons.shared()


@pytest.fixture(autouse=True)
def _nothing_is_left(daemon: daemons.Daemon) -> Iterator[None]:
    before = daemon.files()
    yield
    daemon.run("disk", "rm", "g1", "--force")
    assert daemon.files() == before


def test_add_shows_every_field(daemon: daemons.Daemon) -> None:
    given = {"compress": "zstd", "weight": 7, "swap_label": "tide"}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    options.append("--clean-ahead=10%")
    given["clean_ahead_percent"] = 10
    printed = daemon.ok("disk", "add", "g1", "--size", "64M", "--ram", "32M", *options)
    report = daemon.show()
    assert set(report) >= FIELDS
    assert given.items() <= report.items()
    assert (report["name"], report["state"], report["size_bytes"]) == ("g1", "running", 64 * MIB)
    assert (report["cap_bytes"], report["target_bytes"]) == (32 * MIB, 32 * MIB)
    assert report["floor_bytes"] <= 24 * MIB
    assert report["reserved_bytes"] >= 64 * MIB
    assert report["id"] in printed and report["spill"] in printed and "reserved" in printed
    assert f"state={report['state_file']}" in pathlib.Path(f"/proc/{report['pid']}/cmdline").read_text()


@pytest.mark.parametrize("how", interrupts.SIGNALS)
def test_an_interrupted_add_says_what_becomes_of_it(daemon: daemons.Daemon, how: signal.Signals) -> None:
    said = interrupts.before_the_answer(daemon, how, "disk", "add", "g1", "--size", "2G", "--ram", "64M")
    assert "disk g1 is being made all the same" in said
    daemons.wait_for(lambda: "running" in daemon.run("disk", "show", "g1").stdout)
    assert daemon.show()["reserved_bytes"] >= 2 << 30


@pytest.mark.parametrize("how", interrupts.SIGNALS)
@pytest.mark.parametrize(
    ("call", "what"), [("rm", "removed"), ("clear", "cleared"), ("restart", "restarted")]
)
def test_what_is_interrupted_goes_on_and_says_so(
    daemon: daemons.Daemon, call: str, what: str, how: signal.Signals
) -> None:
    before = daemon.add()
    said = interrupts.before_the_answer(daemon, how, "disk", call, "g1")
    assert f"disk g1 is being {what} all the same" in said
    if call == "rm":
        daemons.wait_for(lambda: "g1" not in daemon.ok("disk", "ls"))
    else:
        daemon.wait_running(not_pid=before["pid"])
    assert not daemons.is_alive(before["pid"])


def test_set_of_a_disk_that_is_removed_meanwhile(daemon: daemons.Daemon) -> None:
    os.kill(daemon.add()["pid"], signal.SIGSTOP)  # so that the limit cannot hold
    command = [*daemons.COMMAND, "disk", "set", "g1", "--ram", "24M", "--run-dir", str(daemon.run_dir)]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    daemons.wait_for(lambda: daemon.show()["target_bytes"] == 24 * MIB)
    daemon.ok("disk", "rm", "g1")
    _, said = waiting.communicate(timeout=daemons.WAIT_SECONDS)
    assert waiting.returncode == 1 and "removed or cleared meanwhile" in said


def test_a_limit_that_is_not_remembered_is_told(daemon: daemons.Daemon) -> None:
    daemon.add()
    obstacle = next(daemon.state_dir.rglob("g1.json")).with_suffix(".new")  # where the new definition is made
    obstacle.mkdir()
    done = daemon.run("disk", "set", "g1", "--ram", "28M")
    obstacle.rmdir()
    assert done.returncode == 0 and "is within 28M" in done.stdout
    assert "the next daemon will not know of it" in done.stderr and "g1.json" in done.stderr
    assert daemon.show()["cap_bytes"] == 28 * MIB


def test_readable_forms_name_the_disk(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    shown = daemon.ok("disk", "show", "g1")
    assert report["socket"] in shown
    assert "hit latency" in shown and report["latency"]["hit"]["count"] == 0
    lines = daemon.ok("disk", "ls").splitlines()
    assert lines[0].split()[:3] == ["NAME", "SIZE", "CAP"]
    assert lines[1].split()[:3] == ["g1", "64M", "32M"]


def test_everything_private(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    paths = [report[field] for field in ("socket", "spill", "state_file", "log")]
    for path in (*paths, daemon.run_dir / "control.sock"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path


def test_spill_lies_where_the_operator_says(daemon: daemons.Daemon) -> None:
    chosen = daemon.root / "my spill"
    assert daemon.add("g1", "--spill", str(chosen))["spill"] == str(chosen)
    assert chosen.stat().st_blocks * 512 >= 64 * MIB
    daemon.ok("disk", "rm", "g1")
    assert not chosen.exists()


def test_only_the_right_export_names(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with daemons.client(report) as handle:
        handle.pwrite(b"x" * 4096, 8192)
    with daemons.client(report, "") as handle:
        assert handle.pread(4096, 8192) == b"x" * 4096
    with pytest.raises(nbd.Error), daemons.client(report, "00000000-0000-0000-0000-000000000000"):
        pass


def test_swap_label_makes_a_ready_swap_disk(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--swap-label", "tide")
    assert report["swap_label"] == "tide"
    with daemons.client(report) as handle:
        first = bytes(handle.pread(4096, 0))
    assert first.endswith(b"SWAPSPACE2")
    assert b"tide" in first


def test_set_returns_when_it_holds(daemon: daemons.Daemon) -> None:
    report = daemon.add(size=256 * MIB, ram="128M")
    with daemons.client(report) as handle:
        for index in range(96):
            handle.pwrite(os.urandom(MIB), index * MIB)
        printed = daemon.ok("disk", "set", "g1", "--ram", "32M")
        shown = daemon.show()
        assert re.search(r"within 32M after [0-9.]+ s, [0-9.]+M returned", printed)
        assert (shown["cap_bytes"], shown["target_bytes"]) == (32 * MIB, 32 * MIB)
        assert shown["ram_bytes"] <= 32 * MIB
        assert shown["spilled_bytes"] >= 60 * MIB
        assert "within 96M" in daemon.ok("disk", "set", "g1", "--ram", "96M", "--weight", "3")
    assert daemon.show()["weight"] == 3


def test_set_refuses_what_contradicts(daemon: daemons.Daemon) -> None:
    daemon.add()
    done = daemon.run("disk", "set", "g1", "--ram", "4M")
    assert done.returncode == 1
    assert re.fullmatch(r"swaptide: ram 4M is below the floor \d+M; .*\n", done.stderr)
    assert daemon.run("disk", "set", "g1", "--floor", "48M").returncode == 1
    assert daemon.show()["cap_bytes"] == 32 * MIB


def test_interrupted_set_leaves_the_limit_in_force(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    os.kill(report["pid"], signal.SIGSTOP)
    try:
        waiting = subprocess.Popen(
            [*daemons.COMMAND, "disk", "set", "g1", "--ram", "24M", "--run-dir", str(daemon.run_dir)],
            stderr=subprocess.PIPE,
            text=True,
        )
        daemons.wait_for(lambda: daemon.show()["cap_bytes"] == 24 * MIB)
        waiting.send_signal(signal.SIGINT)
        _, stderr = waiting.communicate(timeout=daemons.WAIT_SECONDS)
    finally:
        os.kill(report["pid"], signal.SIGCONT)
    assert waiting.returncode == 130
    assert "stay in force" in stderr and stderr.count("\n") == 1
    daemons.wait_for(lambda: daemon.show()["target_seen_bytes"] == 24 * MIB)


def test_clear_makes_another_disk(daemon: daemons.Daemon) -> None:
    old = daemon.add()
    with daemons.client(old) as handle:
        handle.pwrite(b"x" * 4096, 0)
    printed = daemon.ok("disk", "clear", "g1")
    new = daemon.show()
    assert new["id"] != old["id"] and new["id"] in printed
    assert not pathlib.Path(old["spill"]).exists()
    with pytest.raises(nbd.Error), daemons.client(old):
        pass
    with daemons.client(new) as handle:
        assert handle.pread(4096, 0) == bytes(4096)


@pytest.mark.parametrize("call", ["rm", "clear"])
def test_connected_disk_is_refused(daemon: daemons.Daemon, call: str) -> None:
    report = daemon.add()
    handle = nbd.NBD()
    handle.connect_unix(report["socket"])
    done = daemon.run("disk", call, "g1")
    assert done.returncode == 1
    assert done.stderr.startswith("swaptide: disk g1 is not ") and "--force" in done.stderr
    assert daemon.show()["pid"] == report["pid"]
    daemon.ok("disk", call, "g1", "--force")
    assert not daemons.is_alive(report["pid"])


def test_a_stuck_process_holds_nobody_up(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    os.kill(report["pid"], signal.SIGSTOP)
    assert daemon.show()["state"] == "running"
    daemon.ok("disk", "rm", "g1")
    assert not daemons.is_alive(report["pid"])


def test_real_qemu_takes_the_snippet(daemon: daemons.Daemon) -> None:
    daemons.require("qemu-system-x86_64")
    report = daemon.add()
    lines = daemon.ok("snippet", "g1").replace("\\\n", " ")
    words = lines.split()
    assert f"export={report['id']}" in lines and "rerror=report" in lines
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-S", "-display", "none", "-m", "32", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        daemons.wait_for(lambda: qemu.poll() is not None or daemon.show()["connections"] == 1)
        assert qemu.poll() is None, qemu.communicate()[1]
    finally:
        qemu.kill()
        qemu.communicate()


def huge_bytes(pid: int) -> int:
    """What a process has of shared memory in huge pages."""
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("ShmemPmd"))


def has_huge_pages(path: pathlib.Path, count: int) -> bool:
    """Whether that much of a file there comes in huge pages: not where memory is in too many pieces."""
    before = huge_bytes(os.getpid())
    with open(path, "w+b") as file:
        path.unlink()
        file.truncate(count)
        with mmap.mmap(file.fileno(), count) as memory:
            memory[::4096] = bytes(count // 4096)
            return huge_bytes(os.getpid()) - before >= count


def test_memory_comes_in_huge_pages_and_the_tables_do_not(daemon: daemons.Daemon) -> None:
    """On a tmpfs of the daemon's own; what is in RAM is counted by the blocks of the state file alone."""
    memory = pathlib.Path(daemon.add()["state_file"]).parent
    if not any(map(os.path.ismount, (memory, memory.parent))):
        pytest.skip("the daemon may not mount a tmpfs here")
    if not has_huge_pages(memory / "probe", 16 * MIB):
        pytest.skip("this kernel has no huge pages for us now")
    report = daemon.show()
    assert report["ram_bytes"] % (2 * MIB) < MIB  # whole segments, and a few KiB of tables
    with daemons.client(report) as handle:
        for at in range(0, 16 * MIB, MIB):
            handle.pwrite(os.urandom(MIB), at)
    assert huge_bytes(report["pid"]) >= 14 * MIB


def test_outcomes_for_scripts(daemon: daemons.Daemon) -> None:
    """One JSON object for each call that changes something."""
    made = json.loads(daemon.ok("disk", "add", "g1", "--size", "64M", "--ram", "32M", "--json"))
    assert made["name"] == "g1" and made["encrypt"] is True and made["user"]
    held = json.loads(daemon.ok("disk", "set", "g1", "--ram", "24M", "--json"))
    assert (held["name"], held["phase"], held["target_bytes"]) == ("g1", "holds", 24 * MIB)
    again = json.loads(daemon.ok("disk", "restart", "g1", "--json"))
    assert again["pid"] != made["pid"] and again["pause_seconds"] > 0
    empty = json.loads(daemon.ok("disk", "clear", "g1", "--json"))
    assert empty["id"] not in (None, made["id"])
    gone = json.loads(daemon.ok("disk", "rm", "g1", "--json"))
    assert gone == {"name": "g1", "id": empty["id"], "removed": True}
