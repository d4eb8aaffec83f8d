"""A guest swaps on a disk of ours, and what it reads back is what it wrote, whatever happens to the host.

Each scenario fills and checks patterned memory, more than the guest has, while the cache is squeezed,
killed or taken over.  One guest at a time.
"""

import pathlib
import random
import signal
import tempfile
import time

import pytest

from tests.real import remotes
from tests.vm import swaptided
from tests.vm.phases import (
    DISK,
    MIB,
    PHASE_SECONDS,
    assert_spilled,
    replace_backend,
    squeeze,
    stop_and_judge,
    wait_checked,
    wait_filled,
    working_guest,
)

# The longest that a guest may wait for a disk whose process was killed, on a busy host.
PAUSE_SECONDS = 30.0

pytestmark = pytest.mark.guest


def test_small_guest_swaps_through_a_squeeze(daemon: swaptided.Daemon, accelerator: str) -> None:
    daemon.add(DISK, size="512M", ram="192M")
    with working_guest(daemon, accelerator, memory_mib=128, work_mib=192) as guest:
        wait_filled(guest, 192)
        squeeze(daemon, 32)
        wait_checked(guest, 60_000)
        daemon.set_ram(DISK, "192M")
        stop_and_judge(guest)
    assert_spilled(daemon)


@pytest.mark.long
@pytest.mark.parametrize("discard", ["no", "yes"])
def test_guest_swaps_through_squeeze_and_relief(
    daemon: swaptided.Daemon, accelerator: str, discard: str
) -> None:
    daemon.add(DISK, size="1G", ram="512M")
    # Linux discards pages as it frees them only on a disk that it does not take for a rotational one.
    work = {"discard": discard, "rotational": 0 if discard == "yes" else "keep"}
    with working_guest(daemon, accelerator, memory_mib=192, work_mib=384, **work) as guest:
        wait_filled(guest, 384)
        wait_checked(guest, 20_000)
        squeeze(daemon, 48)
        wait_checked(guest, 120_000)
        daemon.set_ram(DISK, "512M")
        wait_checked(guest, 50_000)
        stop_and_judge(guest)
    assert_spilled(daemon)
    if discard == "yes":  # what the ended work had swapped out is given up
        assert daemon.show(DISK)["stored_pages"] < 384 * 256 // 4


@pytest.mark.long
def test_pages_that_are_zero_or_alike(daemon: swaptided.Daemon, accelerator: str) -> None:
    daemon.add(DISK, size="1G", ram="512M")
    with working_guest(daemon, accelerator, memory_mib=192, work_mib=384, zero=30, same=30) as guest:
        wait_filled(guest, 384)
        squeeze(daemon, 48)
        wait_checked(guest, 100_000)
        assert daemon.show(DISK)["same_filled_pages"] > 0
        stop_and_judge(guest)
    assert_spilled(daemon)


@pytest.mark.long
def test_ready_swap_label_and_swapoff(daemon: swaptided.Daemon, accelerator: str) -> None:
    daemon.add(DISK, size="1G", ram="512M", swap_label="tide")
    with working_guest(
        daemon, accelerator, memory_mib=192, work_mib=384, swap="label:tide", swapoff=1
    ) as guest:
        swap = guest.wait_for(lambda r: r.kind == "SWAP", "swap area", PHASE_SECONDS)
        assert swap.fields["made"] == "0"
        wait_filled(guest, 384)
        squeeze(daemon, 48)
        guest.say("stop")
        off = guest.wait_for(lambda r: r.kind == "SWAPOFF", "end of swapoff", PHASE_SECONDS)
        assert off.fields["errno"] == "0"
        stop_and_judge(guest)
    assert_spilled(daemon)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ended_backend_loses_no_page(daemon: swaptided.Daemon, accelerator: str, how: signal.Signals) -> None:
    daemon.add(DISK, size="1G", ram="512M")
    with working_guest(daemon, accelerator, memory_mib=192, work_mib=384, workers=2, rewrite=50) as guest:
        guest.wait_numbers(lambda n: n.pswpout > 20_000, "pages on their way out", PHASE_SECONDS)
        replace_backend(daemon, how)
        wait_filled(guest, 384)
        with daemon.begin_set_ram(DISK, "48M") as command:  # killed while the squeeze is under way
            replace_backend(daemon, how)
            said = command.communicate()[0]
        assert command.returncode == 0, said
        wait_checked(guest, 20_000)
        replace_backend(daemon, how)
        wait_checked(guest, 60_000)
        assert daemon.show(DISK)["ram_bytes"] <= 50 * MIB
        stop_and_judge(guest)
    assert_spilled(daemon)


