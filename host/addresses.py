"""Where a disk is sent to or comes from: addresses, their sockets, and the certificates that go with them."""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import re
import socket

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import listener, paths

_TCP = re.compile(r"tcp:(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):([0-9]{1,5})")
_CONNECT_SECONDS = 10.0
_PEM_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True)
class Address:
    """A unix socket's `path`, or `host` and `port` of TCP."""

    path: pathlib.Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def parse(text: str) -> Address:
    """The address that `text` names; raises UsageError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not os.path.isabs(path) or "\0" in path or len(os.fsencode(path)) > paths.SOCKET_PATH_BYTES:
            raise UsageError(
                f"address {text!r} is not allowed; give an absolute path of at most"
                f" {paths.SOCKET_PATH_BYTES} bytes behind unix:"
            )
        return Address(path=pathlib.Path(path))
    found = _TCP.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise UsageError(f"address {text[:80]!r} is not allowed; write unix:/PATH or tcp:HOST:PORT")
    return Address(host=found[1] or found[2], port=int(found[3]))


def certificates(
    address: Address, directory: str | None, *, insecure: bool, server: bool
) -> dict[str, str] | None:
    """The text of certificates and key in `directory`, None for a connection in the clear.

    Raises UsageError where that was not asked for, SetupError for files that cannot be read.
    """
    if directory is None:
        if address.path is None and not insecure:
            raise UsageError(
                f"over {address} the guest's memory would pass in the clear; give --tls-certificates DIR,"
                " or a unix socket that ssh forwards, or --insecure"
            )
        return None
    if address.path is not None:
        raise UsageError(f"{address} never leaves this host; --tls-certificates is for tcp:HOST:PORT")
    whose = "server" if server else "client"
    names = {"ca": "ca-cert.pem", "cert": f"{whose}-cert.pem", "key": f"{whose}-key.pem"}
    found = {what: _read(pathlib.Path(directory, name)) for what, name in names.items()}
    return {**found, "host": address.host}


def _read(path: pathlib.Path) -> str:
    try:
        # A FIFO would block us.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            text = file.read(_PEM_BYTES + 1).decode("ascii")
    except OSError as error:
        raise SetupError(
            f"{path} cannot be read: {error.strerror}; it belongs to --tls-certificates"
        ) from error
    except UnicodeDecodeError as error:
        raise SetupError(
            f"{path} is no PEM file; --tls-certificates takes a directory with three of them"
        ) from error
    if len(text) > _PEM_BYTES:
        raise SetupError(f"{path} has more than {_PEM_BYTES} bytes; give the certificates that are needed")
    return text


async def connect(address: Address) -> socket.socket:
    """A connection to `address`; raises SetupError."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await _connect(address)
    except TimeoutError:
        raise SetupError(
            f"{address} does not answer within {_CONNECT_SECONDS:.0f} s;"
            " does `swaptide receive` listen there?"
        ) from None
    except OSError as error:
        raise SetupError(
            f"{address} cannot be reached: {error.strerror or error}; does `swaptide receive` listen there?"
        ) from error


async def _connect(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    if address.path is not None:
        places = [(socket.AF_UNIX, os.fspath(address.path))]
    else:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        places = [(each[0], each[4]) for each in found]  # type: ignore[misc]
    trouble: OSError = OSError("no such host")
    for family, place in places:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            await loop.sock_connect(made, place)
            return made
        except OSError as error:
            trouble = error
            made.close()
        except BaseException:
            made.close()
            raise
    raise trouble


def listen(address: Address) -> socket.socket:
    """A socket that listens at `address`; raises SetupError, UsageError where something else is there."""
    if address.path is not None:
        listener.check(address.path)
        made = listener.bind(address.path)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            made = socket.create_server((address.host, address.port), family=family, backlog=1)
        except OSError as error:
            raise SetupError(
                f"{address} cannot be listened at: {error.strerror or error}; choose another address"
            ) from error
    made.setblocking(False)
    return made


def where(address: Address, listening: socket.socket) -> Address:
    """Where that is, the port that the kernel chose for 0 included."""
    if address.path is not None:
        return address
    return dataclasses.replace(address, port=listening.getsockname()[1])


def leave(address: Address, listening: socket.socket) -> None:
    """Listen no more."""
    listening.close()
    if address.path is not None:
        with contextlib.suppress(OSError):
            address.path.unlink()
