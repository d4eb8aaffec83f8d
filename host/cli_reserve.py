"""`swaptide reserve`: have the host's memory free before a guest is started or received."""

import contextlib
import pathlib
from typing import Any

import click

from swaptide.cache.errors import SwaptideError
from swaptide.host import common


@click.command()
@click.argument("size_bytes", metavar="SIZE", required=False, callback=common.size)
@click.option(
    "--deadline",
    "deadline_seconds",
    default="10s",
    show_default=True,
    callback=common.duration,
    metavar="TIME",
    help="How long it may take.",
)
@click.option(
    "--hold",
    "hold_seconds",
    default="60s",
    show_default=True,
    callback=common.duration,
    metavar="TIME",
    help="How long it is kept free for whoever is to use it.",
)
@click.option("--list", "listing", is_flag=True, help="List what is reserved.")
@click.option(
    "--release",
    "released",
    shell_complete=common.offer_reservations,
    metavar="ID",
    help="Give a reservation back.",
)
@common.json_option
@common.run_dir_option
@click.pass_context
def reserve(
    ctx: click.Context,
    /,
    run_dir: pathlib.Path | None,
    as_json: bool,
    listing: bool,
    released: str | None,
    size_bytes: int | None,
    **times: float,
) -> None:
    """Have SIZE of the host's memory available, and kept so until it is used, released, or --hold is over.

    The caches are squeezed for it.  Ends with status 0 when MemAvailable, less what other reservations hold,
    is at least SIZE; else with 1, saying what could be had.  What cannot be had is refused at once.
    """
    if [size_bytes is not None, listing, released is not None].count(True) != 1:
        raise click.UsageError("give one of SIZE, --list and --release ID")
    if size_bytes is not None:
        _reserve(run_dir, as_json, size_bytes, times)
        return
    if idle := common.given(ctx, *times):
        raise click.UsageError(f"{idle} goes with SIZE")
    if released is None:
        _list(run_dir, as_json)
    else:
        _release(run_dir, as_json, released)


def _reserve(run_dir: pathlib.Path | None, as_json: bool, size_bytes: int, times: dict[str, float]) -> None:
    from swaptide.host import protocol, render

    request = protocol.Reserve(size_bytes, times["deadline_seconds"], times["hold_seconds"])
    known: set[str] = set()
    with common.going_on("what was asked for is given up"), render.reserving(size_bytes) as progress:

        def follow(step: dict[str, Any]) -> None:
            known.add(step["id"])
            progress(step)

        try:
            standing = common.call(run_dir, request, follow)
        except KeyboardInterrupt:
            # The daemon sees us go; but what it granted a moment before, it does not know we never heard of.
            for id in known:
                with contextlib.suppress(SwaptideError):
                    common.call(run_dir, protocol.Release(id))
            raise
    if as_json:
        common.print_json({**standing, "granted": standing["verdict"] == "granted"})
    _tell(standing, quiet=as_json)


def _tell(standing: dict[str, Any], *, quiet: bool) -> None:
    """Raises SwaptideError if it was not granted; `quiet` says no more than that."""
    from swaptide.host import durations, sizes

    wanted, could = sizes.show(standing["size_bytes"]), sizes.show(standing["could_bytes"])
    if standing["verdict"] == "granted":
        if not quiet:
            click.echo(
                f"{wanted} reserved after {standing['elapsed_seconds']:.2f} s, held for"
                f" {durations.show(standing['hold_seconds'])}: {standing['id']}"
            )
        return
    why = f"{sizes.show(standing['available_bytes'])} is available"
    if standing["held_bytes"]:
        why += f", {sizes.show(standing['held_bytes'])} of it held by other reservations"
    if standing["waiting_bytes"]:
        why += f", {sizes.show(standing['waiting_bytes'])} asked for by others"
    back = sizes.show(standing["reclaimable_bytes"])
    if standing["verdict"] == "impossible":
        raise SwaptideError(
            f"{wanted} cannot be had, but {could} could: {why}, and the caches would give back {back}"
            " at their floors; nothing was squeezed"
        )
    raise SwaptideError(
        f"{wanted} was not there after {standing['elapsed_seconds']:.2f} s, but {could} could be had now:"
        f" {why}, and the caches still have {back} above their floors; it is given up"
    )


def _list(run_dir: pathlib.Path | None, as_json: bool) -> None:
    from swaptide.host import protocol, render

    found = common.call(run_dir, protocol.Reservations())
    if as_json:
        common.print_json(found)
    else:
        render.reservations(found)


def _release(run_dir: pathlib.Path | None, as_json: bool, released: str) -> None:
    from swaptide.host import protocol

    gone = common.call(run_dir, protocol.Release(released))
    if as_json:
        common.print_json({**gone, "released": True})
    else:
        click.echo(f"reservation {released} released")
