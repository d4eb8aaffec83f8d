"""What an NBD client sees: sizes, extents, flags, exports, reconnects; and fio's own verification."""

import contextlib
import ctypes
import errno
import pathlib
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator

import nbd
import pytest

from swaptide.cache import geometry
from tests.real import server

PAGE = 4096
SIZE = 64 << 20


def connect(disk: server.Server, **settings: str) -> "nbd.NBD":
    """A client with the allocation context; `export` names the export."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if "export" in settings:
        handle.set_export_name(settings["export"])
    handle.connect_unix(str(disk.socket))
    return handle


def extents(handle: "nbd.NBD", count: int, offset: int) -> list[tuple[int, int]]:
    """(length, flags) runs from `offset`, asked for until all is told."""
    runs: list[tuple[int, int]] = []

    def add(_context: str, _offset: int, entries: list[int], _error: ctypes.c_int) -> int:
        runs.extend(zip(entries[::2], entries[1::2], strict=True))
        return 0

    while count > 0:
        before = len(runs)
        handle.block_status(count, offset, add)
        told = sum(length for length, _ in runs[before:])
        offset, count = offset + told, count - told
    return merge(runs)


def merge(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours of one kind as one run."""
    merged: list[tuple[int, int]] = []
    for length, flags in runs:
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + length, flags)
        else:
            merged.append((length, flags))
    return merged


@pytest.fixture()
def disk(tmp_path: pathlib.Path) -> Iterator[server.Server]:
    """A small disk with room for all of it."""
    with server.serving(tmp_path, size=str(SIZE), ram="160M", spill=str(tmp_path / "spill")) as running:
        yield running


def test_extents_tell_holes_and_zeroes_truly(disk: server.Server) -> None:
    hole_zero, zero, data = nbd.STATE_HOLE | nbd.STATE_ZERO, nbd.STATE_ZERO, 0
    handle = connect(disk)
    assert extents(handle, SIZE, 0) == [(SIZE, hole_zero)]
    handle.pwrite(b"a" * 100, 5 * PAGE + 7)
    handle.pwrite(bytes(2 * PAGE), 8 * PAGE)
    handle.zero(PAGE, 12 * PAGE, flags=nbd.CMD_FLAG_NO_HOLE)
    handle.pwrite(b"z" * PAGE, 20 * PAGE)
    handle.zero(PAGE, 20 * PAGE)
    handle.pwrite(b"z" * PAGE, 21 * PAGE)
    handle.trim(PAGE, 21 * PAGE)
    expected = [
        (5 * PAGE, hole_zero),
        (PAGE, data),
        (2 * PAGE, hole_zero),
        (2 * PAGE, zero),
        (2 * PAGE, hole_zero),
        (PAGE, zero),
        (SIZE - 13 * PAGE, hole_zero),
    ]
    assert extents(handle, SIZE, 0) == expected
    assert extents(handle, 3 * PAGE, 4 * PAGE) == [(PAGE, hole_zero), (PAGE, data), (PAGE, hole_zero)]
    handle.shutdown()


def test_what_is_advertised(disk: server.Server) -> None:
    handle = connect(disk)
    assert handle.get_size() == SIZE
    assert handle.can_multi_conn() and handle.can_trim() and handle.can_zero() and handle.can_fast_zero()
    assert (
        handle.can_flush() and handle.can_fua() and not handle.is_rotational() and not handle.is_read_only()
    )
    assert handle.get_block_size(nbd.SIZE_PREFERRED) == PAGE
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == geometry.MAX_REQUEST_BYTES
    handle.pwrite(b"x" * 512, 512, flags=nbd.CMD_FLAG_FUA)
    handle.flush()
    handle.shutdown()


def test_only_the_right_export_is_served(disk: server.Server) -> None:
    with disk.face() as face:
        disk_id = face.identity.disk_id
    for export in ("", disk_id):
        connect(disk, export=export).shutdown()
    with pytest.raises(nbd.Error):
        connect(disk, export="11111111-2222-3333-4444-555555555555")
    with pytest.raises(nbd.Error):
        connect(disk, export="g1")


def test_requests_beyond_the_end_and_too_large_are_errors_not_more(disk: server.Server) -> None:
    handle = connect(disk)
    handle.set_strict_mode(0)
    for call in (
        lambda: handle.pread(PAGE, SIZE - 512),
        lambda: handle.pwrite(b"x" * PAGE, SIZE - 512),
        lambda: handle.trim(PAGE, SIZE),
        lambda: handle.pread(2 << 20, 0),
        lambda: handle.pwrite(bytes(2 << 20), 0),
    ):
        with pytest.raises(nbd.Error):
            call()
    handle.pwrite(b"x" * 512, SIZE - 512)
    assert handle.pread(512, SIZE - 512) == b"x" * 512
    handle.shutdown()


