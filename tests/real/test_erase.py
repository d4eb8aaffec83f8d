"""What is left of a disk on its device when it is gone: nothing, or noise, or a plain word about it."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real import daemons, stores


@pytest.fixture
def daemon() -> Iterator[daemons.Daemon]:
    stores.need("losetup")
    with daemons.directory() as root, daemons.serving(root) as running:
        yield running


def spilled_to(daemon: daemons.Daemon, device: pathlib.Path, encrypt: str) -> dict[str, Any]:
    """A disk with contents on a device; returns its report."""
    report = daemon.add("g1", "--spill", str(device), "--encrypt", encrypt, ram="32M")
    with daemons.client(report) as handle:
        for start in range(0, 48 * daemons.MIB, daemons.MIB):
            handle.pwrite(b"guest" + os.urandom(daemons.MIB - 5), start)
    daemon.ok("disk", "set", "g1", "--ram", "24M")
    assert b"guest" in device.read_bytes() or encrypt == "yes"
    return report


def test_what_is_not_encrypted_is_zeroed_on_a_device_without_discard(daemon: daemons.Daemon) -> None:
    with stores.faulty(daemon.root / "store", 160 * daemons.MIB) as device:
        spilled_to(daemon, device.path, "no")
        daemon.ok("disk", "rm", "g1")
        assert not any(device.path.read_bytes())


def test_what_cannot_be_zeroed_is_said_to_stay(daemon: daemons.Daemon) -> None:
    with stores.faulty(daemon.root / "store", 160 * daemons.MIB) as device:
        spilled_to(daemon, device.path, "no")
        with device.refusing("write"):
            done = daemon.run("disk", "rm", "g1")
        assert done.returncode == 1 and "its contents stay, and they are not encrypted" in done.stderr
        assert "removed" not in done.stdout and f"spill={device.path} is not erased" in done.stderr
        assert b"guest" in device.path.read_bytes()


def test_zeroing_that_was_cut_off_is_done_by_the_next_daemon(daemon: daemons.Daemon) -> None:
    with stores.faulty(daemon.root / "store", 160 * daemons.MIB) as device:
        report = spilled_to(daemon, device.path, "no")
        command = [*daemons.COMMAND, "disk", "rm", "g1", "--run-dir", str(daemon.run_dir)]
        with device.stalled():
            removal = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                daemons.wait_for(lambda: not pathlib.Path(report["state_file"]).exists())
                assert daemon.process is not None
                os.kill(daemon.process.pid, signal.SIGKILL)  # it dies once the device answers
            finally:
                removal.kill()
        removal.wait()
        daemon.stop()
        daemon.start()
        daemons.wait_for(lambda: daemon.ok("disk", "ls", "--json") == "[]\n", daemon.log.read_text)
        # The header comes last, perhaps when nobody lists the disk any more.
        daemons.wait_for(lambda: not any(device.path.read_bytes()), daemon.log.read_text)
