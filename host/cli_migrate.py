"""`swaptide migrate`, `receive`, `disk save`, `disk load`: disks that move to another host or into a file."""

import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from swaptide.host import common

Step = Callable[[dict[str, Any]], None]


def _path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else str(common.absolute(ctx, param, value))


def _security(function: Any) -> Any:
    function = click.option(
        "--insecure", is_flag=True, help="Over TCP without TLS: the guest's memory passes in the clear."
    )(function)
    return click.option(
        "--tls-certificates",
        callback=_path,
        shell_complete=common.offer_directories,
        metavar="DIR",
        help="TLS, with ca-cert.pem and the certificate and key of this side (docs/migration.md).",
    )(function)


@contextmanager
def _showing(words: str) -> Iterator[Step]:
    """Show on a terminal how far a disk has moved."""
    from swaptide.host import render, sizes

    with render.working(words) as show:

        def step(told: dict[str, Any]) -> None:
            if told["at"] == "listening":
                click.echo(f"listening at {told['address']}; the disk's export is {told['id']}", err=True)
                return
            moved = told.get("sent_bytes", told.get("taken_bytes", 0))
            more = f", round {told['rounds'] + 1}" if "rounds" in told else ""
            left = f", {told['pending_pages']} pages left" if told.get("pending_pages") else ""
            show(f"{told['at']}{more}, {sizes.show(moved)}{left}")

        yield step


def _move(run_dir: pathlib.Path | None, request: Any, words: str, *, left: str) -> Any:
    """What became of it; who interrupts it is told what is `left`."""
    with common.going_on(left), _showing(words) as progress:
        return common.call(run_dir, request, progress)


def _open(run_dir: pathlib.Path | None, request: Any, said: str, *, as_json: bool) -> None:
    """Have a disk served on its operator's word."""
    done = common.call(run_dir, request)
    common.print_json(done) if as_json else click.echo(said)


@click.command()
@click.argument("name", shell_complete=common.offer_disks, metavar="DISK")
@click.option(
    "--to", metavar="ADDRESS", help="unix:/PATH or tcp:HOST:PORT, where `swaptide receive` listens."
)
@click.option(
    "--qmp",
    callback=_path,
    shell_complete=common.offer_files,
    metavar="SOCKET",
    help="The guest, by its QMP socket.",
)
@click.option(
    "--guest",
    shell_complete=common.offer_guests,
    metavar="NAME",
    help="The guest, by the name it is registered with.",
)
@click.option(
    "--qemu-uri", "uri", metavar="URI", help="Where its next QEMU waits (-incoming), such as tcp:HOST:PORT."
)
@_security
@common.size_option("--bandwidth", help="At most so much in a second, but for the last changes.")
@click.option(
    "--hand-over-store",
    is_flag=True,
    help="Send nothing of what is spilled: the other host takes its NBD exports over."
    " The disk is removed here.",
)
@click.option("--remove", is_flag=True, help="Remove the disk here once it is handed over.")
@click.option(
    "--take-back", is_flag=True, help="Serve a disk again that was given away, and not taken over there."
)
@common.json_option
@common.run_dir_option
def migrate(
    run_dir: pathlib.Path | None, name: str, as_json: bool, take_back: bool, to: str | None, **given: Any
) -> None:
    """Move a disk to another host while its guest uses it.

    With --qmp or --guest, and --qemu-uri, QEMU is told to move the guest as well.  Without them somebody else
    does that, and the disk is handed over once its last client has left.
    """
    from swaptide.host import protocol, sizes

    if take_back:
        if to is not None:
            raise click.UsageError("--take-back and --to are two things")
        return _open(run_dir, protocol.TakeBack(name), f"disk {name} is served here again", as_json=as_json)
    if to is None:
        raise click.UsageError("where to? give --to, the address where `swaptide receive` listens")
    left = f"disk {name} stays here and its guest goes on, unless it had been handed over already"
    done = _move(run_dir, protocol.Migrate(name=name, to=to, **given), f"moving {name}", left=left)
    if as_json:
        common.print_json(done)
        return
    pause = (
        ""
        if done["pause_seconds"] is None
        else f", the guest stood still for {done['pause_seconds'] * 1000:.0f} ms"
    )
    click.echo(
        f"disk {name} is at {done['to']}{', and its store' if given['hand_over_store'] else ''}:"
        f" {sizes.show(done['sent_bytes'])} in {done['rounds']} rounds and"
        f" {done['elapsed_seconds']:.1f} s{pause}"
    )
    if not done["removed"]:
        click.echo(
            f"nothing of it takes memory here any more; `swaptide disk rm {name}` when its QEMU has ended"
        )


