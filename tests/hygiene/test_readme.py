"""README and docs show only commands that exist, with options that they take, and places that are there."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest

from tests.hygiene import tree

PAGES = [tree.ROOT / "README.md", *sorted((tree.ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```\w*\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", re.DOTALL | re.MULTILINE)
SWAPTIDE = str(pathlib.Path(sys.executable).with_name("swaptide"))
COMMANDS = r"(?<![\w.-])swaptide ([a-z][^|&;)\"#`]*)"
MAKE = r"(?<![\w-])make (\w[\w-]*)"
OPTION = re.compile(r"--[a-z][\w-]*")
GROUPS = ("disk", "guest")


def shown(pattern: str, page: pathlib.Path = PAGES[0]) -> list[str]:
    """What `pattern` finds in a page's code, a line that is continued counting as one."""
    found = CODE.findall(page.read_text())
    lines = "\n".join(block or inline for block, inline in found).replace("\\\n", " ").splitlines()
    return sorted({match.strip() for line in lines for match in re.findall(pattern, line)})


@functools.cache
def options_of(words: tuple[str, ...]) -> frozenset[str]:
    """The options of a command that exists."""
    result = subprocess.run([SWAPTIDE, *words, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return frozenset(OPTION.findall(result.stdout))


def command_words(line: str) -> tuple[str, ...]:
    words = line.split()
    return tuple(words[: 2 if words[0] in GROUPS else 1])


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_make_targets_exist(page: pathlib.Path) -> None:
    targets = re.findall(r"^([\w-]+):", (tree.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(shown(MAKE, page)) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_commands_take_their_options(page: pathlib.Path) -> None:
    for line in shown(COMMANDS, page):
        assert set(OPTION.findall(line)) <= options_of(command_words(line)), line


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_places_exist(page: pathlib.Path) -> None:
    places = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text())
    assert not [place for place in places if not (page.parent / place).exists()]


def test_something_is_shown() -> None:
    assert "run" in shown(MAKE)
    commands = {" ".join(command_words(line)) for line in shown(COMMANDS)}
    assert {"serve", "disk add", "snippet", "plugin-path"} <= commands
