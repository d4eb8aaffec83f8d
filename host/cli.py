"""The `swaptide` command.  Imports what a call needs only when it is made, to be quick on the prompt.

Errors are one line on stderr, and an exit status of host.ending.
"""

import pathlib
import sys
from collections.abc import Sequence

import click

from swaptide.cache import errors
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
    ending,
    usage,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=usage.UNITS)
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
@common.config_option("TOML configuration, as swaptide.toml(5) has it [default: none].")
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
        logs.ended_by(ending.one_line(error))
        sys.exit(ending.Status.FAILED)
    except Exception:
        logs.log.exception("daemon ended by a fault")
        raise


@cli.command()
@click.argument("name", shell_complete=common.offer_disks)
@click.option(
    "--format",
    "form",
    type=click.Choice(["qemu", "libvirt", "libvirt-args", "proxmox"]),
    default="qemu",
    show_default=True,
    help="Options for QEMU, a <disk> for libvirt 9.2 or later, a <qemu:commandline> for any libvirt, or what"
    " `qm set ID --args` of Proxmox VE takes.",
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
    write = {
        "qemu": lines.qemu,
        "libvirt": lines.libvirt,
        "libvirt-args": lines.libvirt_args,
        "proxmox": lines.proxmox,
    }[form]
    click.echo(write(None if lasting else report["id"], report["socket"]), nl=False)


@cli.command("plugin-path")
def plugin_path() -> None:
    """Print the path of the script for plain nbdkit."""
    from swaptide.host import paths

    click.echo(paths.plugin())


usage.put_into(cli)


def run(words: Sequence[str]) -> int:
    """Run the command with these words, and return its exit status; raises what nobody foresaw."""
    try:
        for word in words:
            if not common.is_utf8(word):
                raise click.UsageError(f"argument {word!r} is not UTF-8")
        status = cli.main(list(words), prog_name="swaptide", standalone_mode=False)
        return status if isinstance(status, int) else ending.Status.DONE
    except click.UsageError as error:
        return _told_usage(error)
    except (SwaptideError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"swaptide: {errors.plain(message)}", err=True)
        return ending.Status.FAILED
    except click.Abort:
        return ending.Status.INTERRUPTED


def _told_usage(error: click.UsageError) -> int:
    # Older versions of click print the help by themselves.
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
    else:
        where = error.ctx.command_path if error.ctx is not None else "swaptide"
        message = errors.plain(error.format_message()).rstrip(".")
        click.echo(f"swaptide: {message}; see `{where} --help`", err=True)
    return ending.Status.USAGE


main = ending.main

if __name__ == "__main__":
    main()
