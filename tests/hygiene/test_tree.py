"""Every file says what it is, links lead somewhere, and nothing names one person's machine."""

import ast
import pathlib
import re

from tests.hygiene import tree

LINKS = sorted((tree.ROOT / "src/swaptide").iterdir())
TEXT = [path for path in tree.files() if b"\0" not in path.read_bytes()[:4096]]
# Built from pieces, so that this file does not find itself.
MACHINE_PATHS = re.compile("/wo" r"rk/|/ro" r"ot/|/tmp/bash" r"_jobs|/ho" r"me/\w+/")
COMPILED_DOC = re.compile(r'\A(?:#[^\n]*\n|\s*\n)*(?:"""|/\*)')


def test_links_lead_to_their_rooms() -> None:
    links = {path.name: path.readlink() for path in LINKS if path.is_symlink()}
    assert links == {room: pathlib.Path("../..") / room for room in tree.ROOMS}
    assert all(path.resolve() == tree.ROOT / path.name for path in LINKS if path.is_symlink())


def test_python_modules_say_what_they_are() -> None:
    paths = tree.named(".py", ".pyi")
    assert not [tree.label(path) for path in paths if not ast.get_docstring(ast.parse(path.read_text()))]


def test_compiled_modules_say_what_they_are() -> None:
    paths = tree.named(".pyx", ".pxd", ".h")
    assert not [tree.label(path) for path in paths if not COMPILED_DOC.match(path.read_text())]


def test_no_machine_paths() -> None:
    found = [
        f"{tree.label(path)}:{number}: {line.strip()}"
        for path in TEXT
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not found


def test_no_wait_that_loses_its_end() -> None:
    """asyncio.wait_for of Python 3.11 swallows a cancellation that comes with the result."""
    found = [
        tree.label(path)
        for path in tree.named(".py")
        if tree.label(path).split("/")[0] in tree.ROOMS and "asyncio.wait_for(" in path.read_text()
    ]
    assert not found
