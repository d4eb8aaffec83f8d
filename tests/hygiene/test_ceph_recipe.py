"""docs/ceph.md calls qemu-nbd as the tests do, with images that are large enough."""

import re
import shlex

from swaptide.cache import geometry
from tests.cluster import gateway
from tests.hygiene import tree

RECIPE = (tree.ROOT / "docs/ceph.md").read_text().replace("\\\n", " ")
MIB = 1 << 20


def test_gateways_are_called_as_they_are_tested() -> None:
    calls = [shlex.split(line) for line in re.findall(r"qemu-nbd (?:--).*", RECIPE) if "--socket" in line]
    assert len(calls) == 2, "in a shell, and in a unit"
    for call in calls:
        socket = next(word for word in call if word.startswith("--socket=")).removeprefix("--socket=")
        assert call == gateway.command(socket, call[-1])
        assert call[-1].startswith("rbd:swap/")


def test_images_hold_their_disks() -> None:
    (image_mib,) = {int(size) for size in re.findall(r"rbd create \S+ --size (\d+)M", RECIPE)}
    (disk_gib,) = {int(size) for size in re.findall(r"disk add \S+ --size (\d+)G", RECIPE)}
    assert geometry.of_size(disk_gib << 30).spill_bytes <= image_mib * MIB


def test_the_rule_of_thumb_is_enough() -> None:
    said = {
        (page.name, float(share), int(more))
        for page in (tree.ROOT / "docs").glob("*.md")
        for share, more in re.findall(r"([\d./]+) of the (?:disk's )?size\s+and (\d+) MiB", page.read_text())
    }
    assert {page for page, _, _ in said} == {"ceph.md", "operations.md", "spill.md"}
    for size in (4096, MIB, 96 * MIB, 1 << 30, 1 << 36, geometry.MAX_SIZE_BYTES):
        for page, share, more in said:
            assert geometry.of_size(size).spill_bytes <= size * share + more * MIB, page


def test_the_refusal_that_is_shown_has_true_numbers() -> None:
    found = re.search(r"(\d+) bytes, (\d+) are needed", RECIPE)
    assert found is not None and int(found[1]) < int(found[2])
    assert int(found[2]) == geometry.of_size(96 * MIB).spill_bytes
