"""The CPU cgroups of a real daemon's disks."""

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from swaptide.cache.errors import SetupError
from swaptide.host import shares
from tests.real import daemons

ROOTS = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup")


@pytest.fixture()
def directory() -> Iterator[pathlib.Path]:
    """A CPU cgroup for the test's own groups, removed in the end."""
    for root in ROOTS:
        made = pathlib.Path(root) / f"swaptide-test-{os.getpid()}"
        try:
            shares.Shares(made).check()
        except SetupError:
            continue
        yield made
        for group in (*made.glob("disk-*"), made):
            group.rmdir()
        return
    pytest.skip("no CPU cgroups can be made here")


def weight(group: pathlib.Path) -> float:
    """A group's weight, as v2 counts."""
    if (group / "cpu.shares").exists():
        return int((group / "cpu.shares").read_text()) * 100 / 1024
    return int((group / "cpu.weight").read_text())


def pids(group: pathlib.Path) -> list[int]:
    """The processes of a group."""
    return [int(line) for line in (group / "cgroup.procs").read_text().split()]


def test_each_disk_runs_in_a_group_of_its_weight(directory: pathlib.Path) -> None:
    with daemons.directory() as root, daemons.serving(root, cgroup=str(directory)) as daemon:
        g1, g2 = directory / "disk-g1", directory / "disk-g2"
        first, second = daemon.add("g1"), daemon.add("g2", "--weight", "400")
        assert (pids(g1), pids(g2)) == ([first["pid"]], [second["pid"]])
        assert [weight(g1), weight(g2)] == pytest.approx([100, 400], abs=1)
        daemon.ok("disk", "set", "g1", "--weight", "50")
        assert weight(g1) == pytest.approx(50, abs=1)

        os.kill(first["pid"], signal.SIGKILL)
        successor = daemon.wait_running("g1", not_pid=first["pid"])["pid"]
        assert pids(g1) == [successor]
        assert weight(g1) == pytest.approx(50, abs=1)

        daemon.ok("disk", "rm", "g1")
        assert not g1.exists() and g2.exists()


def test_disks_that_are_adopted_are_moved_there(directory: pathlib.Path) -> None:
    with daemons.directory() as root, daemons.serving(root) as daemon:
        pid = daemon.add("g1")["pid"]
        daemon.stop()
        with daemons.serving(root, cgroup=str(directory)) as second:
            assert second.wait_running("g1")["pid"] == pid
            assert pids(directory / "disk-g1") == [pid]
            second.ok("disk", "rm", "g1")


def test_a_directory_that_is_no_cgroup_is_refused() -> None:
    with daemons.directory() as root:
        daemon = daemons.Daemon(root, cgroup=str(root / "none"))
        done = daemon.run("serve", "--config", str(daemon.config))
        assert done.returncode != 0
        assert f"cgroup {root / 'none'} has no CPU controller" in done.stderr
        assert not daemon.run_dir.exists()
