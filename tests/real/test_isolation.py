"""Who may what: nbdkit without privileges, files and sockets of their owners, disks that show only their own.

Everything here needs root, as the daemon of a host has it.
"""

import contextlib
import fcntl
import os
import pathlib
import pwd
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import nbd
import pytest

from swaptide.cache import face
from swaptide.cache.errors import SetupError, StateError
from swaptide.host import isolation
from tests.real import daemons

MIB = daemons.MIB
PATTERN = bytes(range(256)) * 16
# Numbers that are no users of any host: nobody else is meant.
SERVANT, OWNER, STRANGER = 54_321, 54_322, 54_323
UIDS = "54331-54332"
SYS_RESOURCE = 24  # CAP_SYS_RESOURCE
IO_FLUSHER = 0x80000  # PF_MEMALLOC_NOIO in the flags of proc(5)
CONNECT = "import nbd, sys; handle = nbd.NBD(); handle.connect_unix(sys.argv[1]); print(handle.get_size())"
# Raw, so that the daemon's answer is seen and not what our client makes of it.
ASK = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(b'{"type":"disk-ls"}\\n')
print(peer.makefile().read())
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
    with daemons.serving(root, user=str(SERVANT)) as running:
        yield running


@pytest.fixture
def loop_device(root: pathlib.Path) -> Iterator[pathlib.Path]:
    daemons.require("losetup")
    image = root / "device.img"
    with open(image, "wb") as file:
        file.truncate(160 * MIB)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"losetup has no loop device for us: {done.stderr.strip()}")
    try:
        yield pathlib.Path(done.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


def owned(path: str | pathlib.Path) -> tuple[int, int]:
    """Owner and mode."""
    found = os.stat(path)
    return found.st_uid, stat.S_IMODE(found.st_mode)


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in lines)}


def write(report: dict[str, object]) -> None:
    """A pattern at the start, and enough behind it to make the disk spill."""
    with daemons.client(report) as handle:
        for start in range(0, 48 * MIB, MIB):
            handle.pwrite(os.urandom(MIB), start)
        handle.pwrite(PATTERN, 4096)


def check(report: dict[str, object]) -> None:
    with daemons.client(report) as handle:
        assert handle.pread(len(PATTERN), 4096) == PATTERN


def may_connect(uid: int, path: str) -> bool:
    done = daemons.as_user(uid, sys.executable, "-c", CONNECT, path)
    assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
    return done.returncode == 0


def test_nbdkit_has_no_privileges(daemon: daemons.Daemon) -> None:
    pid = daemon.add()["pid"]
    status = status_of(pid)
    assert status["Uid"].split() == [str(SERVANT)] * 4 == status["Gid"].split()
    assert (status["Groups"], status["NoNewPrivs"]) == ("", "1")
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind


def test_what_needs_privileges_the_daemon_did(daemon: daemons.Daemon) -> None:
    if not int(status_of(os.getpid())["CapEff"], 16) >> SYS_RESOURCE & 1:
        pytest.skip("needs CAP_SYS_RESOURCE")
    report = daemon.add()
    about = pathlib.Path(f"/proc/{report['pid']}")
    assert int((about / "oom_score_adj").read_text()) <= -500
    assert int((about / "stat").read_text().rpartition(")")[2].split()[6]) & IO_FLUSHER
    locked = next(line for line in (about / "limits").read_text().splitlines() if "locked memory" in line)
    assert locked.split()[3:5] == ["unlimited", "unlimited"]
    assert "cannot be lowered" not in pathlib.Path(report["log"]).read_text()


