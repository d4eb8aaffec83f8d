"""The harness itself, on disks that are not ours: a guest that loses pages must not pass for a sound one."""

import contextlib
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator

import nbd
import pytest

from tests.vm import machine

pytestmark = [pytest.mark.guest, pytest.mark.long]

WORK: dict[str, str | int] = {"mib": 160, "rounds": 0, "seconds": 120, "order": "random", "rewrite": 0}


@contextlib.contextmanager
def memory_disk(socket: pathlib.Path) -> Iterator[None]:
    """nbdkit's own memory disk on `socket`."""
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "nbdkit", "-f", "-U", str(socket), "memory", "1G"]
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(10)


def spoil(socket: pathlib.Path) -> None:
    """Overwrite a stretch in the middle of what is swapped out."""
    client = nbd.NBD()
    client.connect_unix(str(socket))
    for offset in range(32 << 20, 48 << 20, 1 << 20):
        client.pwrite(os.urandom(1 << 20), offset)
    client.shutdown()


def test_spoiled_disk_is_told(tmp_path: pathlib.Path, accelerator: str) -> None:
    socket = tmp_path / "nbd.sock"
    with memory_disk(socket):
        spec = machine.Spec(accelerator, memory_mib=128, disk=machine.nbd_disk(socket), work=WORK)
        with machine.Machine(spec) as guest:
            guest.wait_numbers(lambda n: n.filled == 160 * 256, "filled memory", 60)
            spoil(socket)
            guest.say("stop")
            result = guest.finish(120)
    assert result.wrong > 0
    assert 0 < len(guest.wrong) <= 20


def test_qmp_and_a_guest_that_ends_early(accelerator: str) -> None:
    spec = machine.Spec(
        accelerator, memory_mib=128, work={"swap": "none", "mib": 16, "rounds": 0, "seconds": 60}
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready()
        assert guest.qmp("query-status")["running"] is True
        guest.qmp("quit")
        with pytest.raises(machine.GuestError):
            guest.finish(20)
    assert not guest.is_running()


def test_swap_on_zram_holds_compressible_work(accelerator: str) -> None:
    """What the benchmark compares with: the same checked work, packed in the guest's own memory."""
    work: dict[str, str | int] = {
        "swap": "zram",
        "zram": "lzo-rle",
        "zram_mib": 192,
        "mib": 144,
        "compress": 95,
    }
    with machine.Machine(machine.Spec(accelerator, memory_mib=128, work={**work, "rounds": 1})) as guest:
        packed = guest.wait_for(lambda r: r.kind == "ZRAM", "figures of zram", 120)
        result = guest.finish(60)
    assert (result.wrong, result.died, guest.trouble) == (0, 0, [])
    assert result.pswpout > 0
    assert 2 < packed.number("orig") / packed.number("used") < 5
