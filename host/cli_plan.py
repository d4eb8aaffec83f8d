"""`swaptide plan`: what disks make sense on a host, and what comes of it when memory has to be freed."""

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from swaptide.host import common

if TYPE_CHECKING:
    from swaptide.balloon import plan as plans
    from swaptide.host import prospects


@click.command()
@click.option(
    "--guests", type=click.IntRange(1, 10000), metavar="N", help="How many guests are to come [default: 1]."
)
@common.size_option("--guest-memory", help="What each of them has [default: 4G].")
@common.size_option("--swap", help="The size of each one's disk [default: as much as its memory].")
@common.size_option("--host-memory", help="For another host than this one, which is not looked at then.")
@common.size_option(
    "--other", help="What the host needs besides [default: what it uses now; 1G with --host-memory]."
)
@common.size_option("--reserve", help="What is to stay free [default: as configured].")
@common.size_option(
    "--spill-space", help="Free for spill files [default: what is; unknown with --host-memory]."
)
@common.size_option(
    "--disk-speed", help="What the spill disk takes in a second [default: as measured, else 500M]."
)
@click.option(
    "--cores", type=click.IntRange(1, 4096), metavar="N", help="That may pack [default: those of this host]."
)
@common.size_option("--free", help="Say what happens when so much has to be given back.")
@common.config_option("The daemon's configuration, as it has it or is to have it.")
@common.json_option
@common.run_dir_option
def plan(run_dir: pathlib.Path | None, file: pathlib.Path | None, as_json: bool, **given: Any) -> None:
    """Say what disks, caps and floors make sense for guests that are to come, and the commands for them.

    --free says what giving memory back would take when every cache is full: how much is dropped, packed and
    written out, and how long that takes.  Without numbers of guests or of another host it is asked of the
    disks that the daemon has now.  What is assumed, or was measured elsewhere, is marked so.

    Nothing is changed.  Ends with status 0 if it is possible, 1 if there is too little memory or spill space
    or not so much can be freed, 2 if the command line makes no sense.
    """
    from swaptide.host import config, prospects, sight

    if given["host_memory_bytes"] is None and given["other_bytes"] is not None:
        raise click.UsageError("--other is for --host-memory: what this host uses is known")
    seen = prospects.look(sight.Sight(config.load(file, run_dir)), prospects.Given(**given))
    found = prospects.of_the_disks(seen) if seen.is_of_the_disks else prospects.of_guests(seen)
    if as_json:
        common.print_json(_as_json(found))
    else:
        _show(found)
    sys.exit(0 if found.is_possible else 1)


def _as_json(found: "prospects.Prospect") -> dict[str, Any]:
    return {"possible": found.is_possible, **dataclasses.asdict(found)}


def _show(found: "prospects.Prospect") -> None:
    lines = [*found.lines]
    for freed, words in zip(found.freed, found.freed_when, strict=True):
        lines += _freed(freed, words)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name.ljust(width)}  {text}")
    if found.commands:
        click.echo()
    for command in found.commands:
        click.echo(command)


def _freed(freed: "plans.Freed", words: str) -> list[tuple[str, str]]:
    from swaptide.host import durations, sizes

    parts = [
        f"{sizes.show(size)} {how}"
        for how, size in (
            ("dropped", freed.dropped_bytes),
            ("packed", freed.packed_bytes),
            ("written out", freed.spilled_bytes),
        )
        if size
    ]
    how = ", ".join(parts) or "nothing"
    long = "nothing can be written" if freed.seconds is None else f"{durations.show(freed.seconds)}"
    lines = [(f"freeing {sizes.show(freed.wanted_bytes)}", f"{words}: {how}: {long}")]
    if freed.wanted_bytes > freed.possible_bytes:
        lines.append(("", f"that is all: {sizes.show(freed.possible_bytes)}, with every cache at its floor"))
    return lines