def requests(daemon: swaptided.Daemon) -> int:
    """What the disk was asked for so far; the count is in the state file and outlives its process."""
    shown = daemon.show(DISK)
    return int(shown["reads"]) + int(shown["writes"])


def pause_of_kill(daemon: swaptided.Daemon) -> float:
    """Kill the nbdkit; seconds until its successor has answered a request of the guest."""
    begun = time.monotonic()
    replace_backend(daemon, signal.SIGKILL)
    done = requests(daemon)
    while requests(daemon) == done:
        if time.monotonic() - begun > PHASE_SECONDS:
            raise AssertionError(f"the guest asks for nothing any more: {daemon.log_tail()}")
    return time.monotonic() - begun


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_backend_killed_at_random_in_a_swap_storm(
    daemon: swaptided.Daemon, accelerator: str, kills: int
) -> None:
    draw = random.Random(kills)
    daemon.add(DISK, size="512M", ram="96M")
    with working_guest(daemon, accelerator, memory_mib=128, work_mib=192, workers=2, rewrite=50) as guest:
        guest.wait_numbers(lambda n: n.pswpout > 10_000, "pages on their way out", PHASE_SECONDS)
        pauses = []
        for _ in range(kills):
            pauses.append(pause_of_kill(daemon))
            for _ in guest.reports(draw.uniform(0.1, 1.5)):
                pass
        wait_checked(guest, 10_000)
        stop_and_judge(guest)
    print(f"pauses after {kills} kills: longest {max(pauses):.2f} s")
    assert max(pauses) < PAUSE_SECONDS


@pytest.mark.long
def test_restart_in_a_swap_storm(daemon: swaptided.Daemon, accelerator: str) -> None:
    """An upgrade: the same state under a new process, and the guest notices nothing."""
    daemon.add(DISK, size="512M", ram="96M")
    with working_guest(daemon, accelerator, memory_mib=128, work_mib=192, workers=2) as guest:
        guest.wait_numbers(lambda n: n.pswpout > 10_000, "pages on their way out", PHASE_SECONDS)
        for _ in range(3):
            before = daemon.show(DISK)["pid"]
            daemon.command("disk", "restart", DISK)
            assert daemon.show(DISK)["pid"] != before
            wait_checked(guest, 5_000)
        stop_and_judge(guest)


@pytest.mark.long
def test_killed_daemon_and_backend_lose_no_page(daemon: swaptided.Daemon, accelerator: str) -> None:
    daemon.add(DISK, size="1G", ram="64M")
    with working_guest(daemon, accelerator, memory_mib=192, work_mib=384, workers=2) as guest:
        wait_filled(guest, 384)
        daemon.stop(kill=True, backends=True)
        # Nobody serves; the guest waits in its requests, and its console with it.
        for _ in guest.reports(3):
            pass
        daemon.start()
        wait_checked(guest, 60_000)
        stop_and_judge(guest)
    assert_spilled(daemon)


@pytest.mark.long
@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "sigkill"])
def test_next_daemon_adopts_the_disk(daemon: swaptided.Daemon, accelerator: str, kill: bool) -> None:
    daemon.add(DISK, size="1G", ram="512M")
    with working_guest(daemon, accelerator, memory_mib=192, work_mib=384) as guest:
        wait_filled(guest, 384)
        backend = daemon.show(DISK)["pid"]
        daemon.stop(kill=kill)
        wait_checked(guest, 20_000)
        daemon.start()
        assert daemon.show(DISK)["pid"] == backend
        squeeze(daemon, 48)
        wait_checked(guest, 50_000)
        stop_and_judge(guest)
    assert_spilled(daemon)


@pytest.mark.long
def test_guest_swaps_while_its_spill_server_dies_for_five_seconds(
    daemon: swaptided.Daemon, accelerator: str
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="swaptide-vm-", dir="/var/tmp") as name,
        remotes.serving(pathlib.Path(name) / "remote", 512 * MIB, open_to_all=True) as remote,
    ):
        pathlib.Path(name).chmod(0o755)
        daemon.add(DISK, size="512M", ram="192M", uri=remote.uri)
        with working_guest(daemon, accelerator, memory_mib=128, work_mib=192) as guest:
            wait_filled(guest, 192)
            squeeze(daemon, 32)
            wait_checked(guest, 20_000)
            remote.stop()
            time.sleep(5.0)
            assert daemon.show(DISK)["state"] == "degraded"
            remote.start()
            wait_checked(guest, 60_000)
            assert daemon.show(DISK)["state"] == "running"
            stop_and_judge(guest)
        assert_spilled(daemon)
        assert daemon.show(DISK)["spill_read_errors"] == 0
        daemon.remove(DISK)
