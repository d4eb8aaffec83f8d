"""The `swaptide` command.  Imports what a call needs only when it is made, to be quick on the prompt.

Errors are one line on stderr: exit status 1, or 2 for a command line that makes no sense.
"""

import os
import pathlib
import sys
from typing import NoReturn

import click

from swaptide.cache.errors import SwaptideError, UsageError
from swaptide.host import (
    cli_disk,
    cli_doctor,
    cli_guest,
    cli_migrate,
    cli_plan,
    cli_reserve,
    cli_simulate,
    cli_top,
    common,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="swaptide", message="%(prog)s %(version)s")
def cli() -> None:
    """Swap disks for KVM guests that live in host RAM and ebb to disk when the host needs it back."""


cli.add_command(cli_disk.disk)
cli.add_command(cli_simulate.simulate)
cli.add_command(cli_guest.guest)
cli.add_command(cli_guest.attach)
cli.add_command(cli_guest.detach)
cli.add_command(cli_reserve.reserve)
cli.add_command(cli_top.top)
cli.add_command(cli_doctor.doctor)
cli.add_command(cli_plan.plan)
cli.add_command(cli_migrate.migrate)
cli.add_command(cli_migrate.receive)
cli_disk.disk.add_command(cli_migrate.save)
cli_disk.disk.add_command(cli_migrate.load)


@cli.command()
@common.run_dir_option
@click.option("--config", "file", type=click.Path(path_type=pathlib.Path), help="TOML configuration.")
@click.option(
    "--metrics",
    metavar="ADDR:PORT|off",
    help="Where Prometheus may ask [default: 127.0.0.1:9819]; see docs/metrics.md.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="How the log looks, on standard error [default: text]; see docs/logs.md.",
)
@click.option("--show-config", is_flag=True, help="Print the effective configuration and end.")
def serve(
    run_dir: pathlib.Path | None,
    file: pathlib.Path | None,
    metrics: str | None,
    log_format: str | None,
    show_config: bool,
) -> None:
    """Run the host daemon in the foreground.

    SIGTERM, SIGINT and SIGHUP end it alike; its disks go on serving, and the next daemon adopts them.  The
    configuration is read once: end the daemon and start it again after a change.
    """
    from swaptide.host import config

    chosen = config.load(file, run_dir, metrics, log_format)
    if show_config:
        click.echo(chosen.as_toml(), nl=False)
        return
    from swaptide.host import daemon, logs

    logs.to_stderr(chosen.log_format)
    try:
        daemon.run(chosen)
    except (SwaptideError, OSError) as error:
        if not logs.is_for_programs(chosen.log_format):
            raise
        logs.ended_by(_one_line(error))
        sys.exit(1)


@cli.command()
@click.argument("name")
@click.option(
    "--format",
    "form",
    type=click.Choice(["qemu", "libvirt", "libvirt-args"]),
    default="qemu",
    show_default=True,
    help="Options for QEMU, a <disk> for libvirt 9.2 or later, or a <qemu:commandline> for any libvirt.",
)
@click.option(
    "--lasting",
    is_flag=True,
    help="Without the disk's id, for a guest's definition that outlives restarts of the host.",
)
@common.run_dir_option
def snippet(run_dir: pathlib.Path | None, name: str, form: str, lasting: bool) -> None:
    """Print what attaches a disk to a guest.

    It names the disk by its id, which is new after `swaptide disk clear` and after a restart of the host, so
    that no guest ever takes an emptied disk for its own.
    """
    from swaptide.host import protocol
    from swaptide.host import snippet as lines

    report = common.call(run_dir, protocol.Show(name))
    if report["id"] is None:
        raise UsageError(f"disk {name} has not started yet; look with `swaptide disk show {name}`")
    write = {"qemu": lines.qemu, "libvirt": lines.libvirt, "libvirt-args": lines.libvirt_args}[form]
    click.echo(write(None if lasting else report["id"], report["socket"]), nl=False)


@cli.command("plugin-path")
def plugin_path() -> None:
    """Print the path of the script for plain nbdkit."""
    from swaptide.host import paths

    click.echo(paths.plugin())


def main() -> NoReturn:
    """Run the command and exit with its status."""
    try:
        for word in sys.argv[1:]:
            if not common.is_utf8(word):
                raise click.UsageError(f"argument {word!r} is not UTF-8")
        status = cli.main(prog_name="swaptide", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.UsageError as error:
        _end_of_usage(error)
    except (SwaptideError, OSError, click.ClickException) as error:
        click.echo(f"swaptide: {_one_line(error)}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(common.INTERRUPTED)


def _end_of_usage(error: click.UsageError) -> NoReturn:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        where = error.ctx.command_path if error.ctx is not None else "swaptide"
        message = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"swaptide: {message}; see `{where} --help`", err=True)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        names = (error.filename, error.filename2)
        text = f"{' -> '.join(os.fsdecode(name) for name in names if name is not None)}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


if __name__ == "__main__":
    main()
