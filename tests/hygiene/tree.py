"""The checked files of this tree, for the hygiene tests.  Reads only."""

import functools
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROOMS = ("cache", "nbdkit_plugin", "balloon", "host")


@functools.cache
def files() -> tuple[pathlib.Path, ...]:
    """What git tracks or would track, links left out."""
    # A checkout may belong to another user than the one who tests it.
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file() and not path.is_symlink()))


def named(*suffixes: str) -> list[pathlib.Path]:
    """The files whose name ends with one of `suffixes`."""
    return [path for path in files() if path.suffix in suffixes]


def label(path: pathlib.Path) -> str:
    """How a file is called in a test's name and in a failure."""
    return str(path.relative_to(ROOT))
