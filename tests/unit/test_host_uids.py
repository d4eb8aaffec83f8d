"""Numbers for disks: which ranges are, what is in their way, and that nobody gets one twice."""

import os
import pathlib

import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import uids

RANGE = range(700_000, 700_004)


def test_ranges() -> None:
    assert uids.parse("700000-700003") == RANGE
    assert uids.parse("1-1") == range(1, 2)
    for text in ("", "7", "0-5", "9-5", "-1-5", "1-4294967295", "1-2-3", "a-b", "1 - 2", "9" * 30 + "-1"):
        with pytest.raises(UsageError, match="not a range of user ids; write for example"):
            uids.parse(text)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("passwd", "somebody:x:700003:100::/:/bin/sh"),
        ("group", "somebody:x:700000:"),
        ("subuid", "somebody:650000:65536"),
        ("subgid", "somebody:700003:1"),
    ],
)
def test_numbers_of_others(tmp_path: pathlib.Path, file: str, line: str) -> None:
    assert uids.obstacle(RANGE, tmp_path, tmp_path) is None
    (tmp_path / file).write_text(f"garbage\nroot:x:0:0:\na:-5:5\n{line}\n")
    why = uids.obstacle(RANGE, tmp_path, tmp_path)
    assert why is not None and "somebody" in why and file in why
    assert uids.obstacle(range(800_000, 800_009), tmp_path, tmp_path) is None


def test_a_namespace_without_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "uid_map").write_text("         0          0 4294967295\n")
    (tmp_path / "self" / "gid_map").write_text("         0     100000      65536\n")
    why = uids.obstacle(RANGE, tmp_path, tmp_path)
    assert why is not None and "gid_map" in why


def test_claims(tmp_path: pathlib.Path) -> None:
    claims = uids.Claims(RANGE, tmp_path / "claims")
    disks = [tmp_path / f"{number}.json" for number in range(4)]
    for disk in disks:
        disk.touch()
    taken = [claims.take(disk) for disk in disks]
    assert sorted(taken) == list(RANGE)
    with pytest.raises(SetupError, match="all 4 user ids are in use"):
        claims.take(tmp_path / "more.json")
    assert claims.hold(taken[0], disks[0]) and not claims.hold(taken[0], disks[1])
    claims.release(taken[0], disks[1])  # another's
    with pytest.raises(SetupError):
        claims.take(tmp_path / "more.json")
    disks[2].unlink()  # removed by hand
    assert claims.take(tmp_path / "more.json") == taken[2]
    for uid, disk in zip(taken, disks, strict=True):
        claims.release(uid, disk)
    claims.release(taken[2], tmp_path / "more.json")
    assert not (tmp_path / "claims").exists()


def test_a_disk_has_one_number(tmp_path: pathlib.Path) -> None:
    claims = uids.Claims(RANGE, tmp_path / "claims")
    for _ in range(5):
        last = claims.take(tmp_path / "g1.json")
    assert [path.name for path in (tmp_path / "claims").iterdir()] == [str(last)]


def test_a_number_that_a_process_runs_as_is_not_taken(tmp_path: pathlib.Path) -> None:
    claims = uids.Claims(range(os.geteuid(), os.geteuid() + 1), tmp_path / "claims")
    with pytest.raises(SetupError, match="in use"):
        claims.take(tmp_path / "g1.json")


def test_what_is_in_the_way_of_claims(tmp_path: pathlib.Path) -> None:
    (tmp_path / "claims").touch()
    why = uids.Claims(RANGE, tmp_path / "claims").obstacle()
    assert why is not None and "cannot keep who has which" in why
    uids.Claims(RANGE, tmp_path / "none").obstacle()
    assert not (tmp_path / "none").exists()


def test_the_default_is_quiet() -> None:
    """Within what the kernel and everybody's tools take, and not where containers and domains are."""
    assert uids.DEFAULT.start > 2_000_200_000 and uids.DEFAULT.stop <= 0x7FFE0000
    assert uids.parse(f"{uids.DEFAULT.start}-{uids.DEFAULT.stop - 1}") == uids.DEFAULT
