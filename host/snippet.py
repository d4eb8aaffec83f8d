"""The lines that attach a disk to a guest, for people and for QMP.  Pure functions.

All forms name the disk by its id: one that was cleared or made again is refused, never read as zeros.  For
a definition that is to last longer than the host's memory there is no id (None): whatever disk is there.
"""

import hashlib
import json
import shlex
import xml.etree.ElementTree as tree
from collections.abc import Iterator, Mapping
from typing import Any

# While a request waits to be sent again, QEMU's `stop` and `quit` wait with it.  Five minutes outlast a
# restart of the server (a second) and an upgrade by hand, and still end.
RECONNECT_SECONDS = 300
_LOGICAL_BYTES = 512  # SeaBIOS refuses disks with any other
_PHYSICAL_BYTES = 4096
LIBVIRT_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# The first that passes a <reconnect> on to QEMU.
LIBVIRT_RECONNECTS = (9, 2)


def node_name(disk_id: str) -> str:
    """What the disk's block node, and the device on it, are called in QEMU."""
    return f"swaptide-{disk_id[:8]}"


def _lasting_name(socket_path: str) -> str:
    """The same where there is no id; QEMU takes names of 31 characters."""
    return f"swaptide-{hashlib.sha256(socket_path.encode()).hexdigest()[:8]}"


def backend(disk_id: str | None, socket_path: str) -> dict[str, Any]:
    """The block node, as blockdev-add takes it."""
    return {
        "driver": "nbd",
        "node-name": _lasting_name(socket_path) if disk_id is None else node_name(disk_id),
        "server": {"type": "unix", "path": socket_path},
        **({} if disk_id is None else {"export": disk_id}),
        "reconnect-delay": RECONNECT_SECONDS,
        "discard": "unmap",
    }


def device(node: str) -> dict[str, Any]:
    """The device on that block node, as device_add takes it, but for its bus."""
    return {
        "driver": "virtio-blk-pci",
        "drive": node,
        "werror": "stop",
        "rerror": "report",
        "logical_block_size": _LOGICAL_BYTES,
        "physical_block_size": _PHYSICAL_BYTES,
        "discard_granularity": _PHYSICAL_BYTES,
    }


def qemu(disk_id: str | None, socket_path: str) -> str:
    """Options for QEMU's command line, one on each line, joined by backslashes."""
    node = backend(disk_id, socket_path)
    words = [f"{key}={_escaped(str(value))}" for key, value in _flat(node)]
    driver, *options = [
        str(value) if key == "driver" else f"{key}={value}" for key, value in _flat(device(node["node-name"]))
    ]
    return f"-blockdev {shlex.quote(','.join(words))} \\\n-device {','.join([driver, *options])}\n"


def libvirt_args(disk_id: str | None, socket_path: str) -> str:
    """The same options as a <qemu:commandline> element, which any libvirt passes on."""
    tree.register_namespace("qemu", LIBVIRT_QEMU)
    element = tree.Element(f"{{{LIBVIRT_QEMU}}}commandline")
    for word in _in_json(disk_id, socket_path):
        tree.SubElement(element, f"{{{LIBVIRT_QEMU}}}arg", value=word)
    tree.indent(element)
    return tree.tostring(element, encoding="unicode") + "\n"


def proxmox(disk_id: str | None, socket_path: str) -> str:
    """The same options in one line, as `args` of Proxmox VE takes them."""
    return shlex.join(_in_json(disk_id, socket_path)) + "\n"


def libvirt(disk_id: str | None, socket_path: str) -> str:
    """A <disk> element for a domain; the target's name is the operator's to change.

    Before 9.2 libvirt leaves <reconnect> out: requests that are under way when the disk's process is killed
    are then I/O errors.
    """
    disk = tree.Element("disk", type="network", device="disk")
    tree.SubElement(
        disk, "driver", name="qemu", type="raw", discard="unmap", error_policy="stop", rerror_policy="report"
    )
    source = tree.SubElement(disk, "source", protocol="nbd")
    if disk_id is not None:
        source.set("name", disk_id)
    tree.SubElement(source, "host", transport="unix", socket=socket_path)
    tree.SubElement(source, "reconnect", delay=str(RECONNECT_SECONDS))
    tree.SubElement(disk, "target", dev="vdz", bus="virtio")
    tree.SubElement(
        disk, "blockio", logical_block_size=str(_LOGICAL_BYTES), physical_block_size=str(_PHYSICAL_BYTES)
    )
    tree.indent(disk)
    return tree.tostring(disk, encoding="unicode") + "\n"


def _in_json(disk_id: str | None, socket_path: str) -> tuple[str, ...]:
    """The options for who puts them among others.  In JSON (QEMU 6.2), since such devices are made last.

    Devices that are written otherwise take slots that libvirt or Proxmox VE gave to others.
    """
    node = backend(disk_id, socket_path)
    return "-blockdev", json.dumps(node), "-device", json.dumps(device(node["node-name"]))


def _escaped(value: str) -> str:
    return value.replace(",", ",,")


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