@click.command()
@click.argument("name", shell_complete=common.offer_disks, metavar="DISK")
@click.option("--listen", metavar="ADDRESS", help="unix:/PATH or tcp:HOST:PORT.")
@_security
@click.option("--accept", is_flag=True, help="Serve a disk that is all here, but was never given.")
@common.json_option
@common.run_dir_option
def receive(
    run_dir: pathlib.Path | None, name: str, as_json: bool, accept: bool, listen: str | None, **given: Any
) -> None:
    """Take a disk in from `swaptide migrate` of another host, into a disk that is empty.

    Clients of the disk wait until it is handed over; start the guest's QEMU there with -incoming meanwhile.
    """
    from swaptide.host import protocol, sizes

    if accept:
        if listen is not None:
            raise click.UsageError("--accept and --listen are two things")
        return _open(run_dir, protocol.Accept(name), f"disk {name} is served", as_json=as_json)
    if listen is None:
        raise click.UsageError("where? give --listen, an address for `swaptide migrate --to`")
    left = f"clients of disk {name} wait until it is received, or `swaptide disk clear {name}`"
    request = protocol.Receive(name=name, listen=listen, **given)
    done = _move(run_dir, request, f"receiving {name}", left=left)
    if as_json:
        common.print_json(done)
        return
    click.echo(
        f"disk {name} is served: {sizes.show(done['taken_bytes'])} in {done['elapsed_seconds']:.1f} s,"
        f" of disk {done['origin']}{', with its store ' + done['store'] if done['store'] else ''}"
    )


@click.command()
@click.argument("name", shell_complete=common.offer_disks)
@click.argument("file", callback=_path, shell_complete=common.offer_files)
@click.option("--force", is_flag=True, help="Even if the file exists.")
@common.json_option
@common.run_dir_option
def save(run_dir: pathlib.Path | None, name: str, file: str, force: bool, as_json: bool) -> None:
    """Write a disk into a file, beside QEMU's own save of its guest.

    The guest should be stopped; its writes wait meanwhile.  The file holds memory of the guest in the clear.
    """
    from swaptide.host import protocol, sizes

    request = protocol.Save(name, file, force)
    done = _move(run_dir, request, f"saving {name}", left=f"{file} was not made")
    if as_json:
        common.print_json(done)
        return
    took = sizes.show(done["sent_bytes"])
    click.echo(f"disk {name} is in {file}, in the clear: {done['sent_pages']} pages in {took}")


@click.command()
@click.argument("name", shell_complete=common.offer_disks)
@click.argument("file", callback=_path, shell_complete=common.offer_files)
@common.json_option
@common.run_dir_option
def load(run_dir: pathlib.Path | None, name: str, file: str, as_json: bool) -> None:
    """Fill an empty disk from a file of `disk save`; it answers to the saved disk's export name as well."""
    from swaptide.host import protocol

    left = f"clients of disk {name} wait until it is loaded, or `swaptide disk clear {name}`"
    done = _move(run_dir, protocol.Load(name, file), f"loading {name}", left=left)
    if as_json:
        common.print_json(done)
    else:
        click.echo(f"disk {name} has the {done['taken_pages']} pages of disk {done['origin']}")
