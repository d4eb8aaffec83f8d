"""What an operator asks of a disk while it serves: a deadline, another way to pack, a share kept clean."""

import json
import os
import pathlib
import re
from typing import Any

import pytest

from swaptide.cache import face, geometry, layout
from tests.real import daemons

MIB = daemons.MIB
PAGE = 4096


def fill(report: dict[str, Any], mib: int, *, shrinks: bool) -> None:
    """Write so many MiB, of text that packs well or of noise."""
    with daemons.client(report) as handle:
        for at in range(0, mib * MIB, MIB):
            handle.pwrite(
                b"".join(text(at // PAGE + i) for i in range(256)) if shrinks else os.urandom(MIB), at
            )


def text(number: int) -> bytes:
    return (b"page %010d of a guest, " % number * 200)[:PAGE]


def words(report: dict[str, Any]) -> tuple[str, int, int]:
    """The control words in force: how it packs, permille kept clean, deadline."""
    with face.StateFace(pathlib.Path(report["state_file"])) as state:
        found = state._words(geometry.CONTROL_OFFSET, layout.CONTROL)
    return layout.COMPRESS[found["compress"]], found["clean_ahead_permille"], found["deadline_ns"]


def settled_ram(daemon: daemons.Daemon) -> int:
    """What the disk takes once the client that filled it has gone with its buffers."""
    seen: list[int] = []

    def rests() -> bool:
        shown = daemon.show()
        seen.append(shown["ram_bytes"])
        return bool(shown["connections"] == 0 and len(seen) > 2 and len(set(seen[-3:])) == 1)

    daemons.wait_for(rests, lambda: str(seen))
    return seen[-1]


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_deadline_that_is_met(daemon: daemons.Daemon, shrinks: bool) -> None:
    fill(daemon.add(size=256 * MIB, ram="192M"), 144, shrinks=shrinks)
    done = daemon.run("disk", "set", "g1", "--ram", "64M", "--deadline", "60s")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"within 64M after [0-9.]+ s, [0-9.]+M returned", done.stdout)
    after = daemon.show()
    assert after["ram_bytes"] <= 64 * MIB
    assert words(after) == ("lz4", 250, 0)
    with daemons.client(after) as handle:
        if shrinks:
            assert all(handle.pread(PAGE, number * PAGE) == text(number) for number in range(0, 36864, 97))


def test_a_deadline_that_is_not_met(daemon: daemons.Daemon) -> None:
    fill(daemon.add(size=512 * MIB, ram="600M"), 448, shrinks=False)
    before = settled_ram(daemon)
    done = daemon.run("disk", "set", "g1", "--ram", "40M", "--deadline", "20ms", "--json")
    assert done.returncode == 1
    told, late = done.stderr.splitlines()
    assert re.fullmatch(r"at the speeds measured here this takes about [0-9.]+ s, not 0\.02 s", told)
    assert re.fullmatch(
        r"swaptide: disk g1 has returned [0-9.]+[MK]? of [0-9.]+M in [0-9.]+ s and uses [0-9.]+M of RAM;"
        r" the limit 40M is in force, and it goes on towards it",
        late,
    )
    outcome = json.loads(done.stdout)
    assert (outcome["name"], outcome["phase"], outcome["deadline_seconds"]) == ("g1", "late", 0.02)
    assert outcome["estimate_seconds"] > 0.02 <= outcome["elapsed_seconds"]
    assert abs(outcome["before_bytes"] - before) < 4 * MIB, "the process's own memory is never quite the same"
    assert outcome["wanted_bytes"] == outcome["before_bytes"] - 40 * MIB
    assert 0 <= outcome["returned_bytes"] < outcome["wanted_bytes"]
    assert outcome["returned_bytes"] == max(0, outcome["before_bytes"] - outcome["ram_bytes"])
    report = daemon.show()
    assert words(report)[2] == 0
    daemons.wait_for(lambda: daemon.show()["ram_bytes"] <= 40 * MIB)


def test_a_limit_that_holds_already_is_in_time_however_soon(daemon: daemons.Daemon) -> None:
    fill(daemon.add(size=256 * MIB, ram="128M"), 8, shrinks=False)
    for ram in ("64M", "63M", "127M"):
        done = daemon.run("disk", "set", "g1", "--ram", ram, "--deadline", "1ms")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(
            rf"disk g1 is within {ram} after [0-9.]+ s, [0-9.]+[KM]? returned .*\n", done.stdout
        )


def test_the_outcome_of_a_set_as_json(daemon: daemons.Daemon) -> None:
    daemon.add()
    outcome = json.loads(daemon.ok("disk", "set", "g1", "--ram", "28M", "--deadline", "60s", "--json"))
    assert (outcome["phase"], outcome["target_bytes"], outcome["unsaved"]) == ("holds", 28 * MIB, None)
    outcome = json.loads(daemon.ok("disk", "set", "g1", "--weight", "7", "--json"))
    assert (outcome["phase"], outcome["deadline_seconds"]) == ("holds", None)


def test_another_way_to_pack_is_taken_up_at_once_and_kept(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--compress", "none", "--clean-ahead", "0", size=256 * MIB, ram="128M")
    assert words(report) == ("none", 0, 0)
    fill(report, 120, shrinks=True)
    daemon.ok("disk", "set", "g1", "--ram", "96M")
    plain = daemon.show()
    assert plain["packed_pages"] == 0 and plain["packing_ratio"] is None
    assert plain["spilled_bytes"] >= 20 * MIB

    daemon.ok("disk", "set", "g1", "--ram", "64M", "--compress", "zstd")
    packed = daemon.show()
    assert (packed["compress"], words(packed)) == ("zstd", ("zstd", 0, 0))
    assert packed["packed_pages"] > 0 and packed["packing_ratio"] > 4
    assert packed["ram_bytes"] <= 64 * MIB
    assert "zstd" in daemon.ok("disk", "show", "g1")

    daemon.ok("disk", "set", "g1", "--compress", "lz4+zstd", "--clean-ahead", "40%")
    daemon.ok("disk", "restart", "g1")
    again = daemon.wait_running(not_pid=packed["pid"])
    assert (again["compress"], again["clean_ahead_percent"]) == ("lz4+zstd", 40)
    assert words(again) == ("lz4+zstd", 400, 0)
    daemon.stop()
    daemon.start()
    assert (daemon.show()["compress"], daemon.show()["clean_ahead_percent"]) == ("lz4+zstd", 40)


def test_a_share_that_is_kept_clean_is_taken_up_at_once() -> None:
    with daemons.directory() as root, daemons.serving(root, nbdkit=daemons.eager_nbdkit(root)) as daemon:
        judge_clean_ahead(daemon)


def judge_clean_ahead(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--compress", "none", "--clean-ahead", "0%", size=128 * MIB, ram="64M")
    fill(report, 48, shrinks=False)
    assert daemon.show()["written_ahead_segments"] == 0
    daemon.ok("disk", "set", "g1", "--clean-ahead", "50")
    assert words(report) == ("none", 500, 0)
    daemons.wait_for(lambda: bool(daemon.show()["clean_bytes"] >= 24 * MIB), lambda: str(daemon.show()))
    assert daemon.show()["written_ahead_segments"] >= 12
    done = json.loads(daemon.ok("disk", "set", "g1", "--ram", "44M", "--deadline", "60s", "--json"))
    assert done["estimate_seconds"] == 0, "what is clean only has to be dropped"
