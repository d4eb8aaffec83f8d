"""Where things lie: default directories, and names derived from a run directory.  No state."""

import hashlib
import os
import pathlib
import string

import swaptide
from swaptide.cache.errors import SetupError

_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")
_LONGEST_KEY = 180  # leaves room for a prefix within the 255 bytes of a file name
SOCKET_PATH_BYTES = 107  # sun_path of unix(7) less its NUL


def default_run_dir() -> pathlib.Path:
    """/run/swaptide for root, else a directory of the user's session (or of the user in /tmp)."""
    if os.geteuid() == 0:
        return pathlib.Path("/run/swaptide")
    session = os.environ.get("XDG_RUNTIME_DIR")
    return pathlib.Path(session, "swaptide") if session else pathlib.Path(f"/tmp/swaptide-{os.geteuid()}")


def default_state_dir() -> pathlib.Path:
    """/var/lib/swaptide for root, else where XDG puts state; raises SetupError for a user without home."""
    if os.geteuid() == 0:
        return pathlib.Path("/var/lib/swaptide")
    base = os.environ.get("XDG_STATE_HOME")
    if base:
        return pathlib.Path(base, "swaptide")
    try:
        return pathlib.Path.home() / ".local/state/swaptide"
    except RuntimeError as error:
        raise SetupError(
            f"user {os.geteuid()} has no home; set HOME, or state_dir in the configuration"
        ) from error


def absolute(path: str | os.PathLike[str]) -> pathlib.Path:
    """`path` made absolute without touching what it names, which may lie on a dead store."""
    return pathlib.Path(os.path.abspath(path))


def escape(path: pathlib.Path) -> str:
    """A file name that stands for `path`, written as systemd-escape --path does.

    A name too long for a directory entry is cut and ends in a digest of the whole.
    """
    body = str(path).strip("/") or "/"
    pieces = []
    for index, byte in enumerate(body.encode("utf-8", "surrogateescape")):
        char = chr(byte)
        if char == "/":
            pieces.append("-")
        elif char in _PLAIN and not (char == "." and index == 0):
            pieces.append(char)
        else:
            pieces.append(f"\\x{byte:02x}")
    key = "".join(pieces)
    if len(key) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{key[:_LONGEST_KEY]}-{digest}"


def calls(run_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Where a disk's process finds the daemon that has called it (host/jobs.py)."""
    return run_dir / f"{name}.call"


def plugin() -> pathlib.Path:
    """The script that nbdkit loads."""
    # Not resolved: in an editable install the rooms are links, and nbdkit must see the package's path.
    return pathlib.Path(swaptide.__file__).parent / "nbdkit_plugin" / "plugin.py"
