"""Where state files lie: ours alone, and given back only when nobody needs it."""

import dataclasses
import fcntl
import os
import pathlib

import pytest

from swaptide.cache.errors import SetupError
from swaptide.host import config, memory


def place(tmp_path: pathlib.Path) -> config.Config:
    return dataclasses.replace(config.load(None, tmp_path / "run"), memory_dir=tmp_path / "mem")


def test_prepare_and_release(tmp_path: pathlib.Path) -> None:
    made = memory.prepare(place(tmp_path))
    assert made.directory.parent == tmp_path / "mem"
    assert made.directory.stat().st_mode & 0o777 == 0o700
    (made.directory / "g1.state").touch()
    memory.release(made)
    assert made.directory.exists()
    (made.directory / "g1.state").unlink()
    memory.release(made)
    assert not made.directory.exists()


def test_a_directory_that_others_may_enter_is_refused(tmp_path: pathlib.Path) -> None:
    made = memory.prepare(place(tmp_path))
    made.directory.chmod(0o755)
    with pytest.raises(SetupError, match="not ours alone"):
        memory.prepare(place(tmp_path))


def test_nothing_is_mounted_where_a_link_or_a_file_leads(tmp_path: pathlib.Path) -> None:
    own = tmp_path / "run" / "mem"
    own.parent.mkdir()
    memory.check_own(own)
    own.symlink_to(tmp_path)
    with pytest.raises(SetupError, match=f"{own} is not a directory of ours"):
        memory.prepare(config.load(None, tmp_path / "run"))
    own.unlink()
    own.touch()
    with pytest.raises(SetupError, match=f"{own} is not a directory of ours"):
        memory.prepare(config.load(None, tmp_path / "run"))
    own.unlink()
    own.mkdir()
    memory.check_own(own)
    if os.geteuid() == 0:
        os.chown(own, 65534, 65534)
        with pytest.raises(SetupError):
            memory.check_own(own)


def test_orphans(tmp_path: pathlib.Path) -> None:
    prefix = f"swaptide-{os.geteuid()}-"
    for name, run_dir in (("kept", tmp_path), ("gone", tmp_path / "no"), ("busy", tmp_path / "no")):
        directory = tmp_path / (prefix + name)
        directory.mkdir()
        (directory / "run-dir").write_text(str(run_dir))
        (directory / "g1.state").touch()
    (tmp_path / (prefix + "foreign")).mkdir()
    with open(tmp_path / (prefix + "busy") / "g1.state") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert memory.collect_orphans(tmp_path) == [tmp_path / (prefix + "gone")]
        assert memory.is_locked(tmp_path / (prefix + "busy") / "g1.state")
    assert sorted(p.name.removeprefix(prefix) for p in tmp_path.iterdir()) == ["busy", "foreign", "kept"]
