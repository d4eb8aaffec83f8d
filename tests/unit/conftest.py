"""Disks for tests that move by hand."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from swaptide.cache import places
from tests.unit import hands


@pytest.fixture()
def disks(tmp_path: pathlib.Path) -> Iterator[hands.Maker]:
    """Makes disks whose state is on tmpfs; a new one takes the place of the one before."""
    state = pathlib.Path(f"/dev/shm/swaptide-test-pack-{os.getpid()}")
    with contextlib.ExitStack() as stack:

        def make(
            size: int = hands.SIZE, encrypt: bool = True, spill: places.Spill | None = None
        ) -> hands.Hand:
            stack.close()
            stack.callback(state.unlink, missing_ok=True)
            hand = hands.Hand(state, spill or tmp_path / "spill", size, encrypt)
            stack.callback(hand.close)
            return hand

        yield make


@pytest.fixture()
def hand(disks: hands.Maker) -> hands.Hand:
    """One disk."""
    return disks()
