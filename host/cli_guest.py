"""`swaptide guest`, `attach` and `detach`: guests that are watched, and disks plugged into them."""

import pathlib
from collections.abc import Callable
from typing import Any

import click

from swaptide.host import common

_STEPS = {
    "node": "QEMU is connected to the disk",
    "device": "plugged in, waiting for the guest to take it",
    "asked": "the guest is asked to let go of it",
    "unplugged": "the guest has let go of it",
}


def _socket(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else str(common.absolute(ctx, param, value))


def _qmp_option(**more: Any) -> Callable[[Any], Any]:
    return click.option(
        "--qmp", callback=_socket, shell_complete=common.offer_files, metavar="SOCKET", **more
    )


def _which_guest(function: Any) -> Any:
    """The options that say which guest is meant."""
    function = click.option(
        "--guest",
        shell_complete=common.offer_guests,
        metavar="NAME",
        help="The guest, by the name it is registered with.",
    )(function)
    return _qmp_option(help="The guest, by its QMP socket.")(function)


def _deadline(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--deadline",
        "deadline_seconds",
        callback=common.duration,
        metavar="TIME",
        help=f"How long the guest may take [default: {default}].",
    )


@click.group()
def guest() -> None:
    """Register guests, whose balloons and resets are then looked after."""


@guest.command("add")
@click.argument("name")
@_qmp_option(required=True, help="QMP socket of the guest, for swaptide alone.")
@common.size_option("--min", help="The least memory that its balloon may leave it.")
@common.size_option("--max", help="The most memory that it gets; without both its balloon is never moved.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    shell_complete=common.offer_disks,
    metavar="DISK",
    help="A disk that it swaps on; may be repeated.",
)
@click.option("--clear-on-reset", is_flag=True, help="Empty its disks when it is reset.")
@common.json_option
@common.run_dir_option
def add(run_dir: pathlib.Path | None, as_json: bool, **given: Any) -> None:
    """Watch a guest over QMP from now on."""
    from swaptide.host import protocol

    name = given["name"]
    with common.going_on(f"guest {name} is registered all the same, `swaptide guest rm {name}` forgets it"):
        report = common.call(run_dir, protocol.GuestAdd(**{**given, "disks": list(given["disks"])}))
    if as_json:
        common.print_json(report)
        return
    if report["error"]:
        click.echo(
            f"guest {name} is registered, and is watched as soon as it can be reached: {report['error']}"
        )
    else:
        click.echo(f"guest {name} is watched, it is {report['state']}")
        if not report["balloon"]:
            click.echo("it has no balloon; start it with -device virtio-balloon-pci to have its memory known")


@guest.command("ls")
@common.json_option
@common.run_dir_option
def list_guests(run_dir: pathlib.Path | None, as_json: bool) -> None:
    """List all guests, and what they say of their memory."""
    from swaptide.host import protocol, render

    reports = common.call(run_dir, protocol.GuestList())
    if as_json:
        common.print_json(reports)
    else:
        render.guests(reports)


@guest.command("rm")
@click.argument("name", shell_complete=common.offer_guests)
@common.json_option
@common.run_dir_option
def remove(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Forget a guest; it runs on, with the memory that it has."""
    from swaptide.host import protocol, sizes

    report = common.call(run_dir, protocol.GuestRemove(name))
    if as_json:
        common.print_json({"name": name, "removed": True, "actual_bytes": report["actual_bytes"]})
        return
    click.echo(f"guest {name} is no longer watched")
    actual, memory = report["actual_bytes"], report["memory_bytes"]
    if actual is not None and memory is not None and actual < memory:
        click.echo(
            f"its balloon leaves it {sizes.show(actual)} of {sizes.show(memory)}; QMP's `balloon` alters that"
        )


@click.command()
@click.argument("name", shell_complete=common.offer_disks, metavar="DISK")
@_which_guest
@click.option(
    "--bus", metavar="ID", help="The PCI bus to plug it into [default: a free PCI Express root port]."
)
@_deadline("30s")
@common.json_option
@common.run_dir_option
def attach(run_dir: pathlib.Path | None, name: str, as_json: bool, **given: Any) -> None:
    """Plug a disk into a running guest, and wait until the guest has it."""
    from swaptide.host import protocol

    _check_which(given)
    with common.going_on(f"disk {name} is taken out again as far as it was attached"):
        done = _follow(f"attaching {name}", run_dir, protocol.Attach(name, **given))
    if as_json:
        common.print_json(done)
        return
    bus = f" on {done['bus']}" if done["bus"] else ""
    click.echo(f"the guest has disk {name}{bus} after {done['elapsed_seconds']:.1f} s, as {done['device']}")


@click.command()
@click.argument("name", shell_complete=common.offer_disks, metavar="DISK")
@_which_guest
@_deadline("30s")
@click.option(
    "--force", is_flag=True, help="Even while the guest uses it, which then loses what is swapped out."
)
@common.json_option
@common.run_dir_option
def detach(run_dir: pathlib.Path | None, name: str, as_json: bool, **given: Any) -> None:
    """Unplug a disk from a running guest, which has to swap off first."""
    from swaptide.host import protocol

    _check_which(given)
    with common.going_on(f"the guest is asked for disk {name} all the same"):
        done = _follow(f"detaching {name}", run_dir, protocol.Detach(name, **given))
    if as_json:
        common.print_json(done)
    else:
        click.echo(f"the guest has let go of disk {name} after {done['elapsed_seconds']:.1f} s")


def _check_which(given: dict[str, Any]) -> None:
    if (given["qmp"] is None) == (given["guest"] is None):
        raise click.UsageError("which guest? give either --qmp SOCKET or --guest NAME")


def _follow(words: str, run_dir: pathlib.Path | None, request: Any) -> Any:
    from swaptide.host import render

    with render.working(words) as show:
        return common.call(run_dir, request, lambda step: show(_STEPS.get(step["step"], step["step"])))
