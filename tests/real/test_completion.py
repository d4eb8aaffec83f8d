"""What bash offers of a running daemon: its disks, guests and reservations; and nothing, soon, of none."""

import contextlib
import json
import os
import pathlib
import pty
import re
import select
import socket
import subprocess
import sys
import time

import pytest

from tests.hygiene import tree
from tests.real import daemons, words

# However busy the host: a daemon that hangs is not waited for.
SOON_SECONDS = 30.0


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    daemons.require("bash")
    place = tmp_path_factory.mktemp("completion")
    subprocess.run([tree.ROOT / "debian/completion.sh", sys.executable, place], check=True)
    return place / "swaptide"


def furnish(daemon: daemons.Daemon) -> None:
    for name in ("web.1", "web-2", "db"):
        daemon.add(name)
    daemon.ok("guest", "add", "vm1", "--qmp", "/no/such.qmp")


daemon = daemons.shared(furnish)


def environment(run_dir: pathlib.Path, home: pathlib.Path) -> dict[str, str]:
    """Where a shell finds the command of this environment, as an operator would."""
    bin_dir = home / "bin"
    bin_dir.mkdir(exist_ok=True)
    command = bin_dir / "swaptide"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m swaptide.host.cli "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "SWAPTIDE_RUN_DIR": str(run_dir),
        "TERM": "dumb",
        "HOME": str(home),
        "PS1": "READY> ",
    }


def offered(line: str, script: pathlib.Path, run_dir: pathlib.Path, home: pathlib.Path) -> list[str]:
    """What bash has to offer behind `line`, whose last word is begun or empty."""
    typed = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in typed)
    behind = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(typed) - 1};"
        ' _swaptide_completion swaptide; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", behind],
        env=environment(run_dir, home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SOON_SECONDS,
    )
    # `compopt` says that it is called outside of a completion, which here it is.
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("swaptide disk show ", {"web.1", "web-2", "db"}),
        ("swaptide disk set w", {"web.1", "web-2"}),
        ("swaptide disk rm x", set()),
        ("swaptide disk add w", set()),
        ("swaptide top web.1 w", {"web-2"}),
        ("swaptide doctor d", {"db"}),
        ("swaptide snippet web-", {"web-2"}),
        ("swaptide attach db --guest ", {"vm1"}),
        ("swaptide migrate ", {"web.1", "web-2", "db"}),
        ("swaptide guest rm ", {"vm1"}),
        ("swaptide guest add vm2 --disk d", {"db"}),
    ],
)
def test_names(
    line: str, names: set[str], daemon: daemons.Daemon, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert set(offered(line, script, daemon.run_dir, tmp_path)) == names


def test_reservations(daemon: daemons.Daemon, script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    id = json.loads(daemon.ok("reserve", "1M", "--json", "--hold", "10m"))["id"]
    assert offered("swaptide reserve --release ", script, daemon.run_dir, tmp_path) == [id]
    daemon.ok("reserve", "--release", id)
    assert offered("swaptide reserve --release ", script, daemon.run_dir, tmp_path) == []


def test_the_run_directory_of_the_line_counts(
    daemon: daemons.Daemon, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = f"swaptide disk show --run-dir {daemon.run_dir} d"
    assert offered(line, script, tmp_path / "none", tmp_path) == ["db"]


@pytest.mark.parametrize("what", ["nothing", "a file", "hangs", "babbles"])
def test_nothing_is_offered_where_no_daemon_answers(
    what: str, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with contextlib.ExitStack() as stack, daemons.directory() as run_dir:
        path = run_dir / "control.sock"
        if what == "a file":
            path.touch()
        elif what == "hangs":
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen()
        elif what == "babbles":
            stack.enter_context(words.server(path, b"\xff\0" * 99_999))
        assert offered("swaptide disk show ", script, run_dir, tmp_path) == []


def test_a_key_pressed_in_bash(daemon: daemons.Daemon, script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The whole way: a terminal, readline, the script, the command, the daemon."""
    main, other = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        env=environment(daemon.run_dir, tmp_path),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    try:
        read(main, "READY> ")
        os.write(main, f"source {script}\n".encode())
        read(main, "READY> ")
        os.write(main, b"swaptide disk show d\t")
        read(main, "disk show db ")
        os.write(main, b"\n")
        assert "64M" in read(main, "READY> ")
    finally:
        shell.kill()
        shell.wait()
        os.close(main)


def read(terminal: int, wanted: str) -> str:
    """What comes until `wanted` does."""
    said, until = "", time.monotonic() + daemons.WAIT_SECONDS
    while wanted not in re.sub(r"[\a\b]", "", said):
        assert time.monotonic() < until, said
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 4096).decode()
    return said
