"""What most tests of a daemon begin with.  A file that needs another one makes its own, by the same
name; `daemons.shared` makes one for all its tests."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real import daemons, movers, remotes


@pytest.fixture
def root() -> Iterator[pathlib.Path]:
    """A short path on a real file system, that other users may enter."""
    with daemons.directory() as made:
        yield made


@pytest.fixture
def settings() -> dict[str, Any]:
    """What the daemon's configuration says beside what every test's does."""
    return {}


@pytest.fixture
def daemon(root: pathlib.Path, settings: dict[str, Any]) -> Iterator[daemons.Daemon]:
    """A daemon without disks."""
    with daemons.serving(root, **settings) as running:
        yield running


@pytest.fixture
def remote(root: pathlib.Path) -> Iterator[remotes.Remote]:
    """A spill server for one of its disks."""
    with remotes.serving(root / "remote", daemons.SIZE, open_to_all=True) as made:
        yield made


@pytest.fixture
def guest(pair: movers.Pair) -> Iterator[movers.Guest]:
    """A client of a disk that moves; the two hosts, `pair`, are each file's own."""
    with movers.at_work(pair) as made:
        yield made


@pytest.fixture
def qemu(pair: movers.Pair) -> Iterator[movers.Qemu]:
    """Its QEMU."""
    with movers.qemu_of(pair) as made:
        yield made
