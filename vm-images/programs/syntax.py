"""Keeps syntax trees, tokens and code objects of the standard library in memory.  One thread."""

import ast
import pathlib
import signal
import sys

SOURCE_BYTES = 5_000_000


def main() -> None:
    """Parse and compile modules of the library until there are enough of them, then wait."""
    kept: list[object] = []
    taken = 0
    for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        tree = ast.parse(source)
        kept += [source, tree, compile(tree, str(path), "exec")]
        taken += len(source)
        if taken > SOURCE_BYTES:
            break
    pathlib.Path("/run/ready/python").touch()
    signal.pause()


if __name__ == "__main__":
    main()
