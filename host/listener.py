"""A disk's listening NBD socket, bound by the daemon so that its mode is 0600 from the first moment.

The daemon keeps it open while a disk's process is away: clients wait in its queue for the next one.
"""

import contextlib
import os
import pathlib
import socket
import stat
import struct

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import paths

_BACKLOG = 128
_ACTIVATION_FD = 3
# sock_diag(7): one request for the file that a Unix socket is bound to.
_NETLINK_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1
_ANY_STATE, _SHOW_VFS, _NO_COOKIE = 0xFFFFFFFF, 2, 0xFFFFFFFF
_HEADER, _ASK, _SOCKET = struct.Struct("=IHHII"), struct.Struct("=BBHIIIII"), struct.Struct("=BBBBIII")
_ATTRIBUTE, _VFS, _VFS_TYPE = struct.Struct("=HH"), struct.Struct("=II"), 1
_MINOR_BITS = 20
_NETLINK_BYTES = 8192
_NETLINK_SECONDS = 1.0


def check(path: pathlib.Path) -> None:
    """Raises UsageError if a socket cannot have this path, or something else than a socket is there."""
    if len(os.fsencode(path)) > paths.SOCKET_PATH_BYTES:
        raise UsageError(
            f"socket path {path} is longer than {paths.SOCKET_PATH_BYTES} bytes;"
            " use a shorter name or run directory"
        )
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} exists and is no socket; move it away")


def bind(path: pathlib.Path, owner_uid: int | None = None) -> socket.socket:
    """A socket that listens at `path`, in place of what was there; raises SetupError.

    Only its owner may connect: `owner_uid`, or whoever calls this.
    """
    # Linux takes a bound socket's name along in a rename, so no client ever finds the path missing.
    fresh = path.with_name(f".{path.name[:32]}")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        fresh.unlink(missing_ok=True)
        bound.bind(os.fspath(fresh))
        if owner_uid is not None:
            os.chown(fresh, owner_uid, -1)
        bound.listen(_BACKLOG)
        fresh.rename(path)
    except OSError as error:
        bound.close()
        fresh.unlink(missing_ok=True)
        raise SetupError(
            f"socket {path} cannot be made: {error.strerror or error}; choose another --run-dir"
        ) from error
    finally:
        os.umask(before)
    return bound


def is_held(path: pathlib.Path, pid: int) -> bool:
    """Whether the socket that `pid` was started with is the one that `path` names today.

    True where the kernel does not tell.  Names do not answer it: a bound socket keeps its first one.
    """
    try:
        inode = int(os.readlink(f"/proc/{pid}/fd/{_ACTIVATION_FD}").removeprefix("socket:[").rstrip("]"))
        bound = _file_of(inode)
    except PermissionError:  # the process hides (cache/guard.py), and we are not root
        return _is_listened_at(path)
    except (OSError, ValueError, struct.error):
        return True
    try:
        named = path.lstat()
    except OSError:
        return False
    device = os.major(named.st_dev) << _MINOR_BITS | os.minor(named.st_dev)
    return bound is None or bound == (named.st_ino & 0xFFFFFFFF, device)


def _is_listened_at(path: pathlib.Path) -> bool:
    """Whether anybody listens at `path`; a client that leaves without a word does no harm."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, for example
            return True
    return True


def _file_of(inode: int) -> tuple[int, int] | None:
    """Inode and device of the file that the Unix socket `inode` is bound to, None if it is not told."""
    ask = _ASK.pack(socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _SHOW_VFS, _NO_COOKIE, _NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_NETLINK_SECONDS)
        netlink.sendto(_HEADER.pack(_HEADER.size + len(ask), _BY_FAMILY, _REQUEST, 1, 0) + ask, (0, 0))
        reply = netlink.recv(_NETLINK_BYTES)
    if _HEADER.unpack_from(reply)[1] != _BY_FAMILY:
        return None
    at = _HEADER.size + _SOCKET.size
    length, kind = _ATTRIBUTE.unpack_from(reply, at)
    if kind != _VFS_TYPE or length != _ATTRIBUTE.size + _VFS.size:
        return None
    file, device = _VFS.unpack_from(reply, at + _ATTRIBUTE.size)
    return file, device
