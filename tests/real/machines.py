"""A QEMU without a system: SeaBIOS alone, which is enough for monitors, balloons and plugs.

Ended by its pid, whatever happens.
"""

import asyncio
import contextlib
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

from qemu.qmp import ConnectError, QMPClient
from qemu.qmp.qmp_client import NegotiationError

from tests.real import daemons, sockets

PORT = ("-device", "pcie-root-port,id=port1,chassis=1")
BALLOON = ("-device", "virtio-balloon-pci,id=balloon0")
# Ports that QEMU handles by itself: a device that no system has taken goes at once when it is asked for.
NATIVE = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")


class Qemu:
    """Its process, `qmp` for whom it is tested with, and a second monitor for the test itself."""

    def __init__(self, root: pathlib.Path, name: str) -> None:
        self.qmp = root / f"{name}.qmp"
        self._own = root / f"{name}.own"
        self._firmware = root / f"{name}.firmware"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, board: str = "q35") -> None:
        """Start it, and wait for its monitors."""
        monitors = [f"unix:{path},server=on,wait=off" for path in (self.qmp, self._own)]
        # What SeaBIOS says, it says at this port.
        words = ["-chardev", f"file,id=firmware,path={self._firmware}"]
        words += ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
                *("-nodefaults", "-no-user-config", "-display", "none", "-m", "64M"),
                *("-machine", board, "-accel", "tcg", "-qmp", monitors[0], "-qmp", monitors[1]),
                *words,
                *more,
            ],
            stdin=subprocess.DEVNULL,
        )
        daemons.wait_for(lambda: sockets.listens(self.qmp) and sockets.listens(self._own))

    def stop(self) -> None:
        """Kill it."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
        for path in (self.qmp, self._own, self._firmware):
            path.unlink(missing_ok=True)

    def boots(self) -> int:
        """How often the firmware was done with looking for devices, and went on to what is to be booted."""
        said = self._firmware.read_text(errors="replace")
        return said.count("No bootable device") + said.count("Booting from 0000:7c00")

    def wait_until_booted(self, boots: int = 1) -> None:
        """Wait until that happened so often: until then the firmware takes what is plugged in."""
        daemons.wait_for(lambda: self.boots() >= boots, lambda: self._firmware.read_text(errors="replace"))

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns, over a connection of its own."""
        return asyncio.run(self._ask(command, arguments))

    def nodes(self) -> list[str]:
        """The names of its block nodes."""
        return [node["node-name"] for node in self.ask("query-named-block-nodes")]

    def devices(self) -> list[str]:
        """What was plugged in with an id."""
        found = self.ask("qom-list", path="/machine/peripheral")
        return [each["name"] for each in found if each["name"] != "type"]

    async def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        async with asyncio.timeout(daemons.WAIT_SECONDS):
            client = await self._connect()
            try:
                return await client.execute(command, arguments or None)
            finally:
                with contextlib.suppress(EOFError, ConnectionError):
                    await client.disconnect()

    async def _connect(self) -> QMPClient:
        while True:
            client = QMPClient("test")
            try:
                await client.connect(str(self._own))
                return client
            except ConnectError as error:
                # An event came before the answer to the greeting.
                if not isinstance(error.exc, NegotiationError):
                    raise


@contextlib.contextmanager
def running(root: pathlib.Path, *more: str, name: str = "vm", board: str = "q35") -> Iterator[Qemu]:
    """A QEMU with these arguments."""
    daemons.require("qemu-system-x86_64")
    made = Qemu(root, name)
    try:
        made.start(*more, board=board)
        yield made
    finally:
        made.stop()
