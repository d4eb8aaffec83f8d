"""What `swaptide snippet --format proxmox` prints, on a command line as Proxmox VE's qemu-server makes it.

Proxmox VE splits `args` with Perl's Text::ParseWords, and puts it before its own devices, which have fixed
slots.  Proxmox itself is not here.
"""

import subprocess
from collections.abc import Iterator

import pytest

from tests.real import daemons, machines

# The devices of an ordinary guest, with the slots that qemu-server gives them (PVE/QemuServer/PCI.pm).
PC = (
    *("-device", "pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e"),
    *("-device", "piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2"),
    *("-device", "VGA,id=vga,bus=pci.0,addr=0x2"),
    *("-device", "virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3"),
    *("-device", "virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5"),
)
Q35 = (
    *("-device", "pcie-root-port,id=ich9-pcie-port-1,addr=0x1c,port=1,chassis=1,bus=pcie.0"),
    *("-device", "VGA,id=vga,bus=pcie.0,addr=0x1"),
    *("-device", "i82801b11-bridge,id=pcidmi,bus=pcie.0,addr=0x1e"),
    *("-device", "pci-bridge,id=pci.0,bus=pcidmi,addr=0x1,chassis_nr=2"),
    *("-device", "virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3"),
)
BOARDS = pytest.mark.parametrize(("board", "devices"), [("pc", PC), ("q35", Q35)], ids=["pc", "q35"])

daemon = daemons.shared()


@pytest.fixture
def disk(daemon: daemons.Daemon) -> Iterator[None]:
    daemon.add()
    yield
    daemon.ok("disk", "rm", "g1", "--force")


def split(args: str) -> list[str]:
    """As Proxmox VE does, from a line of the guest's configuration."""
    daemons.require("perl")
    script = 'print join("\\0", Text::ParseWords::shellwords($ARGV[0]))'
    # What a shell takes of $(...) has no line end.
    command = ["perl", "-MText::ParseWords", "-e", script, "--", args.rstrip("\n")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")


@BOARDS
@pytest.mark.parametrize("more", [(), ("--lasting",)], ids=["by its id", "lasting"])
def test_it_finds_its_place_among_the_others(
    daemon: daemons.Daemon,
    disk: None,
    board: str,
    devices: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    words = split(daemon.ok("snippet", "g1", "--format", "proxmox", *more))
    with machines.running(daemon.root, *words, *devices, board=board) as qemu:
        daemons.wait_for(lambda: daemon.show()["connections"] == 1)
        blocks = qemu.ask("query-block")
        assert [each["inserted"]["drv"] for each in blocks if "inserted" in each] == ["nbd"]
        assert {"vga", "balloon0"} <= {*qemu.devices()}


def test_written_otherwise_it_takes_the_slot_of_another(daemon: daemons.Daemon, disk: None) -> None:
    """Which is why it is written so."""
    words = split(daemon.ok("snippet", "g1").replace("\\\n", " "))
    command = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "64", "-machine", "pc"]
    done = subprocess.run(
        [*command, *words, *PC], capture_output=True, text=True, check=False, timeout=daemons.WAIT_SECONDS
    )
    assert done.returncode == 1 and "in use by virtio-blk-pci" in done.stderr
