"""The `swaptide` command.  Imports what a call needs only when it is made, to be quick on the prompt.

Errors are one line on stderr: exit status 1, or 2 for a command line that makes no sense.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

from swaptide.cache.errors import SwaptideError, UsageError

_INTERRUPTED = 130


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from swaptide.host import sizes

    try:
        return None if value is None else sizes.parse(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _deadline(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from swaptide.host import durations

    try:
        return None if value is None else durations.parse(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _chosen_run_dir(ctx: click.Context, param: click.Parameter, value: str | None) -> pathlib.Path | None:
    return None if value is None else _absolute(ctx, param, value)


def _spill(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else str(_absolute(ctx, param, value))


def _absolute(ctx: click.Context, param: click.Parameter, value: str) -> pathlib.Path:
    from swaptide.host import paths

    if not value:
        raise click.BadParameter("the path is empty", ctx, param)
    path = paths.absolute(value)
    if not _is_utf8(str(path)):
        raise click.BadParameter(f"path {str(path)!r} is not UTF-8", ctx, param)
    return path


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


_run_dir = click.option(
    "--run-dir",
    envvar="SWAPTIDE_RUN_DIR",
    callback=_chosen_run_dir,
    metavar="DIR",
    help="Directory of the daemon's sockets [default: SWAPTIDE_RUN_DIR, else /run/swaptide for root].",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WEIGHT = click.IntRange(1, 10000)
_COMPRESS = click.Choice(["lz4", "zstd", "lz4+zstd", "none"])
_COMPRESS_HELP = (
    "How cold pages are packed; lz4+zstd packs anew with zstd what stays cold while cores are idle."
)
_CLEAN_AHEAD_HELP = "Share of its RAM that is kept on disk as well, so that it can be given back at once."


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


def _size_option(flag: str, **more: Any) -> Callable[[Any], Any]:
    name = flag.removeprefix("--") + "_bytes"
    return click.option(flag, name, callback=_size, metavar="SIZE", **more)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="swaptide", message="%(prog)s %(version)s")
def cli() -> None:
    """Swap disks for KVM guests that live in host RAM and ebb to disk when the host needs it back."""


@cli.command()
@_run_dir
@click.option("--config", "file", type=click.Path(path_type=pathlib.Path), help="TOML configuration.")
@click.option("--show-config", is_flag=True, help="Print the effective configuration and end.")
def serve(run_dir: pathlib.Path | None, file: pathlib.Path | None, show_config: bool) -> None:
    """Run the host daemon in the foreground.

    SIGTERM, SIGINT and SIGHUP end it alike; its disks go on serving, and the next daemon adopts them.  The
    configuration is read once: end the daemon and start it again after a change.
    """
    from swaptide.host import config

    chosen = config.load(file, run_dir)
    if show_config:
        click.echo(chosen.as_toml(), nl=False)
        return
    from swaptide.host import daemon, logs

    logs.to_stderr()
    daemon.run(chosen)


@cli.group()
def disk() -> None:
    """Make, look at, change and remove disks."""


@disk.command()
@click.argument("name")
@_size_option("--size", required=True, help="Size of the disk, such as 4G.")
@_size_option("--ram", required=True, help="The most host RAM it may use (the cap).")
@_size_option("--floor", help="RAM it keeps under pressure [default: the least it needs].")
@click.option(
    "--spill", callback=_spill, metavar="PATH", help="File or block device that its cold data goes to."
)
@click.option("--weight", type=_WEIGHT, default=100, show_default=True, help="Share when disks compete.")
@click.option("--compress", type=_COMPRESS, default="lz4", show_default=True, help=_COMPRESS_HELP)
@_clean_ahead_option(default=25, show_default=True)
@click.option(
    "--encrypt",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="Encrypt what is spilled; `no` where the store below does it.",
)
@click.option("--swap-label", metavar="L", help="Present a ready swap signature with this label.")
@click.option("--socket-owner", metavar="USER", help="The user that may connect, such as libvirt-qemu.")
@click.option("--force", is_flag=True, help="Take a spill path that holds something else.")
@_json
@_run_dir
def add(run_dir: pathlib.Path | None, as_json: bool, **given: Any) -> None:
    """Make a disk and serve it."""
    from swaptide.host import protocol, sizes

    name = given["name"]
    with _going_on(f"disk {name} is being made all the same, `swaptide disk rm {name}` removes it"):
        report = _call(run_dir, protocol.Add(**{**given, "encrypt": given["encrypt"] == "yes"}))
    if as_json:
        _print_json(report)
        return
    click.echo(f"disk {report['name']} serves, id {report['id']}")
    click.echo(f"reserved {sizes.show(report['reserved_bytes'])} on disk: {report['spill']}")
    click.echo(f"socket {report['socket']}")


@disk.command("ls")
@_json
@_run_dir
def list_disks(run_dir: pathlib.Path | None, as_json: bool) -> None:
    """List all disks."""
    from swaptide.host import protocol, render

    reports = _call(run_dir, protocol.List())
    if as_json:
        _print_json(reports)
    else:
        render.disks(reports)


@disk.command()
@click.argument("name")
@_json
@_run_dir
def show(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Show everything about one disk."""
    from swaptide.host import protocol, render

    report = _call(run_dir, protocol.Show(name))
    if as_json:
        _print_json(report)
    else:
        render.disk(report)


