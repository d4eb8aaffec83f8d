"""Each check of `swaptide doctor` on made-up hosts: what it takes for good, what not, and what it says."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import swaptide
from swaptide.balloon import samples
from swaptide.cache import endpoint
from swaptide.host import checks_disks, checks_host, config, diagnosis, sight
from swaptide.host.diagnosis import Finding

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


def one(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.parametrize("check", checks_host.ALL, ids=lambda check: check.__name__)
def test_a_good_host(check: diagnosis.Check) -> None:
    for made in (Made(), Made(paths={"/run/x/mem": None})):
        finding = one(check(made))
        assert (finding.verdict, finding.remedy) == ("ok", ""), finding


@pytest.mark.parametrize(
    ("check", "changed", "verdict", "word"),
    [
        (checks_host.nbdkit, {"said": {"nbdkit --version": None}}, "bad", "missing"),
        (checks_host.nbdkit, {"said": {"nbdkit --version": "nbdkit 1.30.2"}}, "bad", "1.30.2 is too old"),
        (checks_host.nbdkit, {"said": {"nbdkit python --dump-plugin": None}}, "bad", "Python plugin"),
        (
            checks_host.nbdkit,
            {"said": {"nbdkit python --dump-plugin": "python_version=3.13.5"}},
            "bad",
            "Python 3.13.5, swaptide was installed for 3.11",
        ),
        (checks_host.libnbd, {"libnbd": None}, "warn", "--clear-on-reset"),
        (checks_host.kernel, {"files": {"proc/sys/kernel/osrelease": "5.10.0-30-amd64"}}, "bad", "5.10.0"),
        (checks_host.kernel, {"files": {"proc/sys/kernel/osrelease": None}}, "bad", "unknown"),
        (checks_host.kvm, {"kvm": "No such file or directory"}, "warn", "No such file"),
        (checks_host.clock, {"files": {CLOCK: "hpet"}}, "warn", "hpet"),
        (checks_host.pressure, {"files": {"proc/pressure/memory": None}}, "warn", "no memory pressure"),
        (checks_host.pressure, {"files": {"proc/self/status": "CapEff:\t0"}}, "ok", "CAP_SYS_RESOURCE"),
        (
            checks_host.memory,
            {"settings": {"memory_dir": pathlib.Path("/mnt/x")}},
            "bad",
            "/mnt/x is not there",
        ),
        (checks_host.memory, {"spaces": {"/run/x/mem": EXT4}}, "bad", "ext4, not in memory"),
        (checks_host.memory, {"uid": 5, "paths": {"/run/x/mem": None}}, "warn", "/dev/shm"),
        (
            checks_host.memory,
            {"daemon": daemon({**DISK, "cap_bytes": 30 * GIB})},
            "warn",
            "24G, the disks may",
        ),
        (checks_host.huge_pages, {"files": {THP: None}}, "warn", "no transparent huge pages"),
        (checks_host.huge_pages, {"files": {THP: "always never [deny] force"}}, "warn", "deny"),
        (checks_host.huge_pages, {"uid": 5, "paths": {"/run/x/mem": None}}, "warn", "none for shared memory"),
        (
            checks_host.huge_pages,
            {"uid": 5, "paths": {"/run/x/mem": None}, "files": {THP: "[always] never deny"}},
            "ok",
            "always",
        ),
        (
            checks_host.swap,
            {"files": {"proc/swaps": "Filename\n/dev/sda2 partition 1 0 -2"}},
            "ok",
            "/dev/sda2; the tmpfs of the disks is kept out",
        ),
        (
            checks_host.swap,
            {
                "files": {"proc/swaps": "Filename\n/dev/sda2 partition 1 0 -2"},
                "spaces": {"/run/x/mem": dataclasses.replace(TMPFS, options=frozenset())},
            },
            "warn",
            "/dev/sda2: the caches themselves",
        ),
        (
            checks_host.swap,
            {
                "files": {"proc/swaps": "F\n/dev/sda2 x", "proc/sys/kernel/osrelease": "6.1.0-18"},
                "paths": {"/run/x/mem": None},
            },
            "warn",
            "/dev/sda2: the caches themselves",
        ),
        (checks_host.spill, {"spaces": {"/var/lib/swaptide": None}}, "bad", "does not tell"),
        (checks_host.spill, {"spaces": {"/var/lib/swaptide": TMPFS}}, "bad", "itself in memory"),
        (
            checks_host.spill,
            {"spaces": {"/var/lib/swaptide": dataclasses.replace(EXT4, free_bytes=MIB)}},
            "warn",
            "1M free",
        ),
        (checks_host.spill, {"forbidden": ["/var/lib/swaptide"]}, "bad", "may not write"),
        (checks_host.users, {"tools": ()}, "warn", "setpriv"),
        (checks_host.users, {"overlap": "/etc/subuid gives 5 to x"}, "warn", "subuid"),
        (checks_host.users, {"settings": {"user": "nobody"}}, "ok", "nobody serves all"),
        (checks_host.libvirt, {"said": {"virsh --version": "9.0.0"}}, "warn", "9.0.0 drops"),
        (checks_disks.daemon, {}, "warn", "no disk is defined"),
        (checks_disks.daemon, {"disks": 2}, "bad", "no daemon"),
        (checks_disks.daemon, {"daemon": sight.Daemon(None, "permission denied at x; y")}, "bad", "denied"),
        (checks_disks.daemon, {"daemon": daemon(version="0.0.1")}, "warn", "version 0.0.1"),
        (checks_disks.daemon, {"daemon": daemon()}, "ok", "0 disks"),
        (checks_disks.metrics, {"settings": {"metrics": "off"}}, "ok", "off"),
        (checks_disks.metrics, {}, "ok", "free"),
        (checks_disks.metrics, {"answer": "HTTP/1.0 404"}, "warn", "somebody answers"),
        (checks_disks.metrics, {"daemon": daemon()}, "warn", "nothing that tells"),
        (checks_disks.metrics, {"daemon": daemon(), "answer": "HTTP/1.1 503 x"}, "warn", "503"),
        (checks_disks.metrics, {"daemon": daemon(), "answer": "HTTP/1.1 200 OK"}, "ok", "/metrics"),
        (checks_disks.reachable, {"paths": {"/run/x/control.sock": 0}}, "ok", "takes your calls"),
        (
            checks_disks.reachable,
            {"paths": {"/run/x/control.sock": 0}, "forbidden": ["/run/x/control.sock"]},
            "bad",
            "not for you",
        ),
        (checks_disks.promises, {}, "ok", "20G of 24G free, 1G kept"),
        (checks_disks.promises, {"daemon": daemon({**DISK, "floor_bytes": 24 * GIB})}, "bad", "floors"),
        (
            checks_disks.promises,
            {"daemon": daemon({**DISK, "cap_bytes": 30 * GIB}, balloon=False)},
            "bad",
            "balloon = false",
        ),
        (
            checks_disks.promises,
            {"daemon": daemon({**DISK, "cap_bytes": 30 * GIB})},
            "ok",
            "caps 30G, more than there is",
        ),
        (checks_disks.promises, {"rooms": (samples.Room("host", 1, 24 * GIB, GIB),)}, "warn", "is free"),
    ],
)
def test_what_is_wrong(
    check: Callable[[sight.Sight], Iterable[Finding]], changed: dict[str, Any], verdict: str, word: str
) -> None:
    finding = one(check(Made(**changed)))
    assert finding.verdict == verdict and word in finding.said, finding
    assert bool(finding.remedy) == (verdict != "ok"), finding


def test_a_cgroup_below_what_disks_are_promised() -> None:
    rooms = (HOST, samples.Room("cgroup:/sys/fs/cgroup/x", 100 * MIB, 256 * MIB, 64 * MIB))
    for disk, verdict in ((DISK, "warn"), ({**DISK, "floor_bytes": 200 * MIB}, "bad")):
        host, group = checks_disks.promises(Made(rooms=rooms, daemon=daemon(disk)))
        assert host.verdict == "ok"
        assert group.verdict == verdict and "256M of /sys/fs/cgroup/x" in group.said, group


PLACES = {"/run/x/g1.sock": 0, "/run/x": 0, "/run": 0, "/": 0, "/var/lib/swaptide/g1.spill": 0}


@pytest.mark.parametrize("check", checks_disks.DISK, ids=lambda check: check.__name__)
def test_a_good_disk(check: Callable[..., Iterable[Finding]]) -> None:
    finding = one(check(Made(paths=PLACES), DISK))
    assert (finding.verdict, finding.remedy) == ("ok", ""), finding


@pytest.mark.parametrize(
    ("check", "disk", "changed", "verdict", "word"),
    [
        (checks_disks.disk_state, {"state": "frozen"}, {}, "warn", "frozen"),
        (checks_disks.disk_state, {"state": "unstable"}, {}, "warn", "unstable"),
        (checks_disks.disk_state, {"state": "failed", "error": "why"}, {}, "bad", "failed: why"),
        (checks_disks.disk_state, {"state": "degraded", "error": "why"}, {}, "bad", "store fails: why"),
        (checks_disks.disk_state, {"spill_read_errors": 3}, {}, "bad", "3 reads"),
        (checks_disks.disk_state, {"restarts": 3}, {}, "warn", "died 3 times"),
        (checks_disks.disk_socket, {}, {"paths": {}}, "bad", "not there"),
        (checks_disks.disk_socket, {}, {"uid": 4242}, "warn", "root may connect, you may not"),
        (
            checks_disks.disk_socket,
            {"socket_owner": "4242"},
            {"paths": {**PLACES, "/run/x/g1.sock": 4242}, "modes": {"/run/x": 0o750}},
            "bad",
            "4242 owns it and may not pass /run/x",
        ),
        (
            checks_disks.disk_socket,
            {"socket_owner": "4242"},
            {"paths": {**PLACES, "/run/x/g1.sock": 4242}},
            "ok",
            "4242 may connect",
        ),
        (checks_disks.disk_spill, {}, {"paths": {}}, "bad", "not there"),
        (checks_disks.disk_spill, {}, {"rotates": True}, "warn", "spinning"),
        (
            checks_disks.disk_spill,
            {},
            {"spaces": {"/var/lib/swaptide/g1.spill": TMPFS}},
            "bad",
            "itself in memory",
        ),
        (checks_disks.disk_spill, {"spill": "nbd://h/x"}, {"paths": {}}, "ok", "nbd://h/x"),
        (checks_disks.disk_spill, {"spill_bytes_per_second": GIB}, {}, "ok", "takes 1G/s"),
        (checks_disks.disk_memory, {"ram_blocked": 1}, {}, "warn", "refused"),
        (checks_disks.disk_memory, {"target_bytes": 64 * MIB}, {}, "ok", "target 64M of 512M"),
        (checks_disks.disk_memory, {"spilled_bytes": 800 * MIB}, {}, "warn", "never discarded"),
        (checks_disks.disk_memory, {"spilled_bytes": 800 * MIB, "trims": 4}, {}, "ok", "100M of 512M"),
    ],
)
def test_what_is_wrong_with_a_disk(
    check: Callable[..., Iterable[Finding]],
    disk: dict[str, Any],
    changed: dict[str, Any],
    verdict: str,
    word: str,
) -> None:
    finding = list(check(Made(**{"paths": PLACES, **changed}), {**DISK, **disk}))[-1]
    assert finding.verdict == verdict and word in finding.said, finding
    assert bool(finding.remedy) == (verdict != "ok"), finding


def test_versions() -> None:
    assert diagnosis.version_of("6.1.0-18-amd64") == (6, 1, 0, 18)
    assert diagnosis.version_of("11.3.0") > (9, 2) > diagnosis.version_of("9.0.0")
    assert diagnosis.version_of("unknown") == ()
