"""A guest that swaps moves to another QEMU, and the store that its swap lies on to another daemon's disk."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from tests.real import remotes
from tests.vm import machine, swaptided
from tests.vm.phases import DISK, MIB, PHASE_SECONDS, stop_and_judge, wait_checked, wait_filled
from tests.vm.test_migrate import WORK_MIB, Hosts

pytestmark = pytest.mark.guest

SIZE = 512 * MIB


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """The one's disk on a server that both reach, the other's on a file of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="swaptide-move-", dir="/var/tmp") as work,
        contextlib.ExitStack() as stack,
    ):
        pathlib.Path(work).chmod(0o755)  # the disks' users connect to its socket
        remote = stack.enter_context(remotes.serving(pathlib.Path(work, "store"), SIZE, open_to_all=True))
        here, there = (stack.enter_context(swaptided.Daemon()) for _ in range(2))
        here.add(DISK, size="512M", ram="96M", uri=remote.uri)
        there.add(DISK, size="512M", ram="96M")
        yield Hosts(here, there, pathlib.Path(work))


def test_guest_and_the_store_of_its_swap_move(hosts: Hosts, accelerator: str) -> None:
    with machine.Machine(hosts.spec(accelerator, hosts.here)) as source:
        source.wait_ready()
        wait_filled(source, WORK_MIB)
        before = hosts.here.show(DISK)
        with hosts.receiving() as receiving:
            spec = hosts.spec(accelerator, hosts.there, "-incoming", hosts.uri)
            with machine.Machine(spec) as target:
                hosts.wait_incoming(target)
                done = hosts.migrate("--hand-over-store")
                print(f"moved: {json.dumps(done)}")
                assert receiving.wait(PHASE_SECONDS) == 0
                assert source.qmp("query-status")["status"] == "postmigrate"
                assert source.wrong == [] and source.trouble == []
                moved = hosts.there.show(DISK)
                assert (moved["state"], moved["origin"]) == ("running", before["id"])
                assert moved["spill"] == before["spill"] and done["removed"]
                assert target.qmp("query-status")["status"] == "running"
                wait_checked(target, 20_000)
                stop_and_judge(target)
                assert hosts.there.show(DISK)["reads"] > moved["reads"]
