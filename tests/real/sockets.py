"""Where servers of the tests listen: ports that nobody takes in between, sockets that are there already."""

import pathlib
import random
import socket

# Below the ports that Linux gives to clients, so that nobody takes one between our look and the server's.
_PORTS = range(20000, 32000)
_LISTENS = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def listens(path: pathlib.Path) -> bool:
    """Whether somebody listens at a Unix socket, whose file is there a little earlier; connects to nobody."""
    for line in pathlib.Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7] == str(path) and int(words[3], 16) & _LISTENS:
            return True
    return False
