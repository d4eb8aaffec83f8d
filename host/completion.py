"""What the shell offers where a name is due: asked of the daemon, quickly, and nothing where none answers.

With the plain means of Python, for whoever pressed the key waits.
"""

import json
import pathlib
import socket
import time
from typing import Any, Final

_SECONDS: Final = 0.15


def names(run_dir: pathlib.Path, kind: str) -> list[str]:
    """The `disks`, `guests` or `reservations` of the daemon at `run_dir`; none if it does not say at once."""
    try:
        reply = json.loads(_asked(run_dir / "control.sock", b'{"type":"names"}\n'))
        return [str(name) for name in reply["value"][kind]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _asked(path: pathlib.Path, request: bytes) -> bytes:
    """The line that comes back; raises OSError, also when it does not come in time."""
    until = time.monotonic() + _SECONDS
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(path))
        connection.sendall(request)
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.001, until - time.monotonic()))
            data: Any = connection.recv(1 << 16)
            if not data:
                break
            answer += data
    return answer
