"""Every parameter of every command is given what nobody should give: one line comes of it, and nothing else.

The tree of commands is walked, so that a new command is tried as soon as it is there.
"""

import io
import json
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import NoReturn

import click
import pytest

from swaptide.cache import errors
from swaptide.host import cli, ending
from tests.real import daemons, words

# However busy the host: only what hangs takes longer.
CALL_SECONDS = 100.0
LONGEST_CHARS = 2000
COMMANDS = list(words.commands(cli.cli))
# What they find is their result, and goes to standard output.
# Looked at only when a guest answers, which here none does.
LATE = {"--bus", "--qemu-uri"}
EXAMINERS = {("doctor",), ("plan",)}


class Said:
    """What a command left behind: its exit status and its words."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"status {self.status}, printed {self.out[:500]!r}, complained {self.err[:1000]!r}"


def hangs(number: int, frame: types.FrameType | None) -> NoReturn:
    raise AssertionError("the command hangs")


def call(*line: str) -> Said:
    """Run the command in this process, which is much quicker than to start it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    before = {number: signal.getsignal(number) for number in ending.SIGNALS}
    argv, stdout, stderr = sys.argv, sys.stdout, sys.stderr
    signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, CALL_SECONDS)
    try:
        sys.argv, sys.stdout, sys.stderr = ["swaptide", *line], out, err
        with pytest.raises(SystemExit) as ended:
            ending.main()
    finally:
        sys.argv, sys.stdout, sys.stderr = argv, stdout, stderr
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    for stream in (out, err):
        stream.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Said(ended.value.code, *texts)


def forms(value: str) -> set[str]:
    """How a message may show a value, or the beginning of a long one."""
    found = (errors.plain(value), repr(value)[1:-1], os.path.abspath(value))
    return {shown[:20] for shown in found if shown} | ({f"'{value}'"} if not value.strip() else set())


def check(line: words.Line, said: Said) -> None:
    """Fails unless a command refused a wrong value, or took it, as it should."""
    assert said.status in (ending.Status.DONE, ending.Status.FAILED, ending.Status.USAGE), said
    assert "Traceback" not in said.err and "internal error" not in said.err, said
    if line.must_fail:
        assert said.status == ending.Status.USAGE, said
    if said.status == ending.Status.DONE or (line.path in EXAMINERS and said.out):
        return
    assert said.out == "", said
    assert said.err.startswith("swaptide: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said
    assert said.err[:-1].isprintable() and len(said.err) <= LONGEST_CHARS, said
    named = line.parameter in said.err or any(form in said.err for form in forms(line.value))
    assert named or line.parameter in LATE, f"neither {line.parameter} nor its value is named: {said}"
    remedy = any(sign in said.err for sign in ("; ", "?", ": use "))
    assert remedy, f"no remedy: {said}"
    if said.status == ending.Status.USAGE:
        assert said.err.endswith(" --help`\n"), said


daemon = daemons.shared(daemons.Daemon.add)


@pytest.fixture
def elsewhere(daemon: daemons.Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The daemon's run directory is the usual one, and the working directory one for all that is made."""
    monkeypatch.setenv("SWAPTIDE_RUN_DIR", str(daemon.run_dir))
    with daemons.directory() as root, words.places(root / "places") as places:
        monkeypatch.chdir(root / "places")
        yield places


def tidy(daemon: daemons.Daemon) -> None:
    """Undo what a hostile value has made all the same."""
    for kind, force in (("disk", ["--force"]), ("guest", [])):
        for report in json.loads(call(kind, "ls", "--json").out):
            if report["name"] != "g1":
                assert call(kind, "rm", *force, "--", report["name"]).status == 0


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_hostile_values(
    path: tuple[str, ...], command: click.Command, daemon: daemons.Daemon, elsewhere: list[str]
) -> None:
    before = daemon.show()
    faults = []
    for line in words.lines(path, command, elsewhere):
        said = call(*line.words)
        try:
            check(line, said)
        except AssertionError as error:
            faults.append(f"{[word[:80] for word in line.words]}: {error}")
        if said.status == ending.Status.DONE and path in (("disk", "add"), ("guest", "add")):
            tidy(daemon)
    assert not faults, "\n".join(faults[:20])[:8000]
    if path == ("disk", "load"):
        daemon.ok("disk", "clear", "g1")  # it waits for a better file
        return
    after = daemon.show()
    for field in ("id", "pid", "cap_bytes", "restarts"):
        assert after[field] == before[field]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_parameter_is_tried(path: tuple[str, ...], command: click.Command) -> None:
    tried = {line.parameter for line in words.lines(path, command, ["/"])}
    assert tried == {words.label(each) for each in command.params if words.kind(each) != "flag"}


@click.group()
def faulty() -> None:
    """Commands as they must not be."""


@faulty.command()
@click.argument("name")
def trusting(name: str) -> None:
    {"g1": 1}[name]


@faulty.command()
@click.option("--size", metavar="SIZE", required=True)
def careless(size: str) -> None:
    pass


@faulty.command()
@click.option("--size", metavar="SIZE", required=True)
def chatty(size: str) -> None:
    click.echo("beginning")
    raise click.UsageError("bad size, use another one")


@faulty.command()
@click.argument("name")
def vague(name: str) -> None:
    raise click.ClickException("that did not work; try again")


@faulty.command()
@click.argument("name")
def helpless(name: str) -> None:
    raise click.ClickException(f"there is no {name}")


@pytest.mark.parametrize(("path", "command"), list(words.commands(faulty)), ids=sorted(faulty.commands))
def test_the_walk_finds_faults(
    path: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these has one fault, which the walk over the true commands would find."""
    monkeypatch.setattr(cli, "cli", faulty)
    with pytest.raises(AssertionError):
        for line in words.lines(path, command, []):
            check(line, call(*line.words))
