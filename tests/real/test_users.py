"""A user of its own for each disk: its life, and what a process that was taken over can do to another disk.

Everything here needs root, as the daemon of a host has it.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from swaptide.host import isolation, uids
from tests.real import daemons
from tests.real.test_isolation import MIB, check, owned, write

# Numbers that are no users of any host, and of no other run of these tests beside this one.
FIRST = 1_500_000_000 + 3 * os.getpid()
SECOND, OLD = FIRST + 1, FIRST + 2
UIDS = f"{FIRST}-{SECOND}"
SERIAL = """
import sys
from swaptide.cache import keys
print(keys._search(sys.argv[1]))
"""
READ_SERIAL = """
import ctypes, sys
library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
room = ctypes.create_string_buffer(64)
print(library.keyctl_read(int(sys.argv[1]), room, 64))
"""


@pytest.fixture
def root() -> Iterator[pathlib.Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to run nbdkit as another user")
    daemons.require("setpriv")
    with daemons.directory() as made:
        yield made


@pytest.fixture
def daemon(root: pathlib.Path) -> Iterator[daemons.Daemon]:
    with daemons.serving(root, uids=UIDS) as running:
        yield running


def restricted(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command exactly as that user's nbdkit is run."""
    return subprocess.run(
        [*isolation.prefix(isolation.numbered(uid)), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=daemons.WAIT_SECONDS,
        cwd="/",
    )


def python(uid: int, script: str, *words: str) -> str:
    done = restricted(uid, sys.executable, "-P", "-c", script, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def definition(daemon: daemons.Daemon, name: str = "g1") -> dict[str, object]:
    (path,) = daemon.state_dir.glob(f"*/{name}.json")
    return dict(json.loads(path.read_text()))


def use(daemon: daemons.Daemon, old: str, new: str) -> None:
    """Have the next daemon run with another line in its configuration."""
    daemon.stop()
    text = daemon.config.read_text()
    assert old in text
    daemon.config.write_text(text.replace(old, new))
    daemon.start()


def test_each_disk_has_a_number_and_a_directory_to_itself(daemon: daemons.Daemon) -> None:
    reports = [daemon.add(name) for name in ("g1", "g2")]
    assert {daemons.uid_of(report["pid"]) for report in reports} == {FIRST, SECOND}
    for report in reports:
        uid = daemons.uid_of(report["pid"])
        assert report["user"] == str(uid)
        assert ["user", str(uid)] in [
            line.split() for line in daemon.ok("disk", "show", report["name"]).splitlines()
        ]
        state = pathlib.Path(report["state_file"])
        groups = pathlib.Path(f"/proc/{report['pid']}/status").read_text()
        assert f"Gid:\t{uid}\t{uid}\t{uid}\t{uid}" in groups
        assert owned(state) == owned(report["spill"]) == (uid, 0o600)
        assert owned(state.parent) == (uid, 0o700) and state.parent.stat().st_gid == uid
        assert owned(state.parent.parent) == (0, 0o711)
        assert daemons.has_key(report["id"], uid)


def test_a_disk_gets_nothing_of_another(daemon: daemons.Daemon) -> None:
    mine, other = daemon.add("g1"), daemon.add("g2")
    write(other)
    uid, victim = daemons.uid_of(mine["pid"]), daemons.uid_of(other["pid"])
    for path in (other["state_file"], other["spill"], other["log"], f"/proc/{other['pid']}/mem"):
        for words in (
            ("cat", path),
            ("dd", "if=/dev/null", f"of={path}", "conv=notrunc"),
            ("rm", "-f", path),
        ):
            done = restricted(uid, *words)
            assert done.returncode != 0 and "ermi" in done.stderr, (words, done.stderr)
    done = restricted(uid, "ls", str(pathlib.Path(other["state_file"]).parent))
    assert "Permission denied" in done.stderr
    for number in ("-0", "-STOP", "-KILL"):
        done = restricted(uid, "/bin/kill", number, str(other["pid"]))
        assert done.returncode != 0 and "not permitted" in done.stderr, done.stderr
    # Not in its own keyring, and not by the key's number either.
    assert int(python(uid, SERIAL, other["id"])) < 0
    serial = int(python(victim, SERIAL, other["id"]))
    assert serial > 0 and python(uid, READ_SERIAL, str(serial)).strip() == "-1"
    assert python(victim, READ_SERIAL, str(serial)).strip() != "-1"
    check(other)
    assert daemon.show("g2")["pid"] == other["pid"]


def test_a_number_is_kept_and_given_back(daemon: daemons.Daemon) -> None:
    first = daemon.add("g1")
    uid = daemons.uid_of(first["pid"])
    write(first)
    assert definition(daemon)["uid"] == uid
    daemon.ok("disk", "restart", "g1")
    os.kill(daemon.show()["pid"], signal.SIGKILL)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    report = daemon.wait_running(not_pid=first["pid"])
    check(report)
    assert (daemons.uid_of(report["pid"]), report["id"]) == (uid, first["id"])
    daemon.ok("disk", "clear", "g1", "--force")
    assert daemons.uid_of(daemon.show()["pid"]) == uid
    daemon.add("g2")
    done = daemon.run("disk", "add", "g3", "--size", "64M", "--ram", "32M")
    assert done.returncode == 1 and "all 2 user ids are in use" in done.stderr
    daemon.ok("disk", "rm", "g1")
    assert daemons.uid_of(daemon.add("g3")["pid"]) == uid
    for name in ("g2", "g3"):
        daemon.ok("disk", "rm", name)
    assert not list(daemon.run_dir.glob("mem/disk@*"))
    assert not any((uids.DIRECTORY / str(number)).exists() for number in (FIRST, SECOND))


def test_daemons_side_by_side_share_no_number(root: pathlib.Path, daemon: daemons.Daemon) -> None:
    first = daemons.uid_of(daemon.add("g1")["pid"])
    with daemons.serving(root, "other", uids=UIDS) as other:
        report = other.add("g1")
        assert {first, daemons.uid_of(report["pid"])} == {FIRST, SECOND}
        other.stop()  # a disk keeps its number while no daemon looks after it
        assert "are in use" in daemon.run("disk", "add", "g2", "--size", "64M", "--ram", "32M").stderr
        other.start()


def test_what_a_disk_left_in_its_directory_goes_with_it(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    precious = daemon.root / "precious"
    precious.mkdir()
    (precious / "file").touch()
    directory = pathlib.Path(report["state_file"]).parent
    uid = daemons.uid_of(report["pid"])
    restricted(uid, "mkdir", "-p", f"{directory}/a/b").check_returncode()
    restricted(uid, "rm", report["state_file"]).check_returncode()
    restricted(uid, "mkdir", report["state_file"]).check_returncode()
    restricted(uid, "ln", "-s", str(precious), f"{directory}/link").check_returncode()
    daemon.ok("disk", "rm", "g1")
    assert not directory.exists() and (precious / "file").exists()
    assert not daemons.has_key(report["id"], uid)


def test_a_key_of_a_disk_that_was_never_made_goes_as_well(daemon: daemons.Daemon) -> None:
    """As of a process that was killed between the two; the name of its draft says which key that is."""
    report = daemon.add()
    state = pathlib.Path(report["state_file"])
    uid, disk_id = daemons.uid_of(report["pid"]), str(uuid.uuid4())
    python(uid, "import sys; from swaptide.cache import keys; keys.make(sys.argv[1])", disk_id)
    for name in (f".{state.name}.{disk_id}.new", f".{state.name}.no-id.new"):
        restricted(uid, "touch", str(state.with_name(name))).check_returncode()
    assert daemons.has_key(disk_id, uid)
    daemon.ok("disk", "rm", "g1")
    assert not daemons.has_key(disk_id, uid) and not state.parent.exists()


def test_a_disk_lost_with_its_memory_comes_back_under_its_number(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    uid = daemons.uid_of(before["pid"])
    daemon.stop()
    daemons.end_processes_of(daemon.run_dir)
    daemons.unmount(daemon.run_dir / "mem")  # as a restart of the host
    (uids.DIRECTORY / str(uid)).unlink()
    daemon.start()
    after = daemon.wait_running(not_pid=before["pid"])
    assert after["id"] != before["id"] and daemons.uid_of(after["pid"]) == uid
    assert not daemons.has_key(before["id"], uid) and (uids.DIRECTORY / str(uid)).exists()


def test_a_disk_of_before_goes_on_with_the_user_that_all_had(root: pathlib.Path) -> None:
    with daemons.serving(root, user=str(OLD)) as daemon:
        before = daemon.add()
        write(before)
        use(daemon, f'user = "{OLD}"', f'uids = "{UIDS}"')
        assert daemon.wait_running()["pid"] == before["pid"]
        daemon.ok("disk", "restart", "g1")
        after = daemon.show()
        assert (daemons.uid_of(after["pid"]), after["id"], after["user"]) == (OLD, before["id"], str(OLD))
        check(after)
        assert daemons.has_key(after["id"], OLD)
        assert daemons.uid_of(daemon.add("g2")["pid"]) in (FIRST, SECOND)
        assert restricted(FIRST, "cat", after["state_file"]).returncode == 1
        daemon.ok("disk", "clear", "g1")  # another disk from here on
        assert daemons.uid_of(daemon.show()["pid"]) in (FIRST, SECOND)
        assert not daemons.has_key(after["id"], OLD)


def test_a_disk_that_root_served_gets_a_number_when_it_is_restarted(root: pathlib.Path) -> None:
    with daemons.serving(root, user="root") as daemon:
        before = daemon.add()
        write(before)
        use(daemon, 'user = "root"', f'uids = "{UIDS}"')
        assert daemon.wait_running()["user"] == "root"
        daemon.ok("disk", "restart", "g1")
        after = daemon.show()
        check(after)
        assert daemons.uid_of(after["pid"]) in (FIRST, SECOND) and after["id"] == before["id"]
        assert not daemons.has_key(after["id"], 0)


@pytest.mark.parametrize("user", [str(OLD), "root"])
def test_one_user_for_all_again_and_back(daemon: daemons.Daemon, user: str) -> None:
    before = daemon.add()
    uid = daemons.uid_of(before["pid"])
    write(before)
    use(daemon, f'uids = "{UIDS}"', f'user = "{user}"')
    daemon.wait_running()
    daemon.ok("disk", "restart", "g1")
    report = daemon.show()
    check(report)
    assert daemons.uid_of(report["pid"]) == isolation.find(user).uid
    assert not daemons.has_key(report["id"], uid)
    use(daemon, f'user = "{user}"', f'uids = "{UIDS}"')
    daemon.wait_running()
    daemon.ok("disk", "restart", "g1")
    report = daemon.show()
    check(report)
    assert daemons.uid_of(report["pid"]) == uid and daemons.has_key(report["id"], uid)
    daemon.ok("disk", "rm", "g1")
    assert not daemons.has_key(report["id"], uid)


def test_a_block_device_of_one_disk_alone(daemon: daemons.Daemon) -> None:
    daemons.require("losetup")
    image = daemon.root / "device.img"
    with open(image, "wb") as file:
        file.truncate(160 * MIB)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"losetup has no loop device for us: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        report = daemon.add("g1", "--spill", device)
        write(report)
        uid = daemons.uid_of(report["pid"])
        assert owned(device)[0] == uid
        assert restricted(FIRST + SECOND - uid, "dd", f"of={device}", "if=/dev/null").returncode == 1
        daemon.ok("disk", "rm", "g1")
        assert owned(device)[0] == 0
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
