"""The lines for the guest, with names that need quoting."""

import shlex
import xml.etree.ElementTree as tree

from swaptide.host import snippet

ID = "0b5e7a3c-8f0d-4c6e-9a51-1f7f6f0f2f11"


def test_qemu() -> None:
    words = shlex.split(snippet.qemu(ID, "/run/a, b/g1.sock").replace("\\\n", " "))
    assert words[0::2] == ["-blockdev", "-device"]
    backend, device = words[1], words[3]
    assert "server.path=/run/a,, b/g1.sock," in backend
    for option in (f"export={ID}", "reconnect-delay=300", "discard=unmap", "driver=nbd"):
        assert option in backend.split(",")
    assert {"werror=stop", "rerror=report", "logical_block_size=512", "physical_block_size=4096"} <= {
        *device.split(",")
    }
    node = next(part for part in backend.split(",") if part.startswith("node-name=")).removeprefix(
        "node-name="
    )
    assert f"drive={node}" in device.split(",")
    assert len(node) < 32  # QEMU's limit


def test_libvirt() -> None:
    disk = tree.fromstring(snippet.libvirt(ID, '/run/<&">/g1.sock'))
    assert disk.attrib == {"type": "network", "device": "disk"}
    source = disk.find("source")
    assert source is not None and source.attrib == {"protocol": "nbd", "name": ID}
    parts = {child.tag: child.attrib for child in (*disk, *source)}
    assert parts["host"] == {"transport": "unix", "socket": '/run/<&">/g1.sock'}
    assert parts["reconnect"] == {"delay": "300"}
    assert parts["driver"]["discard"] == "unmap"
    assert (parts["driver"]["error_policy"], parts["driver"]["rerror_policy"]) == ("stop", "report")
    assert parts["blockio"] == {"logical_block_size": "512", "physical_block_size": "4096"}