def test_trimmed_and_dead_segments_are_freed(disk: server.Server) -> None:
    handle = connect(disk)
    with disk.face() as face:
        for at in range(0, SIZE // 2, 1 << 20):
            handle.pwrite((b"%015dx" % at) * (1 << 16), at)
        used = server.fresh_counters(face)
        assert used["stored_pages"] == SIZE // 2 // PAGE
        handle.trim(SIZE // 2, 0)
        after = server.fresh_counters(face)
        assert after["stored_pages"] == 0 and after["raw_bytes"] == 0
        # The host gets the memory back, but for a few segments that stay ready.
        server.wait_until_holds(face, 22 << 20)
    handle.shutdown()


def test_same_filled_pages_take_no_memory(disk: server.Server) -> None:
    handle = connect(disk)
    with disk.face() as face:
        for word in (b"\x00", b"\xff", b"\x01\x02\x03\x04"):
            handle.pwrite(word * ((1 << 20) // len(word)), 0)
            counters = server.fresh_counters(face)
            assert counters["same_filled_pages"] == 256 and counters["stored_pages"] == 0
            assert handle.pread(1 << 20, 0) == word * ((1 << 20) // len(word))
            assert handle.pread(1001, 4097) == (word * 2048)[4097 % len(word) :][:1001]
    handle.shutdown()


def test_parts_of_one_page_in_flight_together_all_survive(disk: server.Server) -> None:
    """Eight threads, each its own connection, each writing its own 512 bytes of the same pages."""
    rounds, pages = 60, 4

    def write_part(part: int) -> None:
        handle = connect(disk)
        for n in range(rounds):
            for page in range(pages):
                handle.pwrite(bytes([part + 1, n]) * 256, page * PAGE + part * 512)
        handle.shutdown()

    writers = [threading.Thread(target=write_part, args=(part,)) for part in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    handle = connect(disk)
    for page in range(pages):
        expected = b"".join(bytes([part + 1, rounds - 1]) * 256 for part in range(8))
        assert handle.pread(PAGE, page * PAGE) == expected
    handle.shutdown()


def test_sigterm_leaves_like_a_crash_not_with_errors(disk: server.Server) -> None:
    """An unanswered client reconnects and asks again; an error answer a guest takes for a broken disk."""
    handle = connect(disk)
    handle.pwrite(b"k" * PAGE, 4095 * PAGE)
    answers: list[int] = []
    ended = False

    def note(error: ctypes.c_int) -> int:
        answers.append(error.value)
        return 1

    with contextlib.suppress(nbd.Error):
        for n in range(100_000):
            data = nbd.Buffer.from_bytearray(bytearray(b"x%07d" % n * (PAGE // 8)))
            handle.aio_pwrite(data, n % 1000 * PAGE, completion=note)
            assert disk.process is not None
            if len(answers) > 200 and not ended:
                disk.process.terminate()
                ended = True
            handle.poll(0)
    assert 0 in answers and set(answers) <= {0, errno.ENOTCONN, errno.ECONNRESET}, set(answers)
    # nbdkit 1.32 fails an assertion of its own where two threads answer on the connection that just broke.
    status = disk.stop()
    assert status == 0 or (status == -signal.SIGABRT and "sock >= 0" in disk.log.read_text())
    disk.start()
    again = connect(disk)
    assert again.pread(PAGE, 4095 * PAGE) == b"k" * PAGE
    again.shutdown()


def resident_bytes(pid: int) -> int:
    """RssAnon of a process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def test_two_thousand_reconnects_leave_memory_flat(disk: server.Server) -> None:
    def reconnect(times: int) -> None:
        for _ in range(times):
            handle = connect(disk)
            cookies = [handle.aio_pread(nbd.Buffer(PAGE), n * PAGE) for n in range(8)]
            for cookie in cookies:
                while not handle.aio_command_completed(cookie):
                    handle.poll(-1)
            handle.shutdown()

    reconnect(300)  # let heaps and thread stacks settle
    before = resident_bytes(disk.pid)
    reconnect(2000)
    grown = resident_bytes(disk.pid) - before
    # A leaked thread state is 17 per connection and several hundred bytes to some KiB each: tens of MiB.
    assert grown < 3 << 20, f"{grown} bytes more after 2,000 reconnects"


@pytest.mark.parametrize("ram", ["160M", str(geometry.of_size(SIZE).working_minimum_bytes)])
def test_fio_verifies(tmp_path: pathlib.Path, ram: str) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is missing (Debian package fio)")
    with server.serving(tmp_path, size=str(SIZE), ram=ram, spill=str(tmp_path / "spill")) as disk:
        for rw, block in (("write", "128k"), ("randwrite", "4k"), ("randwrite", "512-20k")):
            command = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={disk.uri}", f"--rw={rw}"]
            command += ["--bsrange=" + block] if "-" in block else ["--bs=" + block]
            command += [
                "--iodepth=16",
                f"--size={SIZE}",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--randrepeat=0",
            ]
            command += ["--verify_state_save=0"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
