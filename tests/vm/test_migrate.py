"""A guest that swaps moves to another QEMU, and its swap from one daemon's disk to another's."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import machine, swaptided
from tests.vm.phases import DISK, MIB, PHASE_SECONDS, stop_and_judge, wait_checked, wait_filled

pytestmark = pytest.mark.guest

MEMORY_MIB, WORK_MIB = 128, 192


class Hosts:
    """Two daemons, each with a disk, and where they and two QEMUs meet."""

    def __init__(self, here: swaptided.Daemon, there: swaptided.Daemon, work: pathlib.Path) -> None:
        self.here, self.there, self.work = here, there, work
        self.monitor = work / "swaptide.qmp"
        self.stream = f"unix:{work}/stream.sock"
        self.uri = f"unix:{work}/qemu.sock"

    def spec(self, accelerator: str, daemon: swaptided.Daemon, *more: str) -> machine.Spec:
        """The same guest for both."""
        return machine.Spec(
            accelerator,
            memory_mib=MEMORY_MIB,
            disk=daemon.qemu_arguments(DISK),
            devices=more,
            monitor=self.monitor if daemon is self.here else None,
            work={"mib": WORK_MIB, "rounds": 0, "seconds": 240, "seed": 7, "rewrite": 25, "compress": 50},
        )

    @contextlib.contextmanager
    def receiving(self) -> Iterator[subprocess.Popen[str]]:
        """The destination's command, once it listens."""
        with subprocess.Popen(
            [
                *swaptided.program(),
                *("receive", DISK, "--listen", self.stream, "--json"),
                *("--run-dir", str(self.there.run_dir)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert "listening at" in process.stderr.readline()
            try:
                yield process
            finally:
                process.kill()

    def migrate(self, *more: str) -> dict[str, Any]:
        """Move disk and guest."""
        done: dict[str, Any] = json.loads(
            self.here.command(
                *("migrate", DISK, "--to", self.stream, "--qmp", str(self.monitor), "--qemu-uri", self.uri),
                *("--json", *more),
            )
        )
        return done

    @contextlib.contextmanager
    def moving(self) -> Iterator[subprocess.Popen[str]]:
        """The source's command, which waits for the disk's last client to leave."""
        with subprocess.Popen(
            [
                *swaptided.program(),
                *("migrate", DISK, "--to", self.stream, "--json"),
                *("--run-dir", str(self.here.run_dir)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait_incoming(self, target: machine.Machine) -> None:
        """Wait until the other QEMU listens: it has opened its disk, which is not there yet."""
        deadline = time.monotonic() + machine.BOOT_SECONDS
        path = self.work / "qemu.sock"
        while not path.exists():
            assert target.is_running(), target.complaint()
            assert time.monotonic() < deadline, "QEMU does not start on a disk that is incoming"
            time.sleep(0.1)
        assert target.qmp("query-status")["status"] == "inmigrate"
        assert self.there.show(DISK)["connections"] == 1


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with (
        swaptided.Daemon() as here,
        swaptided.Daemon() as there,
        tempfile.TemporaryDirectory(prefix="swaptide-move-", dir="/var/tmp") as work,
    ):
        for daemon in (here, there):
            daemon.add(DISK, size="512M", ram="96M")
        yield Hosts(here, there, pathlib.Path(work))


def stop_under_tcg(guest: machine.Machine, accelerator: str) -> None:
    """A guest that runs under TCG while QEMU 7.2 copies its memory can find its kernel's lists damaged then.

    Seen without anything of ours moving as well, both QEMUs on one disk (docs/migration.md).  A guest that
    stands still meanwhile is moved whole.
    """
    if accelerator == "tcg":
        guest.qmp("stop")


def judge(hosts: Hosts, target: machine.Machine) -> None:
    """The guest runs there, on its own pages; nothing of its swap is left here."""
    gone, moved = hosts.here.show(DISK), hosts.there.show(DISK)
    assert (gone["state"], gone["stored_pages"]) == ("gone", 0)
    assert (moved["state"], moved["origin"]) == ("running", gone["id"])
    if target.qmp("query-status")["status"] == "paused":  # as it was when it left
        target.qmp("cont")
    wait_checked(target, 20_000)
    stop_and_judge(target)
    assert hosts.there.show(DISK)["reads"] > moved["reads"]


def test_guest_and_its_swap_move(hosts: Hosts, accelerator: str) -> None:
    """With QEMU told by the command."""
    with machine.Machine(hosts.spec(accelerator, hosts.here)) as source:
        source.wait_ready()
        wait_filled(source, WORK_MIB)
        with hosts.receiving() as receiving:
            spec = hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri)
            with machine.Machine(spec) as target:
                hosts.wait_incoming(target)
                stop_under_tcg(source, accelerator)
                done = hosts.migrate()
                print(f"moved: {json.dumps(done)}")
                assert receiving.wait(PHASE_SECONDS) == 0
                assert source.qmp("query-status")["status"] == "postmigrate"
                assert source.wrong == [] and source.trouble == []
                judge(hosts, target)
    assert done["sent_bytes"] > 16 * MIB
    assert done["pause_seconds"] < PHASE_SECONDS


def test_swap_moves_while_the_guest_swaps(hosts: Hosts, accelerator: str) -> None:
    """With QEMU told by somebody else: the disk follows once the source's QEMU has ended."""
    with hosts.receiving() as receiving, contextlib.ExitStack() as stack:
        with machine.Machine(hosts.spec(accelerator, hosts.here)) as source:
            source.wait_ready()
            wait_filled(source, WORK_MIB)
            spec = hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri)
            target = stack.enter_context(machine.Machine(spec))
            hosts.wait_incoming(target)
            moving = stack.enter_context(hosts.moving())
            deadline = time.monotonic() + PHASE_SECONDS
            while hosts.there.show(DISK)["stored_pages"] < 20_000 and time.monotonic() < deadline:
                time.sleep(0.2)
            wait_checked(source, 5_000)  # it swaps on while its swap is being copied
            assert moving.poll() is None
            stop_under_tcg(source, accelerator)
            source.qmp("migrate", uri=hosts.uri)
            while (status := source.qmp("query-migrate")["status"]) not in ("completed", "failed"):
                assert time.monotonic() < deadline, status
                time.sleep(0.1)
            assert status == "completed"
            assert source.wrong == [] and source.trouble == []
        said, errors = moving.communicate(timeout=PHASE_SECONDS)
        assert moving.returncode == 0, errors
        done = json.loads(said)
        print(f"moved: {said}")
        assert receiving.wait(PHASE_SECONDS) == 0
        judge(hosts, target)
    # What changed meanwhile was sent again, and the last of it is a small part.
    assert done["rounds"] >= 2


def test_guest_goes_on_where_it_was_if_the_other_qemu_dies(hosts: Hosts, accelerator: str) -> None:
    with machine.Machine(hosts.spec(accelerator, hosts.here, "-device", "virtio-rng-pci")) as source:
        source.wait_ready()
        wait_filled(source, WORK_MIB)
        with hosts.receiving():
            # Not the guest's machine: it refuses a device's state, after the last of memory and disk.
            spec = hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri)
            with machine.Machine(spec) as target:
                hosts.wait_incoming(target)
                with pytest.raises(swaptided.DaemonError, match="QEMU's migration"):
                    hosts.migrate()
        assert source.qmp("query-status")["status"] == "running"
        assert hosts.here.show(DISK)["state"] == "running"
        assert hosts.there.show(DISK)["state"] in ("incoming", "arrived")
        wait_checked(source, 10_000)
        stop_and_judge(source)
