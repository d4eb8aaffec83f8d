"""The programs of a checkout, given what nobody should give them, and interrupted: one line, nothing left."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.hygiene import tree

SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A recipe of vm-images that is at work, in a scratch directory, with a child.
RECIPE = """
import pathlib, sys
sys.path.insert(0, "vm-images")
import build, tools
tools.CACHE = pathlib.Path(sys.argv.pop())
def make(refresh):
    with tools.only_one(), tools.scratch() as place:
        (place / "half").touch()
        tools.run("sh", "-c", "echo $$ >%s; exec sleep 1000" % (tools.CACHE / "child"))
sys.exit(build.command("x", "guest image", "x", make))
"""
# What stands for the Python of a checkout's .venv: all steps are quick, but for the image's.
STUB = """#!/bin/bash
echo "$*" >>calls
case "$1" in
vm-images/*) [ ! -e slow ] || { trap 'kill $!; exit 130' INT TERM HUP; sleep 1000 & wait; } ;;
esac
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=tree.ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def appears(path: pathlib.Path, wanted: str = "") -> str:
    until = time.monotonic() + SECONDS
    while not path.exists() or not (text := path.read_text()) or wanted not in text:
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.02)
    return text


def ends(pid: int) -> None:
    """It is killed; whoever inherits it may take a moment to notice."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        assert time.monotonic() < until, f"{pid} runs on"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--listen", "nope"), "'nope' is no address"),
        (("--listen", "127.0.0.1:99999"), "99999"),
        (("--listen", ""), "'' is no address"),
        (("--listen", "127.0.0.1:0", "--metrics", "a b"), "a b"),
        (("--listen", "127.0.0.1:0", "--metrics", "x\ny"), "no daemon answers"),
        (("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:nan"), "127.0.0.1:nan"),
        (("--listen", "127.0.0.1:0", "--metrics", ""), "no daemon answers"),
    ],
)
def test_the_dashboard_names_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = run("dashboards/run.py", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dashboard: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and "make dashboard" in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--seconds", "nan"), 2),
        (("--seconds", "inf"), 2),
        (("--seconds", "-1"), 2),
        (("--rounds", "0"), 2),
        (("--row", "nope"), 2),
        (("--row", "squeeze", "--out", "/dev/null/x"), 1),
        (("--out", "/dev/null"), 1),
        (("--nope",), 2),
    ],
)
def test_the_benchmark_refuses_at_once(words: tuple[str, ...], status: int) -> None:
    done = run("bench/run.py", *words)
    assert (done.returncode, done.stdout) == (status, "") and "Traceback" not in done.stderr
    assert words[-1] in done.stderr


@pytest.mark.parametrize("recipe", ["build", "bios", "debian", "system"])
@pytest.mark.parametrize("words", [("--nope",), ("../x",), ("",), ("\x1b[2J",)])
def test_recipes_refuse_at_once(recipe: str, words: tuple[str, ...]) -> None:
    done = run(f"vm-images/{recipe}.py", *words)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert "usage: " in done.stderr


@pytest.mark.parametrize("how", SIGNALS)
def test_an_interrupted_recipe_leaves_nothing_half_made(how: signal.Signals, tmp_path: pathlib.Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RECIPE, str(tmp_path)], cwd=tree.ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            child = int(appears(tmp_path / "child"))
            time.sleep(0.2)  # so that it has come back from starting it
            process.send_signal(how)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"build.lock", "child"}
    ends(child)


@pytest.mark.parametrize("how", SIGNALS)
def test_an_interrupted_setup_goes_no_further(how: signal.Signals, tmp_path: pathlib.Path) -> None:
    """Ctrl-C reaches all of its processes, and the step at work ends of it with a status of its own."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(tree.ROOT / ".ci/setup", tmp_path / ".ci/setup")
    (tmp_path / ".ci/packages.debian").write_text("bash | true | it is what runs this\n")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in"):
        (tmp_path / name).touch()
    for name in ("cache", "nbdkit_plugin", ".venv/bin", "vm-images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    for name in ("python", "pip", "swaptide"):
        (tmp_path / ".venv/bin" / name).write_text(STUB)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    setup = [str(tmp_path / ".ci/setup"), "guests"]
    shutil.copy(tmp_path / ".ci/packages.debian", tmp_path / ".ci/packages.guests")
    subprocess.run(setup, check=True, capture_output=True, timeout=SECONDS)
    assert "vm-images/system.py" in (tmp_path / "calls").read_text(), "uninterrupted it does all steps"
    (tmp_path / "calls").unlink()
    (tmp_path / "slow").touch()
    with subprocess.Popen(setup, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            appears(tmp_path / "calls", "vm-images/build.py")
            time.sleep(0.2)  # so that the stub has set its trap
            os.killpg(process.pid, how)
            process.wait(SECONDS)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert process.returncode == 130
    assert (tmp_path / "calls").read_text().splitlines()[-1:] == ["vm-images/build.py"]
