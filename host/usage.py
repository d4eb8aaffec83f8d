"""What help says besides the options: each command in a few words, and examples.  Pure data.

A test parses every example, and docs/man has them all.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import click

UNITS: Final = (
    "SIZE is bytes, or a number with K, M, G or T, in powers of 1024, such as 512M.  TIME is a number with"
    " ms, s, m or h, such as 500ms.  --json is for scripts; exit statuses are in swaptide(1)."
)
# In as many letters as a list of commands has room for.
SHORT: Final[Mapping[str, str]] = {
    "attach": "Plug a disk into a running guest.",
    "detach": "Unplug a disk from a running guest.",
    "disk freeze": "Have a disk stand still: writes wait, reads go on.",
    "disk load": "Fill an empty disk from a file of `disk save`.",
    "disk restart": "Serve a disk with a new process, as after an upgrade.",
    "disk save": "Write a disk into a file.",
    "doctor": "Check host, daemon and disks; say how to mend things.",
    "guest": "Register guests, to look after balloons and resets.",
    "migrate": "Move a disk to another host while its guest uses it.",
    "plan": "Say what disks, caps and floors make sense.",
    "receive": "Take a disk in from `swaptide migrate`.",
    "reserve": "Have memory free before a guest is started.",
    "top": "Show what the disks are doing, live.",
}
EXAMPLES: Final[Mapping[str, Sequence[str]]] = {
    "attach": ("attach g1 --guest vm1", "attach g1 --qmp /run/vm1.qmp --deadline 1m"),
    "detach": ("detach g1 --guest vm1",),
    "disk add": (
        "disk add g1 --size 4G --ram 1G --socket-owner libvirt-qemu",
        "disk add g2 --size 16G --ram 2G --spill /dev/vg0/g2 --compress lz4+zstd",
        "disk add g3 --size 8G --ram 1G --spill nbds://store7/g3 --spill-timeout 10s",
    ),
    "disk clear": ("disk clear g1",),
    "disk freeze": ("disk freeze g1",),
    "disk load": ("disk load g1 /var/backup/g1.disk",),
    "disk ls": ("disk ls --json",),
    "disk restart": ("disk restart g1",),
    "disk rm": ("disk rm g1",),
    "disk save": ("disk save g1 /var/backup/g1.disk",),
    "disk set": ("disk set g1 --ram 256M --deadline 2s", "disk set g1 --floor 64M --weight 200"),
    "disk show": ("disk show g1 --json",),
    "disk thaw": ("disk thaw g1",),
    "doctor": ("doctor", "doctor g1", "doctor --config /etc/swaptide/swaptide.toml"),
    "guest add": ("guest add vm1 --qmp /run/vm1.qmp --min 1G --max 4G --disk g1 --clear-on-reset",),
    "guest ls": ("guest ls --json",),
    "guest rm": ("guest rm vm1",),
    "migrate": (
        "migrate g1 --to tcp:host2:7070 --tls-certificates /etc/pki/swaptide --guest vm1"
        " --qemu-uri tcp:host2:7071",
        "migrate g1 --take-back",
    ),
    "plan": (
        "plan --guests 6 --guest-memory 8G --free 8G",
        "plan --free 2G",
        "plan --host-memory 256G --guests 40 --guest-memory 8G",
    ),
    "plugin-path": ("plugin-path",),
    "receive": (
        "receive g1 --listen tcp:host2:7070 --tls-certificates /etc/pki/swaptide",
        "receive g1 --accept",
    ),
    "reserve": ("reserve 8G --deadline 10s --hold 60s", "reserve --list", "reserve --release 1a2b3c4d"),
    "serve": ("serve --config /etc/swaptide/swaptide.toml", "serve --show-config"),
    "simulate": (
        "simulate trace.jsonl --make two-guests",
        "simulate trace.jsonl --every 30s --set ahead_seconds=2 --plot trace.svg",
    ),
    "snippet": ("snippet g1", "snippet g1 --format libvirt --lasting"),
    "top": ("top", "top g1 g2 --sort stall", "top --once --json"),
}


def put_into(group: click.Group, path: str = "") -> None:
    """Have all commands say so in their help."""
    for name, command in group.commands.items():
        words = f"{path} {name}".lstrip()
        command.short_help = SHORT.get(words, command.short_help)
        if isinstance(command, click.Group):
            put_into(command, words)
        elif words in EXAMPLES:
            shown = "\n".join(f"  swaptide {line}" for line in EXAMPLES[words])
            command.epilog = f"\b\nExamples:\n{shown}"
