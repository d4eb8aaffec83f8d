"""The cluster itself, under a plain NBD client: it does what the tests of a disk's spill take for granted."""

import random

import pytest

from tests.cluster import ceph, gateway
from tests.cluster.load import Load
from tests.real import driver

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]
SIZE = 64 << 20
REQUESTS = 1500


def loading(server: gateway.Gateway, cluster: ceph.Cluster, seed: int) -> Load:
    load = driver.Driver(server.uri, SIZE, seed=seed)
    # What a trim leaves behind is not said of an RBD image; a disk of ours answers zeros.
    load.weights["trim"] = 0
    return Load(load, cluster.watch)


def test_an_image_keeps_its_bytes_when_its_osd_is_killed(cluster: ceph.Cluster) -> None:
    with ceph.image(cluster, "plain", SIZE) as name, gateway.serving(cluster, name) as server:
        with loading(server, cluster, seed=1) as load:
            load.go_on(REQUESTS)
            cluster.osd.kill()
            load.stall()
            cluster.start_osd()
            load.go_on(REQUESTS)
        load.driver.check_all()
        load.driver.close()


def test_a_killed_gateway_leaves_an_image_that_another_one_serves(cluster: ceph.Cluster) -> None:
    data = random.Random(2).randbytes(1 << 20)
    with ceph.image(cluster, "handed-on", SIZE) as name, gateway.serving(cluster, name) as server:
        with gateway.client(server) as handle:
            handle.pwrite(data, 0)
            handle.flush()
        server.kill()
        server.start()
        with gateway.client(server) as handle:
            assert handle.pread(len(data), 0) == data
            handle.pwrite(data, len(data))  # takes the lock of the one that was killed
            assert handle.pread(len(data), len(data)) == data
