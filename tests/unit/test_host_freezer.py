"""Waiting for a disk to stand still, on a state file made by hand whose plugin is the test itself."""

import asyncio
import pathlib
import types
import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest

from swaptide.cache import geometry, layout
from swaptide.cache.errors import BusyError, SetupError
from swaptide.cache.face import StateFace
from swaptide.host import freezer
from swaptide.host.supervisor import State


class Disk:
    """What a keeper tells of a disk, and the pages that its plugin writes."""

    def __init__(self, path: pathlib.Path) -> None:
        self.definition = types.SimpleNamespace(name="g1", state_path=str(path), spill_path="/spill/g1")
        self.state = State.RUNNING
        self.error = ""
        identity = layout.IDENTITY.pack(
            layout.MAGIC, layout.FORMAT_VERSION, geometry.SEGMENT_BYTES, 1 << 30, uuid.uuid4().bytes, b"g1", 0
        )
        path.write_bytes(identity.ljust(geometry.DIRECTORY_OFFSET, b"\0"))
        self.path = path

    def see(self, word: int) -> bool:
        """Obey a word, as the plugin does; it is not gone."""
        with open(self.path, "r+b") as file:
            file.seek(geometry.COUNTERS_OFFSET + layout.COUNTERS.index("frozen_seen") * layout.WORD.size)
            file.write(layout.WORD.pack(word))
        return False

    def is_frozen(self) -> bool:
        with StateFace(self.path) as state:
            return state.is_frozen()

    def turn(self, frozen: bool, act: Callable[[int], bool], limit_seconds: float = 60.0) -> dict[str, Any]:
        """Freeze or thaw; `act` is called at each look with its number, and says whether the disk is gone."""
        looks = iter(range(1_000_000))
        return asyncio.run(
            freezer.turn(cast(Any, self), frozen, lambda: act(next(looks)), limit_seconds=limit_seconds)
        )


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Disk:
    return Disk(tmp_path / "g1.state")


def test_it_is_waited_for_until_it_is_seen(disk: Disk) -> None:
    looks = []

    def act(look: int) -> bool:
        looks.append(look)
        if look == 3:
            disk.see(1)
        return False

    done = disk.turn(True, act)
    assert (done["name"], done["frozen"]) == ("g1", True) and looks == [0, 1, 2, 3]
    assert disk.turn(True, act)["frozen"] and looks == [0, 1, 2, 3], "it stands still already"
    assert not disk.turn(False, lambda look: disk.see(2))["frozen"]
    assert not disk.is_frozen()


def test_what_an_earlier_freeze_was_told_counts_for_nothing(disk: Disk) -> None:
    disk.turn(True, lambda look: disk.see(1))
    disk.turn(False, lambda look: disk.see(2))
    disk.see(1)  # as it was
    with pytest.raises(SetupError, match="has not ended within 0 s"):
        disk.turn(True, lambda look: False, limit_seconds=0.05)


def test_a_freeze_that_takes_too_long_says_what_it_waits_for(disk: Disk) -> None:
    with pytest.raises(SetupError, match="is its store /spill/g1 alive.*`swaptide disk thaw g1` undoes it"):
        disk.turn(True, lambda look: False, limit_seconds=0.05)
    assert disk.is_frozen()
    with pytest.raises(SetupError, match="told to go on, but does not answer"):
        disk.turn(False, lambda look: False, limit_seconds=0.05)
    assert not disk.is_frozen()


def test_somebody_else_may_undo_it(disk: Disk) -> None:
    def thaw(look: int) -> bool:
        with StateFace(disk.path) as state:
            state.set_frozen(False)
        return False

    with pytest.raises(BusyError, match="was thawed by somebody else meanwhile"):
        disk.turn(True, thaw)


def test_it_may_go(disk: Disk) -> None:
    with pytest.raises(BusyError, match="was removed or cleared meanwhile"):
        disk.turn(True, lambda look: look == 2)
    disk.path.unlink()
    with pytest.raises(BusyError, match="holds nothing yet"):
        disk.turn(True, lambda look: False)


def test_it_may_not_run(disk: Disk) -> None:
    disk.state, disk.error = State.FAILED, "no such store"
    with pytest.raises(BusyError, match=r"does not run \(no such store\); it stands still from when it does"):
        disk.turn(True, lambda look: False)
    assert disk.is_frozen()
