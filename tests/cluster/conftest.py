"""One cluster for all tests of this directory, made aloud: it takes its time."""

from collections.abc import Iterator

import pytest

from tests.cluster import ceph, gateway
from tests.real import daemons

PATIENCE_SECONDS = 40


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[ceph.Cluster]:
    """A running cluster; what is waited for is printed past pytest's capture."""
    missing = [*ceph.missing(), *([] if gateway.path_of_driver() else ["qemu-nbd's driver for RBD"])]
    if missing:
        pytest.skip(f"{', '.join(missing)}: missing (`make cluster-test` installs what it needs)")
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    say("a Ceph cluster on 127.0.0.1:")
    with daemons.directory() as root, ceph.running(root, say) as running:
        yield running


@pytest.fixture
def patient_daemon() -> Iterator[daemons.Daemon]:
    """As `daemon`, but reads wait longer for a store: a busy machine takes its time."""
    with daemons.directory() as root, daemons.serving(root, spill_timeout=f"{PATIENCE_SECONDS}s") as running:
        yield running


@pytest.fixture
def daemon() -> Iterator[daemons.Daemon]:
    """A running daemon."""
    with daemons.directory() as root, daemons.serving(root) as running:
        yield running
