"""The NBD socket: private from the first moment, replaced in place, never in place of something else."""

import pathlib
import socket
import stat

import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import listener


def test_bound_again_in_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g1.sock"
    with listener.bind(path), listener.bind(path), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.connect(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["g1.sock"]


def test_paths_that_cannot_be(tmp_path: pathlib.Path) -> None:
    listener.check(tmp_path / "free")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no socket"):
        listener.check(tmp_path / "file")
    with pytest.raises(UsageError, match="107 bytes"):
        listener.check(tmp_path / ("x" * 110))
    with pytest.raises(SetupError, match="No such file"):
        listener.bind(tmp_path / "none" / "x")
