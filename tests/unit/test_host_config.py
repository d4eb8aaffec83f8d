"""The configuration: what wins over what, what is refused, and that it prints what it reads."""

import os
import pathlib

import pytest

from swaptide.balloon import rooms
from swaptide.cache import logs
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import config


def test_command_line_wins_over_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('run_dir = "/run/file"\nstate_dir = "/state"\nthreads = 4\n')
    assert config.load(file, None).run_dir == pathlib.Path("/run/file")
    chosen = config.load(file, pathlib.Path("/run/flag"))
    assert chosen.run_dir == pathlib.Path("/run/flag")
    assert (chosen.spill_dir, chosen.threads) == (pathlib.Path("/state"), 4)
    assert chosen.control_socket == pathlib.Path("/run/flag/control.sock")
    assert chosen.definitions_dir == pathlib.Path("/state/run-flag")


def test_what_is_printed_can_be_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('state_dir = "/a \\"b\\"\\\\c"\nmemory_dir = "/m"\nnbdkit = "/opt/nbdkit"\nuser = "7"\n')
    first = config.load(file, pathlib.Path("/r"))
    file.write_text(first.as_toml())
    assert config.load(file, None) == first


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("spil_dir = 1", "spil_dir"),
        ("threads = 'x'", "threads"),
        ("threads = 1000", "threads"),
        ("[", "TOML"),
        ("threads = " + "9" * 5000, "TOML"),
        ("threads = " + "[" * 5000, "TOML"),
        ("threads = 99999999999999999999", "threads"),
        ("nbdkit = ''", "nbdkit"),
        ("user = ''", "user"),
        ("user = 7", "user"),
        ("uids = 7", "uids"),
        ("balloon = 1", "balloon"),
        ("balloon = 'yes'", "balloon"),
        ("host_reserve = 5", "host_reserve"),
        ("host_reserve = '5 apples'", "host_reserve '5 apples' is neither"),
        ("host_reserve = '-1G'", "host_reserve"),
        ("host_reserve = '100%'", "host_reserve"),
        ("cgroup_reserve = '5.5%'", "cgroup_reserve '5.5%' is neither"),
        ("cgroup_reserve = '" + "9" * 500 + "'", "cgroup_reserve"),
        ("spill_timeout = 30", "spill_timeout"),
        ("spill_timeout = '30'", "spill_timeout: time '30' is not a number with"),
        ("spill_timeout = '500ms'", "spill_timeout: time '500ms' is less than 1s"),
        ("spill_timeout = '25h'", "spill_timeout"),
        ("trace = ''", "trace"),
        ("cgroup = ''", "cgroup"),
        ("cgroup = 5", "cgroup"),
        ("metrics = ''", "metrics"),
        ("metrics = 9819", "metrics"),
        ("metrics = false", "metrics"),
        ("metrics = 'nonsense'", "metrics=nonsense: not an IP address"),
        ("log_format = ''", "log_format"),
        ("log_format = 'xml'", "log_format=xml: must be one of text, json"),
        ("proc_dir = ''", "proc_dir"),
        ("uids = '7'", "not a range"),
        ("uids = '7-8'\nuser = 'x'", "choose one"),
        ("run_dir = ''", "run_dir"),
        ('run_dir = "/a\\u0000b"', "run_dir"),
        ("#" * (1 << 20) + "#", "longer"),
    ],
)
def test_bad_files_are_named(tmp_path: pathlib.Path, text: str, word: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=word) as caught:
        config.load(file, None)
    assert str(file) in str(caught.value)


def test_the_balloon(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'balloon = false\nhost_reserve = "2G"\ncgroup_reserve = "7%"\ntrace = "/t"\nproc_dir = "/h/proc"'
    )
    chosen = config.load(file, pathlib.Path("/r"))
    assert not chosen.balloon and "balloon = false\n" in chosen.as_toml()
    assert config.reserve("host_reserve", chosen.host_reserve) == rooms.Reserve(fixed_bytes=2 << 30)
    assert config.reserve("cgroup_reserve", chosen.cgroup_reserve) == rooms.Reserve(percent=7)
    assert (chosen.trace, chosen.proc_dir) == (pathlib.Path("/t"), pathlib.Path("/h/proc"))
    file.write_text(chosen.as_toml())
    assert config.load(file, None) == chosen


def test_the_form_of_the_log(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    assert config.load(None, tmp_path).log_format is logs.Form.TEXT
    file.write_text('log_format = "json"')
    chosen = config.load(file, tmp_path)
    assert chosen.log_format is logs.Form.JSON and 'log_format = "json"\n' in chosen.as_toml()
    assert config.load(file, tmp_path, log_format="text").log_format is logs.Form.TEXT


def test_the_balloon_by_default(tmp_path: pathlib.Path) -> None:
    chosen = config.load(None, tmp_path)
    assert chosen.balloon and chosen.trace is None
    assert config.reserve("host_reserve", chosen.host_reserve) == rooms.HOST_RESERVE
    assert config.reserve("cgroup_reserve", chosen.cgroup_reserve) == rooms.CGROUP_RESERVE
    assert "# host_reserve is not set: 5% of the host's RAM" in chosen.as_toml()


def test_only_regular_files(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for file in (tmp_path / "fifo", pathlib.Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            config.load(file, None)
    with pytest.raises((SetupError, UsageError), match=f"configuration {tmp_path}"):
        config.load(tmp_path, None)


def test_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        config.load(tmp_path / "none", None)
