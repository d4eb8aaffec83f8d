"""Files that are there whole or not at all."""

import errno
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from swaptide.host import drafts


def no_nameless_files(real: Callable[..., int]) -> Callable[..., int]:
    """What NFS says."""

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode)

    return refuse


@pytest.fixture(params=["nameless", "hidden"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "hidden":
        monkeypatch.setattr(os, "open", no_nameless_files(os.open))
    return str(request.param)


def test_there_when_it_is_whole(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "saved"
    for content in (b"one", b"another, in its place"):
        with drafts.becoming(path) as fd:
            os.write(fd, content)
            seen = {each.name for each in tmp_path.iterdir()} - {path.name}
            assert seen == (set() if kind == "nameless" else {f".saved.{os.getpid()}.new"})
        assert path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == [path]


def test_nothing_after_an_error(kind: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt), drafts.becoming(tmp_path / "saved") as fd:
        os.write(fd, b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_nothing_where_its_name_is_taken(kind: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "saved").mkdir()
    with pytest.raises(IsADirectoryError), drafts.becoming(tmp_path / "saved"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["saved"]


def test_no_place_to_be(kind: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError), drafts.becoming(tmp_path / "missing" / "saved"):
        pass
