"""A disk of the daemon that has a spill server: filled, checked; whose the export is."""

import random

from swaptide.cache import exports, uris
from tests.real import daemons, remotes

MIB = daemons.MIB
DATA = random.Random(5).randbytes(daemons.SIZE)


def fill(daemon: daemons.Daemon, name: str = "g1") -> None:
    """Write all of the disk."""
    with daemons.client(daemon.show(name)) as handle:
        for at in range(0, daemons.SIZE, MIB):
            handle.pwrite(DATA[at : at + MIB], at)


def check(daemon: daemons.Daemon, name: str = "g1") -> None:
    """All of it is what was written."""
    with daemons.client(daemon.show(name)) as handle:
        for at in range(0, daemons.SIZE, MIB):
            assert handle.pread(MIB, at) == DATA[at : at + MIB], at


def owner(remote: remotes.Remote) -> str | None:
    """Id of the disk that the export belongs to, None where it is nobody's."""
    found = exports.owner_of(uris.parse(remote.uri))
    return None if found is None or found.is_nobody else found.header.disk_id
