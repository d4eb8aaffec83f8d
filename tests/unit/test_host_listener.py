"""The NBD socket: private from the first moment, replaced in place, never in place of something else."""

import os
import pathlib
import socket
import stat
import subprocess

import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import listener


def test_bound_again_in_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g1.sock"
    with listener.bind(path), listener.bind(path), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.connect(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["g1.sock"]


def test_whose_socket_a_path_names(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g1.sock"
    with listener.bind(path) as bound:
        script = f"exec 3<&{bound.fileno()}; echo up; read -r _"
        holder = subprocess.Popen(
            ["/bin/bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[bound.fileno()],
        )
        with holder:
            assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
            assert listener.is_held(path, holder.pid)
            with listener.bind(path):
                assert not listener.is_held(path, holder.pid)
            path.unlink()
            assert not listener.is_held(path, holder.pid)
            assert holder.stdin is not None
            holder.stdin.write(b"\n")


def test_of_a_process_that_hides_its_files_the_socket_tells(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nbdkit does from a daemon that is not root."""

    def refuse(path: str) -> str:
        raise PermissionError(path)

    monkeypatch.setattr(os, "readlink", refuse)
    path = tmp_path / "g1.sock"
    with listener.bind(path):
        assert listener.is_held(path, os.getpid())
    assert not listener.is_held(path, os.getpid())
    path.unlink()
    assert not listener.is_held(path, os.getpid())


def test_paths_that_cannot_be(tmp_path: pathlib.Path) -> None:
    listener.check(tmp_path / "free")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no socket"):
        listener.check(tmp_path / "file")
    with pytest.raises(UsageError, match="107 bytes"):
        listener.check(tmp_path / ("x" * 110))
    with pytest.raises(SetupError, match="No such file"):
        listener.bind(tmp_path / "none" / "x")
