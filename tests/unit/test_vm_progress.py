"""The bar of the image recipes: on a terminal and nowhere else."""

import subprocess
import sys

import pytest

from tests import terminal
from tests.hygiene import tree

PROGRAM = """
import sys
sys.path.insert(0, "vm-images")
import build, tools
words = sys.argv[1:]
del sys.argv[1:]
sys.exit(build.command("x", "guest image", "x", lambda refresh: tools.run(*words).strip()))
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *words]


@pytest.mark.parametrize(
    ("words", "shown"), [(("gcc", "--version"), "guest image: compiling"), (("true",), "guest image")]
)
def test_a_bar_with_what_is_done_at_a_terminal(words: tuple[str, ...], shown: str) -> None:
    out, said = terminal.run(command(*words), tree.ROOT)
    assert shown in said and terminal.BAR in said
    assert terminal.BAR not in out and out.count("\n") >= 1


def test_nothing_elsewhere() -> None:
    done = subprocess.run(
        command("echo", "the directory"), cwd=tree.ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the directory\n", "")
