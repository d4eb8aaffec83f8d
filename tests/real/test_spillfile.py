"""The spill file's name, header and lock with another process coming between, and one without direct I/O."""

import contextlib
import fcntl
import os
import pathlib
import random
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from swaptide.cache import engine, geometry, keys, layout, spillfile
from swaptide.cache.errors import BusyError
from tests.real import server, stores

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


@contextlib.contextmanager
def ext4(device: pathlib.Path, where: pathlib.Path, options: str) -> Iterator[None]:
    """A file system on a device, mounted."""
    stores.need("mkfs.ext4", "mount", "umount")
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-J", "size=4", str(device)], check=True)
    done = subprocess.run(["mount", "-t", "ext4", "-o", options, str(device), str(where)], check=False)
    if done.returncode:
        pytest.skip("no ext4 can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=False)


def test_a_late_write_error_without_direct_io_is_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page cache takes everything; the store refuses it later, when the RAM may have been given back."""
    real = fcntl.fcntl

    def refuse(fd: int, what: int, *arguments: int) -> object:
        if what == fcntl.F_SETFL and arguments[0] & os.O_DIRECT:
            raise OSError(22, "no direct I/O")
        return real(fd, what, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    state = server.directory_on_tmpfs(tmp_path) / "state"
    noise = random.Random(1).randbytes(4 << 20)
    with stores.faulty(tmp_path / "store", 128 << 20) as store, ext4(store.path, tmp_path / "fs", "rw"):
        settings = engine.Settings(8 << 20, 256 << 20, state=state, spill=tmp_path / "fs" / "spill")
        made = engine.Engine.prepare(settings)
        try:
            os.fsync(made.spill_fd)
            made.segments.ram.set_budget(1 << 40, 0)
            made.moves.populate(6)
            made.log.write_bytes(noise, 0)
            with store.refusing("write"):
                assert made.moves.spill(0, 1, False) < 0
            assert made.moves.drop(9) == 0
            assert made.log.read_bytes(len(noise), 0) == noise
        finally:
            keys.erase(made.identity.disk_id)
            made.stop()
            state.unlink()
            state.parent.rmdir()


def test_direct_io_in_name_only_is_seen(tmp_path: pathlib.Path) -> None:
    """ext4 with data=journal accepts O_DIRECT, and uses the page cache all the same."""
    for options, direct in (("data=ordered", True), ("data=journal", False)):
        image = tmp_path / f"image-{direct}"
        with open(image, "wb") as file:
            file.truncate(64 << 20)
        with stores.loop(image) as device, ext4(device, tmp_path / options, options):
            made = spillfile.create(tmp_path / options / "s", SHAPE, str(uuid.uuid4()), "", force=False)
            assert made.direct is direct
            made.close()