@disk.command("set")
@click.argument("name")
@_size_option("--ram", help="The most host RAM it may use (the cap).")
@_size_option("--floor", help="RAM it keeps under pressure.")
@click.option("--weight", type=_WEIGHT, help="Share when disks compete for RAM.")
@click.option("--compress", type=_COMPRESS, help=_COMPRESS_HELP)
@_clean_ahead_option()
@click.option(
    "--deadline",
    "deadline_seconds",
    callback=_deadline,
    metavar="TIME",
    help="When --ram has to hold, such as 2s: drop, pack and write out whatever is quickest.",
)
@_json
@_run_dir
def change(run_dir: pathlib.Path | None, name: str, as_json: bool, **given: Any) -> None:
    """Change a disk's limits, and wait until they hold."""
    from swaptide.host import protocol, render

    if all(value is None for value in given.values()):
        raise click.UsageError("nothing to set: give --ram, --floor, --weight, --compress or --clean-ahead")
    if given["deadline_seconds"] is not None and given["ram_bytes"] is None:
        raise click.UsageError("--deadline needs --ram, which is to hold by then")
    with _going_on(f"the new limits of disk {name} stay in force"), render.squeezing(name) as progress:

        def follow(step: dict[str, Any]) -> None:
            if step["elapsed_seconds"] == 0:
                _warn_of(step)
            progress(step)

        step = _call(run_dir, protocol.Set(name, **given), follow)
    if as_json:
        _print_json({"name": name, **step})
    _tell_outcome(name, step, quiet=as_json)


@disk.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if a client is connected.")
@_json
@_run_dir
def clear(run_dir: pathlib.Path | None, name: str, force: bool, as_json: bool) -> None:
    """Empty a disk whose guest is gone; it gets a new id."""
    from swaptide.host import protocol

    with _going_on(f"disk {name} is being cleared all the same"):
        report = _call(run_dir, protocol.Clear(name, force))
    if as_json:
        _print_json(report)
    else:
        click.echo(f"disk {name} is empty, its new id is {report['id']}")


@disk.command()
@click.argument("name")
@_json
@_run_dir
def restart(run_dir: pathlib.Path | None, name: str, as_json: bool) -> None:
    """Serve a disk with a new process, as after an upgrade; its guest only waits."""
    from swaptide.host import protocol

    with _going_on(f"disk {name} is being restarted all the same"):
        report = _call(run_dir, protocol.Restart(name))
    if as_json:
        _print_json(report)
        return
    click.echo(
        f"disk {name} serves again, pid {report['pid']}; it was away for {report['pause_seconds']:.2f} s"
    )


@disk.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if a client is connected.")
@_json
@_run_dir
def remove(run_dir: pathlib.Path | None, name: str, force: bool, as_json: bool) -> None:
    """Remove a disk and all its files."""
    from swaptide.host import protocol

    with _going_on(f"disk {name} is being removed all the same"):
        gone = _call(run_dir, protocol.Remove(name, force))
    if as_json:
        _print_json({**gone, "removed": True})
    else:
        click.echo(f"disk {name} removed")


@cli.command()
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["qemu", "libvirt"]), default="qemu", show_default=True)
@_run_dir
def snippet(run_dir: pathlib.Path | None, name: str, form: str) -> None:
    """Print the lines that attach a disk to a guest."""
    from swaptide.host import protocol
    from swaptide.host import snippet as lines

    report = _call(run_dir, protocol.Show(name))
    if report["id"] is None:
        raise UsageError(f"disk {name} has not started yet; look with `swaptide disk show {name}`")
    write = lines.qemu if form == "qemu" else lines.libvirt
    click.echo(write(report["id"], report["socket"]), nl=False)


@cli.command("plugin-path")
def plugin_path() -> None:
    """Print the path of the script for plain nbdkit."""
    from swaptide.host import paths

    click.echo(paths.plugin())


def main() -> NoReturn:
    """Run the command and exit with its status."""
    try:
        for word in sys.argv[1:]:
            if not _is_utf8(word):
                raise click.UsageError(f"argument {word!r} is not UTF-8")
        status = cli.main(prog_name="swaptide", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.UsageError as error:
        _end_of_usage(error)
    except (SwaptideError, OSError, click.ClickException) as error:
        click.echo(f"swaptide: {_one_line(error)}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)


def _end_of_usage(error: click.UsageError) -> NoReturn:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        where = error.ctx.command_path if error.ctx is not None else "swaptide"
        message = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"swaptide: {message}; see `{where} --help`", err=True)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return " ".join(text.split())


def _call(run_dir: pathlib.Path | None, request: Any, *progress: Any) -> Any:
    from swaptide.host import client, paths

    return client.call(run_dir or paths.default_run_dir(), request, *progress)


@contextlib.contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Tell who interrupts the command what the daemon does meanwhile: it goes on with a call."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"swaptide: interrupted; {what}", err=True)
        sys.exit(_INTERRUPTED)


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


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


if __name__ == "__main__":
    main()
