"""Who outlives whom: daemons that end, are killed or meet, and disks that die under them."""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swaptide.cache import face
from swaptide.host import listener
from tests.real import daemons

PATTERN = bytes(range(256)) * 16


def write(report: dict[str, object]) -> None:
    with daemons.client(report) as handle:
        handle.pwrite(PATTERN, 4096)


def check(report: dict[str, object]) -> None:
    with daemons.client(report) as handle:
        assert handle.pread(len(PATTERN), 4096) == PATTERN


def kill(report: dict[str, Any]) -> None:
    """Kill a disk's process, and wait until it is gone."""
    os.kill(report["pid"], signal.SIGKILL)
    daemons.wait_for(lambda: not daemons.is_alive(report["pid"]))


def test_without_disks_nothing_is_left(daemon: daemons.Daemon) -> None:
    daemon.add()
    daemon.ok("disk", "rm", "g1")
    daemon.stop()
    assert daemon.process is None
    assert not daemon.run_dir.exists() and not daemon.state_dir.exists()
    assert str(daemon.root) not in pathlib.Path("/proc/self/mounts").read_text()


def test_killed_disk_is_back_with_its_data(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    write(before)
    kill(before)
    check(before)  # its client waits in the socket's queue
    after = daemon.wait_running(not_pid=before["pid"])
    assert (after["id"], after["socket"]) == (before["id"], before["socket"])


def test_restart_changes_the_process_and_nothing_else(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    write(before)
    said = daemon.ok("disk", "restart", "g1")
    after = daemon.show()
    assert after["pid"] != before["pid"] and f"pid {after['pid']}" in said
    assert (after["id"], after["socket"], after["state"]) == (before["id"], before["socket"], "running")
    check(after)
    # It was wanted: nobody is told of a process that died.
    assert f"nbdkit (pid {before['pid']}) ended" not in daemon.log.read_text()


@pytest.fixture
def slow(root: pathlib.Path) -> Iterator[tuple[daemons.Daemon, pathlib.Path]]:
    """A daemon whose nbdkits start only while a file is not there, and that file."""
    hold, script = root / "hold", root / "slow-nbdkit"
    script.write_text(f'#!/bin/sh\nwhile [ -e {hold} ]; do sleep 0.05; done\nexec nbdkit "$@"\n')
    script.chmod(0o755)
    with daemons.serving(root, nbdkit=str(script)) as daemon:
        yield daemon, hold


def told(daemon: daemons.Daemon, *words: str) -> "subprocess.Popen[str]":
    command = [*daemons.COMMAND, *words, "--run-dir", str(daemon.run_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_begun(daemon: daemons.Daemon, number: int) -> None:
    daemons.wait_for(lambda: daemon.log.read_text().count("process started name=g1") == number)


def test_a_limit_that_is_set_while_the_next_process_starts_holds(
    slow: tuple[daemons.Daemon, pathlib.Path],
) -> None:
    daemon, hold = slow
    before = daemon.add("g1", ram="128M")
    write(before)
    hold.touch()
    kill(before)
    wait_begun(daemon, 2)  # with a command line of before
    with face.StateFace(pathlib.Path(before["state_file"])) as state:
        with told(daemon, "disk", "set", "g1", "--ram", "64M", "--compress", "zstd") as setting:
            daemons.wait_for(lambda: state.limits().cap_bytes == 64 * daemons.MIB)
            hold.unlink()
            said = setting.communicate()[0]
        assert setting.returncode == 0, said
        assert state.limits().cap_bytes == 64 * daemons.MIB and state.compress() == "zstd"
    after = daemon.wait_running(not_pid=before["pid"])
    assert (after["cap_bytes"], after["compress"]) == (64 * daemons.MIB, "zstd")
    check(after)


def test_a_limit_that_is_set_before_there_is_a_disk_holds_once_it_serves(
    slow: tuple[daemons.Daemon, pathlib.Path],
) -> None:
    daemon, hold = slow
    hold.touch()
    with told(daemon, "disk", "add", "g1", "--size", "256M", "--ram", "128M") as adding:
        wait_begun(daemon, 1)
        refused = daemon.run("disk", "set", "g1", "--ram", "64M")
        assert refused.returncode == 1 and "its limits will hold later" in refused.stderr
        hold.unlink()
        said = adding.communicate()[0]
    assert adding.returncode == 0, said
    with face.StateFace(pathlib.Path(daemon.show()["state_file"])) as state:
        assert state.limits().cap_bytes == daemon.show()["cap_bytes"] == 64 * daemons.MIB


def test_restart_of_a_disk_that_does_not_run_is_refused(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    state = pathlib.Path(before["state_file"])
    daemon.stop()
    kill(before)
    with open(state, "r+b") as file:
        file.write(b"garbage!")
    daemon.start()
    done = daemon.run("disk", "restart", "g1")
    assert done.returncode == 1 and "does not run" in done.stderr
    assert state.read_bytes()[:8] == b"garbage!"  # refused, and left alone


def test_removal_forgets_the_key(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    assert report["encrypt"] is True
    uid = daemons.uid_of(report["pid"])
    assert daemons.has_key(report["id"], uid)
    daemon.ok("disk", "rm", "g1")
    assert not daemons.has_key(report["id"], uid)


def has_come(moment: str, definition: pathlib.Path, state: pathlib.Path) -> bool:
    """Whether a removal has come so far, or farther."""
    if moment != "begun":
        return not state.exists()
    try:
        return b'"removing": true' in definition.read_bytes()
    except FileNotFoundError:
        return True


def cut_off(daemon: daemons.Daemon, has_come: Callable[[], bool]) -> bytes:
    """Have g1 removed, and kill the daemon at that moment; what the command said."""
    removing = subprocess.Popen(
        [*daemons.COMMAND, "disk", "rm", "g1", "--run-dir", str(daemon.run_dir)], stderr=subprocess.PIPE
    )
    while not has_come():
        assert removing.poll() in (None, 0)
    daemon.stop(signal.SIGKILL)
    return removing.communicate(timeout=daemons.WAIT_SECONDS)[1]


@pytest.mark.parametrize("moment", ["begun", "state gone"])
def test_a_removal_that_is_cut_off_is_finished_by_the_next_daemon(
    daemon: daemons.Daemon, moment: str
) -> None:
    for _ in range(30):  # on a busy host we come too late now and then
        report = daemon.add()
        uid = daemons.uid_of(report["pid"])
        definition = next(daemon.state_dir.rglob("g1.json"))
        state = pathlib.Path(report["state_file"])
        said = cut_off(daemon, lambda: has_come(moment, definition, state))  # noqa: B023
        if b"ended before it answered" in said:
            break
        daemon.start()
    assert b"ended before it answered" in said
    daemon.start()
    daemons.wait_for(lambda: "g1" not in daemon.ok("disk", "ls"), daemon.log.read_text)
    assert not daemons.has_key(report["id"], uid)
    assert not daemons.is_alive(report["pid"])
    for path in (definition, state, report["spill"], report["socket"], report["log"]):
        assert not pathlib.Path(path).exists(), path


def test_a_disk_that_is_dropped_by_force_leaves_no_key(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    uid = daemons.uid_of(before["pid"])
    daemon.stop()
    kill(before)
    next(daemon.state_dir.rglob("g1.json")).unlink()
    daemon.start()
    add = ("disk", "add", "g1", "--size", "64M", "--ram", "32M", "--encrypt", "no")
    assert "not defined" in daemon.run(*add).stderr and daemons.has_key(before["id"], uid)
    daemon.ok(*add, "--force")
    assert not daemons.has_key(before["id"], uid)


def test_what_a_removal_leaves_is_told(root: pathlib.Path) -> None:
    """Nothing in the directory of nbdkit's user keeps the key, or hides that something stayed."""
    with daemons.serving(root, user="54321") as daemon:  # for all disks, whose directory stays
        report = daemon.add()
        uid = daemons.uid_of(report["pid"])
        state = pathlib.Path(report["state_file"])
        state.unlink()
        state.mkdir()
        done = daemon.run("disk", "rm", "g1")
        assert done.returncode == 1 and str(state) in done.stderr and done.stderr.count("\n") == 1
        assert not daemons.has_key(report["id"], uid)
        assert not pathlib.Path(report["spill"]).exists() and "g1" not in daemon.ok("disk", "ls")
        state.rmdir()


def test_a_spill_file_that_cannot_be_erased_is_told(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a store")
    (store := daemon.root / "store").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "store", str(store)], check=True)
    try:
        report = daemon.add("g1", "--encrypt", "no", "--spill", str(store / "spill"))
        read_only = ["mount", "-o", "remount,ro", str(store)]
        os.kill(report["pid"], signal.SIGKILL)  # it holds the file open for writing
        while subprocess.run(read_only, check=False, stderr=subprocess.DEVNULL).returncode:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(daemon.show()["pid"], signal.SIGKILL)
        done = daemon.run("disk", "rm", "g1")
        assert done.returncode == 1 and report["spill"] in done.stderr and "Read-only" in done.stderr
        assert "g1" not in daemon.ok("disk", "ls")
    finally:
        daemons.unmount(store)


def test_an_unencrypted_disk_has_no_key(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--encrypt", "no")
    assert report["encrypt"] is False
    write(report)
    assert not daemons.has_key(report["id"], daemons.uid_of(report["pid"]))
    check(daemon.show())


def test_next_daemon_adopts_what_is_healthy(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    write(before)
    daemon.ok("disk", "set", "g1", "--ram", "28M")
    daemon.stop()
    assert daemon.run("disk", "ls").returncode == 1
    check(before)
    daemon.start()
    after = daemon.wait_running()
    assert (after["pid"], after["id"]) == (before["pid"], before["id"])
    assert after["cap_bytes"] == 28 << 20
    check(after)
    os.kill(after["pid"], signal.SIGKILL)
    check(daemon.wait_running(not_pid=after["pid"]))


def test_both_killed_lose_nothing(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    write(before)
    daemon.stop(signal.SIGKILL)
    os.kill(before["pid"], signal.SIGKILL)
    daemon.start()
    after = daemon.wait_running(not_pid=before["pid"])
    assert after["id"] == before["id"]
    check(after)


def test_a_process_whose_socket_is_orphaned_is_replaced(daemon: daemons.Daemon) -> None:
    """As when a daemon ended while it started a disk, and the next one bound the socket anew."""
    before = daemon.add()
    write(before)
    daemon.stop(signal.SIGKILL)
    path = pathlib.Path(before["socket"])
    with listener.bind(path):
        pass
    daemon.start()
    after = daemon.wait_running(not_pid=before["pid"])
    assert after["id"] == before["id"]
    check(after)
    assert not daemons.is_alive(before["pid"])


def test_lost_memory_brings_an_empty_disk_with_a_new_id(daemon: daemons.Daemon) -> None:
    """As after a reboot: processes and state files are gone, definitions and spill files are not."""
    before = daemon.add("g1", "--weight", "9")
    write(before)
    daemon.stop(signal.SIGKILL)
    kill(before)
    pathlib.Path(before["state_file"]).unlink()
    daemon.start()
    after = daemon.wait_running()
    assert after["id"] != before["id"]
    assert not daemons.has_key(before["id"], daemons.uid_of(after["pid"]))
    assert (after["weight"], after["cap_bytes"]) == (9, before["cap_bytes"])
    assert not pathlib.Path(before["spill"]).exists()
    with daemons.client(after) as handle:
        assert handle.pread(4096, 4096) == bytes(4096)


def test_daemons_live_side_by_side(root: pathlib.Path) -> None:
    with daemons.serving(root, "one") as one, daemons.serving(root, "two") as two:
        first, second = one.add(), two.add()
        assert first["id"] != second["id"] and first["spill"] != second["spill"]
        write(first)
        two.ok("disk", "rm", "g1")
        check(first)


def test_second_daemon_is_refused(daemon: daemons.Daemon) -> None:
    done = daemon.run("serve", "--config", str(daemon.config))
    assert done.returncode == 1
    assert done.stderr == (
        f"swaptide: another daemon serves {daemon.run_dir}; end that one, or choose another --run-dir\n"
    )


def test_a_disk_that_cannot_start_says_why_and_can_be_removed(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    daemon.stop()
    os.kill(before["pid"], signal.SIGKILL)
    spill = pathlib.Path(before["spill"])
    aside = spill.rename(daemon.root / "aside")
    daemon.start()
    daemons.wait_for(lambda: daemon.show()["state"] == "failed")
    assert str(spill) in daemon.show()["error"]
    aside.rename(spill)
    assert daemon.wait_running()["id"] == before["id"]


def test_configured_memory_directory(root: pathlib.Path) -> None:
    memory = pathlib.Path(f"/dev/shm/swaptide-test-{os.getpid()}")
    try:
        with daemons.serving(root, memory_dir=str(memory)) as daemon:
            assert daemon.add()["state_file"].startswith(f"{memory}/")
            daemon.ok("disk", "rm", "g1")
            daemon.stop()
            assert not any(memory.iterdir())
    finally:
        memory.rmdir()
