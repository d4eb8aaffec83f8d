"""A disk's listening NBD socket, bound by the daemon so that its mode is 0600 from the first moment.

The daemon keeps it open while a disk's process is away: clients wait in its queue for the next one.
"""

import contextlib
import os
import pathlib
import socket
import stat

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import paths

_BACKLOG = 128


def check(path: pathlib.Path) -> None:
    """Raises UsageError if a socket cannot have this path, or something else than a socket is there."""
    if len(os.fsencode(path)) > paths.SOCKET_PATH_BYTES:
        raise UsageError(
            f"socket path {path} is longer than {paths.SOCKET_PATH_BYTES} bytes;"
            " use a shorter name or run directory"
        )
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} exists and is no socket; move it away")


def bind(path: pathlib.Path) -> socket.socket:
    """A socket that listens at `path`, in place of what was there; raises SetupError."""
    # Linux takes a bound socket's name along in a rename, so no client ever finds the path missing.
    fresh = path.with_name(f".{path.name[:32]}")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        fresh.unlink(missing_ok=True)
        bound.bind(os.fspath(fresh))
        bound.listen(_BACKLOG)
        fresh.rename(path)
    except OSError as error:
        bound.close()
        fresh.unlink(missing_ok=True)
        raise SetupError(f"socket {path} cannot be made: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return bound
