"""docs/design.md names every file of the rooms once, and inside cache/ says who may import whom."""

import collections
import re
from collections.abc import Iterator

from tests.hygiene import test_imports, tree

TEXT = (tree.ROOT / "docs/design.md").read_text()
NAME = re.compile(r"`((?:[a-z_]+/)*)(\w+)(\.(?:py|pyx|pxd|h))`")
# What stands for the files beside it: types, declarations.
SUFFIXES = (".py", ".pyx", ".pxd", ".h", ".pyi")


def named(text: str) -> Iterator[tuple[str, str]]:
    """(room, file) of the first columns of the tables of files, in their order."""
    of, inside = "", False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 3:
            inside = False
        elif cells[1].split()[:1] == ["file"]:
            inside, of = True, cells[1].partition("`")[2].partition("/")[0]
        elif inside:
            room = of
            for folder, stem, suffix in NAME.findall(cells[1]):
                room = folder.rstrip("/") or room
                yield room, stem + suffix


def test_each_file_is_named_once() -> None:
    found = collections.Counter((room, name.partition(".")[0]) for room, name in named(TEXT))
    there = {
        (path.parent.name, path.stem)
        for path in tree.named(*SUFFIXES)
        if path.parent.parent == tree.ROOT and path.parent.name in tree.ROOMS and path.stem != "__init__"
    }
    assert set(found) == there
    assert [name for name, times in found.items() if times > 1] == []


def test_each_name_is_a_file() -> None:
    """In the tables, and anywhere else where a room or tests/ goes before the name."""
    missing = [f"{room}/{name}" for room, name in named(TEXT) if not (tree.ROOT / room / name).is_file()]
    missing += [
        folder + stem + suffix
        for folder, stem, suffix in NAME.findall(TEXT)
        if folder and not (tree.ROOT / (folder + stem + suffix)).is_file()
    ]
    assert not missing


def test_what_code_refers_to_is_there() -> None:
    """`docs/design.md, "Kill-safe"` is a heading's or a paragraph's first words."""
    begins = re.findall(r"^(?:#+ |\d*\.? ?\*\*)(.*)", TEXT, re.MULTILINE)
    lost = [
        f"{tree.label(path)}: {name}"
        for path in tree.named(*SUFFIXES)
        for name in re.findall(r'docs/design\.md, "([^"]+)"', path.read_text())
        if not any(each.startswith(name) for each in begins)
    ]
    assert not lost


def test_imports_inside_the_cache_go_down_the_list() -> None:
    order = [name.partition(".")[0] for room, name in named(TEXT) if room == "cache"]
    up = []
    for path in tree.named(".py", ".pyx", ".pxd"):
        if path.parent != tree.ROOT / "cache" or path.stem == "__init__":
            continue
        for name in test_imports.imports(path):
            parts = name.split(".")
            other = parts[2] if parts[:2] == ["swaptide", "cache"] and len(parts) > 2 else ""
            if other in order and order.index(other) < order.index(path.stem):
                up.append(f"{tree.label(path)}: {other}")
    assert not up


def test_a_missing_or_doubled_name_is_found() -> None:
    text = (
        "| file of `cache/` | purpose |\n|---|---|\n| `a.py`, `host/b.pyx`, `c.h` | x |\n\n| `d.py` | x |\n"
    )
    assert list(named(text)) == [("cache", "a.py"), ("host", "b.pyx"), ("host", "c.h")]
