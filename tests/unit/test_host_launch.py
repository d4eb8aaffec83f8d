"""How nbdkit is called, and what is made of its last words."""

import pathlib

import msgspec
import pytest

from swaptide.cache import face, statefile
from swaptide.cache.errors import SetupError
from swaptide.host import config, launch
from tests.unit.test_host_definitions import DISK


@pytest.fixture
def chosen() -> config.Config:
    return config.load(None, pathlib.Path("/r"))


def test_command_names_everything(chosen: config.Config) -> None:
    disk = msgspec.structs.replace(DISK, swap_label="tide")
    words = launch.command(chosen, disk, fresh=True, force=True)
    assert words[:4] == ["nbdkit", "-f", "-t", "16"]
    assert {"size=1073741824", "ram=67108864", "spill=/s/g1.spill", "state=/m/g1.state", "name=g1"} <= set(
        words
    )
    assert {"swap-label=tide", "force=yes"} <= set(words)
    assert words[words.index("python") + 2] == "log-format=text", "before what it may complain of"


def test_a_disk_with_contents_gets_no_label(chosen: config.Config) -> None:
    disk = msgspec.structs.replace(DISK, swap_label="tide")
    words = launch.command(chosen, disk, fresh=False, force=False)
    assert not any(word.startswith(("swap-label", "force")) for word in words)


def test_what_is_in_the_state_file_is_not_on_the_command_line(chosen: config.Config) -> None:
    words = launch.command(chosen, DISK, fresh=False, force=False)
    assert not any(
        word.startswith(("ram=", "floor=", "target=", "compress=", "clean-ahead=")) for word in words
    )


@pytest.mark.parametrize(("target", "expected"), [(30 << 20, 30 << 20), (100 << 20, 64 << 20)])
def test_a_state_file_is_reminded_of_its_definition(
    chosen: config.Config, tmp_path: pathlib.Path, target: int, expected: int
) -> None:
    before = face.Limits(cap_bytes=128 << 20, target_bytes=target, floor_bytes=24 << 20)
    made = statefile.create(tmp_path / "g1", DISK.size_bytes, "g1", before, encrypted=False)
    made.publish()
    made.close()
    disk = msgspec.structs.replace(DISK, compress="zstd", clean_ahead_percent=50, spill_path="nbd://h/x")
    with face.StateFace(tmp_path / "g1") as state:
        launch.remind(chosen, disk, state)
        assert state.limits() == face.Limits(
            cap_bytes=DISK.cap_bytes, target_bytes=expected, floor_bytes=DISK.floor_bytes
        )
        assert state.compress() == "zstd"
        assert state.spill_timeout_seconds() == chosen.spill_timeout_seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("swaptide: INFO x\nnbdkit: error: swaptide: spill=/x: no\nnbdkit: error: other\n", "spill=/x: no"),
        (
            '{"event": "disk cannot start", "error": "spill=/x: no"}\nnbdkit: error: other\n',
            "spill=/x: no",
        ),
        (
            '{"event": "movers died", "level": "CRITICAL", "exception": "Traceback\\nKeyError: 7"}\n',
            "nbdkit ended before it served: movers died: KeyError: 7",
        ),
        ('{"event": "it fails", "error": "no"}\n', "nbdkit ended before it served: it fails: no"),
        ("{", "nbdkit ended before it served: {"),
        ("nbdkit: error: cannot open plugin\n", "nbdkit ended before it served: cannot open plugin"),
        ("Segmentation fault\n\n", "nbdkit ended before it served: Segmentation fault"),
        ("", "nbdkit ended before it served: it said nothing"),
    ],
)
def test_last_word(tmp_path: pathlib.Path, text: str, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text("nbdkit: error: swaptide: of an earlier start\n")
    since = log.stat().st_size
    with open(log, "a") as file:
        file.write(text)
    assert launch.last_word(log, since) == expected


def test_no_owner_without_a_state_file() -> None:
    assert launch.owner(DISK) is None


def test_missing_nbdkit_is_named() -> None:
    with pytest.raises(SetupError, match=r"no-such-nbdkit.*Debian"):
        launch.require("no-such-nbdkit")
