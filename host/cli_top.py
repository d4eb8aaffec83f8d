"""`swaptide top`: what the host's swap disks are doing, live."""

import contextlib
import pathlib
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from swaptide.cache.errors import SwaptideError, UsageError
from swaptide.host import common, ending

if TYPE_CHECKING:
    from rich.console import Console

    from swaptide.host import looks, screen

_DEFAULT_SECONDS = 1.0
_LEAST_SECONDS = 0.1
_SORTS = {
    "name": lambda disk: disk.name,
    "ram": lambda disk: -disk.ram_bytes,
    "spilled": lambda disk: -disk.spilled_bytes,
    "misses": lambda disk: 1.0 if disk.hit_share is None else disk.hit_share,
    "stall": lambda disk: -(disk.stall_seconds_per_second or 0.0),
    "traffic": lambda disk: -(disk.taken_bytes_per_second or 0.0) - (disk.returned_bytes_per_second or 0.0),
}


def _interval(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    seconds = common.duration(ctx, param, value)
    if seconds is None:
        return _DEFAULT_SECONDS
    if seconds < _LEAST_SECONDS:
        raise click.BadParameter(f"at least {_LEAST_SECONDS:g}s", ctx, param)
    return seconds


@click.command()
@click.argument("names", nargs=-1, shell_complete=common.offer_disks, metavar="[DISK]...")
@click.option("--once", is_flag=True, help="Look for one interval, print what there is, and end.")
@click.option(
    "--interval",
    "seconds",
    callback=_interval,
    metavar="TIME",
    help="Between two looks, such as 500ms [default: 1s].",
)
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="name",
    show_default=True,
    help="By name, or the most (misses: the worst share of hits) first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line for each look.")
@common.run_dir_option
def top(
    run_dir: pathlib.Path | None, names: tuple[str, ...], once: bool, seconds: float, sort: str, as_json: bool
) -> None:
    """Show what the disks are doing: where their pages are, hit rates, latencies, memory; q ends it.

    Bars are guest bytes, of the disk's size; RAM and TARGET are memory of the host.  HIT is the share of the
    pages read that were in RAM, P99 what 99 of 100 reads stayed below, STALL/s how long writes waited for
    memory in each second: since the last look, all of them.
    """
    views = _views(run_dir, names, sort)
    if once or as_json or not sys.stdout.isatty():
        _print(views, seconds, once=once, as_json=as_json)
    else:
        _live(views, seconds)


def _views(run_dir: pathlib.Path | None, names: tuple[str, ...], sort: str) -> "Callable[[], looks.View]":
    """What takes the next look and returns what there is, compared with the one before."""
    from swaptide.host import looks, protocol

    before: list[Any] = [None]

    def take() -> looks.View:
        look = common.call(run_dir, protocol.Look())
        unknown = set(names) - {report["name"] for report in look["disks"]}
        if unknown:
            known = ", ".join(report["name"] for report in look["disks"]) or "none"
            raise UsageError(f"there is no disk {min(unknown)!r}; the disks are: {known}")
        view = looks.compare(before[0], look)
        before[0] = look
        return looks.chosen(view, names, _SORTS[sort])

    return take


def _print(views: "Callable[[], looks.View]", seconds: float, *, once: bool, as_json: bool) -> None:
    """One look after the other, without a live display; an interval comes before the first."""
    import json

    from rich.console import Console

    views()
    console = Console()
    while True:
        time.sleep(seconds)
        view = views()
        if as_json and once:
            common.print_json(view.as_dict())
        elif as_json:
            click.echo(json.dumps(view.as_dict()))
        else:
            _draw_plain(console, view)
        sys.stdout.flush()
        if once or not ending.is_read():
            return


def _draw_plain(console: "Console", view: "looks.View") -> None:
    from rich.console import Console

    from swaptide.host import screen

    # Elsewhere than on a terminal rich takes 80 columns, and draws no colours.
    page = Console(width=max(console.width, screen.NARROW_CHARS)) if not console.is_terminal else console
    page.print(screen.draw(view, _frame(page, ends=False)))
    page.print()


def _live(views: "Callable[[], looks.View]", seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from swaptide.host import screen

    console = Console()
    view = views()  # who cannot be asked at all is told on the plain screen
    with (
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        note = ""
        while True:
            live.update(screen.draw(view, _frame(console), note=note), refresh=True)
            if pressed(seconds) == "q":
                return
            try:
                view, note = views(), ""
            except SwaptideError as error:
                note = f"{time.strftime('%H:%M:%S')} {error}"


def _frame(console: "Console", *, ends: bool = True) -> "screen.Frame":
    from swaptide.host import screen

    glyphs = screen.BLOCKS if console.encoding.startswith("utf") else screen.PLAIN
    return screen.Frame(console.width, console.height if ends else None, glyphs)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Waits so long for a key, and says which one it was; without a keyboard it only waits."""
    if not sys.stdin.isatty():
        yield _only_wait
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)

        def pressed(seconds: float) -> str:
            ready, _, _ = select.select([sys.stdin], [], [], seconds)
            return sys.stdin.read(1) if ready else ""

        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""
