"""What --help says: of every command, in full, with a help for each option and examples that would run."""

import shlex

import click
import pytest
from click.testing import CliRunner

from swaptide.host import cli, usage
from tests.real import words

COMMANDS = list(words.commands(cli.cli))
IDS = [" ".join(path) for path, _ in COMMANDS]
LONGEST_LINES = 70


def shown(*line: str) -> str:
    done = CliRunner().invoke(cli.cli, [*line, "--help"], terminal_width=80)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("group", [(), ("disk",), ("guest",)])
def test_lists_of_commands_are_not_cut(group: tuple[str, ...]) -> None:
    listed = shown(*group).split("Commands:")[1]
    assert "..." not in listed, listed


def test_nothing_is_said_of_what_is_not_there() -> None:
    assert set(usage.EXAMPLES) == set(IDS)
    assert set(usage.SHORT) <= {*IDS, "disk", "guest"}


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_each_command_has_all_that_is_wanted(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter
            assert "INTEGER" not in parameter.make_metavar(click.Context(command))
    said = shown(*path)
    assert len(said.splitlines()) <= LONGEST_LINES
    assert "Examples:" in said and f"  swaptide {usage.EXAMPLES[' '.join(path)][0]}" in said


@pytest.mark.parametrize("line", [line for lines in usage.EXAMPLES.values() for line in lines])
def test_each_example_is_understood(line: str) -> None:
    typed = shlex.split(line)
    found: click.Command = cli.cli
    while isinstance(found, click.Group):
        found = found.commands[typed.pop(0)]
    with found.make_context("swaptide", typed):
        pass


def test_units_are_told() -> None:
    said = " ".join(shown().split())
    assert "powers of 1024" in said and "500ms" in said and "swaptide(1)" in said
