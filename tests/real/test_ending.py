"""How commands end: each exit status, interrupted at any step, with nobody who reads or no place to write."""

import json
import os
import pathlib
import pwd
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import click
import pytest

from swaptide.balloon import scenes, traces
from swaptide.host import cli, ending
from tests.hygiene import tree
from tests.real import daemons, interrupts, words

ASKING = [
    (path, command)
    for path, command in words.commands(cli.cli)
    if path != ("serve",) and any(parameter.name == "run_dir" for parameter in command.params)
]

daemon = daemons.shared(daemons.Daemon.add)


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which $swaptide is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={**os.environ, "swaptide": " ".join(daemons.COMMAND), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=daemons.WAIT_SECONDS,
    )


# -- statuses


def documented(page: str, row: str) -> set[int]:
    return {int(number) for number in re.findall(row, (tree.ROOT / page).read_text(), re.MULTILINE)}


def test_every_status_is_documented_and_happens(tmp_path: pathlib.Path) -> None:
    none = f"--run-dir {tmp_path}/none"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        with interrupts.asked(
            listening, [*daemons.COMMAND, "disk", "ls", "--run-dir", str(tmp_path)]
        ) as asked:
            interrupts.end(asked[0], signal.SIGINT)
            interrupted = asked[0].returncode
    found = {
        shell("$swaptide plugin-path").returncode,
        shell(f"$swaptide disk ls {none}").returncode,
        shell("$swaptide disk frobnicate").returncode,
        interrupted,
    }
    assert found == set(ending.Status)
    assert documented("docs/command.md", r"^\| (\d+) \|") == found
    section = (tree.ROOT / "docs/man/swaptide.1").read_text().split(".Sh EXIT STATUS")[1].split(".Sh")[0]
    assert {int(number) for number in re.findall(r"^\.It (\d+)$", section, re.MULTILINE)} == found


