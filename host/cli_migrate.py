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


@click.command()
@click.argument("name", metavar="DISK")
@click.option(
    "--to", metavar="ADDRESS", help="unix:/PATH or tcp:HOST:PORT, where `swaptide receive` listens."
)
@click.option("--qmp", callback=_path, metavar="SOCKET", help="The guest, by its QMP socket.")
@click.option("--guest", metavar="NAME", help="The guest, by the name it is registered with.")
@click.option(
    "--qemu-uri", "uri", metavar="URI", help="Where its next QEMU waits (-incoming), such as tcp:HOST:PORT."
)
@_security
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
        done = common.call(run_dir, protocol.TakeBack(name))
        common.print_json(done) if as_json else click.echo(f"disk {name} is served here again")
        return
    if to is None:
        raise click.UsageError("where to? give --to, the address where `swaptide receive` listens")
    undone = f"disk {name} stays here and its guest goes on, unless it had been handed over already"
    with common.going_on(undone), _showing(f"moving {name}") as progress:
        done = common.call(run_dir, protocol.Migrate(name=name, to=to, **given), progress)
    if as_json:
        common.print_json(done)
        return
    pause = (
        ""
        if done["pause_seconds"] is None
        else f", the guest stood still for {done['pause_seconds'] * 1000:.0f} ms"
    )
    click.echo(
        f"disk {name} is at {done['to']}: {sizes.show(done['sent_bytes'])} in {done['rounds']} rounds and"
        f" {done['elapsed_seconds']:.1f} s{pause}"
    )
    if not done["removed"]:
        click.echo(
            f"nothing of it takes memory here any more; `swaptide disk rm {name}` when its QEMU has ended"
        )


@click.command()
@click.argument("name", metavar="DISK")
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
        done = common.call(run_dir, protocol.Accept(name))
        common.print_json(done) if as_json else click.echo(f"disk {name} is served")
        return
    if listen is None:
        raise click.UsageError("where? give --listen, an address for `swaptide migrate --to`")
    left = f"clients of disk {name} wait until it is received, or `swaptide disk clear {name}`"
    with common.going_on(left), _showing(f"receiving {name}") as progress:
        done = common.call(run_dir, protocol.Receive(name=name, listen=listen, **given), progress)
    if as_json:
        common.print_json(done)
        return
    click.echo(
        f"disk {name} is served: {sizes.show(done['taken_bytes'])} in {done['elapsed_seconds']:.1f} s,"
        f" of disk {done['origin']}"
    )


@click.command()
@click.argument("name")
@click.argument("file", callback=_path)
@click.option("--force", is_flag=True, help="Even if the file exists.")
@common.json_option
@common.run_dir_option
def save(run_dir: pathlib.Path | None, name: str, file: str, force: bool, as_json: bool) -> None:
    """Write a disk into a file, beside QEMU's own save of its guest.

    The guest should be stopped; its writes wait meanwhile.  The file holds memory of the guest in the clear.
    """
    from swaptide.host import protocol, sizes

    with common.going_on(f"{file} was not made"), _showing(f"saving {name}") as progress:
        done = common.call(run_dir, protocol.Save(name, file, force), progress)
    if as_json:
        common.print_json(done)
        return
    took = sizes.show(done["sent_bytes"])
    click.echo(f"disk {name} is in {file}, in the clear: {done['sent_pages']} pages in {took}")


@click.command()
@click.argument("name")
@click.argument("file", callback=_path)
@common.json_option
@common.run_dir_option
def load(run_dir: pathlib.Path | None, name: str, file: str, as_json: bool) -> None:
    """Fill an empty disk from a file of `disk save`; it answers to the saved disk's export name as well."""
    from swaptide.host import protocol

    left = f"clients of disk {name} wait until it is loaded, or `swaptide disk clear {name}`"
    with common.going_on(left), _showing(f"loading {name}") as progress:
        done = common.call(run_dir, protocol.Load(name, file), progress)
    if as_json:
        common.print_json(done)
    else:
        click.echo(f"disk {name} has the {done['taken_pages']} pages of disk {done['origin']}")
