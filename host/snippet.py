"""The lines that attach a disk to a guest.  Pure functions.

Both forms name the disk by its id: one that was cleared or made again is refused, never read as zeros.
"""

import shlex
import xml.etree.ElementTree as tree

# While a request waits to be sent again, QEMU's `stop` and `quit` wait with it.  Five minutes outlast a
# restart of the server (a second) and an upgrade by hand, and still end.
RECONNECT_SECONDS = 300
_LOGICAL_BYTES = 512  # SeaBIOS refuses disks with any other
_PHYSICAL_BYTES = 4096


def qemu(disk_id: str, socket_path: str) -> str:
    """Options for QEMU's command line, one on each line, joined by backslashes."""
    node = f"swaptide-{disk_id[:8]}"
    backend = [
        "driver=nbd",
        f"node-name={node}",
        "server.type=unix",
        f"server.path={_escaped(socket_path)}",
        f"export={disk_id}",
        f"reconnect-delay={RECONNECT_SECONDS}",
        "discard=unmap",
    ]
    device = [
        "virtio-blk-pci",
        f"drive={node}",
        "werror=stop",
        "rerror=report",
        f"logical_block_size={_LOGICAL_BYTES}",
        f"physical_block_size={_PHYSICAL_BYTES}",
        f"discard_granularity={_PHYSICAL_BYTES}",
    ]
    return f"-blockdev {shlex.quote(','.join(backend))} \\\n-device {','.join(device)}\n"


def libvirt(disk_id: str, socket_path: str) -> str:
    """A <disk> element for a domain (libvirt 9 or later); the target's name is the operator's to change."""
    disk = tree.Element("disk", type="network", device="disk")
    tree.SubElement(
        disk, "driver", name="qemu", type="raw", discard="unmap", error_policy="stop", rerror_policy="report"
    )
    source = tree.SubElement(disk, "source", protocol="nbd", name=disk_id)
    tree.SubElement(source, "host", transport="unix", socket=socket_path)
    tree.SubElement(source, "reconnect", delay=str(RECONNECT_SECONDS))
    tree.SubElement(disk, "target", dev="vdz", bus="virtio")
    tree.SubElement(
        disk, "blockio", logical_block_size=str(_LOGICAL_BYTES), physical_block_size=str(_PHYSICAL_BYTES)
    )
    tree.indent(disk)
    return tree.tostring(disk, encoding="unicode") + "\n"


def _escaped(value: str) -> str:
    return value.replace(",", ",,")
