"""What the daemon makes of its disks' targets, on hosts that are made up and in real v1 cgroups."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from swaptide.balloon import rooms, samples, thresholds
from swaptide.cache import face
from tests.real import daemons, driver, eater, hosts, test_cgroup

MIB = daemons.MIB
GIB = 1 << 30


@contextlib.contextmanager
def made_up(total_mib: int, **settings: Any) -> Iterator[tuple[daemons.Daemon, hosts.Host]]:
    """A daemon on a host that has so much."""
    with daemons.directory() as root, hosts.made_up(root, total_mib * MIB) as host:
        settings = {"host_reserve": "64M", **settings}
        with daemons.serving(root, proc_dir=str(host.proc), **settings) as daemon:
            yield daemon, host


def target(daemon: daemons.Daemon, name: str = "g1") -> int:
    """What a disk may use."""
    return int(daemon.show(name)["target_bytes"])


def fill(report: dict[str, Any]) -> None:
    """Write noise over the whole disk."""
    with daemons.client(report) as handle:
        for at in range(0, report["size_bytes"], MIB):
            handle.pwrite(os.urandom(MIB), at)


def test_a_disk_may_use_its_cap_where_the_host_has_plenty() -> None:
    with made_up(4096) as (daemon, _):
        assert daemon.add(ram="96M")["target_bytes"] == 96 * MIB
        daemon.ok("disk", "set", "g1", "--ram", "64M")
        assert target(daemon) == 64 * MIB
        daemon.ok("disk", "set", "g1", "--ram", "128M")
        daemons.wait_for(lambda: target(daemon) == 128 * MIB)


def test_nobody_tells_of_pressure_or_cgroups_and_it_works_all_the_same() -> None:
    """The made-up /proc has neither: one line for each, and free memory is what counts."""
    with made_up(256) as (daemon, host):
        report = daemon.add(ram="96M", size=128 * MIB)
        fill(report)
        host.use(100 * MIB)
        daemons.wait_for(lambda: host.available_bytes() >= 60 * MIB, daemon.log.read_text)
        host.use(-100 * MIB)
        daemons.wait_for(lambda: target(daemon) == 96 * MIB, daemon.log.read_text)
        said = daemon.log.read_text()
        assert said.count("what=cgroups") == 1 and "no cgroup's limit is looked at" in said
        assert said.count("only free memory is watched") == 1
        assert "balloon decides reason=" in said


def test_a_host_that_cannot_be_read_gets_its_memory_back() -> None:
    with made_up(4096) as (daemon, host):
        report = daemon.add(ram="96M", size=128 * MIB)
        fill(report)
        host.broken = True
        daemons.wait_for(lambda: daemon.show()["ram_bytes"] <= report["floor_bytes"], daemon.log.read_text)
        refused = daemon.run("reserve", "1G")
        assert refused.returncode == 1 and "cannot be had" in refused.stderr
        host.broken = False
        daemons.wait_for(lambda: target(daemon) == 96 * MIB, daemon.log.read_text)
        assert daemon.log.read_text().count("what=meminfo") == 2


def test_floors_that_add_up_to_more_than_the_host() -> None:
    with made_up(192) as (daemon, host):
        for name in ("g1", "g2", "g3"):
            daemon.add(name, "--floor", "80M", ram="96M", size=128 * MIB)
            fill(daemon.show(name))
        daemons.wait_for(
            lambda: all(target(daemon, name) == 80 * MIB for name in ("g1", "g2", "g3")), daemon.log.read_text
        )
        refused = daemon.run("reserve", "64M")
        assert refused.returncode == 1
        assert "0 could" in refused.stderr
        # They are served as ever.
        with daemons.client(daemon.show()) as handle:
            handle.pwrite(b"x" * MIB, 0)
            assert handle.pread(MIB, 0) == b"x" * MIB
        host.total_bytes *= 8
        daemons.wait_for(
            lambda: all(target(daemon, name) == 96 * MIB for name in ("g1", "g2", "g3")), daemon.log.read_text
        )


@pytest.mark.parametrize("weight", [1, 10000])
def test_extreme_weights(weight: int) -> None:
    """Whoever has all the weight gets what there is; the other one keeps its floor, and serves."""
    other = 10001 - weight
    with made_up(256) as (daemon, host):
        for name, share in (("g1", weight), ("g2", other)):
            daemon.add(name, "--weight", str(share), ram="160M", size=192 * MIB)
        for _ in range(2):
            for name in ("g1", "g2"):
                fill(daemon.show(name))
        heavy, light = ("g1", "g2") if weight > other else ("g2", "g1")
        daemons.wait_for(
            lambda: target(daemon, heavy) > 2 * target(daemon, light),
            lambda: f"{target(daemon, heavy)} {target(daemon, light)}\n{daemon.log.read_text()}",
        )
        assert target(daemon, light) >= daemon.show(light)["floor_bytes"]
        assert host.available_bytes() > 0


def test_setting_a_cap_is_not_disturbed_by_the_policy() -> None:
    """The policy lowers the target below what was asked for: the limits hold all the same."""
    with made_up(256) as (daemon, host):
        report = daemon.add("g1", "--compress", "none", ram="128M", size=160 * MIB)
        fill(report)
        asked = subprocess.Popen(
            [
                *daemons.COMMAND,
                "disk",
                "set",
                "g1",
                "--ram",
                "96M",
                "--json",
                "--run-dir",
                str(daemon.run_dir),
            ],
            stdout=subprocess.PIPE,
        )
        host.use(120 * MIB)
        outcome = json.loads(asked.communicate(timeout=90)[0])
        assert (asked.returncode, outcome["phase"], outcome["target_bytes"]) == (0, "holds", 96 * MIB)
        daemons.wait_for(lambda: target(daemon) < 96 * MIB)
        # Nor does the operator's cap raise what the policy allows.
        daemon.ok("disk", "set", "g1", "--ram", "150M")
        assert target(daemon) < 96 * MIB
        assert daemon.show()["cap_bytes"] == 150 * MIB


def test_a_new_disk_starts_with_what_the_policy_gives() -> None:
    with made_up(128) as (daemon, host):
        host.use(100 * MIB)
        report = daemon.add(ram="96M")
        assert report["target_bytes"] == report["floor_bytes"]
        assert report["cap_bytes"] == 96 * MIB
        host.use(-100 * MIB)
        daemons.wait_for(lambda: target(daemon) > report["floor_bytes"])


def test_switched_off_every_disk_may_use_its_cap() -> None:
    with made_up(128) as (daemon, host):
        host.use(100 * MIB)
        report = daemon.add(ram="96M")
        assert report["target_bytes"] < 96 * MIB
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text() + "balloon = false\n")
        daemon.start()
        daemon.wait_running()
        assert target(daemon) == 96 * MIB
        assert daemon.add("g2")["target_bytes"] == 32 * MIB
        daemon.ok("disk", "set", "g1", "--ram", "80M")
        assert target(daemon) == 80 * MIB


def test_a_disk_whose_process_dies_is_not_counted_and_comes_back() -> None:
    with made_up(4096) as (daemon, _):
        report = daemon.add(ram="96M", size=128 * MIB)
        fill(report)
        os.kill(report["pid"], signal.SIGKILL)
        daemon.wait_running(not_pid=report["pid"])
        assert target(daemon) == 96 * MIB
        assert daemon.ok("reserve", "64M")


def test_samples_are_recorded(tmp_path: pathlib.Path) -> None:
    with made_up(4096, trace=str(tmp_path / "trace")) as (daemon, host):
        daemon.add(ram="96M")
        path = tmp_path / "trace"
        daemons.wait_for(lambda: path.exists() and b'"g1"' in path.read_bytes())
    lines = path.read_bytes().splitlines()
    recorded = [msgspec.json.decode(line, type=samples.Sample) for line in lines]
    assert {disk.cap_bytes for sample in recorded for disk in sample.disks} == {96 * MIB}
    assert {sample.rooms[0].size_bytes for sample in recorded} == {4096 * MIB}
    times = [sample.at_seconds for sample in recorded]
    assert times == sorted(times)


def test_a_reserve_that_is_all_of_the_host_is_refused(tmp_path: pathlib.Path) -> None:
    with hosts.made_up(tmp_path, GIB) as host:
        file = tmp_path / "c.toml"
        file.write_text(f'state_dir = "{tmp_path}/s"\nproc_dir = "{host.proc}"\nhost_reserve = "1G"\n')
        command = [*daemons.COMMAND, "serve", "--config", str(file), "--run-dir", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("swaptide: host_reserve 1G is all that this host has (1G)")
    assert not (tmp_path / "run").exists()


def test_a_guest_cannot_see_the_difference() -> None:
    """Targets move all the time under a load with a model: every byte is as written."""
    size = 128 * MIB
    with made_up(256) as (daemon, host):
        report = daemon.add("g1", ram="128M", size=size)
        load = driver.Driver(f"nbd+unix:///{report['id']}?socket={report['socket']}", size, 7, connections=1)

        def breathe(number: int) -> None:
            if number % 200 == 0:
                host.use(120 * MIB if host.other_bytes == 0 else -120 * MIB)

        with face.StateFace(pathlib.Path(report["state_file"])) as state:
            for _ in range(10):  # on a busy host targets follow more slowly than requests
                load.run(4_000, breathe)
                if state.counters()["spill_written_bytes"]:
                    break
            load.check_all()
            load.close()
            assert state.counters()["spill_written_bytes"] > 0


def test_thresholds_of_a_real_cgroup_fire_at_once() -> None:
    limit = 96 * MIB
    with test_cgroup.limited(limit) as group:
        watched = rooms.Group(group, limit, 16 * MIB)
        fired = 0

        def count() -> None:
            nonlocal fired
            fired += 1

        async def body() -> None:
            nonlocal fired
            armed = thresholds.Thresholds(count)
            armed.arm([watched])
            code = "import sys; held = b'x' * (70 << 20); print(len(held), flush=True); sys.stdin.read()"
            eating = await asyncio.create_subprocess_exec(
                *eater.inside(group),
                sys.executable,
                "-c",
                code,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert eating.stdout is not None
            try:
                async with asyncio.timeout(60):
                    await eating.stdout.readline()
                    while not fired:
                        await asyncio.sleep(0.01)
                    # Armed no more, it says nothing when the memory comes back.
                    armed.arm([])
                    fired = 0
                    eating.kill()
                    await eating.wait()
                    await asyncio.sleep(0.1)
                    assert not fired
            finally:
                with contextlib.suppress(ProcessLookupError):
                    eating.kill()
                await eating.wait()
                armed.close()

        asyncio.run(body())


def test_where_thresholds_lie() -> None:
    group = rooms.Group(pathlib.Path("/g"), 1000, 100)
    assert thresholds.levels(group) == (800, 900, 950)
    assert thresholds.levels(rooms.Group(pathlib.Path("/g"), 100, 60)) == (40, 70)
    assert thresholds.levels(rooms.Group(pathlib.Path("/g"), 100, 500)) == (50,)
