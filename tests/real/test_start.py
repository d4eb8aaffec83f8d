"""Starting the plugin: every bad input ends in one clear line, and leaves nothing half made behind."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from swaptide.cache import face, geometry, spillfile
from tests.real import server

SIZE = 64 << 20


def start_fails(directory: pathlib.Path, *arguments: str) -> str:
    """Start nbdkit with these plugin arguments, which must fail; returns its one line."""
    command = ["nbdkit", "-f", "-U", str(directory / "nbd.sock"), "python", str(server.PLUGIN), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=server.WAIT_SECONDS, env=server.bare_environment()
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("nbdkit: error: swaptide: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["size=1G", "ram=256M", "rum=1"], "unknown parameter rum=1"),
        (["size=many", "ram=256M"], "size=many"),
        (["size=0", "ram=256M"], "size=0"),
        (["size=-4G", "ram=256M"], "size=-4G"),
        (["size=1000", "ram=256M"], "size=1000"),
        (["size=17T", "ram=256M"], "size=17T"),
        (["ram=256M"], "size= is missing"),
        (["size=1G"], "ram= is missing"),
        (["size=1G", "ram=1M"], "ram=1048576"),
        (["size=1G", "ram=1G", "floor=2G"], "below the floor"),
        (["size=1G", "ram=1G", "floor=4K"], "floor=4096"),
        (["size=64M", "ram=64M", "name=a/b"], "name=a/b"),
        (["size=64M", "ram=64M", "compress=rar"], "compress=rar"),
        (["size=64M", "ram=64M", "clean-ahead=101%"], "clean-ahead=101%"),
        (["size=64M", "ram=64M", "force=perhaps"], "force=perhaps"),
        (["size=64M", "ram=64M", "metrics=nonsense"], "metrics=nonsense"),
        (["size=64M", "ram=64M", "metrics="], "metrics="),
        (["size=64M", "ram=64M", "metrics=127.0.0.1:65536"], "metrics=127.0.0.1:65536"),
        (["size=64M", "ram=64M", "spill="], "spill="),
        (["size=64M", "ram=64M", "spill=/nonexistent/spill"], "/nonexistent/spill"),
        (["size=64M", "ram=64M", "state=/nonexistent/state"], "/nonexistent/state"),
        (["size=64M", "ram=64M", "spill=/dev/null"], "spill=/dev/null"),
        (["size=64M", "ram=64M", "spill=/proc/self"], "spill=/proc/self"),
        (["size=64M", "ram=64M", "swap-label=" + "x" * 17], "swap-label="),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: pathlib.Path, arguments: list[str], words: str) -> None:
    if not any(a.startswith("spill") for a in arguments):
        arguments = [*arguments, f"spill={tmp_path / 'spill'}"]
    assert words in start_fails(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_space_is_refused_when_it_is_not_there(tmp_path: pathlib.Path) -> None:
    line = start_fails(tmp_path, "size=8T", "ram=20G", f"spill={tmp_path / 'spill'}")
    assert "are free" in line and str(geometry.of_size(8 << 40).spill_bytes) in line
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_left_alone(tmp_path: pathlib.Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"do not touch" * 1000)
    line = start_fails(tmp_path, "size=64M", "ram=64M", f"spill={precious}")
    assert "not swaptide's" in line
    line = start_fails(tmp_path, "size=64M", "ram=64M", f"state={precious}", f"spill={tmp_path / 'spill'}")
    assert "not a swaptide state file" in line
    assert precious.read_bytes() == b"do not touch" * 1000
    assert list(tmp_path.iterdir()) == [precious]


def test_a_spill_file_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(tmp_path / "spill")) as disk:
        other = tmp_path / "other"
        other.mkdir()
        assert "in use by another disk" in start_fails(
            other, "size=64M", "ram=64M", f"spill={tmp_path / 'spill'}"
        )
        assert "another process serves" in start_fails(
            other, f"state={disk.state}", f"size={SIZE}", "ram=64M", f"spill={tmp_path / 'spill'}"
        )


def test_a_spill_file_of_a_living_disk_is_refused_and_of_a_dead_one_reused(tmp_path: pathlib.Path) -> None:
    spill = tmp_path / "spill"
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(spill)) as disk:
        disk.stop()
        assert "belongs to the disk" in start_fails(tmp_path, "size=64M", "ram=64M", f"spill={spill}")
        header = spillfile.read_header(spill)
        assert header is not None and header.state_path == str(disk.state)
        assert disk.state is not None
        disk.state.unlink()
        disk.start()
        renewed = spillfile.read_header(spill)
        assert renewed is not None and renewed.disk_id != header.disk_id


def test_a_state_file_without_its_spill_file_is_refused_and_kept(tmp_path: pathlib.Path) -> None:
    spill = tmp_path / "spill"
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(spill)) as disk:
        disk.stop()
        spill.rename(tmp_path / "elsewhere")
        line = start_fails(tmp_path, f"size={SIZE}", "ram=64M", f"state={disk.state}", f"spill={spill}")
        assert "put it back" in line
        assert disk.state is not None and disk.state.exists()
        (tmp_path / "elsewhere").rename(spill)
        disk.start()


def test_another_size_or_format_is_refused(tmp_path: pathlib.Path) -> None:
    spill = tmp_path / "spill"
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(spill)) as disk:
        disk.stop()
        common = (f"state={disk.state}", f"spill={spill}")
        assert "a disk keeps its size" in start_fails(tmp_path, "size=128M", "ram=64M", *common)
        assert disk.state is not None
        with open(disk.state, "r+b") as file:
            file.seek(8)
            file.write((99).to_bytes(8, "little"))
        assert "format 99" in start_fails(tmp_path, f"size={SIZE}", "ram=64M", *common)


def test_a_new_cap_on_the_command_line_is_taken(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(tmp_path / "spill")) as disk:
        disk.stop()
        disk.parameters["ram"] = "96M"
        disk.start()
        with disk.face() as opened:
            assert opened.limits() == face.Limits(
                96 << 20, 96 << 20, geometry.of_size(SIZE).working_minimum_bytes
            )


def left_of(disk_id: str) -> list[str]:
    """Files of a disk, where others have theirs as well."""
    places = ("/var/tmp", "/tmp", "/dev/shm")
    return [name for place in places for name in os.listdir(place) if disk_id in name]


def test_unnamed_files_leave_nothing_behind(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, named_state=False, size=str(SIZE), ram="64M") as disk:
        while (found := re.search(r"serving id=([0-9a-f-]+)", disk.log.read_text())) is None:
            assert disk.process is not None and disk.process.poll() is None
            time.sleep(0.01)
        assert left_of(found[1]) == []
        disk.stop(signal.SIGKILL)
    assert left_of(found[1]) == []


def test_swap_label_is_a_swap_area(tmp_path: pathlib.Path) -> None:
    blkid = "/sbin/blkid"
    if not os.path.exists(blkid):
        pytest.skip("blkid is missing (Debian package util-linux)")
    image = tmp_path / "image"
    with server.serving(
        tmp_path, size=str(SIZE), ram="64M", swap_label="tide0", spill=str(tmp_path / "s")
    ) as disk:
        subprocess.run(["nbdcopy", disk.uri, str(image)], check=True)
    done = subprocess.run(
        [blkid, "-p", "-o", "export", str(image)], capture_output=True, text=True, check=True
    )
    assert "TYPE=swap" in done.stdout and "LABEL=tide0" in done.stdout and "VERSION=1" in done.stdout


def test_a_spill_file_that_names_a_device_opens_nothing(tmp_path: pathlib.Path) -> None:
    """Who serves the disk writes that name, and a daemon of root reads it."""
    os.mkfifo(fifo := tmp_path / "fifo")
    spill = tmp_path / "a.spill"
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(spill)) as disk:
        disk.stop(signal.SIGKILL)
        raw = bytearray(spill.read_bytes()[:4096])
        known = str(disk.state).encode()
        raw = raw.replace(known.ljust(1024, b"\0"), str(fifo).encode().ljust(1024, b"\0"))
        with open(spill, "r+b") as file:
            file.write(raw)
        header = spillfile.read_header(spill)
        assert header is not None and header.state_path == str(fifo)
        assert spillfile.collect_orphans(tmp_path) == [spill]


def test_orphans_are_collected_and_others_are_not(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(tmp_path / "a.spill")) as disk:
        (tmp_path / "notes.spill").write_text("mine")
        assert spillfile.collect_orphans(tmp_path) == []
        disk.stop(signal.SIGKILL)
        assert spillfile.collect_orphans(tmp_path) == []
        assert disk.state is not None
        disk.state.unlink()
        assert spillfile.collect_orphans(tmp_path) == [tmp_path / "a.spill"]
        assert (tmp_path / "notes.spill").exists()
        disk.start()
