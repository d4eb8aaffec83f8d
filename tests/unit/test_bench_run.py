"""The command, with a made-up module of rows in the place of the real ones."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import click
import pytest

from bench import host, measure, run
from tests.hygiene import tree

# What `bench/run.py` would be if these were its rows.
DRIVER = """
import pathlib, sys, time, types
sys.path.insert(0, {root!r})
from bench import measure, run

def rate(lab):
    values, failed = measure.take_turns(lab, ["memory", "swaptide"], lab.plan.rounds, one)
    return [measure.Measurement("reads", "rate", "Reads", "k/s", "more", values, ("memory",), None, failed)]

def one(name):
    if name == failing:
        raise measure.ContenderError("it went away")
    return 2.0

def wait(lab):
    lab.stack.callback(print, "ended", file=sys.stderr, flush=True)
    lab.tell("waiting in " + str(lab.scratch))
    time.sleep(60)

def boom(lab):
    raise RuntimeError("it broke")

rows = types.ModuleType("made_up")
rows.ROWS = (
    measure.Row("reads-4k", "nbd", "Reads", rate),
    measure.Row("reads-8k", "nbd", "Reads", rate),
    measure.Row("boom", "cap", "Breaks", boom),
    measure.Row("wait", "guest", "Waits", wait),
)
sys.modules["made_up"] = rows
run.MODULES = ("made_up",)
failing = sys.argv.pop(1)
sys.exit(run.main())
"""


def command(*words: str, failing: str = "") -> list[str]:
    return [sys.executable, "-P", "-c", DRIVER.format(root=str(tree.ROOT)), failing, *words]


def bench(out: pathlib.Path, *words: str, failing: str = "") -> subprocess.CompletedProcess[str]:
    line = command("--out", str(out), *words, failing=failing)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def names(directory: pathlib.Path) -> set[str]:
    # The plot is drawn where matplotlib is installed, that is after `make bench`.
    return {path.name for path in directory.iterdir() if path.suffix != ".svg"}


def test_list_names_all_rows(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["reads-4k", "reads-8k", "boom", "wait"]


def test_the_real_rows_can_be_listed() -> None:
    rows = run.collect(run.MODULES)
    groups = {"nbd", "cap", "reclaim", "remote", "guest", "memory", "scrape", "scale", "neighbour", "move"}
    assert rows and {row.group for row in rows} <= groups


def test_an_unknown_row_lists_what_exists(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path / "out", "--row", "reads-4k", "--row", "frob*")
    assert done.returncode == 2
    assert "no row is called 'frob*'" in done.stderr and "\n  reads-8k\n" in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_some_rows_are_written_and_shown(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--quick", "--row", "reads-*", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == {"rows.md", "rows.json"}
    assert "reads-4k" in done.stdout and "equal" in done.stdout
    assert "[2/2] reads-8k: round 3 of 3, memory" in done.stderr
    assert "`bench/run.py --quick --row 'reads-*' --rounds 3`" in (tmp_path / "rows.md").read_text()


def test_json_on_standard_output_is_the_file(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--json", "--row", "reads-4k", "--seconds", "0.1")
    found = json.loads(done.stdout)
    assert done.stdout == (tmp_path / "rows.json").read_text()
    assert found["plan"] == {"rounds": 5, "seconds": 0.1, "quick": False}
    assert found["rows"][0]["comparisons"][0]["measurement"]["values"]["swaptide"] == [2.0] * 5


def test_a_row_that_raises_fails_the_run_but_not_the_others(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--row", "boom", "--row", "reads-8k")
    assert done.returncode == 1
    assert "FAILED boom: RuntimeError: it broke" in done.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["name"], row["error"]) for row in rows] == [
        ("reads-8k", None),
        ("boom", "RuntimeError: it broke"),
    ]


@pytest.mark.parametrize(("failing", "status"), [("memory", 0), ("swaptide", 1)])
def test_only_our_failure_fails_the_run(tmp_path: pathlib.Path, failing: str, status: int) -> None:
    done = bench(tmp_path, "--quick", "--row", "reads-4k", failing=failing)
    assert done.returncode == status
    assert "it went away" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_everything_and_writes_nothing(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    (tmp_path / "rows.md").write_text("of the last run")
    line = command("--out", str(tmp_path), "--row", "reads-4k", "--row", "wait")
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            scratch = pathlib.Path(until(process, "waiting in ").split("waiting in ")[1].strip())
            assert scratch.is_dir()
            process.send_signal(number)
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert process.stderr is not None
        said = process.stderr.read()
    assert "ended\n" in said and f"interrupted by {number.name}: nothing written" in said
    assert not scratch.exists() and not scratch.parent.exists()
    assert names(tmp_path) == {"rows.md"} and (tmp_path / "rows.md").read_text() == "of the last run"


def until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    for line in process.stderr:
        if words in line:
            return line
        assert time.monotonic() < deadline
    raise AssertionError(f"it ended without {words!r}")


def row(name: str) -> measure.Row:
    return measure.Row(name, "nbd", name, lambda lab: [])


def chosen(rows: Sequence[measure.Row], *patterns: str) -> list[str]:
    return [each.name for each in run.select(rows, patterns)]


def test_rows_keep_their_order() -> None:
    rows = [row("a-1"), row("b-1"), row("a-2")]
    assert chosen(rows) == ["a-1", "b-1", "a-2"]
    assert chosen(rows, "a-2", "a-*") == ["a-1", "a-2"]
    with pytest.raises(click.UsageError, match="a-1"):
        run.select(rows, ["a"])


def test_only_a_full_run_replaces_the_full_results() -> None:
    def stem(plan: measure.Plan, *patterns: str) -> str:
        return run.Options(plan, patterns, pathlib.Path(), False).stem

    assert [stem(run.FULL), stem(run.QUICK), stem(run.FULL, "a"), stem(run.QUICK, "a")] == [
        *("full", "quick", "rows", "rows")
    ]


def test_the_machine_is_told_without_its_names(tmp_path: pathlib.Path) -> None:
    machine = host.read(tmp_path)
    assert machine.cores > 0 and machine.memory_bytes > 0 and machine.cpu
    assert machine.versions["swaptide"] and machine.versions["Python"].startswith("3.")
    told = str(machine)
    assert os.uname().nodename not in told or len(os.uname().nodename) < 4
    assert str(tmp_path) not in told and str(tree.ROOT) not in told


def test_versions_are_found_in_what_tools_say() -> None:
    assert host.tool_version("nbdinfo 1.14.2\nlibnbd 1.14.2") == "1.14.2"
    assert host.tool_version("fio-3.33") == "3.33"
    assert host.tool_version("QEMU emulator version 7.2.22 (Debian 1:7.2)") == "7.2.22"
    assert (host.tool_version(None), host.tool_version("?")) == ("missing", "unknown")


def test_kinds_of_disks() -> None:
    assert [host.disk_kind(name) for name in ("vda", "nvme0n1", "sdb", "zd0")] == [
        *("virtio disk", "NVMe disk", "SCSI or SATA disk", "disk")
    ]
