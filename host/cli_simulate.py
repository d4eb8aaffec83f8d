"""`swaptide simulate`: replays a trace of samples against the control law."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import click

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import common, ending

# The scenes of balloon.scenes, named here so that help needs no import.
_SCENES = click.Choice(["hot-and-cold", "eater", "two-guests"])
_SUFFIXES = (".svg", ".png")
# A plot has so many windows at most, each as short as that allows: more make no line clearer.
_POINTS = 240
_POINT_SECONDS = 0.25


def _settings(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise click.BadParameter(f"'{text[:40]}' is not NAME=NUMBER", ctx, param) from None
    return found


def _picture(ctx: click.Context, param: click.Parameter, value: str | None) -> pathlib.Path | None:
    if value is None:
        return None
    path = common.absolute(ctx, param, value)
    if path.suffix not in _SUFFIXES:
        raise click.BadParameter(f"'{value}' must end in .svg or .png", ctx, param)
    return path


@click.command()
@click.argument("trace", callback=common.absolute, shell_complete=common.offer_files, metavar="TRACE")
@click.option("--make", "scene", type=_SCENES, help="Write a made-up trace to TRACE, and end.")
@click.option(
    "--seed", type=click.IntRange(0, 1 << 32), metavar="N", help="Of the made-up trace [default: 1]."
)
@click.option(
    "--plot",
    callback=_picture,
    shell_complete=common.offer_files,
    metavar="FILE",
    help="Draw what came of it: FILE.svg or FILE.png.",
)
@click.option(
    "--every",
    callback=common.duration,
    default="10s",
    show_default=True,
    metavar="TIME",
    help="One line printed for so much of it.",
)
@common.size_option("--reserve", help="What stays free in every room [default: as recorded].")
@common.size_option(
    "--speed", default="1G", show_default=True, help="How much a cache gives back per second."
)
@click.option(
    "--set",
    "changed",
    multiple=True,
    callback=_settings,
    metavar="NAME=NUMBER",
    help="Another constant of the control law, in bytes, seconds or as a share; may be repeated.",
)
@common.json_option
@click.pass_context
def simulate(
    ctx: click.Context,
    /,
    trace: pathlib.Path,
    scene: str | None,
    seed: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Replay a trace of a host's memory, faster than time.

    TRACE has one sample a line, as `trace = FILE` in the daemon's configuration records them.  The caches
    follow the control law's targets instead of the recorded ones; the lines printed say what came of it.
    """
    if scene is not None:
        if idle := common.given(ctx, *given, "as_json"):
            raise click.UsageError(f"--make takes no {idle}, which is for replaying")
        with _naming_another():
            _make(trace, scene, 1 if seed is None else seed)
    elif seed is not None:
        raise click.UsageError("--seed is for --make")
    else:
        with _naming_another():
            _replay(trace, as_json, **given)


@contextlib.contextmanager
def _naming_another() -> Iterator[None]:
    """What the system says of a file, with the remedy."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise SetupError(f"{ending.one_line(error)}; name another file") from error


def _make(path: pathlib.Path, scene: str, seed: int) -> None:
    from swaptide.balloon import scenes, traces

    count = traces.write(path, scenes.SCENES[scene](seed))
    click.echo(f"{path}: {count} samples of {scene}")


def _replay(
    path: pathlib.Path,
    as_json: bool,
    plot: pathlib.Path | None,
    every: float,
    reserve_bytes: int | None,
    speed_bytes: int,
    changed: dict[str, float],
) -> None:
    from swaptide.balloon import settings, simulator, tally, traces
    from swaptide.host import render_simulation

    draw = None if plot is None else _drawing(plot)
    chosen = settings.of(changed)
    trace = simulator.with_reserve(traces.read(path), reserve_bytes)
    whole, rows = tally.Tally(), tally.Windows(every, render_simulation.ROWS)
    points = tally.Windows(_POINT_SECONDS, _POINTS)
    for moment in simulator.replay(trace, chosen, speed_bytes):
        whole.add(moment)
        rows.add(moment)
        points.add(moment)
    if as_json:
        common.print_json(render_simulation.as_json(whole.summary, rows))
    else:
        render_simulation.show(whole.summary, rows)
    if plot is not None and draw is not None:
        draw(points.all, path.name, plot)


def _drawing(path: pathlib.Path) -> Any:
    """What draws, found before the work begins; raises SwaptideError if nothing can be drawn there."""
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory; name the plot in one that is there")
    try:
        from swaptide.balloon import plots
    except ImportError as error:
        raise SetupError(
            f"plots need matplotlib ({error}); install it with `pip install 'swaptide[plot]'`"
        ) from error
    return plots.draw
