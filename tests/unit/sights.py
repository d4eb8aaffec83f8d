"""Hosts made up for `swaptide doctor` and `swaptide plan`, good ones unless a test says otherwise."""

import os
import pathlib
from typing import Any

import swaptide
from swaptide.balloon import samples
from swaptide.cache import endpoint
from swaptide.host import config, sight

GIB, MIB = 1 << 30, 1 << 20
RUN = pathlib.Path("/run/x")
THP = "sys/kernel/mm/transparent_hugepage/shmem_enabled"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
GOOD = {
    "proc/sys/kernel/osrelease": "6.18.44",
    "proc/swaps": "Filename  Type",
    "proc/pressure/memory": "some avg10=0.00",
    "proc/self/status": "Name: x\nCapEff:\t000001ffffffffff",
    THP: "always within_size advise [never] deny force",
    CLOCK: "tsc",
}
SAYS = {
    "nbdkit --version": "nbdkit 1.32.5",
    "nbdkit python --dump-plugin": "name=python\npython_version=3.11.2",
    "virsh --version": "11.3.0",
}
TMPFS = sight.Space(24 * GIB, 20 * GIB, "tmpfs", frozenset(("huge=within_size", "noswap")))
EXT4 = sight.Space(200 * GIB, 100 * GIB, "ext4")
HOST = samples.Room("host", 20 * GIB, 24 * GIB, GIB)
DISK: dict[str, Any] = {
    "name": "g1",
    "state": "running",
    "pid": 7,
    "version": swaptide.__version__,
    "user": "2130706432",
    "log": "/run/x/g1.log",
    "error": None,
    "size_bytes": GIB,
    "cap_bytes": 512 * MIB,
    "target_bytes": 512 * MIB,
    "floor_bytes": 32 * MIB,
    "ram_bytes": 100 * MIB,
    "connections": 1,
    "restarts": 0,
    "spill_read_errors": 0,
    "socket": "/run/x/g1.sock",
    "socket_owner": None,
    "spill": "/var/lib/swaptide/g1.spill",
    "spill_bytes_per_second": 0,
    "pack_bytes_per_second": 0,
    "spill_written_bytes": 0,
    "packed_total_pages": 0,
    "droppable_bytes": 0,
    "packable_bytes": 0,
    "degraded": 0,
    "frozen": False,
    "weight": 100,
    "ram_blocked": 0,
    "raw_bytes": 0,
    "packed_pages": 0,
    "spilled_bytes": 0,
    "trims": 0,
}


class Made(sight.Sight):
    """A host that is what a test says."""

    def __init__(self, **changed: Any) -> None:
        settings = {"memory_dir": None, "metrics": "127.0.0.1:9819", **changed.pop("settings", {})}
        super().__init__(
            config.Config(
                run_dir=RUN,
                state_dir=pathlib.Path("/var/lib/swaptide"),
                spill_dir=pathlib.Path("/var/lib/swaptide"),
                nbdkit="nbdkit",
                threads=16,
                **settings,
            ),
            pathlib.Path("/nowhere"),
        )
        self.files = GOOD | changed.pop("files", {})
        self.said = SAYS | changed.pop("said", {})
        self.paths: dict[str, Any] = {"/run/x/mem": 0, **changed.pop("paths", {})}
        self.spaces = {"/run/x/mem": TMPFS, **changed.pop("spaces", {})}
        self.given = changed

    uid = property(lambda self: self.given.get("uid", 0))
    python = property(lambda self: (3, 11))
    daemon = property(lambda self: self.given.get("daemon", sight.Daemon(None, "no daemon; start it")))
    rooms = property(lambda self: self.given.get("rooms", (HOST,)))

    def text(self, path: str) -> str | None:
        found: str | None = self.files.get(path)
        return found

    def says(self, *command: str) -> str | None:
        found: str | None = self.said.get(" ".join(command))
        return found

    def has(self, tool: str) -> bool:
        return tool in self.given.get("tools", ("setpriv",))

    def libnbd(self) -> str | None:
        found: str | None = self.given.get("libnbd", "1.14.2")
        return found

    def opens(self, path: str) -> str | None:
        found: str | None = self.given.get("kvm")
        return found

    def may(self, path: pathlib.Path, mode: int) -> bool:
        return str(path) not in self.given.get("forbidden", ())

    def status(self, path: pathlib.Path) -> os.stat_result | None:
        uid = self.paths.get(str(path))
        mode = self.given.get("modes", {}).get(str(path), 0o755)
        return None if uid is None else os.stat_result((mode, 0, 0, 1, uid, 0, 0, 0, 0, 0))

    def nearest(self, path: pathlib.Path) -> pathlib.Path:
        return path

    def space(self, path: pathlib.Path) -> sight.Space | None:
        found: sight.Space | None = self.spaces.get(str(path), EXT4)
        return found

    def rotates(self, path: pathlib.Path) -> bool | None:
        found: bool | None = self.given.get("rotates", False)
        return found

    def overlap(self) -> str | None:
        found: str | None = self.given.get("overlap")
        return found

    def asks(self, address: endpoint.Address) -> str | None:
        found: str | None = self.given.get("answer")
        return found

    def defined(self) -> int:
        found: int = self.given.get("disks", 0)
        return found


def daemon(*disks: dict[str, Any], **changed: Any) -> sight.Daemon:
    host = {"balloon": changed.pop("balloon", True)}
    return sight.Daemon(
        {"version": swaptide.__version__, "pid": 5, "host": host, "disks": list(disks), **changed}
    )
