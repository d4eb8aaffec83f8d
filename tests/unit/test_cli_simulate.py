"""`swaptide simulate` as a person runs it."""

import json
import pathlib
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-P", "-m", "swaptide.host.cli", "simulate"]


def run(*words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def eater(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("traces") / "eater.jsonl"
    done = run("--make", "eater", path)
    assert done.returncode == 0 and "961 samples of eater" in done.stdout, done
    return path


def test_a_table_and_a_summary(eater: pathlib.Path) -> None:
    done = run(eater, "--every", "30s")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["TIME", "FREE", "SPARE", "PRESSED", "WHY"]
    assert "g1: RAM/TARGET HITS" in lines[0] and "g2: RAM/TARGET HITS" in lines[0]
    assert [line.split()[0] for line in lines[1:10]] == [f"{30 * number}s" for number in range(9)]
    assert any(" shrink " in line for line in lines)
    assert any(line.startswith("961 samples in 240 s") for line in lines)


def test_json(eater: pathlib.Path) -> None:
    done = run(eater, "--json", "--every", "1m")
    found = json.loads(done.stdout)
    assert found["window_seconds"] == 60 and len(found["rows"]) == 5
    assert found["summary"]["samples"] == 961
    assert 0 < found["summary"]["disks"]["g1"]["hit_ratio"] < 1
    assert found["summary"]["free_least_bytes"] > 0, "nothing ran out of memory"


def test_settings_change_what_comes_of_it(eater: pathlib.Path) -> None:
    def free(*words: str) -> int:
        return int(json.loads(run(eater, "--json", *words).stdout)["summary"]["free_least_bytes"])

    assert free("--set", "ahead_seconds=0", "--speed", "64M") < free("--speed", "64M")
    assert free("--reserve", "512M") > free() + 256 * 1024**2


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_plot(eater: pathlib.Path, tmp_path: pathlib.Path, suffix: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for file in files:
        assert run(eater, "--plot", file).returncode == 0
    assert files[0].read_bytes().startswith(begins)
    assert files[0].read_bytes() == files[1].read_bytes(), "the same again"
    if suffix == ".svg":
        text = files[0].read_text()
        assert "g1, target" in text and "reads from RAM" in text and "spare" in text


def test_without_matplotlib_it_says_what_to_install(eater: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hidden = "import sys; sys.modules['matplotlib'] = None; from swaptide.host import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", hidden, "simulate", str(eater), "--plot", str(tmp_path / "x.svg")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'swaptide[plot]'" in done.stderr


def test_mistakes_are_one_line(eater: pathlib.Path, tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("{}\n")
    for words, status, said in (
        ([tmp_path / "none"], 1, "No such file"),
        ([tmp_path], 1, "Is a directory"),
        ([bad], 1, "line 1 is no sample"),
        ([eater, "--make", "eater"], 1, "exists"),
        ([eater, "--make", "nothing"], 2, "nothing"),
        ([eater, "--seed", "3"], 2, "--seed is for --make"),
        ([eater, "--plot", "x.gif"], 2, "must end in .svg or .png"),
        ([eater, "--plot", tmp_path / "no" / "x.svg"], 1, "is no directory"),
        ([eater, "--set", "x"], 2, "NAME=NUMBER"),
        ([eater, "--set", "x=1"], 1, "setting 'x' is none"),
        ([eater, "--set", "quiet_seconds=-1"], 1, "from 0 up"),
        ([eater, "--every", "0s"], 2, "must be more than 0"),
        ([], 2, "Missing argument"),
    ):
        done = run(*words)
        assert done.returncode == status, done
        assert said in done.stderr, done
        assert done.stderr.startswith("swaptide: ") and done.stderr.count("\n") == 1, done.stderr
        assert not done.stdout


def test_help_needs_nothing_heavy() -> None:
    script = (
        "import sys, swaptide.host.cli_simulate; "
        "assert not {'msgspec', 'matplotlib', 'rich'} & set(sys.modules), sys.modules"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0
    assert "--make" in run("--help").stdout
