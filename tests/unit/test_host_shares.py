"""CPU cgroups, on directories that look like those of each version."""

import logging
import pathlib

import pytest

from swaptide.cache.errors import SetupError
from swaptide.host import shares


def v1(directory: pathlib.Path) -> shares.Shares:
    directory.mkdir(exist_ok=True)
    (directory / "cpu.shares").write_text("1024")
    return shares.Shares(directory)


def v2(directory: pathlib.Path, controllers: str = "cpu memory", on: str = "") -> shares.Shares:
    directory.mkdir(exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text(on)
    return shares.Shares(directory)


def test_without_a_directory_nothing_is_done(tmp_path: pathlib.Path) -> None:
    none = shares.Shares(None)
    none.check()
    none.enter("g1", 1, 100)
    none.weigh("g1", 100)
    none.leave("g1")


@pytest.mark.parametrize(("weight", "expected"), [(1, "10"), (100, "1024"), (250, "2560"), (10000, "102400")])
def test_v1_counts_from_1024(tmp_path: pathlib.Path, weight: int, expected: str) -> None:
    made = v1(tmp_path)
    made.check()
    v1(tmp_path / "disk-g1")
    made.enter("g1", 77, weight)
    assert (tmp_path / "disk-g1" / "cpu.shares").read_text() == expected
    assert (tmp_path / "disk-g1" / "cgroup.procs").read_text() == "77"


def test_v2_takes_the_weight_as_it_is(tmp_path: pathlib.Path) -> None:
    made = v2(tmp_path)
    made.check()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    made.enter("g1", 77, 300)
    assert (tmp_path / "disk-g1" / "cpu.weight").read_text() == "300"
    made.weigh("g1", 50)
    assert (tmp_path / "disk-g1" / "cpu.weight").read_text() == "50"


def test_v2_is_left_alone_where_the_controller_is_on(tmp_path: pathlib.Path) -> None:
    v2(tmp_path, on="cpu io").check()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu io"


def test_a_directory_without_the_controller_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SetupError, match="has no CPU controller"):
        v2(tmp_path / "one", "memory io").check()
    with pytest.raises(SetupError, match="has no CPU controller"):
        shares.Shares(tmp_path / "no-cgroup").check()
    assert not (tmp_path / "no-cgroup").exists()
    with pytest.raises(SetupError, match="cannot be used"):
        shares.Shares(tmp_path / "nothing" / "here").check()


def test_a_disk_is_served_where_its_group_fails(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk-g1").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        v1(tmp_path).enter("g1", 77, 100)
    assert "disk not in its cgroup name=g1" in caplog.text
