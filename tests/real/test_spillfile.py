"""The spill file's name, header and lock, with another process coming between."""

import fcntl
import os
import pathlib
import uuid

import pytest

from swaptide.cache import geometry, layout, spillfile
from swaptide.cache.errors import BusyError
from tests.real import stores

SHAPE = geometry.of_size(8 << 20)


def make(path: pathlib.Path, state: pathlib.Path) -> str:
    """Make the spill file of a disk at `path`, closed as when its process died; returns the disk's id."""
    disk_id = str(uuid.uuid4())
    spillfile.create(path, SHAPE, disk_id, str(state), force=False).close()
    return disk_id


def test_a_file_that_is_collected_while_it_is_claimed_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the disk would serve, and lose what it spilled when its process ends."""
    path = tmp_path / "a.spill"
    make(path, tmp_path / "gone")
    lock = spillfile._lock

    def late(fd: int, where: pathlib.Path) -> None:
        monkeypatch.setattr(spillfile, "_lock", lock)
        assert spillfile.collect_orphans(tmp_path) == [path]
        lock(fd, where)

    monkeypatch.setattr(spillfile, "_lock", late)
    with pytest.raises(BusyError, match="removed meanwhile"):
        make(path, tmp_path / "gone")


def test_a_disk_made_while_its_file_was_judged_is_not_collected(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "a.spill", tmp_path / "state"
    make(path, tmp_path / "gone")
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        known = uuid.UUID(make(path, state)).bytes
        size = SHAPE.size_bytes
        words = (layout.MAGIC, layout.FORMAT_VERSION, geometry.SEGMENT_BYTES, size, known, b"a", 0)
        state.write_bytes(layout.IDENTITY.pack(*words))
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert spillfile.collect_orphans(tmp_path) == []
    assert path.exists()


def test_a_device_is_kept_from_others_after_a_restart_too(tmp_path: pathlib.Path) -> None:
    stores.need("losetup")
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(SHAPE.spill_bytes)
    with stores.loop(image) as path:
        disk_id = make(path, tmp_path / "state")
        again = spillfile.reopen(path, SHAPE, disk_id)
        with pytest.raises(OSError, match="busy"):
            os.open(path, os.O_RDWR | os.O_EXCL)  # as mount and mkfs do
        again.close()
        held = os.open(path, os.O_RDWR | os.O_EXCL)
        with pytest.raises(BusyError, match="in use"):
            spillfile.reopen(path, SHAPE, disk_id)
        os.close(held)
