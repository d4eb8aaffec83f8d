"""Imports go downwards only, by full name, and only the plugin's room knows nbdkit."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

from tests.hygiene import tree

# What each room may import of ours, itself included.
MAY_IMPORT = {
    "cache": {"cache"},
    "nbdkit_plugin": {"nbdkit_plugin", "cache"},
    "balloon": {"balloon", "cache"},
    "host": set(tree.ROOMS),
}
# balloon sees the cache through its narrow face only.
NARROW_FACE = {"face", "layout", "geometry", "errors", "ages", "cgroup"}

CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+c?import\s+\(?([^#\n]*)|c?import\s+([\w.]+))", re.MULTILINE
)

IN_ROOMS = [path for path in tree.named(".py", ".pyi", ".pyx", ".pxd") if path.parent.name in tree.ROOMS]
PYTHON = tree.named(".py", ".pyi")


def python_imports(path: pathlib.Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{tree.label(path)}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cython_imports(path: pathlib.Path) -> Iterator[str]:
    for module, names, plain in CYTHON_IMPORT.findall(path.read_text()):
        if plain:
            yield plain
        else:
            yield module
            yield from (f"{module}.{name.split()[0]}" for name in names.split(",") if name.strip(" ()"))


def imports(path: pathlib.Path) -> list[str]:
    return list(python_imports(path) if path.suffix in (".py", ".pyi") else cython_imports(path))


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "swaptide" and len(parts) > 1 and parts[1] in tree.ROOMS else None


def test_bare_room_is_not_importable() -> None:
    command = [sys.executable, "-P", "-c", "import cache"]
    result = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No module named 'cache'" in result.stderr


def test_package_is_installed() -> None:
    result = subprocess.run([sys.executable, "-P", "-c", "import swaptide.cache"], cwd="/", check=False)
    assert result.returncode == 0, "swaptide is not installed in this environment: run `make setup`"


def test_rooms_import_downwards() -> None:
    wrong = [
        f"{tree.label(path)}: {name}"
        for path in IN_ROOMS
        for name in imports(path)
        if (room := room_of(name)) and room not in MAY_IMPORT[path.parent.name]
    ]
    assert not wrong


def test_balloon_sees_the_narrow_face() -> None:
    balloon = [path for path in IN_ROOMS if path.parent.name == "balloon"]
    used = {name for path in balloon for name in imports(path) if name.startswith("swaptide.cache.")}
    assert {name.split(".")[2] for name in used} <= NARROW_FACE


def test_rooms_are_called_by_their_full_name() -> None:
    bare = [
        f"{tree.label(p)}: {name}" for p in PYTHON for name in imports(p) if name.split(".")[0] in tree.ROOMS
    ]
    assert not bare


def test_only_the_plugin_knows_nbdkit() -> None:
    users = {p.parent.name for p in PYTHON + IN_ROOMS if any(n.split(".")[0] == "nbdkit" for n in imports(p))}
    assert users <= {"nbdkit_plugin"}


def test_cython_imports_are_found(tmp_path: pathlib.Path) -> None:
    """The regular expression that stands in for a parser sees each form that we use."""
    source = tmp_path / "x.pyx"
    source.write_text(
        '"""x"""\nimport os\ncimport cython\nfrom libc.stdint cimport uint8_t, uint64_t\n'
        "from swaptide.cache import geometry\nfrom swaptide.host.a cimport (\n    b,\n)\n"
    )
    found = set(imports(source))
    assert {"os", "cython", "libc.stdint.uint64_t", "swaptide.cache.geometry", "swaptide.host.a"} <= found
    assert room_of("swaptide.host.a") == "host"
