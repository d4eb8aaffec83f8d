"""`swaptide disk`: make, look at, change and remove disks."""

import pathlib
from collections.abc import Callable
from typing import Any

import click

from swaptide.cache.errors import SwaptideError
from swaptide.host import common

_WEIGHT = click.IntRange(1, 10000)
_COMPRESS = click.Choice(["lz4", "zstd", "lz4+zstd", "none"])
_COMPRESS_HELP = (
    "How cold pages are packed; lz4+zstd packs anew with zstd what stays cold while cores are idle."
)
_CLEAN_AHEAD_HELP = "Share of its RAM that is kept on disk as well, so that it can be given back at once."


def _spill(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from swaptide.cache import places

    if value is None:
        return None
    try:
        # The daemon checks the rest.
        return places.absolute(value, lambda path: str(common.absolute(ctx, param, path)))
    except SwaptideError as error:
        raise click.BadParameter(str(error), ctx, param) from None


class _Percent(click.IntRange):
    """0 to 100, with or without a sign for it."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        plain: Any = value.removesuffix("%") if isinstance(value, str) else value
        return super().convert(plain, param, ctx)


def _clean_ahead_option(**more: Any) -> Callable[[Any], Any]:
    return click.option(
        "--clean-ahead",
        "clean_ahead_percent",
        type=_Percent(0, 100),
        metavar="PERCENT",
        help=_CLEAN_AHEAD_HELP,
        **more,
    )


_spill_timeout_option = click.option(
    "--spill-timeout",
    "spill_timeout_seconds",
    callback=common.duration,
    metavar="TIME",
    help="How long reads wait for an NBD export's server that is gone, such as 30s; then they are errors.",
)


@click.group()
def disk() -> None:
    """Make, look at, change and remove disks."""


@disk.command()
@click.argument("name")
@common.size_option("--size", required=True, help="Size of the disk, such as 4G.")
@common.size_option("--ram", required=True, help="The most host RAM it may use (the cap), such as 1G.")
@common.size_option("--floor", help="RAM it keeps under pressure [default: the least it needs].")
@click.option(
    "--spill",
    callback=_spill,
    shell_complete=common.offer_files,
    metavar="PATH|URI[,PATH|URI]",
    help="File, block device or NBD export (nbd://host/export) that its cold data goes to; a second one"
    " is used when the first is full or fails: `/spill/g1,size=20G,nbd://host/export`.",
)
@_spill_timeout_option
@click.option(
    "--weight", type=_WEIGHT, metavar="N", default=100, show_default=True, help="Share when disks compete."
)
@click.option("--compress", type=_COMPRESS, default="lz4", show_default=True, help=_COMPRESS_HELP)
@_clean_ahead_option(default=25, show_default=True)
@click.option(
    "--encrypt",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="Encrypt what is spilled; `no` where the store below does it.",
)
@click.option(
    "--swap-label",
    metavar="L",
    help="Present a ready swap signature with this label (for guests with pages of 4 KiB).",
)
@click.option("--socket-owner", metavar="USER", help="The user that may connect, such as libvirt-qemu.")
@click.option("--force", is_flag=True, help="Take a spill path or export that holds something else.")
@common.json_option
@common.run_dir_option
def add(run_dir: pathlib.Path | None, as_json: bool, **given: Any) -> None:
    """Make a disk and serve it."""
    from swaptide.host import protocol, render, sizes

    name = given["name"]
    request = protocol.Add(**{**given, "encrypt": given["encrypt"] == "yes"})
    with (
        common.going_on(f"disk {name} is being made all the same, `swaptide disk rm {name}` removes it"),
        render.doing(f"making {name}") as progress,
    ):
        report = common.call(run_dir, request, progress)
    if as_json:
        common.print_json(report)
        return
    click.echo(f"disk {report['name']} serves, id {report['id']}")
    click.echo(f"reserved {sizes.show(report['reserved_bytes'])} on disk: {report['spill']}")
    click.echo(f"socket {report['socket']}")


@disk.command("ls")
@common.json_option
@common.run_dir_option
def list_disks(run_dir: pathlib.Path | None, as_json: bool) -> None:
    """List all disks."""
    from swaptide.host import protocol, render

    reports = common.call(run_dir, protocol.List())
    if as_json:
        common.print_json(reports)
    else:
        render.disks(reports)


@disk.command()
@click.argument("name", shell_complete=common.offer_disks)
@common.json_option
@common.run_dir_option
def show(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Show everything about one disk."""
    from swaptide.host import protocol, render

    report = common.call(run_dir, protocol.Show(name))
    if as_json:
        common.print_json(report)
    else:
        render.disk(report)


@disk.command("set")
@click.argument("name", shell_complete=common.offer_disks)
@common.size_option("--ram", help="The most host RAM it may use (the cap), such as 1G.")
@common.size_option("--floor", help="RAM it keeps under pressure.")
@click.option("--weight", type=_WEIGHT, metavar="N", help="Share when disks compete for RAM.")
@click.option("--compress", type=_COMPRESS, help=_COMPRESS_HELP)
@_clean_ahead_option()
@_spill_timeout_option
@click.option(
    "--deadline",
    "deadline_seconds",
    callback=common.duration,
    metavar="TIME",
    help="When --ram has to hold, such as 2s: drop, pack and write out whatever is quickest.",
)
@common.json_option
@common.run_dir_option
def change(run_dir: pathlib.Path | None, name: str, as_json: bool, **given: Any) -> None:
    """Change a disk's limits, and wait until they hold."""
    from swaptide.host import protocol, render

    if all(value is None for value in given.values()):
        raise click.UsageError(
            "nothing to set: give --ram, --floor, --weight, --compress, --clean-ahead or --spill-timeout"
        )
    if given["deadline_seconds"] is not None and given["ram_bytes"] is None:
        raise click.UsageError("--deadline needs --ram, which is to hold by then")
    with common.going_on(f"the new limits of disk {name} stay in force"), render.squeezing(name) as progress:

        def follow(step: dict[str, Any]) -> None:
            if step["elapsed_seconds"] == 0:
                _warn_of(step)
            progress(step)

        step = common.call(run_dir, protocol.Set(name, **given), follow)
    if as_json:
        common.print_json({"name": name, **step})
    _tell_outcome(name, step, quiet=as_json)


@disk.command()
@click.argument("name", shell_complete=common.offer_disks)
@click.option("--force", is_flag=True, help="Even if a client is connected.")
@common.json_option
@common.run_dir_option
def clear(run_dir: pathlib.Path | None, name: str, force: bool, as_json: bool) -> None:
    """Empty a disk whose guest is gone; it gets a new id."""
    from swaptide.host import protocol, render

    going_on = common.going_on(f"disk {name} is being cleared all the same")
    with going_on, render.doing(f"clearing {name}") as progress:
        report = common.call(run_dir, protocol.Clear(name, force), progress)
    if as_json:
        common.print_json(report)
    else:
        click.echo(f"disk {name} is empty, its new id is {report['id']}")


@disk.command()
@click.argument("name", shell_complete=common.offer_disks)
@common.json_option
@common.run_dir_option
def restart(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Serve a disk with a new process, as after an upgrade; its guest only waits."""
    from swaptide.host import protocol

    with common.going_on(f"disk {name} is being restarted all the same"):
        report = common.call(run_dir, protocol.Restart(name))
    if as_json:
        common.print_json(report)
        return
    click.echo(
        f"disk {name} serves again, pid {report['pid']}; it was away for {report['pause_seconds']:.2f} s"
    )


@disk.command()
@click.argument("name", shell_complete=common.offer_disks)
@common.json_option
@common.run_dir_option
def freeze(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Have a disk stand still, until it is thawed: writes wait, reads go on, nothing moves.

    Returns once nothing of it changes any more.  A guest that swaps out meanwhile stalls.
    """
    from swaptide.host import protocol

    with common.going_on(f"disk {name} is being frozen all the same, `swaptide disk thaw {name}` undoes it"):
        done = common.call(run_dir, protocol.Freeze(name))
    if as_json:
        common.print_json(done)
        return
    click.echo(
        f"disk {name} stands still after {done['elapsed_seconds']:.2f} s;"
        f" writes to it wait for `swaptide disk thaw {name}`"
    )


@disk.command()
@click.argument("name", shell_complete=common.offer_disks)
@common.json_option
@common.run_dir_option
def thaw(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Have a frozen disk go on."""
    from swaptide.host import protocol

    with common.going_on(f"disk {name} is being thawed all the same"):
        done = common.call(run_dir, protocol.Thaw(name))
    if as_json:
        common.print_json(done)
    else:
        click.echo(f"disk {name} goes on")


@disk.command("rm")
@click.argument("name", shell_complete=common.offer_disks)
@click.option("--force", is_flag=True, help="Even if a client is connected.")
@common.json_option
@common.run_dir_option
def remove(run_dir: pathlib.Path | None, name: str, force: bool, as_json: bool) -> None:
    """Remove a disk and all its files."""
    from swaptide.host import protocol, render

    going_on = common.going_on(f"disk {name} is being removed all the same")
    with going_on, render.doing(f"removing {name}") as progress:
        gone = common.call(run_dir, protocol.Remove(name, force), progress)
    if as_json:
        common.print_json({**gone, "removed": True})
    else:
        click.echo(f"disk {name} removed")


def _warn_of(step: dict[str, Any]) -> None:
    """Say before it starts that a deadline cannot be met."""
    from swaptide.host import durations

    deadline, estimate = step["deadline_seconds"], step["estimate_seconds"]
    if deadline is None:
        return
    if estimate is None:
        click.echo(
            f"nothing can be written out here now: this may never hold, not in {deadline:g} s", err=True
        )
    elif estimate > deadline:
        about = durations.show(estimate)
        click.echo(f"at the speeds measured here this takes about {about}, not {deadline:g} s", err=True)


def _tell_outcome(name: str, step: dict[str, Any], *, quiet: bool = False) -> None:
    """Raises SwaptideError if the limits do not hold; `quiet` says no more than that."""
    from swaptide.host import sizes

    ram, target = sizes.show(step["ram_bytes"]), sizes.show(step["target_bytes"])
    seconds = step["elapsed_seconds"]
    returned, wanted = sizes.show(step["returned_bytes"]), sizes.show(step["wanted_bytes"])
    if step["phase"] == "holds":
        if not quiet:
            click.echo(
                f"disk {name} is within {target} after {seconds:.2f} s, {returned} returned to the host"
            )
        if step["unsaved"] is not None:
            click.echo(f"swaptide: the next daemon will not know of it: {step['unsaved']}", err=True)
    elif step["phase"] == "frozen":
        raise SwaptideError(
            f"disk {name} is frozen and uses {ram} of RAM; the limit {target} is in force, and holds only"
            f" after `swaptide disk thaw {name}`"
        )
    elif step["phase"] == "late" and step["deadline_seconds"] is not None:
        raise SwaptideError(
            f"disk {name} has returned {returned} of {wanted} in {seconds:.2f} s and uses {ram} of RAM;"
            f" the limit {target} is in force, and it goes on towards it"
        )
    elif step["phase"] == "late":
        raise SwaptideError(
            f"disk {name} still uses {ram} of RAM after {seconds:.0f} s; the limit {target} is in force,"
            " and it goes on towards it as fast as its store allows"
        )
    else:
        raise SwaptideError(f"disk {name} was changed by somebody else meanwhile; it uses {ram} of RAM")
