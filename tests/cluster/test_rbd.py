"""A swap disk whose spill is an RBD image: what docs/ceph.md says, on a real cluster and by a real daemon."""

import os
import random
import re
import signal
import uuid
from typing import Any

import pytest

from swaptide.cache import geometry
from tests.cluster import ceph, gateway
from tests.cluster.load import Load
from tests.real import daemons, driver

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]
MIB = 1 << 20
SIZE = 96 * MIB
IMAGE_BYTES = geometry.of_size(SIZE).spill_bytes
RAM = "40M"
OBJECT_BYTES = 4 * MIB
REQUESTS = 3000
KILLS = 2
PAGES = 4000


def uri_of(report: dict[str, Any]) -> str:
    return f"nbd+unix:///{report['id']}?socket={report['socket']}"


def loading(report: dict[str, Any], cluster: ceph.Cluster, seed: int) -> Load:
    load = driver.Driver(uri_of(report), SIZE, seed=seed)
    load.patience_seconds = 150.0  # as long as a store that does not answer may be away here
    return Load(load, cluster.watch)


def wait_for_state(
    cluster: ceph.Cluster, daemon: daemons.Daemon, load: Load, state: str, name: str = "g1"
) -> None:
    def is_there() -> bool:
        load.check()
        return bool(daemon.show(name)["state"] == state)

    cluster.watch.until(f"the disk is {state}", is_there)


def check_and_leave(load: Load) -> None:
    load.driver.check_all()
    load.driver.close()


def is_claimed(server: gateway.Gateway, report: dict[str, Any]) -> bool:
    return uuid.UUID(report["id"]).bytes in server.head(4096)


