"""Where a run is: a bar on a terminal, plain lines elsewhere, both on standard error.

Owned by the thread that measures; on a terminal rich's own thread redraws, so that the clock goes on.
"""

import time
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console


class Progress:
    """Tells of `total` rows, one after the other."""

    def __init__(self, total: int, console: Console) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._name = ""
        self._started = time.monotonic()
        self._bar = self._make_bar() if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, detail="") if self._bar else None

    def _make_bar(self) -> progress.Progress:
        columns = (
            progress.BarColumn(20),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description} {task.fields[detail]}", markup=False),
        )
        return progress.Progress(*columns, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def begin(self, name: str) -> None:
        """The next row."""
        self._name = name
        self.tell("")

    def tell(self, words: str) -> None:
        """What the row is at."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self._name, detail=words)
        else:
            self._line(f"{self._name}: {words}" if words else self._name)

    def end(self, words: str) -> None:
        """The row is over; the words stay to be read."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        self._line(f"{self._name}: {words}")

    def _line(self, words: str) -> None:
        at = min(self._done + 1, self._total)
        text = f"{self.seconds:7.1f} s  [{at}/{self._total}] {words}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
