"""A guest that swaps moves to another QEMU, and its swap from one daemon's disk to another's.

Or both are saved into files, and restored from them.
"""

import contextlib
import dataclasses
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
        self.disks = [DISK]
        self.monitor = work / "swaptide.qmp"
        self.uri = f"unix:{work}/qemu.sock"

    def spec(self, accelerator: str, daemon: swaptided.Daemon, *more: str) -> machine.Spec:
        """The same guest for both."""
        return machine.Spec(
            accelerator,
            memory_mib=MEMORY_MIB,
            moves=True,
            disk=tuple(word for name in self.disks for word in daemon.qemu_arguments(name)),
            devices=more,
            monitor=self.monitor if daemon is self.here else None,
            work={
                "device": ",".join(f"/dev/vd{letter}" for letter, _ in zip("ab", self.disks, strict=False)),
                **{"mib": WORK_MIB, "rounds": 0, "seconds": 240, "seed": 7, "rewrite": 25, "compress": 50},
            },
        )

    def stream(self, disk: str) -> str:
        """Where that one is received."""
        return f"unix:{self.work}/{disk}.sock"

    @contextlib.contextmanager
    def receiving(self, disk: str = DISK) -> Iterator[subprocess.Popen[str]]:
        """The destination's command, once it listens."""
        with _begun(self.there, "receive", disk, "--listen", self.stream(disk)) as process:
            assert process.stderr is not None
            assert "listening at" in process.stderr.readline()
            yield process

    def migrate(self, *more: str) -> dict[str, Any]:
        """Move disk and guest."""
        done: dict[str, Any] = json.loads(
            self.here.command(
                *("migrate", DISK, "--to", self.stream(DISK), "--json", *more),
                *("--qmp", str(self.monitor), "--qemu-uri", self.uri),
            )
        )
        return done

    def moving(self, disk: str = DISK) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """The source's command, which waits for the disk's last client to leave."""
        return _begun(self.here, "migrate", disk, "--to", self.stream(disk))

    def wait_incoming(self, target: machine.Machine) -> None:
        """Wait until the other QEMU listens: it has opened its disk, which is not there yet."""
        deadline = time.monotonic() + machine.BOOT_SECONDS
        path = self.work / "qemu.sock"
        while not path.exists():
            assert target.is_running(), target.complaint()
            assert time.monotonic() < deadline, "QEMU does not start on a disk that is incoming"
            time.sleep(0.1)
        assert target.qmp("query-status")["status"] == "inmigrate"
        assert all(self.there.show(name)["connections"] == 1 for name in self.disks)


