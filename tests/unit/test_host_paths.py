"""Names derived from run directories: distinct, short enough, and as systemd writes them."""

import pathlib

import pytest

from swaptide.host import paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/run/swaptide", "run-swaptide"),
        ("/run/a-b", r"run-a\x2db"),
        ("/.hidden/x.y", r"\x2ehidden-x.y"),
        ("/tmp/ü b", r"tmp-\xc3\xbc\x20b"),
        ("/", "-"),
    ],
)
def test_escape(path: str, expected: str) -> None:
    assert paths.escape(pathlib.Path(path)) == expected


def test_long_paths_stay_apart() -> None:
    one, two = (paths.escape(pathlib.Path("/" + "x" * 300 + end)) for end in "ab")
    assert one != two
    assert len(one) < 220


def test_plugin_is_a_file() -> None:
    assert paths.plugin().is_file()


def test_defaults_follow_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_STATE_HOME", "/users/u/state")
    assert paths.default_run_dir() == pathlib.Path("/run/user/1000/swaptide")
    assert paths.default_state_dir() == pathlib.Path("/users/u/state/swaptide")
