"""The command's side of the control socket.  Blocking, one connection for each call.

A daemon that hangs is told from one that works long: the latter says that it lives.
"""

import contextlib
import pathlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

import swaptide
from swaptide.cache.errors import SetupError, SwaptideError, UsageError
from swaptide.host import protocol

_decoder = msgspec.json.Decoder(protocol.Reply)


def call(
    run_dir: pathlib.Path,
    request: protocol.Request,
    progress: Callable[[dict[str, Any]], None] = lambda step: None,
) -> Any:
    """Send `request` to the daemon of `run_dir` and return its result; `progress` gets what comes before.

    Raises the daemon's own error, or SetupError if it does not run or may not be spoken to.
    """
    try:
        return _exchange(run_dir, msgspec.json.encode(request), progress)
    except UnicodeEncodeError as error:
        raise UsageError(f"{error.object!r} is not UTF-8; use another name") from error
    except TimeoutError as error:
        raise SetupError(
            f"the daemon at {run_dir / 'control.sock'} has said nothing for {protocol.SILENCE_SECONDS:g} s:"
            " it hangs or is stopped; look at its log, and start it anew, the disks serve on meanwhile"
        ) from error
    except (ConnectionError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SetupError(
            f"{run_dir / 'control.sock'} does not answer as a daemon does: {error}; look whether"
            f" `swaptide serve` runs there, of version {swaptide.__version__} as this command"
        ) from error


def _exchange(run_dir: pathlib.Path, request: bytes, progress: Callable[[dict[str, Any]], None]) -> Any:
    with _connect(run_dir) as connection, connection.makefile("rwb") as lines:
        lines.write(request + b"\n")
        lines.flush()
        while line := lines.readline(protocol.REPLY_LIMIT_BYTES):
            reply = _decoder.decode(line)
            if isinstance(reply, protocol.Progress):
                progress(reply.value)
            elif isinstance(reply, protocol.Alive):
                continue
            elif isinstance(reply, protocol.Failure):
                raise protocol.error_of(reply)
            else:
                # What is promised to nobody is not kept; who needs no such word may have hung up.
                with contextlib.suppress(ConnectionError):
                    connection.sendall(protocol.HEARD)
                return reply.value
    raise SwaptideError("the daemon ended before it answered; start it and look with `swaptide disk ls`")


def _connect(run_dir: pathlib.Path) -> socket.socket:
    path = run_dir / "control.sock"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A time limit of Python's would not wait for a place in a full queue.
    whole, rest = divmod(protocol.SILENCE_SECONDS, 1.0)
    limit = struct.pack("ll", int(whole), int(rest * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        connection.connect(str(path))
        connection.settimeout(protocol.SILENCE_SECONDS)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise SetupError(
            f"no daemon answers at {path}; start it with `swaptide serve --run-dir {run_dir}`"
        ) from error
    except PermissionError as error:
        connection.close()
        raise SetupError(f"permission denied at {path}; run as the user of `swaptide serve`") from error
    except BlockingIOError as error:
        connection.close()
        raise TimeoutError from error
    except OSError as error:
        connection.close()
        raise SetupError(f"{path} cannot be reached: {error.strerror or error}; check --run-dir") from error
    return connection
