"""`swaptide doctor`: looks at a host, and at disks, and says how to mend what is not right."""

import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from swaptide.host import common

if TYPE_CHECKING:
    from swaptide.host import diagnosis, sight

_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@click.command()
@click.argument("disk", required=False, shell_complete=common.offer_disks)
@common.config_option("The daemon's configuration, as it has it or is to have it.")
@common.json_option
@common.run_dir_option
def doctor(run_dir: pathlib.Path | None, file: pathlib.Path | None, disk: str | None, as_json: bool) -> None:
    """Check this host, its daemon and its disks, or one DISK, and say how to mend each thing.

    Nothing is changed.  Each line is `ok`, `warn` (it works, but not as well as it could) or `bad`; the last
    two have a remedy below.  Ends with status 0 if nothing is bad, 1 if something has to be mended, 2 if the
    command line makes no sense.
    """
    from swaptide.host import config, sight

    found = _examine(sight.Sight(config.load(file, run_dir)), disk)
    if as_json:
        common.print_json(_as_json(found))
    else:
        _show(found)
    sys.exit(int(any(each.verdict == "bad" for each in found)))


def _examine(seen: "sight.Sight", disk: str | None) -> list["diagnosis.Finding"]:
    from swaptide.host import checks_disks, checks_host, diagnosis

    reports = seen.daemon.disks
    if disk is not None:
        _require(seen, disk)
        reports = [report for report in reports if report["name"] == disk]
    checks = (checks_disks.daemon, checks_disks.promises) if disk else (*checks_host.ALL, *checks_disks.ALL)
    found = [each for check in checks for each in diagnosis.made(check.__name__, check(seen))]
    for report in reports:
        for check in checks_disks.DISK:
            name = f"{check.__name__.removeprefix('disk_')} of {report['name']}"
            found += diagnosis.made(name, check(seen, report))
    return found


def _require(seen: "sight.Sight", disk: str) -> None:
    """Raises SwaptideError unless the daemon has such a disk."""
    from swaptide.cache.errors import SetupError, UsageError

    if seen.daemon.look is None:
        raise SetupError(seen.daemon.error)
    names = [report["name"] for report in seen.daemon.disks]
    if disk not in names:
        raise UsageError(f"there is no disk {disk!r}; the disks are: {', '.join(names) or 'none'}")


def _as_json(found: list["diagnosis.Finding"]) -> dict[str, Any]:
    import dataclasses

    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in _COLOURS}
    return {**counts, "findings": [dataclasses.asdict(each) for each in found]}


def _show(found: list["diagnosis.Finding"]) -> None:
    width = max(len(each.name) for each in found)
    for each in found:
        # Plain where it goes to a file: click sees to that.
        verdict = click.style(each.verdict.ljust(4), _COLOURS[each.verdict])
        click.echo(f"{verdict}  {each.name.ljust(width)}  {each.said}")
        if each.remedy:
            click.echo(f"{' ' * (width + 8)}{click.style('mend: ', bold=True)}{each.remedy}")
    bad, warned = (sum(each.verdict == verdict for each in found) for verdict in ("bad", "warn"))
    click.echo(f"{len(found)} looked at: {bad} to be mended, {warned} that could be better")
