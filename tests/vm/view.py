"""What `run.py` shows: a live table on a terminal, a plain line now and then elsewhere.

Owned by the one thread of run.py; rich's own refresh is off, so nothing else draws.
"""

import dataclasses
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.vm import report

MIB: Final = 1 << 20
BAR_CELLS: Final = 16  # with the rest, 80 columns


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is known at one moment: the guest's figures, the disk as `disk show --json` has it, the act."""

    seconds: float
    act: str
    guest: report.Numbers
    disk: dict[str, Any]

    def mib(self, name: str) -> int:
        """A byte figure of the disk, in MiB."""
        return int(self.disk.get(name, 0)) // MIB


def plain(moment: Moment) -> str:
    """One line for logs and pipes."""
    guest = moment.guest
    return (
        f"{moment.seconds:5.1f} s  {moment.act:<11} guest: {guest.phase} checked {guest.checked}"
        f" wrong {guest.wrong}, swapped {guest.swapped_bytes // MIB} MiB,"
        f" pages out {guest.pswpout} in {guest.pswpin}"
        f" | host RAM {moment.mib('ram_bytes')} of {moment.mib('cap_bytes')} MiB,"
        f" on disk {moment.mib('spilled_bytes')} MiB,"
        f" spilled {moment.mib('spill_written_bytes')} read back {moment.mib('spill_read_bytes')} MiB"
    )


def bar(part: int, whole: int) -> str:
    """`part` of `whole` as cells."""
    cells = min(BAR_CELLS, round(BAR_CELLS * part / whole)) if whole else 0
    return "█" * cells + "░" * (BAR_CELLS - cells)


def table(moment: Moment, memory_mib: int, work_mib: int) -> Table:
    """The live picture: where the guest's pages are, and what that costs the host."""
    guest, mib = moment.guest, moment.mib
    shown = Table(title=f"swaptide, {moment.seconds:.0f} s: {moment.act}", title_justify="left")
    shown.add_column("where", no_wrap=True)
    shown.add_column("MiB", justify="right", no_wrap=True, min_width=4)
    shown.add_column("", no_wrap=True)
    shown.add_column("", no_wrap=True)

    def row(what: str, amount: int, note: str) -> None:
        shown.add_row(what, str(amount), bar(amount, work_mib), note)

    row("guest works on", work_mib, f"{guest.phase}, round {guest.rounds}")
    row("  its own memory", memory_mib, f"{guest.checked} checked, {guest.wrong} wrong")
    row("  on its swap disk", guest.swapped_bytes // MIB, f"{guest.pswpout} out, {guest.pswpin} in")
    row("disk: host RAM", mib("ram_bytes"), f"cap {mib('cap_bytes')} MiB")
    row("  of it clean", mib("clean_bytes"), "on disk as well")
    row("disk: spilled", mib("spilled_bytes"), "on disk only")
    row("  written so far", mib("spill_written_bytes"), f"{mib('spill_read_bytes')} MiB read back")
    return shown


class View:
    """Shows moments and tells events; plain unless standard output is a terminal."""

    def __init__(self, memory_mib: int, work_mib: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._picture: Callable[[Moment], Table] = lambda m: table(m, memory_mib, work_mib)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the view was made."""
        return time.monotonic() - self._started

    def tell(self, words: str) -> None:
        """An event, above the table."""
        self._console.print(f"{self.seconds:5.1f} s  * {words}", markup=False)

    def show(self, moment: Moment) -> None:
        """The picture of now."""
        if self._live is not None:
            self._live.update(self._picture(moment), refresh=True)
        else:
            self._console.print(plain(moment), markup=False)