def test_owners_and_modes(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    state = pathlib.Path(report["state_file"])
    assert owned(state) == owned(report["spill"]) == (SERVANT, 0o600)
    assert owned(state.parent) == (SERVANT, 0o700)
    assert owned(state.parent.parent) == (0, 0o711)
    assert owned(daemon.run_dir) == (0, 0o755)
    for path in (report["socket"], report["log"], daemon.run_dir / "control.sock"):
        assert owned(path) == (0, 0o600), path
    assert owned(daemon.state_dir) == (0, 0o711)
    (definitions,) = (path for path in daemon.state_dir.iterdir() if path.is_dir())
    assert owned(definitions) == (0, 0o700)


def test_a_stranger_gets_nothing(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    write(report)
    for path in (report["state_file"], report["spill"], report["log"], *daemon.state_dir.glob("*/*.json")):
        done = daemons.as_user(STRANGER, "cat", str(path))
        assert done.returncode == 1 and "Permission denied" in done.stderr, path
    assert not may_connect(STRANGER, report["socket"])
    assert not daemons.has_key(report["id"], STRANGER)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(report["socket"])


def test_the_socket_owner_may_connect_and_nobody_else(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--socket-owner", str(OWNER))
    assert report["socket_owner"] == str(OWNER)
    assert owned(report["socket"]) == (OWNER, 0o600)
    assert may_connect(OWNER, report["socket"])
    assert not may_connect(STRANGER, report["socket"]) and not may_connect(SERVANT, report["socket"])
    os.kill(report["pid"], signal.SIGKILL)
    after = daemon.wait_running(not_pid=report["pid"])
    assert owned(after["socket"]) == (OWNER, 0o600) and may_connect(OWNER, after["socket"])


def test_a_socket_owner_that_is_nobody(daemon: daemons.Daemon) -> None:
    done = daemon.run("disk", "add", "g1", "--size", "64M", "--ram", "32M", "--socket-owner", "no-such-user")
    assert done.returncode == 1 and "there is no user 'no-such-user'" in done.stderr
    assert daemon.ok("disk", "ls").count("\n") == 1


def test_only_the_daemons_user_may_ask_it(daemon: daemons.Daemon) -> None:
    control = daemon.run_dir / "control.sock"
    done = daemons.as_user(STRANGER, sys.executable, "-c", ASK, str(control))
    assert done.returncode == 1 and "PermissionError" in done.stderr
    control.chmod(0o666)  # what the mode forbade, the credentials still do
    done = daemons.as_user(STRANGER, sys.executable, "-c", ASK, str(control))
    assert "failure" in done.stdout and f"user {STRANGER} may not ask" in done.stdout, done.stderr
    done = daemons.as_user(0, sys.executable, "-c", ASK, str(control))
    assert '"type":"result"' in done.stdout


def test_killed_without_privileges_and_back(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    write(before)
    os.kill(before["pid"], signal.SIGKILL)
    check(before)  # its client waits in the socket's queue
    after = daemon.wait_running(not_pid=before["pid"])
    assert (after["id"], daemons.uid_of(after["pid"])) == (before["id"], SERVANT)


def test_a_block_device_is_lent(daemon: daemons.Daemon, loop_device: pathlib.Path) -> None:
    link = daemon.root / "by-id"  # as a device's names below /dev/disk
    link.symlink_to(loop_device)
    before = daemon.add("g1", "--spill", str(link))
    write(before)
    assert loop_device.stat().st_uid == SERVANT
    assert daemon.show()["spill_written_bytes"] > 0
    os.kill(before["pid"], signal.SIGKILL)
    check(daemon.wait_running(not_pid=before["pid"]))
    daemon.ok("disk", "rm", "g1")
    assert loop_device.stat().st_uid == 0
    with open(loop_device, "rb") as device:
        assert not any(device.read(MIB))


def test_the_next_disk_of_a_name_shows_nothing_of_the_last(daemon: daemons.Daemon) -> None:
    old = daemon.add()
    write(old)
    daemon.ok("disk", "rm", "g1")
    new = daemon.add()
    assert new["id"] != old["id"] and new["socket"] == old["socket"]
    with daemons.client(new) as handle:
        for start in range(0, daemons.SIZE, MIB):
            assert not any(handle.pread(MIB, start)), start
    # A QEMU that reconnects asks for the disk that it knew.
    with pytest.raises(nbd.Error), daemons.client(new, old["id"]):
        pass


def test_removal_erases(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--encrypt", "no")
    write(report)
    daemon.ok("disk", "set", "g1", "--ram", "24M")
    kept = daemon.root / "another name"
    os.link(report["spill"], kept)
    with open(kept, "rb") as spill:
        assert any(spill.read(64 * MIB))
    daemon.ok("disk", "rm", "g1")
    assert not any(kept.read_bytes())
    assert not pathlib.Path(report["spill"]).exists() and not pathlib.Path(report["state_file"]).exists()


FILL = """
from swaptide.cache import errors, keys
for number in range(1 << 20):
    try:
        keys.make(f"fill-{number}")
    except errors.SetupError:
        break
print(number)
"""
EMPTY = """
import sys
from swaptide.cache import keys
for number in range(int(sys.argv[1])):
    keys.erase(f"fill-{number}")
"""


def test_a_full_keyring_is_told(daemon: daemons.Daemon) -> None:
    python = (sys.executable, "-P", "-c")
    made = daemons.as_user(SERVANT, *python, FILL).stdout.strip()
    try:
        before = daemon.files()
        done = daemon.run("disk", "add", "g1", "--size", "64M", "--ram", "32M")
        assert done.returncode == 1 and "keyring refuses a key: Disk quota exceeded" in done.stderr
        assert daemon.files() == before
    finally:
        daemons.as_user(SERVANT, *python, EMPTY, made)
    daemon.add()


def test_a_process_is_closed_before_it_has_the_key(daemon: daemons.Daemon) -> None:
    """Others of its user must not look into it while it takes the disk over."""
    before = daemon.add("g1", size=8 << 30, ram="256M")
    with daemons.client(before) as handle:
        for start in range(0, 8 << 30, 4 * MIB):
            handle.pwrite(PATTERN, start)
    os.kill(before["pid"], signal.SIGKILL)
    seen = False
    while not seen or daemon.show()["pid"] in (None, before["pid"]):
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and daemons.uid_of(int(entry.name)) == SERVANT:
                    has_key = "libkeyutils" in (entry / "maps").read_text()
                    seen = seen or has_key
                    assert not has_key or owned(entry / "mem")[0] == 0
    daemon.wait_running(not_pid=before["pid"])


def test_a_first_start_that_fails_leaves_no_spill_file(daemon: daemons.Daemon) -> None:
    spill = daemon.root / "g1.spill"
    done = daemon.run("disk", "add", "g1", "--size", "1T", "--ram", "8G", "--spill", str(spill))
    assert done.returncode == 1 and "are needed" in done.stderr
    assert not spill.exists()


@pytest.mark.parametrize(
    ("first", "second"), [(str(SERVANT), str(OWNER)), (str(SERVANT), "root"), ("root", str(SERVANT))]
)
def test_a_disk_follows_a_change_of_user(root: pathlib.Path, first: str, second: str) -> None:
    """The last pair is also what a daemon finds that takes over from one without this."""
    old_uid, uid = isolation.find(first).uid, isolation.find(second).uid
    with daemons.serving(root, user=first) as daemon:
        before = daemon.add()
        write(before)
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text().replace(f'"{first}"', f'"{second}"'))
        daemon.start()
        assert daemon.wait_running()["pid"] == before["pid"]  # adopted as it is
        check(before)
        daemon.ok("disk", "restart", "g1")
        after = daemon.show()
        assert daemons.uid_of(after["pid"]) == uid == owned(after["state_file"])[0]
        assert after["id"] == before["id"]
        check(after)
        assert daemons.has_key(after["id"], uid) and not daemons.has_key(after["id"], old_uid)
        daemon.ok("disk", "rm", "g1")
        assert not daemons.has_key(after["id"], uid)


def test_removal_erases_the_key_where_it_lies(root: pathlib.Path) -> None:
    """Its key lies with the user that served it, not with the one that would."""
    with daemons.serving(root, user="root") as daemon:
        report = daemon.add()
        assert daemons.uid_of(report["pid"]) == 0 and daemons.has_key(report["id"], 0)
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text().replace('"root"', f'"{SERVANT}"'))
        daemon.start()
        assert daemon.wait_running()["pid"] == report["pid"]
        daemon.ok("disk", "rm", "g1")
        assert not daemons.has_key(report["id"], 0)


def test_where_no_user_can_go_root_serves_and_says_so(root: pathlib.Path) -> None:
    root.chmod(0o700)
    with daemons.serving(root) as daemon:
        report = daemon.add()
        write(report)
        check(report)
        assert daemons.uid_of(report["pid"]) == 0 and report["user"] == "root"
        log = daemon.log.read_text()
        assert log.count("nbdkit has its user user='root'") == 1 and f"may not enter {daemon.run_dir}" in log


@pytest.mark.parametrize("key", ["user", "uids"])
def test_a_user_that_was_chosen_and_cannot_go_is_a_refusal(root: pathlib.Path, key: str) -> None:
    """Never root instead: the operator would not know."""
    root.chmod(0o700)
    daemon = daemons.Daemon(root, **{key: UIDS if key == "uids" else str(SERVANT)})
    done = daemon.run("serve", "--config", str(daemon.config))
    assert done.returncode == 1 and f"may not enter {daemon.run_dir}" in done.stderr
    assert not daemon.run_dir.exists() and not daemon.state_dir.exists()


def test_uids_that_are_somebody_elses_are_a_refusal(root: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    daemon = daemons.Daemon(root, uids=f"{nobody - 1}-{nobody + 1}")
    done = daemon.run("serve", "--config", str(daemon.config))
    assert done.returncode == 1 and f"gives {nobody} to nobody" in done.stderr
    with pytest.raises(AssertionError):
        daemons.Daemon(root, uids=UIDS, user="nobody").start()
    assert "choose one" in (root / "run.log").read_text()


def test_by_default_each_disk_has_a_user_of_its_own(root: pathlib.Path) -> None:
    first = isolation.choose(daemons.config_of(root))[0]
    assert first.claims is not None
    with daemons.serving(root) as daemon:
        users = {daemons.uid_of(daemon.add(name)["pid"]) for name in ("g1", "g2")}
        assert len(users) == 2 and users <= set(first.claims.uids)


def test_an_unknown_user_is_refused(root: pathlib.Path) -> None:
    daemon = daemons.Daemon(root, user="no-such-user")
    done = daemon.run("serve", "--config", str(daemon.config))
    assert done.returncode == 1 and "there is no user 'no-such-user'" in done.stderr
    assert not daemon.run_dir.exists()


def test_a_link_in_place_of_the_state_file_is_refused(daemon: daemons.Daemon) -> None:
    before = daemon.add()
    precious = daemon.root / "precious"
    precious.write_bytes(b"not to be touched")
    state = pathlib.Path(before["state_file"])
    os.kill(before["pid"], signal.SIGSTOP)
    state.rename(aside := state.with_name("aside"))
    state.symlink_to(precious)
    os.kill(before["pid"], signal.SIGKILL)
    daemons.wait_for(lambda: daemon.show()["state"] == "failed")
    assert owned(precious)[0] == 0 and precious.read_bytes() == b"not to be touched"
    state.unlink()
    aside.rename(state)
    assert daemon.wait_running()["id"] == before["id"]


def test_a_state_file_is_not_read_through_a_link(daemon: daemons.Daemon) -> None:
    state = pathlib.Path(daemon.add()["state_file"])
    face.StateFace(state).close()
    (link := daemon.root / "link").symlink_to(state)
    os.mkfifo(fifo := daemon.root / "fifo")
    for path in (link, fifo, daemon.root):
        with pytest.raises(StateError, match="not a regular file"):
            face.StateFace(path)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_refused_keeps_its_owner(daemon: daemons.Daemon, force: bool) -> None:
    """The operator's slip of the hand must not give somebody else's file away."""
    precious = daemon.root / "precious"
    precious.write_bytes(b"root's, and for all to read")
    precious.chmod(0o644)
    size, more = ("1T", ["--force"]) if force else ("64M", [])
    done = daemon.run("disk", "add", "g1", "--size", size, "--ram", "8G", "--spill", str(precious), *more)
    assert done.returncode == 1 and str(precious) in done.stderr
    assert owned(precious) == (0, 0o644) and precious.read_bytes() == b"root's, and for all to read"


def test_a_device_that_is_refused_keeps_its_owner(daemon: daemons.Daemon, loop_device: pathlib.Path) -> None:
    add = ("disk", "add", "g1", "--ram", "32M", "--spill", str(loop_device))
    before = owned(loop_device)
    assert "are needed" in daemon.run(*add, "--size", "1G").stderr
    assert owned(loop_device) == before
    with open(loop_device, "r+b") as device:
        device.write(b"a file system")
    assert "not swaptide's" in daemon.run(*add, "--size", "64M").stderr
    assert owned(loop_device) == before
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, os.open(loop_device, os.O_RDONLY | os.O_EXCL))  # as one that is mounted
        assert "is it mounted?" in daemon.run(*add, "--size", "64M", "--force").stderr
    assert owned(loop_device) == before


def test_what_is_not_given_away(root: pathlib.Path) -> None:
    user = isolation.User("servant", SERVANT, SERVANT)
    precious = root / "precious"
    precious.touch()
    os.link(precious, root / "second name")
    with pytest.raises(SetupError, match="hard link"):
        isolation.give_state(root / "second name", user)
    with pytest.raises(SetupError, match="hard link"):
        isolation.lend_spill(root / "second name", user)
    (link := root / "link").symlink_to(precious)
    with pytest.raises(SetupError):
        isolation.give_state(link, user)
    os.chown(link, SERVANT, SERVANT, follow_symlinks=False)
    with pytest.raises(SetupError, match="link of another user"):
        isolation.lend_spill(link, user)
    os.mkfifo(fifo := root / "fifo")
    with pytest.raises(SetupError, match="not a regular file"):
        isolation.lend_spill(fifo, user)
    assert owned(precious)[0] == 0


def test_a_fifo_in_place_of_the_state_file_holds_nothing_up(daemon: daemons.Daemon) -> None:
    """The user's directory may hold anything; the daemon of root does not wait for it."""
    before = daemon.add()
    write(before)
    state = pathlib.Path(before["state_file"])
    os.kill(before["pid"], signal.SIGSTOP)
    aside = state.rename(state.with_name("aside"))
    os.mkfifo(state)
    os.kill(before["pid"], signal.SIGKILL)
    daemons.wait_for(lambda: daemon.show()["state"] == "failed")
    state.unlink()
    aside.rename(state)
    check(daemon.wait_running())


def test_the_daemons_own_files_are_not_inherited(daemon: daemons.Daemon) -> None:
    """nbdkit holds no descriptor of the daemon's lock: it could let another daemon in."""
    daemon.add()
    with open(daemon.run_dir / "daemon.lock") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pytest.fail("the daemon holds no lock")
    pid = daemon.show()["pid"]
    held = [os.readlink(fd) for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    assert not [path for path in held if path.endswith("daemon.lock")]