def test_every_byte_is_right_when_the_osd_dies(cluster: ceph.Cluster, patient_daemon: daemons.Daemon) -> None:
    daemon = patient_daemon
    with ceph.image(cluster, "g1", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        report = daemon.add("g1", "--spill", server.uri, size=SIZE, ram=RAM)
        with loading(report, cluster, seed=3) as load:
            load.go_on(REQUESTS)
            before = daemon.show()
            assert before["write_bytes"] > before["cap_bytes"] and before["spill_written_bytes"] > 0
            assert before["misses"] > 0 and not before["degraded"]
            cluster.osd.kill()
            wait_for_state(cluster, daemon, load, "degraded")
            cluster.start_osd()
            wait_for_state(cluster, daemon, load, "running")
            load.go_on(REQUESTS)
        check_and_leave(load)
        after = daemon.show()
        assert after["spill_written_bytes"] > before["spill_written_bytes"]
        assert after["misses"] > before["misses"]
        assert after["pid"] == before["pid"], "one process went through all of it"
        assert after["spill_read_errors"] == 0
        assert is_claimed(server, report) and cluster.used_bytes(name) > SIZE // 4
        daemon.ok("disk", "rm", "g1")
        assert not is_claimed(server, report) and cluster.used_bytes(name) <= OBJECT_BYTES


def test_every_byte_is_right_when_the_osd_dies_again_and_again(
    cluster: ceph.Cluster, daemon: daemons.Daemon
) -> None:
    """So briefly each time that no connection is given up."""
    chooser = random.Random(6)
    with ceph.image(cluster, "g5", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        report = daemon.add("g5", "--spill", server.uri, size=SIZE, ram=RAM)
        with loading(report, cluster, seed=6) as load:
            for _ in range(KILLS):
                load.go_on(chooser.randint(REQUESTS // 2, REQUESTS))
                cluster.osd.kill()
                cluster.start_osd()
            load.go_on(REQUESTS)
        check_and_leave(load)
        assert daemon.show("g5")["spill_read_errors"] == 0
        daemon.ok("disk", "rm", "g5")


def test_every_byte_is_right_when_the_gateway_dies(cluster: ceph.Cluster, daemon: daemons.Daemon) -> None:
    with ceph.image(cluster, "g2", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        report = daemon.add("g2", "--spill", server.uri, size=SIZE, ram=RAM)
        with loading(report, cluster, seed=4) as load:
            load.go_on(REQUESTS)
            server.kill()
            wait_for_state(cluster, daemon, load, "degraded", "g2")
            server.start()
            wait_for_state(cluster, daemon, load, "running", "g2")
            load.go_on(REQUESTS)
        check_and_leave(load)
        assert daemon.show("g2")["spill_read_errors"] == 0
        daemon.ok("disk", "rm", "g2")


def test_a_killed_disk_is_taken_over_while_the_cluster_is_away(
    cluster: ceph.Cluster, daemon: daemons.Daemon
) -> None:
    with ceph.image(cluster, "g3", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        report = daemon.add("g3", "--spill", server.uri, size=SIZE, ram=RAM)
        load = loading(report, cluster, seed=5)
        load.driver.run(REQUESTS)
        load.driver.close()
        cluster.osd.kill()
        os.kill(report["pid"], signal.SIGKILL)
        cluster.watch.until(
            "another process serves the disk",
            lambda: (
                daemon.show("g3")["state"] == "degraded"
                and daemon.show("g3")["pid"] not in (None, report["pid"])
            ),
        )
        cluster.start_osd()
        load.driver.resume(uri_of(report))
        check_and_leave(load)
        daemon.ok("disk", "rm", "g3")


def test_reads_go_on_while_the_pool_is_full(cluster: ceph.Cluster, daemon: daemons.Daemon) -> None:
    """Not so with the feature object-map."""
    with ceph.image(cluster, "g7", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        report = daemon.add("g7", "--spill", server.uri, size=SIZE, ram=RAM)
        with loading(report, cluster, seed=7) as load:
            load.go_on(REQUESTS)
            with cluster.full():
                load.stall()
                before = daemon.show("g7")
                read_beside(load, report)
                after = daemon.show("g7")
                assert after["misses"] > before["misses"] and after["writes"] == before["writes"]
            load.go_on(REQUESTS)
        check_and_leave(load)
        assert daemon.show("g7")["spill_read_errors"] == 0
        daemon.ok("disk", "rm", "g7")


def read_beside(load: Load, report: dict[str, Any]) -> None:
    """Read and compare many pages that no request of a load is on, which stands still."""
    busy = load.driver.in_flight
    assert busy
    with daemons.client(report) as handle:
        for at in random.Random(8).sample(range(0, SIZE, 4096), PAGES):
            if not any(request.start < at + 4096 and at < request.end for request in busy):
                assert handle.pread(4096, at) == load.driver.model[at : at + 4096]


def test_removal_does_not_wait_for_a_cluster_that_is_away(
    cluster: ceph.Cluster, daemon: daemons.Daemon
) -> None:
    with ceph.image(cluster, "g6", IMAGE_BYTES) as name, gateway.serving(cluster, name) as server:
        daemon.add("g6", "--spill", server.uri, size=SIZE, ram=RAM)
        cluster.osd.kill()
        removed = daemon.run("disk", "rm", "g6")
        assert removed.returncode == 1 and server.uri in removed.stderr and removed.stderr.count("\n") == 1
        assert daemon.ok("disk", "ls", "--json").strip() == "[]"
        cluster.start_osd()
        daemon.add("g6", "--force", "--spill", server.uri, size=SIZE, ram=RAM)
        daemon.ok("disk", "rm", "g6")


def test_the_refusal_tells_how_large_the_image_has_to_be(
    cluster: ceph.Cluster, daemon: daemons.Daemon
) -> None:
    with ceph.image(cluster, "g4", 64 * MIB) as name:
        with gateway.serving(cluster, name) as server:
            refused = daemon.run(
                "disk", "add", "g4", f"--size={SIZE}", f"--ram={RAM}", f"--spill={server.uri}"
            )
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        found = [int(number) for number in re.findall(r"\b\d{8,}\b", refused.stderr)]
        assert found == [64 * MIB, IMAGE_BYTES]
        cluster.resize_image(name, found[1])
        with gateway.serving(cluster, name) as server:
            daemon.add("g4", "--spill", server.uri, size=SIZE, ram=RAM)
            daemon.ok("disk", "rm", "g4")
