"""What a recipe is at: a bar and a clock on a terminal's standard error, gone at the end; elsewhere nothing.

Owned by the one thread of a recipe; rich's own thread redraws, so that the clock goes on.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

# By the tool that does it.  What others do is over before it could be read.
WORDS: Final = {
    "apt-get": "fetching",
    "dpkg-deb": "unpacking",
    "gcc": "compiling",
    "mmdebstrap": "installing packages",
    "mke2fs": "writing the disk",
}

_tell: Callable[[str], None] | None = None


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that `what` takes its time; what is printed on standard error meanwhile stands above."""
    global _tell
    if not sys.stderr.isatty() or _tell is not None:
        yield
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # an interpreter that `.ci/setup` has not made
        yield
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=None)
        _tell = lambda words: bar.update(task, description=f"{what}: {words}")  # noqa: E731
        try:
            yield
        finally:
            _tell = None


def at(tool: str) -> None:
    """The recipe has a tool do something."""
    words = WORDS.get(tool.rpartition("/")[2])
    if _tell is not None and words is not None:
        _tell(words)