@contextlib.contextmanager
def _begun(daemon: swaptided.Daemon, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of that daemon under way; killed if it is not over in the end."""
    with subprocess.Popen(
        [*swaptided.program(), *words, "--json", "--run-dir", str(daemon.run_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


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


def wait_migrated(source: machine.Machine) -> None:
    """Wait until QEMU has sent or saved its guest."""
    deadline = time.monotonic() + PHASE_SECONDS
    while (status := source.qmp("query-migrate")["status"]) not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    assert status == "completed"


def judge(hosts: Hosts, target: machine.Machine) -> None:
    """The guest runs there, on its own pages; nothing of its swap is left here."""
    before = {}
    for name in hosts.disks:
        gone, moved = hosts.here.show(name), hosts.there.show(name)
        assert (gone["state"], gone["stored_pages"]) == ("gone", 0)
        assert (moved["state"], moved["origin"]) == ("running", gone["id"])
        before[name] = moved["reads"]
    assert target.qmp("query-status")["status"] == "running"
    wait_checked(target, 20_000)
    stop_and_judge(target)
    for name, reads in before.items():
        assert hosts.there.show(name)["reads"] > reads


def test_guest_and_its_swap_move(hosts: Hosts, accelerator: str) -> None:
    """With QEMU told by the command."""
    with machine.Machine(hosts.spec(accelerator, hosts.here)) as source:
        source.wait_ready()
        wait_filled(source, WORK_MIB)
        with hosts.receiving() as receiving:
            spec = hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri)
            with machine.Machine(spec) as target:
                hosts.wait_incoming(target)
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
            source.qmp("migrate", uri=hosts.uri)
            wait_migrated(source)
            assert source.wrong == [] and source.trouble == []
        said, errors = moving.communicate(timeout=PHASE_SECONDS)
        assert moving.returncode == 0, errors
        done = json.loads(said)
        print(f"moved: {said}")
        assert receiving.wait(PHASE_SECONDS) == 0
        judge(hosts, target)
    # What changed meanwhile was sent again, and the last of it is a small part.
    assert done["rounds"] >= 2


def test_guest_with_two_swap_disks_moves(hosts: Hosts, accelerator: str) -> None:
    """QEMU is told with the first; the second follows once the source's QEMU has ended."""
    hosts.disks.append("g2")
    for daemon in (hosts.here, hosts.there):
        daemon.add("g2", size="512M", ram="96M")
    with contextlib.ExitStack() as stack:
        with machine.Machine(hosts.spec(accelerator, hosts.here)) as source:
            source.wait_ready()
            wait_filled(source, WORK_MIB)
            receiving = [stack.enter_context(hosts.receiving(name)) for name in hosts.disks]
            target = stack.enter_context(
                machine.Machine(hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri))
            )
            hosts.wait_incoming(target)
            second = stack.enter_context(hosts.moving("g2"))
            deadline = time.monotonic() + PHASE_SECONDS
            while hosts.there.show("g2")["stored_pages"] < 2_000 and time.monotonic() < deadline:
                time.sleep(0.2)
            hosts.migrate()
            assert hosts.there.show("g2")["state"] == "incoming"
            assert source.wrong == [] and source.trouble == []
        _, errors = second.communicate(timeout=PHASE_SECONDS)
        assert second.returncode == 0, errors
        assert [each.wait(PHASE_SECONDS) for each in receiving] == [0, 0]
        judge(hosts, target)


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


def test_saved_and_restored(accelerator: str, tmp_path: pathlib.Path) -> None:
    """Beside QEMU's own save to a file, as docs/migration.md has it; the old command line finds it again."""
    memory, swap = tmp_path / "g1.qemu", tmp_path / "g1.swap"
    with swaptided.Daemon() as daemon:
        daemon.add(DISK, size="512M", ram="96M")
        spec = machine.Spec(
            accelerator,
            memory_mib=MEMORY_MIB,
            moves=True,
            disk=daemon.qemu_arguments(DISK),
            work={"mib": WORK_MIB, "rounds": 0, "seconds": 240, "seed": 11, "rewrite": 25, "compress": 50},
        )
        with machine.Machine(spec) as source:
            source.wait_ready()
            wait_filled(source, WORK_MIB)
            wait_checked(source, 5_000)
            source.qmp("stop")
            source.qmp("migrate", uri=f"exec:cat > {memory}")
            wait_migrated(source)
            saved = json.loads(daemon.command("disk", "save", DISK, str(swap), "--json"))
            was = daemon.show(DISK)
            assert source.wrong == [] and source.trouble == []
        assert saved["sent_pages"] == was["stored_pages"] + was["same_filled_pages"]
        daemon.remove(DISK)

        # A disk of the same name, and empty: the old command line does not take it for the guest's.
        daemon.add(DISK, size="512M", ram="96M")
        restored = dataclasses.replace(spec, devices=("-incoming", f"exec:cat {memory}"))
        with machine.Machine(restored) as refused:
            refused.wait_off(machine.BOOT_SECONDS)
            assert was["id"] in refused.complaint()

        loaded = json.loads(daemon.command("disk", "load", DISK, str(swap), "--json"))
        assert (loaded["origin"], loaded["taken_pages"]) == (was["id"], saved["sent_pages"])
        with machine.Machine(restored) as target:
            target.wait_status("paused")  # as it was when it was saved
            target.qmp("cont")
            wait_checked(target, 20_000)
            stop_and_judge(target)
        print(f"saved: {memory.stat().st_size >> 20} MiB of memory, {swap.stat().st_size >> 20} MiB of swap")
