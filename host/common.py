"""What all commands share: options, the call to the daemon, and how its answer is told.

Imports what a call needs only when it is made, to be quick on the prompt.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from swaptide.cache.errors import UsageError

INTERRUPTED = 130


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from swaptide.host import sizes

    try:
        return None if value is None else sizes.parse(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from swaptide.host import durations

    try:
        return None if value is None else durations.parse(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _chosen_run_dir(ctx: click.Context, param: click.Parameter, value: str | None) -> pathlib.Path | None:
    return None if value is None else absolute(ctx, param, value)


def absolute(ctx: click.Context, param: click.Parameter, value: str) -> pathlib.Path:
    from swaptide.host import paths

    if not value:
        raise click.BadParameter("the path is empty", ctx, param)
    path = paths.absolute(value)
    if not is_utf8(str(path)):
        raise click.BadParameter(f"path {str(path)!r} is not UTF-8", ctx, param)
    return path


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


run_dir_option = click.option(
    "--run-dir",
    envvar="SWAPTIDE_RUN_DIR",
    callback=_chosen_run_dir,
    metavar="DIR",
    help="Directory of the daemon's sockets [default: SWAPTIDE_RUN_DIR, else /run/swaptide for root].",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def size_option(flag: str, **more: Any) -> Callable[[Any], Any]:
    name = flag.removeprefix("--").replace("-", "_") + "_bytes"
    return click.option(flag, name, callback=size, metavar="SIZE", **more)


def call(run_dir: pathlib.Path | None, request: Any, *progress: Any) -> Any:
    from swaptide.host import client, paths

    return client.call(run_dir or paths.default_run_dir(), request, *progress)


@contextlib.contextmanager
def going_on(what: str) -> Iterator[None]:
    """Tell who interrupts the command what the daemon does meanwhile: it goes on with a call."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"swaptide: interrupted; {what}", err=True)
        sys.exit(INTERRUPTED)


def print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2))
