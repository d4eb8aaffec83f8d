"""The lines for the guest, with names that need quoting."""

import json
import re
import shlex
import xml.etree.ElementTree as xml

from swaptide.host import snippet
from tests.hygiene import tree

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


def test_proxmox_has_it_in_one_line() -> None:
    line = snippet.proxmox(ID, """/run/it's, a\\b/g1.sock""")
    assert line.count("\n") == 1 and line.endswith("\n")
    words = shlex.split(line)
    assert words[0::2] == ["-blockdev", "-device"]
    backend, device = map(json.loads, words[1::2])
    assert backend == snippet.backend(ID, """/run/it's, a\\b/g1.sock""")
    assert device == snippet.device(backend["node-name"])
    lasting = json.loads(shlex.split(snippet.proxmox(None, "/run/g1.sock"))[1])
    assert "export" not in lasting and lasting["server"]["path"] == "/run/g1.sock"


def test_the_line_that_operations_shows() -> None:
    page = (tree.ROOT / "docs/operations.md").read_text()
    assert f"\nargs: {snippet.proxmox(None, '/run/swaptide/g1.sock')}" in page


def test_libvirt() -> None:
    disk = xml.fromstring(snippet.libvirt(ID, '/run/<&">/g1.sock'))
    assert disk.attrib == {"type": "network", "device": "disk"}
    source = disk.find("source")
    assert source is not None and source.attrib == {"protocol": "nbd", "name": ID}
    parts = {child.tag: child.attrib for child in (*disk, *source)}
    assert parts["host"] == {"transport": "unix", "socket": '/run/<&">/g1.sock'}
    assert parts["reconnect"] == {"delay": "300"}
    assert parts["driver"]["discard"] == "unmap"
    assert (parts["driver"]["error_policy"], parts["driver"]["rerror_policy"]) == ("stop", "report")
    assert parts["blockio"] == {"logical_block_size": "512", "physical_block_size": "4096"}


def test_a_lasting_one_names_no_disk() -> None:
    words = shlex.split(snippet.qemu(None, "/run/g1.sock").replace("\\\n", " "))
    assert "export" not in words[1] and "server.path=/run/g1.sock" in words[1].split(",")
    node = re.findall(r"node-name=([^,]*)", words[1])
    assert [f"drive={name}" for name in node] == [words[3].split(",")[1]] and len(node[0]) < 32
    assert snippet.qemu(None, "/run/g2.sock") != snippet.qemu(None, "/run/g1.sock").replace("g1", "g2")
    source = xml.fromstring(snippet.libvirt(None, "/run/g1.sock")).find("source")
    assert source is not None and source.attrib == {"protocol": "nbd"}


def test_options_for_libvirt() -> None:
    element = xml.fromstring(snippet.libvirt_args(ID, '/run/<&">, b/g1.sock'))
    assert element.tag == f"{{{snippet.LIBVIRT_QEMU}}}commandline"
    words = [child.attrib["value"] for child in element]
    assert words[0::2] == ["-blockdev", "-device"]
    backend, device = map(json.loads, words[1::2])
    assert backend["server"]["path"] == '/run/<&">, b/g1.sock' and backend["export"] == ID
    assert backend["reconnect-delay"] == 300 and device["drive"] == backend["node-name"]
