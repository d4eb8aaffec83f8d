"""A libvirtd of the test's own: of an unprivileged user, in a directory of its own, on a socket of its own.

It never sees the host's libvirt.  Under root it is `nobody`'s, so that disks need their `--socket-owner`.
"""

import contextlib
import os
import pathlib
import pwd
import signal
import subprocess
import xml.etree.ElementTree as tree
from collections.abc import Iterator

from swaptide.host import snippet
from tests.real import daemons

DOMAIN = """\
<domain type="qemu">
  <name>vm</name>
  <memory unit="MiB">64</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <devices>
    <controller type="pci" index="0" model="pcie-root"/>
    <controller type="pci" model="pcie-root-port"/>
    <controller type="pci" model="pcie-root-port"/>
    <controller type="pci" model="pcie-root-port"/>
    <controller type="usb" model="none"/>
    <memballoon model="virtio"/>
  </devices>
</domain>
"""
_QEMU = f"{{{snippet.LIBVIRT_QEMU}}}"


def domain(printed: str = "") -> tree.Element:
    """The domain with what `swaptide snippet` printed for it."""
    whole = tree.fromstring(DOMAIN)
    if printed:
        added = tree.fromstring(printed)
        devices = whole.find("devices")
        assert devices is not None
        (devices if added.tag == "disk" else whole).append(added)
    return whole


def reconnects() -> bool:
    """Whether the libvirt that is installed has QEMU connect again to a disk whose process was restarted."""
    said = subprocess.run(["virsh", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split(".")[:2])) >= snippet.LIBVIRT_RECONNECTS


class Libvirt:
    """A libvirtd, and one domain of it that runs nothing but its firmware."""

    def __init__(self, root: pathlib.Path) -> None:
        """`root` is made the directory of all that it has."""
        self.user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.root = root
        self.monitor = root / "vm.qmp"
        self._process: subprocess.Popen[bytes] | None = None
        config = root / "config/libvirt"
        config.mkdir(parents=True)
        # Else libvirtd starts a daemon of its own for the console's log, which outlives it.
        (config / "qemu.conf").write_text('stdio_handler = "file"\n')
        for path in (root, config.parent, config):
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def start(self) -> None:
        """Start it, and wait for its socket."""
        with open(self.root / "log", "wb") as log:
            self._process = subprocess.Popen(
                [*self._as_user("--pdeathsig", "KILL"), "libvirtd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment(),
            )
        daemons.wait_for((self.root / "libvirt/libvirt-sock").exists, (self.root / "log").read_text)

    def stop(self) -> None:
        """End it, and the domain."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.virsh("destroy", "vm")
            process.terminate()
            try:
                process.wait(daemons.WAIT_SECONDS)
            finally:
                process.kill()
                process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.root / "libvirt/qemu/run/vm.pid").read_text()), signal.SIGKILL)

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command on this libvirtd."""
        return subprocess.run(
            [*self._as_user(), "virsh", "-q", "-c", "qemu:///session", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd="/",
            env=self._environment(),
        )

    def ok(self, *words: str) -> str:
        """The same, which has to work; returns what it printed."""
        done = self.virsh(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def file(self, name: str, text: str) -> str:
        """The path of a file with this text, which the user can read."""
        path = self.root / name
        path.write_text(text)
        return str(path)

    def domain(self, printed: str = "") -> str:
        """The path of the domain's XML, with what `swaptide snippet` printed and a second monitor for the
        daemon.
        """
        whole = domain(printed)
        more = whole.find(f"{_QEMU}commandline")
        if more is None:
            more = tree.SubElement(whole, f"{_QEMU}commandline")
        for word in ("-qmp", f"unix:{self.monitor},server=on,wait=off"):
            tree.SubElement(more, f"{_QEMU}arg", value=word)
        return self.file("vm.xml", tree.tostring(whole, encoding="unicode"))

    def monitor_command(self, line: str) -> str:
        """What a line of the human monitor says."""
        return self.ok("qemu-monitor-command", "vm", "--hmp", line)

    def _as_user(self, *more: str) -> list[str]:
        user = [f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups"]
        return ["setpriv", *(user if os.geteuid() == 0 else []), *more] if os.geteuid() == 0 or more else []

    def _environment(self) -> dict[str, str]:
        place = {f"XDG_{name}_HOME": str(self.root / name.lower()) for name in ("CONFIG", "CACHE", "DATA")}
        own = {"HOME": str(self.root), "XDG_RUNTIME_DIR": str(self.root), "LC_ALL": "C"}
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        return {**place, **own, "PATH": path}


@contextlib.contextmanager
def running(root: pathlib.Path) -> Iterator[Libvirt]:
    """A libvirtd below `root`; the test is skipped where a tool for it is missing."""
    for tool in ("virsh", "libvirtd", "qemu-system-x86_64", "setpriv"):
        daemons.require(tool)
    directory = root / "libvirt"
    directory.mkdir(mode=0o755)
    made = Libvirt(directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()
