"""The README shows only commands that exist, with options that they take."""

import pathlib
import re
import subprocess
import sys

from tests.hygiene import tree

README = (tree.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", README, re.DOTALL | re.MULTILINE)
# Code lines, a line that is continued counting as one.
CODE = "\n".join(block or inline for block, inline in BLOCKS).replace("\\\n", " ").splitlines()
SWAPTIDE = str(pathlib.Path(sys.executable).with_name("swaptide"))
COMMANDS = r"\bswaptide ([a-z][^|&;)\"#]*)"
OPTION = re.compile(r"--[a-z][\w-]*")
GROUPS = ("disk", "guest")


def shown(pattern: str) -> list[str]:
    return sorted({match.strip() for line in CODE for match in re.findall(pattern, line)})


def command_words(line: str) -> tuple[str, ...]:
    words = line.split()
    return tuple(words[: 2 if words[0] in GROUPS else 1])


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (tree.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(shown(r"\bmake (\w[\w-]*)")) <= set(targets)


def test_commands_take_their_options() -> None:
    for line in shown(COMMANDS):
        help_call = [SWAPTIDE, *command_words(line), "--help"]
        result = subprocess.run(help_call, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert set(OPTION.findall(line)) <= set(OPTION.findall(result.stdout)), line


def test_places_exist() -> None:
    places = re.findall(r"\]\(([^)#:]+)\)", README)
    assert not [place for place in places if not (tree.ROOT / place).exists()]


def test_something_is_shown() -> None:
    assert "run" in shown(r"\bmake (\w[\w-]*)")
    commands = {" ".join(command_words(line)) for line in shown(COMMANDS)}
    assert {"serve", "disk add", "snippet", "plugin-path"} <= commands
