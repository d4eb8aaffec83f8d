"""`swaptide reserve` against caches that are full: returned by the deadline, refused honestly, held, used."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real import daemons, hosts, remotes

MIB = daemons.MIB
RAM_MIB = 96
SPARE_MIB = 48
RESERVE_MIB = 32
TRIES = 8


@contextlib.contextmanager
def made_up(spare_mib: int = SPARE_MIB, **settings: Any) -> Iterator[tuple[daemons.Daemon, hosts.Host]]:
    """A daemon on a host with room for one full disk, the host's reserve, and `spare_mib`."""
    total = (RAM_MIB + RESERVE_MIB + spare_mib) * MIB
    with daemons.directory() as root, hosts.made_up(root, total) as host:
        settings = {"host_reserve": f"{RESERVE_MIB}M", **settings}
        with daemons.serving(root, proc_dir=str(host.proc), **settings) as daemon:
            yield daemon, host


def full(daemon: daemons.Daemon, *more: str, name: str = "g1", ram_mib: int = RAM_MIB) -> dict[str, Any]:
    """A disk whose RAM is full of noise."""
    report = daemon.add(name, "--compress", "none", *more, size=ram_mib * 5 // 4 * MIB, ram=f"{ram_mib}M")
    with daemons.client(report) as handle:
        for at in range(0, ram_mib * 5 // 4 * MIB, MIB):
            handle.pwrite(os.urandom(MIB), at)
    daemons.wait_for(lambda: daemon.show(name)["ram_bytes"] > (ram_mib - 16) * MIB)
    return daemon.show(name)


def ask(daemon: daemons.Daemon, size_bytes: int, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON, and what was said."""
    done = daemon.run("reserve", str(size_bytes), "--json", *more)
    return done.returncode, json.loads(done.stdout), done.stderr


def listed(daemon: daemons.Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.ok("reserve", "--list", "--json"))
    return found


def ram(daemon: daemons.Daemon, name: str = "g1") -> int:
    return int(daemon.show(name)["ram_bytes"])


@contextlib.contextmanager
def writing(report: dict[str, Any]) -> Iterator[None]:
    """A guest that writes as fast as it may, and so takes what its cache is given."""
    size = report["size_bytes"]
    code = (
        "import nbd, os, sys\nh = nbd.NBD()\nh.set_export_name(sys.argv[1])\nh.connect_unix(sys.argv[2])\n"
        f"at = 0\nwhile True:\n    h.pwrite(os.urandom({MIB}), at)\n    at = (at + {MIB}) % {size}\n"
    )
    command = [*daemons.COMMAND[:1], "-c", code, report["id"], report["socket"]]
    writer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
        assert writer.poll() is None, "the guest's writes failed"
    finally:
        writer.kill()
        writer.wait()


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal of our own: its screen, and what a process has for it."""
    screen, tty = os.openpty()
    try:
        yield screen, tty
    finally:
        os.close(screen)
        os.close(tty)


def read_until(screen: int, words: str) -> str:
    """What the screen shows, up to these words."""
    shown = ""
    os.set_blocking(screen, False)

    def is_there() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(screen, 65536).decode()
        return words in shown

    daemons.wait_for(is_there, lambda: shown)
    return shown


def meminfo_available() -> int:
    """What this host has available, in bytes."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "dirty"])
@pytest.mark.parametrize(
    ("ram_mib", "asked_mib"),
    [pytest.param(512, 256), pytest.param(2048, 1024, marks=pytest.mark.long)],
)
def test_more_than_is_available_is_had_from_a_full_cache(clean: bool, ram_mib: int, asked_mib: int) -> None:
    """On this host itself, which others use too: what they take meanwhile may spoil a try, not all."""
    share = "100" if clean else "0"
    with daemons.directory() as root, daemons.serving(root, nbdkit=daemons.eager_nbdkit(root)) as daemon:
        full(daemon, "--clean-ahead", share, ram_mib=ram_mib)
        for _ in range(TRIES):
            if clean:
                half = ram_mib * MIB // 2
                daemons.wait_for(lambda: bool(daemon.show()["clean_bytes"] >= half))  # noqa: B023
            before, available = daemon.show(), meminfo_available()
            size = available + asked_mib * MIB
            status, standing, said = ask(daemon, size, "--deadline", "30s", "--hold", "1s")
            after = meminfo_available()
            if status == 0 and ram(daemon) < before["ram_bytes"] - asked_mib * MIB // 2:
                break
            with daemons.client(daemon.show()) as handle:  # full again
                for at in range(0, ram_mib * MIB, MIB):
                    handle.pwrite(os.urandom(MIB), at)
        assert (status, standing["granted"], said) == (0, True, "")
        assert standing["elapsed_seconds"] <= 30
        assert standing["available_bytes"] - standing["held_bytes"] >= size
        print(
            f"cache of {ram_mib} MiB, {before['clean_bytes'] >> 20} MiB clean:"
            f" MemAvailable {available >> 20} MiB, asked {size >> 20} MiB,"
            f" had after {standing['elapsed_seconds']:.2f} s, then {after >> 20} MiB"
        )


def test_a_disk_gives_its_ram_back_while_one_of_its_two_stores_works() -> None:
    size = RAM_MIB * 5 // 4 * MIB
    with made_up() as (daemon, _), remotes.serving(daemon.root / "r", size, open_to_all=True) as remote:
        before = full(daemon, "--spill", f"{remote.uri},{daemon.root}/second")
        remote.stop()
        daemons.wait_for(lambda: daemon.show()["state"] == "degraded")
        wanted = 40 * MIB
        status, standing, said = ask(daemon, SPARE_MIB * MIB + wanted, "--deadline", "60s")
        assert (status, standing["verdict"]) == (0, "granted"), said
        assert ram(daemon) < before["ram_bytes"] - wanted + 16 * MIB
        after = daemon.show()
        assert after["state"] == "degraded" and after["second_slots_used"] > 0
        remote.start()
        daemons.wait_for(lambda: daemon.show()["state"] == "running")


def test_what_is_there_is_granted_without_a_squeeze_and_kept() -> None:
    with made_up(spare_mib=512) as (daemon, host):
        report = full(daemon)
        available = host.available_bytes()
        status, standing, _ = ask(daemon, 100 * MIB, "--hold", "10m")
        assert (status, standing["verdict"]) == (0, "granted")
        assert abs(standing["available_bytes"] - available) < 8 * MIB
        # The cap is raised: the cache grows as far as the reservation, and no farther.
        daemon.ok("disk", "set", "g1", "--ram", "1G")
        with writing(report):
            daemons.wait_for(lambda: ram(daemon) > (RAM_MIB + 32) * MIB, lambda: str(daemon.show()))
            for _ in range(20):
                time.sleep(0.1)
                assert host.available_bytes() >= 100 * MIB
        assert [each["id"] for each in listed(daemon)] == [standing["id"]]


def test_a_full_cache_gives_back_what_is_asked_for() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        free = host.available_bytes()
        size = free + 40 * MIB
        status, standing, said = ask(daemon, size, "--deadline", "60s", "--hold", "10m")
        assert (status, said) == (0, ""), standing
        assert standing["granted"] and standing["available_bytes"] >= size
        assert host.available_bytes() >= size
        # Others that ask hear what is held.
        floor = daemon.show()["floor_bytes"]
        status, standing, said = ask(daemon, ram(daemon) - floor + host.available_bytes() - size + 4 * MIB)
        assert (status, standing["verdict"]) == (1, "impossible")
        assert standing["held_bytes"] == size


def test_what_cannot_be_had_is_refused_at_once_and_squeezes_nothing() -> None:
    with made_up() as (daemon, host):
        before = full(daemon)
        best = host.available_bytes() + before["ram_bytes"] - before["floor_bytes"]
        begun = time.monotonic()
        done = daemon.run("reserve", str(best + 16 * MIB), "--deadline", "10m")
        assert time.monotonic() - begun < 60, "not after the deadline"
        assert done.returncode == 1 and done.stdout == ""
        assert " cannot be had, but " in done.stderr and "nothing was squeezed" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        status, standing, _ = ask(daemon, best + 16 * MIB)
        assert status == 1 and abs(standing["could_bytes"] - best) < 8 * MIB
        after = daemon.show()
        assert after["target_bytes"] == before["target_bytes"]
        # A few slots are made free ahead of the next writes in any case.
        assert after["ram_bytes"] > before["ram_bytes"] - 8 * MIB
        assert listed(daemon) == []


def test_several_at_once_add_up() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        free = host.available_bytes()
        size = (free + 45 * MIB) // 3
        command = [*daemons.COMMAND, "reserve", str(size), "--deadline", "60s", "--hold", "10m", "--json"]
        asked = [
            subprocess.Popen([*command, "--run-dir", str(daemon.run_dir)], stdout=subprocess.PIPE)
            for _ in range(3)
        ]
        outcomes = [json.loads(each.communicate(timeout=90)[0]) for each in asked]
        assert [each.returncode for each in asked] == [0, 0, 0], outcomes
        assert len({each["id"] for each in outcomes}) == 3
        assert host.available_bytes() >= 3 * size
        # The host's figures are not of one moment: while caches fall, some may look used, and comes back.
        daemons.wait_for(lambda: sum(each["left_bytes"] for each in listed(daemon)) == 3 * size)


def test_one_that_comes_too_late_is_given_up_and_the_caches_grow_again() -> None:
    with made_up() as (daemon, host):
        report = full(daemon)
        # The store stands still, as far as the disk's process is concerned: nothing can be given back.
        os.kill(report["pid"], signal.SIGSTOP)
        try:
            done = daemon.run("reserve", str(host.available_bytes() + 32 * MIB), "--deadline", "500ms")
        finally:
            os.kill(report["pid"], signal.SIGCONT)
        assert done.returncode == 1
        assert re.search(r" was not there after [0-9.]+ s.* could be had now", done.stderr), done.stderr
        assert "it is given up" in done.stderr
        assert listed(daemon) == []
        daemons.wait_for(lambda: daemon.show()["target_bytes"] == RAM_MIB * MIB, daemon.log.read_text)


def test_expiry_gives_it_back_to_the_caches() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        status, _, _ = ask(daemon, host.available_bytes() + 32 * MIB, "--deadline", "60s", "--hold", "500ms")
        assert status == 0
        daemons.wait_for(lambda: listed(daemon) == [])
        daemons.wait_for(lambda: daemon.show()["target_bytes"] == RAM_MIB * MIB, daemon.log.read_text)
        assert "why=expired" in daemon.log.read_text()


def test_release_gives_it_back_to_the_caches() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        _, standing, _ = ask(daemon, host.available_bytes() + 32 * MIB, "--deadline", "60s", "--hold", "10m")
        assert standing["granted"]
        squeezed = daemon.show()["target_bytes"]
        assert squeezed < RAM_MIB * MIB
        assert standing["id"] in daemon.ok("reserve", "--list")
        assert daemon.ok("reserve", "--release", standing["id"]) == f"reservation {standing['id']} released\n"
        assert listed(daemon) == []
        again = daemon.run("reserve", "--release", standing["id"])
        assert again.returncode == 1 and "there is no reservation" in again.stderr
        daemons.wait_for(lambda: daemon.show()["target_bytes"] == RAM_MIB * MIB, daemon.log.read_text)


def test_it_is_used_up_by_what_the_host_uses_beside_the_disks() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        size = host.available_bytes() + 32 * MIB
        _, standing, _ = ask(daemon, size, "--deadline", "60s", "--hold", "10m")
        assert standing["granted"]
        host.use(size // 2)
        daemons.wait_for(lambda: abs(listed(daemon)[0]["left_bytes"] - size // 2) < 8 * MIB)
        host.use(size - size // 2)
        daemons.wait_for(lambda: listed(daemon) == [])
        assert "why=used" in daemon.log.read_text()


def test_the_daemon_is_killed_and_another_one_keeps_the_promise() -> None:
    with made_up() as (daemon, host):
        full(daemon)
        size = host.available_bytes() + 32 * MIB
        _, standing, _ = ask(daemon, size, "--deadline", "60s", "--hold", "10m")
        assert standing["granted"]
        host.use(16 * MIB)
        daemon.stop(signal.SIGKILL)
        host.use(16 * MIB)
        daemon.start()
        daemon.wait_running()
        daemons.wait_for(lambda: abs(listed(daemon)[0]["left_bytes"] - (size - 32 * MIB)) < 8 * MIB)
        assert listed(daemon)[0]["id"] == standing["id"]
        assert listed(daemon)[0]["size_bytes"] == size
        assert host.available_bytes() >= size - 32 * MIB
        daemon.ok("reserve", "--release", standing["id"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_it_waits_it_gives_up(how: signal.Signals) -> None:
    """On a terminal, where a bar shows how far it is."""
    with made_up() as (daemon, host), terminal() as (screen, tty):
        report = full(daemon)
        os.kill(report["pid"], signal.SIGSTOP)
        try:
            asked = subprocess.Popen(
                [*daemons.COMMAND, "reserve", str(host.available_bytes() + 32 * MIB), "--deadline", "10m"]
                + ["--run-dir", str(daemon.run_dir)],
                stderr=tty,
                env={**os.environ, "TERM": "xterm"},
            )
            shown = read_until(screen, " available")
            assert re.search(r"[0-9.]+M of [0-9.]+M available", shown)
            asked.send_signal(how)
            asked.wait(60)
        finally:
            os.kill(report["pid"], signal.SIGCONT)
        if how is signal.SIGINT:
            assert asked.returncode == 130
            read_until(screen, "swaptide: interrupted; what was asked for is given up")
        daemons.wait_for(lambda: "reservation given up" in daemon.log.read_text())
        daemons.wait_for(lambda: daemon.show()["target_bytes"] == RAM_MIB * MIB, daemon.log.read_text)
        assert listed(daemon) == []


def test_without_a_balloon_nothing_is_promised() -> None:
    with made_up(balloon=False) as (daemon, _):
        daemon.add()
        assert daemon.show()["target_bytes"] == daemon.show()["cap_bytes"]
        for words in (["64M"], ["--list"], ["--release", "x"]):
            done = daemon.run("reserve", *words)
            assert done.returncode == 1 and "balloon = false" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of SIZE, --list and --release ID"),
        (["1G", "--list"], "give one of"),
        (["1G", "--release", "x"], "give one of"),
        (["--list", "--hold", "5s"], "--hold goes with SIZE"),
        (["--release", "x", "--deadline", "5s"], "--deadline goes with SIZE"),
        (["0"], "zero"),
        (["-5M"], "No such option"),
        (["5X"], "not a number"),
        (["1G", "--deadline", "0s"], "more than 0"),
        (["1G", "--deadline", "25h"], "at most 24h"),
        (["1G", "--hold", "forever"], "write for example"),
    ],
)
def test_bad_words_are_refused(words: list[str], said: str) -> None:
    done = subprocess.run([*daemons.COMMAND, "reserve", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
