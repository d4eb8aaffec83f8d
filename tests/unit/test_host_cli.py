"""The command without a daemon: light to start, and one line for what makes no sense."""

import pathlib
import subprocess
import sys

import pytest

from swaptide.host import ending, paths

COMMAND = [sys.executable, "-P", "-m", "swaptide.host.cli"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def test_plugin_path_prints_nothing_else() -> None:
    done = run("plugin-path")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{paths.plugin()}\n", "")


def test_options_that_do_nothing_are_refused() -> None:
    assert run("plugin-path", "--run-dir", "/tmp").returncode == 2


def test_what_a_hangup_does_is_said() -> None:
    said = " ".join(run("serve", "--help").stdout.split())
    assert "SIGTERM, SIGINT and SIGHUP end it alike" in said and "read once" in said


def test_starting_is_light() -> None:
    script = "import sys, swaptide.host.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert not {"rich", "asyncio", "msgspec", "nbd", "qemu"} & set(done.stdout.split())


def test_mistakes_are_one_line_and_status_2() -> None:
    for words in (["frob"], ["disk", "add"], ["disk", "add", "g", "--size", "x", "--ram", "1M"], ["--nope"]):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("swaptide: ") and done.stderr.count("\n") == 1
        assert "--help" in done.stderr


def test_arguments_that_are_hostile_are_one_line() -> None:
    add = ["disk", "add", "g", "--ram", "32M", "--size"]
    for words in (
        [b"disk", b"show", b"\xff"],
        [b"serve", b"--show-config", b"--run-dir", b"/tmp/\xff"],
        [*add, "9" * 5000],
        [*add, "64M", "--weight", "9" * 5000],
        [*add, "64M", "--spill", ""],
        ["disk", "ls", "--run-dir", ""],
    ):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        assert done.stderr.startswith("swaptide: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (OSError(28, "No space left on device", b"/a\xff"), "/a\\udcff: No space left on device"),
        (OSError(18, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid cross-device link"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (OSError("just\nthis"), "just this"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_of_the_system_names_the_file_first(error: OSError, said: str) -> None:
    assert ending.one_line(error) == said


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: pathlib.Path) -> None:
    for path, why in (("/no/such", "No such file or directory"), (str(tmp_path), "Is a directory")):
        done = run("simulate", path)
        assert (done.returncode, done.stdout, done.stderr) == (
            1,
            "",
            f"swaptide: {path}: {why}; name another file\n",
        )


def test_show_config_needs_nothing() -> None:
    done = run("serve", "--show-config", "--run-dir", "/no/such")
    assert done.returncode == 0
    assert 'run_dir = "/no/such"' in done.stdout


def test_help_is_no_error() -> None:
    for words in (["--help"], ["disk", "--help"], ["disk", "add", "--help"]):
        done = run(*words)
        assert done.returncode == 0 and "Usage: swaptide" in done.stdout and done.stderr == ""
