"""A real daemon under a service manager that a test plays: what it is told, and when."""

import pathlib
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.real.daemons import WAIT_SECONDS, Daemon


@pytest.fixture
def manager(root: pathlib.Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(root / "notify"))
        listening.settimeout(WAIT_SECONDS)
        yield listening


@pytest.fixture
def daemon(root: pathlib.Path, manager: socket.socket) -> Iterator[Daemon]:
    told = Daemon(root, prefix=["env", f"NOTIFY_SOCKET={root}/notify", "WATCHDOG_USEC=100000"])
    try:
        yield told
    finally:
        told.tear_down()


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_the_manager_is_told_how_it_goes(daemon: Daemon, manager: socket.socket) -> None:
    daemon.start()
    # It answered the command already: the first word comes no later.
    assert heard(manager) == ["READY=1", "STATUS=disks: 0"]
    pid = daemon.add()["pid"]
    while "STATUS=disks: 1" not in (words := heard(manager)):
        assert words[0] == "WATCHDOG=1"
    # The disk's process outlives the daemon: it must not speak, nor be spoken of, as the service.
    assert b"NOTIFY_SOCKET" not in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    daemon.stop()
    while (words := heard(manager))[0] != "STOPPING=1":
        assert words[0] == "WATCHDOG=1"
    daemon.start()
    assert heard(manager)[0] == "READY=1"
    assert daemon.wait_running()["pid"] == pid


def test_a_daemon_that_hangs_is_not_heard(daemon: Daemon, manager: socket.socket) -> None:
    daemon.start()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    manager.settimeout(1.0)  # ten times what it promised
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            manager.recv(4096)
    daemon.process.send_signal(signal.SIGCONT)
    manager.settimeout(WAIT_SECONDS)
    assert heard(manager)[0] == "WATCHDOG=1"
    # What systemd ends it with; it says where it was, whatever that is.
    daemon.stop(signal.SIGABRT)
    assert "most recent call first" in daemon.log.read_text()
