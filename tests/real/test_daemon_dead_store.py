"""A store that does not answer any more: a frozen file system, on which every write hangs for good."""

import contextlib
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator

import nbd
import pytest

from tests.real import daemons

MIB = daemons.MIB


class Frozen:
    """A small ext4 of its own that can be frozen."""

    def __init__(self, root: pathlib.Path) -> None:
        self.image = root / "store.img"
        self.path = root / "store"

    def mount(self) -> None:
        for tool in ("mkfs.ext4", "fsfreeze", "mount"):
            daemons.require(tool)
        with open(self.image, "wb") as file:
            file.truncate(400 * MIB)
        self.path.mkdir()
        subprocess.run(["mkfs.ext4", "-q", str(self.image)], check=True)
        done = subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], check=False)
        if done.returncode:
            pytest.skip("no loop device can be mounted here")

    def freeze(self, really: bool) -> None:
        how = "--freeze" if really else "--unfreeze"
        subprocess.run(
            ["fsfreeze", how, str(self.path)], check=False, capture_output=True, timeout=daemons.WAIT_SECONDS
        )

    def unmount(self) -> None:
        if self.path.is_mount():
            self.freeze(False)
            subprocess.run(["umount", "--lazy", str(self.path)], check=False)


@pytest.fixture
def store() -> Iterator[Frozen]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    with daemons.directory() as root:
        made = Frozen(root)
        try:
            made.mount()
            yield made
        finally:
            made.unmount()


@pytest.fixture
def daemon(store: Frozen) -> Iterator[daemons.Daemon]:
    with daemons.serving(store.image.parent, state_dir=str(store.path / "state")) as running:
        try:
            yield running
        finally:
            store.freeze(False)


def fill(report: dict[str, str]) -> nbd.NBD:
    """Send more than the cap holds, and do not wait for it."""
    handle = nbd.NBD()
    handle.connect_unix(report["socket"])
    for index in range(64):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(os.urandom(MIB))), index * MIB)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        handle.poll(100)
    return handle


def test_nobody_waits_for_it(store: Frozen, daemon: daemons.Daemon) -> None:
    report = daemon.add()
    daemon.add("g2")
    store.freeze(True)
    client = fill(report)
    begin = time.monotonic()
    assert daemon.run("disk", "rm", "g1").returncode == 1  # connected
    assert {disk["name"] for disk in json.loads(daemon.ok("disk", "ls", "--json"))} == {"g1", "g2"}
    assert daemon.show()["ram_bytes"] <= 32 * MIB
    done = daemon.run("disk", "rm", "g1", "--force")
    assert time.monotonic() - begin < daemons.WAIT_SECONDS
    assert done.returncode == 1 and "state directory" in done.stderr, "the definition cannot be removed"
    daemon.ok("disk", "set", "g2", "--ram", "24M")
    assert "g1" not in daemon.ok("disk", "ls")
    store.freeze(False)
    with contextlib.suppress(nbd.Error):
        client.shutdown()
    daemons.wait_for(lambda: not daemons.is_alive(int(report["pid"])))


def test_clearing_gives_up_and_can_be_followed_by_removal(store: Frozen, daemon: daemons.Daemon) -> None:
    report = daemon.add()
    store.freeze(True)
    clearing = subprocess.Popen(
        [*daemons.COMMAND, "disk", "clear", "g1", "--run-dir", str(daemon.run_dir)],
        stderr=subprocess.PIPE,
        text=True,
    )
    daemons.wait_for(lambda: daemon.show()["pid"] != report["pid"])
    begin = time.monotonic()
    done = daemon.run("disk", "rm", "g1")
    assert done.returncode == 1 and "being cleared" in done.stderr
    daemon.run("disk", "rm", "g1", "--force")
    assert time.monotonic() - begin < daemons.WAIT_SECONDS
    assert "g1" not in daemon.ok("disk", "ls")
    _, stderr = clearing.communicate(timeout=daemons.WAIT_SECONDS)
    assert clearing.returncode == 1 and stderr.startswith("swaptide: ") and stderr.count("\n") == 1
