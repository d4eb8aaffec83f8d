"""Each check of `swaptide doctor` on made-up hosts: what it takes for good, what not, and what it says."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from swaptide.balloon import samples
from swaptide.cache import endpoint
from swaptide.host import checks_disks, checks_host, config, diagnosis, sight
from swaptide.host.diagnosis import Finding
from tests.unit import sights

GIB, MIB = sights.GIB, sights.MIB


def one(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.parametrize("check", checks_host.ALL, ids=lambda check: check.__name__)
def test_a_good_host(check: diagnosis.Check) -> None:
    for made in (sights.Made(), sights.Made(paths={"/run/x/mem": None})):
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
        (checks_host.clock, {"files": {sights.CLOCK: "hpet"}}, "warn", "hpet"),
        (checks_host.pressure, {"files": {"proc/pressure/memory": None}}, "warn", "no memory pressure"),
        (checks_host.pressure, {"files": {"proc/self/status": "CapEff:\t0"}}, "ok", "CAP_SYS_RESOURCE"),
        (
            checks_host.memory,
            {"settings": {"memory_dir": pathlib.Path("/mnt/x")}},
            "bad",
            "/mnt/x is not there",
        ),
        (checks_host.memory, {"spaces": {"/run/x/mem": sights.EXT4}}, "bad", "ext4, not in memory"),
        (checks_host.memory, {"uid": 5, "paths": {"/run/x/mem": None}}, "warn", "/dev/shm"),
        (
            checks_host.memory,
            {"daemon": sights.daemon({**sights.DISK, "cap_bytes": 30 * GIB})},
            "warn",
            "24G, the disks may",
        ),
        (checks_host.huge_pages, {"files": {sights.THP: None}}, "warn", "no transparent huge pages"),
        (checks_host.huge_pages, {"files": {sights.THP: "always never [deny] force"}}, "warn", "deny"),
        (checks_host.huge_pages, {"uid": 5, "paths": {"/run/x/mem": None}}, "warn", "none for shared memory"),
        (
            checks_host.huge_pages,
            {"uid": 5, "paths": {"/run/x/mem": None}, "files": {sights.THP: "[always] never deny"}},
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
                "spaces": {"/run/x/mem": dataclasses.replace(sights.TMPFS, options=frozenset())},
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
        (checks_host.spill, {"spaces": {"/var/lib/swaptide": sights.TMPFS}}, "bad", "itself in memory"),
        (
            checks_host.spill,
            {"spaces": {"/var/lib/swaptide": dataclasses.replace(sights.EXT4, free_bytes=MIB)}},
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
        (checks_disks.daemon, {"daemon": sights.daemon(version="0.0.1")}, "warn", "version 0.0.1"),
        (checks_disks.daemon, {"daemon": sights.daemon()}, "ok", "0 disks"),
        (checks_disks.metrics, {"settings": {"metrics": "off"}}, "ok", "off"),
        (checks_disks.metrics, {}, "ok", "free"),
        (checks_disks.metrics, {"answer": "HTTP/1.0 404"}, "warn", "somebody answers"),
        (checks_disks.metrics, {"daemon": sights.daemon()}, "warn", "nothing that tells"),
        (checks_disks.metrics, {"daemon": sights.daemon(), "answer": "HTTP/1.1 503 x"}, "warn", "503"),
        (checks_disks.metrics, {"daemon": sights.daemon(), "answer": "HTTP/1.1 200 OK"}, "ok", "/metrics"),
        (checks_disks.reachable, {"paths": {"/run/x/control.sock": 0}}, "ok", "takes your calls"),
        (
            checks_disks.reachable,
            {"paths": {"/run/x/control.sock": 0}, "forbidden": ["/run/x/control.sock"]},
            "bad",
            "not for you",
        ),
        (checks_disks.promises, {}, "ok", "20G of 24G free, 1G kept"),
        (
            checks_disks.promises,
            {"daemon": sights.daemon({**sights.DISK, "floor_bytes": 24 * GIB})},
            "bad",
            "floors",
        ),
        (
            checks_disks.promises,
            {"daemon": sights.daemon({**sights.DISK, "cap_bytes": 30 * GIB}, balloon=False)},
            "bad",
            "balloon = false",
        ),
        (
            checks_disks.promises,
            {"daemon": sights.daemon({**sights.DISK, "cap_bytes": 30 * GIB})},
            "ok",
            "caps 30G, more than there is",
        ),
        (
            checks_disks.promises,
            {"rooms": (samples.Room("host", 1, 24 * GIB, GIB),)},
            "warn",
            "is free",
        ),
    ],
)
def test_what_is_wrong(
    check: Callable[[sight.Sight], Iterable[Finding]], changed: dict[str, Any], verdict: str, word: str
) -> None:
    finding = one(check(sights.Made(**changed)))
    assert finding.verdict == verdict and word in finding.said, finding
    assert bool(finding.remedy) == (verdict != "ok"), finding


def test_a_cgroup_below_what_disks_are_promised() -> None:
    rooms = (
        sights.HOST,
        samples.Room("cgroup:/sys/fs/cgroup/x", 100 * MIB, 256 * MIB, 64 * MIB),
    )
    for disk, verdict in ((sights.DISK, "warn"), ({**sights.DISK, "floor_bytes": 200 * MIB}, "bad")):
        host, group = checks_disks.promises(sights.Made(rooms=rooms, daemon=sights.daemon(disk)))
        assert host.verdict == "ok"
        assert group.verdict == verdict and "256M of /sys/fs/cgroup/x" in group.said, group


PLACES = {"/run/x/g1.sock": 0, "/run/x": 0, "/run": 0, "/": 0, "/var/lib/swaptide/g1.spill": 0}


@pytest.mark.parametrize("check", checks_disks.DISK, ids=lambda check: check.__name__)
def test_a_good_disk(check: Callable[..., Iterable[Finding]]) -> None:
    finding = one(check(sights.Made(paths=PLACES), sights.DISK))
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
        (checks_disks.disk_process, {"version": "0.0.1"}, {}, "warn", "pid 7 is version 0.0.1, this is"),
        (checks_disks.disk_process, {"version": None}, {}, "warn", "pid 7 is version an older one"),
        (checks_disks.disk_process, {"user": "root"}, {}, "warn", "pid 7 is root's"),
        (checks_disks.disk_process, {"user": "root"}, {"settings": {"user": "root"}}, "ok", "user root"),
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
            {"spaces": {"/var/lib/swaptide/g1.spill": sights.TMPFS}},
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
    finding = list(check(sights.Made(**{"paths": PLACES, **changed}), {**sights.DISK, **disk}))[-1]
    assert finding.verdict == verdict and word in finding.said, finding
    assert bool(finding.remedy) == (verdict != "ok"), finding


def test_a_disk_without_a_process() -> None:
    gone = {**sights.DISK, "pid": None, "version": None}
    assert not list(checks_disks.disk_process(sights.Made(), gone))


def test_both_stores_of_a_pair() -> None:
    disk = {**sights.DISK, "spill": "/var/lib/swaptide/g1.spill,size=20G,nbd://h/x"}
    first, second = checks_disks.disk_spill(sights.Made(paths=PLACES), disk)
    assert (first.verdict, first.said) == ("ok", "/var/lib/swaptide/g1.spill")
    assert (second.verdict, second.said) == ("ok", "nbd://h/x")
    gone, _ = checks_disks.disk_spill(sights.Made(), disk)
    assert gone.verdict == "bad"


def test_versions() -> None:
    assert diagnosis.version_of("6.1.0-18-amd64") == (6, 1, 0, 18)
    assert diagnosis.version_of("11.3.0") > (9, 2) > diagnosis.version_of("9.0.0")
    assert diagnosis.version_of("unknown") == ()


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    answer = threading.Event()
    monkeypatch.setattr(sight, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(os, "statvfs", lambda path: answer.wait(60))
    real = sight.Sight(config.load(None, tmp_path / "run"))
    try:
        finding = one(diagnosis.made("spill space", checks_host.spill(real)))
    finally:
        answer.set()
    assert (finding.name, finding.verdict) == ("spill space", "bad") and "does not answer" in finding.said


def test_a_daemon_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "_ANSWER_SECONDS", 0.2)
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as deaf:
        run = pathlib.Path(short)
        deaf.bind(str(run / "control.sock"))
        deaf.listen()
        finding = one(checks_disks.daemon(sight.Sight(config.load(None, run))))
    assert finding.verdict == "bad" and "does not answer" in finding.said
    assert "start it again" in finding.remedy


def test_what_a_host_really_has(tmp_path: pathlib.Path) -> None:
    real = sight.Sight(config.load(None, tmp_path / "run"))
    assert real.text("proc/sys/kernel/osrelease") == os.uname().release
    assert real.text("proc/no/such") is None
    assert real.says("sh", "-c", "echo yes") == "yes"
    assert real.says("sh", "-c", "exit 1") is real.says("/no/such") is None
    assert real.opens("dev/null") is None and real.opens("dev/nope") == "No such file or directory"
    space = real.space(tmp_path / "not" / "made" / "yet")
    assert space is not None and 0 < space.free_bytes <= space.total_bytes
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True)
    assert space.kind.startswith(kind.stdout[:3])
    assert real.status(tmp_path) is not None and real.status(tmp_path / "x") is None
    assert real.daemon.look is None and "no daemon answers" in real.daemon.error
    assert real.rooms[0].name == "host" and real.rooms[0].free_bytes > 0 and real.defined() == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = endpoint.Address("127.0.0.1", server.getsockname()[1])
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.0 404 No\r\n\r\n"))
        thread.start()
        assert real.asks(address) == "HTTP/1.0 404 No"
        thread.join()
    assert real.asks(address) is None
