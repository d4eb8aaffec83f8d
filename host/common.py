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
from swaptide.host import ending


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


def _offering(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For a parameter's `shell_complete`: what there is of a kind, but for what stands there already."""

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from swaptide.host import completion, paths

        run_dir = ctx.params.get("run_dir") or paths.default_run_dir()
        before = ctx.params.get(param.name or "")
        given = before if isinstance(before, tuple | list) else ()
        found = completion.names(run_dir, kind)
        return [name for name in found if name.startswith(incomplete) and name not in given]

    return offer


def _letting_the_shell(kind: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """For a parameter's `shell_complete`: paths, which the shell knows."""

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=kind)]

    return offer


offer_disks = _offering("disks")
offer_guests = _offering("guests")
offer_reservations = _offering("reservations")
offer_files = _letting_the_shell("file")
offer_directories = _letting_the_shell("dir")


def absolute(ctx: click.Context, param: click.Parameter, value: str) -> pathlib.Path:
    from swaptide.host import paths

    if not value:
        raise click.BadParameter("the path is empty", ctx, param)
    try:
        path = paths.absolute(value)
    except FileNotFoundError:
        raise click.BadParameter("the path is relative, and this directory is gone", ctx, param) from None
    if not is_utf8(str(path)):
        raise click.BadParameter(f"path {str(path)!r} is not UTF-8", ctx, param)
    return path


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _path(ctx: click.Context, param: click.Parameter, value: str | None) -> pathlib.Path | None:
    return None if value is None else absolute(ctx, param, value)


def config_option(text: str) -> Callable[[Any], Any]:
    return click.option(
        "--config", "file", callback=_path, shell_complete=offer_files, metavar="FILE", help=text
    )


run_dir_option = click.option(
    "--run-dir",
    envvar="SWAPTIDE_RUN_DIR",
    callback=_path,
    shell_complete=offer_directories,
    metavar="DIR",
    help="Directory of the daemon's sockets [default: SWAPTIDE_RUN_DIR, else /run/swaptide for root].",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def size_option(flag: str, **more: Any) -> Callable[[Any], Any]:
    name = flag.removeprefix("--").replace("-", "_") + "_bytes"
    return click.option(flag, name, callback=size, metavar="SIZE", **more)


def given(ctx: click.Context, *names: str) -> str | None:
    """The first of these parameters that stands on the command line, as it is written there."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in names and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            return parameter.opts[0]
    return None


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
        sys.exit(ending.Status.INTERRUPTED)


def print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2))
