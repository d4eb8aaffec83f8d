"""What `swaptide snippet` prints for libvirt is taken by its schemas, and by a libvirtd that runs."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as tree
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swaptide.host import snippet
from tests.real import daemons, libvirts

Form = Callable[[str | None, str], str]
ID = "0b5e7a3c-8f0d-4c6e-9a51-1f7f6f0f2f11"

daemon = daemons.shared()


@pytest.fixture(scope="module")
def libvirt(daemon: daemons.Daemon) -> Iterator[libvirts.Libvirt]:
    with libvirts.running(daemon.root) as running:
        yield running


@pytest.fixture
def disk(daemon: daemons.Daemon, libvirt: libvirts.Libvirt) -> Iterator[dict[str, Any]]:
    yield daemon.add("g1", "--socket-owner", libvirt.user.pw_name)
    libvirt.virsh("destroy", "vm")
    daemon.ok("disk", "rm", "g1", "--force")


def printed(daemon: daemons.Daemon, form: str = "libvirt", *more: str) -> str:
    return daemon.ok("snippet", "g1", "--format", form, *more)


def write(libvirt: libvirts.Libvirt, pattern: int) -> None:
    """Have the emulated disk, and so QEMU's NBD client, write 64 KiB."""
    blocks = libvirt.monitor_command("info block")
    device = blocks.partition("Attached to:")[2].split()[0]
    libvirt.monitor_command(f'qemu-io -d {device} "write -P {pattern} 0 64k"')


def check_written(daemon: daemons.Daemon, pattern: int) -> None:
    with daemons.client(daemon.show()) as client:
        assert client.pread(64 << 10, 0) == bytes([pattern]) * (64 << 10)


def check_kill(daemon: daemons.Daemon, libvirt: libvirts.Libvirt) -> None:
    """A write that is under way when the disk's process is killed is sent again to the next one."""
    write(libvirt, 7)
    daemon.ok("disk", "freeze", "g1")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            under_way = thread.submit(write, libvirt, 9)
            daemons.wait_for(lambda: daemon.show()["frozen_waits"] > 0)
            before = daemon.show()["pid"]
            os.kill(before, signal.SIGKILL)
            daemons.wait_for(lambda: daemon.show()["pid"] not in (None, before), daemon.log.read_text)
            check_written(daemon, 7)
        finally:
            daemon.run("disk", "thaw", "g1")
        under_way.result(daemons.WAIT_SECONDS)
    check_written(daemon, 9)


@pytest.mark.parametrize("form", [snippet.libvirt, snippet.libvirt_args])
@pytest.mark.parametrize("disk_id", [ID, None])
def test_the_schema_takes_it(tmp_path: pathlib.Path, form: Form, disk_id: str | None) -> None:
    for tool in ("virt-xml-validate", "xmllint"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (Debian packages libvirt-clients and libxml2-utils)")
    text = form(disk_id, "/run/x/g1.sock")
    if not libvirts.reconnects():
        text = re.sub(r"<reconnect [^>]*>", "", text)  # the rest has to be right
    whole = tree.tostring(libvirts.domain(text), encoding="unicode")
    wrong = whole.replace("unix", "smoke").replace("qemu:arg", "qemu:no")
    for each, status in ((whole, 0), (wrong, 3)):
        file = tmp_path / "vm.xml"
        file.write_text(each)
        command = ["virt-xml-validate", str(file), "domain"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, (each, done)


def test_attached_to_a_domain_that_runs(
    daemon: daemons.Daemon, libvirt: libvirts.Libvirt, disk: dict[str, Any]
) -> None:
    libvirt.ok("create", "--validate", libvirt.domain())
    libvirt.ok("attach-device", "vm", libvirt.file("g1.xml", printed(daemon)), "--live")
    assert disk["id"] in libvirt.ok("domblklist", "vm")
    write(libvirt, 5)
    check_written(daemon, 5)
    if libvirts.reconnects():
        check_kill(daemon, libvirt)


def test_options_in_a_domain(daemon: daemons.Daemon, libvirt: libvirts.Libvirt, disk: dict[str, Any]) -> None:
    libvirt.ok("create", "--validate", libvirt.domain(printed(daemon, "libvirt-args")))
    check_kill(daemon, libvirt)
    # The monitor that is the daemon's own, beside libvirt's.
    said = daemon.ok("guest", "add", "vm", "--qmp", str(libvirt.monitor), "--min", "32M", "--max", "64M")
    assert "it is running" in said
    daemon.ok("guest", "rm", "vm")


@pytest.mark.parametrize("form", ["libvirt", "libvirt-args"])
def test_a_domain_that_outlives_the_disk(
    daemon: daemons.Daemon, libvirt: libvirts.Libvirt, disk: dict[str, Any], form: str
) -> None:
    by_id, lasting = printed(daemon, form), printed(daemon, form, "--lasting")
    daemon.ok("disk", "clear", "g1")
    refused = libvirt.virsh("create", libvirt.domain(by_id))
    assert refused.returncode == 1 and disk["id"] in refused.stderr, refused
    libvirt.ok("create", libvirt.domain(lasting))
    write(libvirt, 5)
    check_written(daemon, 5)


def test_a_disk_of_the_daemons_own_user_is_refused(
    daemon: daemons.Daemon, libvirt: libvirts.Libvirt, disk: dict[str, Any]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: there is one user only")
    os.chown(disk["socket"], 0, 0)
    libvirt.ok("create", libvirt.domain())
    refused = libvirt.virsh("attach-device", "vm", libvirt.file("g1.xml", printed(daemon)), "--live")
    assert refused.returncode == 1, refused
    assert "g1.sock" in refused.stderr and "Permission denied" in refused.stderr
    assert daemon.show()["connections"] == 0
