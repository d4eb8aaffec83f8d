"""README and docs show only commands that exist, with options that they take, and places that are there."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest

from tests.hygiene import tree

README = tree.ROOT / "README.md"
# All that people read; what a program wrote has no links of its own.
PAGES = [path for path in tree.named(".md") if "results" not in path.parts]
CODE = re.compile(r"^```\w*\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", re.DOTALL | re.MULTILINE)
SWAPTIDE = str(pathlib.Path(sys.executable).with_name("swaptide"))
COMMANDS = r"(?<![\w.-])swaptide ([a-z][^|&;)\"#`]*)"
MAKE = r"(?<![\w-])make (\w[\w-]*)"
OPTION = re.compile(r"--[a-z][\w-]*")
GROUPS = ("disk", "guest")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
# What a newcomer reads in five minutes.
MOST_WORDS = 1200


def shown(pattern: str, page: pathlib.Path = README) -> list[str]:
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


def places(page: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """The files of this tree that a page leads to, with the heading, if any."""
    found = LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    return [
        ((page.parent / place).resolve() if place else page, heading)
        for place, heading in found
        if not re.match(r"[a-z]+:", place)
    ]


@functools.cache
def headings(page: pathlib.Path) -> frozenset[str]:
    """The names that a page's headings have in links, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles)


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    found = places(page)
    assert not [str(place) for place, _ in found if not place.exists()]
    assert not [
        f"{tree.label(place)}#{heading}"
        for place, heading in found
        if heading and heading not in headings(place)
    ]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = {README}, [README]
    while new:
        page = new.pop()
        found = {place for place, _ in places(page) if place.suffix == ".md"} - reached
        reached |= found
        new += sorted(found)
    assert {tree.label(page) for page in PAGES} <= {tree.label(page) for page in reached}


def test_the_readme_is_short() -> None:
    assert len([word for word in README.read_text().split() if re.search(r"\w", word)]) <= MOST_WORDS


def test_something_is_shown() -> None:
    assert "run" in shown(MAKE)
    commands = {" ".join(command_words(line)) for line in shown(COMMANDS)}
    assert {"serve", "disk add", "snippet", "reserve", "top", "plan", "doctor"} <= commands