def test_errors_under_json_are_a_line_all_the_same(daemon: daemons.Daemon) -> None:
    done = daemon.run("disk", "show", "nope", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "swaptide: there is no disk 'nope'; the disks are: g1\n"


# -- interrupted


@pytest.mark.parametrize("how", interrupts.SIGNALS)
@pytest.mark.parametrize(("path", "command"), ASKING, ids=[" ".join(path) for path, _ in ASKING])
def test_every_command_that_waits_can_be_interrupted(
    path: tuple[str, ...], command: click.Command, how: signal.Signals, tmp_path: pathlib.Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        line = list(words.usual(path, command))
        line[len(path) : len(path)] = ["--run-dir", str(tmp_path)]
        with interrupts.asked(listening, [*daemons.COMMAND, *line]) as (process, request):
            assert json.loads(request)["type"]
            said = interrupts.end(process, how)
            if said.strip():
                assert said.startswith("swaptide: interrupted; ")


@pytest.mark.parametrize("how", interrupts.SIGNALS)
def test_memory_that_nobody_heard_of_is_not_held(daemon: daemons.Daemon, how: signal.Signals) -> None:
    said = interrupts.before_the_answer(daemon, how, "reserve", "1M", "--hold", "10m")
    assert "what was asked for is given up" in said
    daemons.wait_for(lambda: json.loads(daemon.ok("reserve", "--list", "--json")) == [])


@pytest.mark.parametrize("how", interrupts.SIGNALS)
def test_an_interrupted_save_leaves_no_file(
    daemon: daemons.Daemon, how: signal.Signals, tmp_path: pathlib.Path
) -> None:
    said = interrupts.before_the_answer(daemon, how, "disk", "save", "g1", str(tmp_path / "saved"), "--force")
    assert "saved was not made" in said or (tmp_path / "saved").exists()
    daemons.wait_for(lambda: not list(tmp_path.glob(".saved*")))


def test_half_a_trace_is_none(tmp_path: pathlib.Path) -> None:
    def interrupted() -> Iterator[object]:
        yield next(iter(scenes.SCENES["eater"](1)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traces.write(tmp_path / "trace", interrupted())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", interrupts.SIGNALS)
def test_whoever_starts_it_deaf_keeps_it_deaf(how: signal.Signals, tmp_path: pathlib.Path) -> None:
    """As nohup does: a signal that was ignored stays so."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        ignoring = ["env", f"--ignore-signal={how.name.removeprefix('SIG')}"]
        line = [*ignoring, *daemons.COMMAND, "disk", "ls", "--run-dir", str(tmp_path)]
        with interrupts.asked(listening, line) as (process, _):
            process.send_signal(how)
            time.sleep(0.2)
            assert process.poll() is None


# -- nobody reads, or nothing can be written


@pytest.mark.parametrize(
    "line",
    [
        "disk show g1 | head -1",
        "disk show g1 --json | head -1",
        "plan | head -1",
        "doctor g1 | head -1",
        "top --interval 100ms --json | head -1",
        "top --interval 100ms | head -1",
        "disk add --help | head -1",
        "disk ls | true",
    ],
)
def test_a_reader_who_has_enough_is_no_error(line: str, daemon: daemons.Daemon) -> None:
    done = shell(f"$swaptide {line}", SWAPTIDE_RUN_DIR=str(daemon.run_dir))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verdict_stands_whoever_reads_it(daemon: daemons.Daemon) -> None:
    done = shell("$swaptide plan --free 100G | true", SWAPTIDE_RUN_DIR=str(daemon.run_dir))
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "line",
    ["disk ls", "disk show g1 --json", "doctor g1", "top --once --interval 100ms", "plugin-path", "--help"],
)
def test_a_full_disk_is_told(line: str, daemon: daemons.Daemon) -> None:
    done = shell(f"$swaptide {line} >/dev/full", SWAPTIDE_RUN_DIR=str(daemon.run_dir))
    assert (done.returncode, done.stderr) == (1, "swaptide: standard output: No space left on device\n")


@pytest.mark.parametrize(
    "line", ["disk ls >&-", "disk clear g1 >&- 2>&-", "disk show nope 2>&- <&-", "top --once <&-"]
)
def test_closed_streams_are_no_trouble(line: str, daemon: daemons.Daemon) -> None:
    done = shell(f"$swaptide {line}", SWAPTIDE_RUN_DIR=str(daemon.run_dir))
    assert done.returncode == (1 if "nope" in line else 0) and done.stderr == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb"},
        {"NO_COLOR": "1"},
        {"TERM": "", "COLUMNS": "1"},
        {"LANG": "no_SUCH.locale", "LC_ALL": ""},
    ],
    ids=str,
)
def test_any_environment(environment: dict[str, str], daemon: daemons.Daemon) -> None:
    daemon.ok("disk", "ls")
    for line in ("disk show g1", "top --once --interval 100ms", "doctor g1", "disk ls"):
        done = shell(f"$swaptide {line}", SWAPTIDE_RUN_DIR=str(daemon.run_dir), **environment)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "\x1b" not in done.stdout
    done = shell("$swaptide disk show ünïcode", SWAPTIDE_RUN_DIR=str(daemon.run_dir), **environment)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_user_without_home_is_told() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become nobody that is known")
    with pytest.raises(KeyError):
        pwd.getpwuid(54321)
    command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *daemons.COMMAND]
    done = subprocess.run(
        [*command, "serve", "--show-config"],
        env={name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if "swaptide: " not in done.stderr:
        pytest.skip("another user cannot read this environment")
    assert done.returncode == 1
    assert done.stderr == ("swaptide: user 54321 has no home; set HOME, or state_dir in the configuration\n")


# -- the other end


def test_a_daemon_that_hangs_is_told(daemon: daemons.Daemon) -> None:
    assert daemon.process is not None
    program = (
        "import sys; from swaptide.host import ending, protocol; protocol.SILENCE_SECONDS = 1.0;"
        f" sys.argv = ['swaptide', 'disk', 'ls', '--run-dir', {str(daemon.run_dir)!r}]; ending.main()"
    )
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        done = subprocess.run(
            [*daemons.COMMAND[:2], "-c", program],
            capture_output=True,
            text=True,
            check=False,
            timeout=daemons.WAIT_SECONDS,
        )
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "has said nothing for 1 s" in done.stderr
    assert str(daemon.run_dir / "control.sock") in done.stderr and "start it anew" in done.stderr


def answering(path: pathlib.Path, answers: list[bytes]) -> socket.socket:
    """A daemon of another version, which has these answers for one call."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        with listening, listening.accept()[0] as client:
            client.makefile("rb").readline()
            client.sendall(b"".join(answers))

    threading.Thread(target=serve).start()
    return listening


def test_a_daemon_that_works_long_is_waited_for(tmp_path: pathlib.Path) -> None:
    answering(tmp_path / "control.sock", [b'{"type":"alive"}\n'] * 3 + [b'{"type":"result","value":[]}\n'])
    done = shell("$swaptide disk ls --json", SWAPTIDE_RUN_DIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"type":"result","value":[{"name":"g1"}]}\n', "is the daemon of another version?"),
        (b'{"type":"result","value":[{"name":"g1"}],"seal":3}\n', "does not answer as a daemon does"),
        (b'{"type":"novelty"}\n', "of version"),
        (b'{"type":"failure","kind":"novel","message":"so it is; do this"}\n', "so it is; do this"),
        (b"\xff\n", "does not answer as a daemon does"),
        (b"", "the daemon ended before it answered"),
    ],
)
def test_a_daemon_of_another_version_is_told(answer: bytes, said: str, tmp_path: pathlib.Path) -> None:
    answering(tmp_path / "control.sock", [answer])
    done = shell("$swaptide disk ls", SWAPTIDE_RUN_DIR=str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("swaptide: ")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_command_of_another_version_is_told(daemon: daemons.Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.run_dir / "control.sock"))
        raw.sendall(b'{"type":"novelty"}\n')
        reply = json.loads(raw.makefile("rb").readline())
    assert reply["kind"] == "usage" and "which is version" in reply["message"]


def test_what_nobody_foresaw_can_be_looked_into(tmp_path: pathlib.Path) -> None:
    answering(tmp_path / "control.sock", [b'{"type":"result","value":[{"name":"g1"}]}\n'])
    done = shell("$swaptide disk ls", SWAPTIDE_RUN_DIR=str(tmp_path), SWAPTIDE_DEBUG="1")
    assert "KeyError" in done.stderr and "Traceback" in done.stderr
