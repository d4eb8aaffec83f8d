"""NBD URIs as spill places: what is allowed, and how one is shown.  Pure; see nbd_connect_uri(3)."""

import dataclasses
import pathlib
import re
import urllib.parse
from typing import Final

from swaptide.cache.errors import UsageError

_SCHEME: Final = re.compile(r"nbds?(\+unix|\+vsock)?://")
_MOST_CHARS: Final = 1000
_FILES: Final = ("socket", "tls-certificates", "tls-psk-file")
_QUERIES: Final = (*_FILES, "tls-hostname", "tls-username", "tls-verify-peer")


@dataclasses.dataclass(frozen=True)
class Uri:
    """A URI that was checked.  str() is for people and logs: without who one is and where keys lie."""

    text: str

    def __str__(self) -> str:
        parts = urllib.parse.urlsplit(self.text)
        socket = [each for each in parts.query.split("&") if each.startswith("socket=")]
        where = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{where}{parts.path}" + (f"?{socket[0]}" if socket else "")


# Where a disk's cold data goes.
Place = pathlib.Path | Uri


def is_uri(text: str) -> bool:
    """Whether this is meant as a URI, right or wrong, and not as a path."""
    return _SCHEME.match(text) is not None


def show(text: str) -> str:
    """A path or URI, for people and logs."""
    return str(Uri(text)) if is_uri(text) else text


def parse(text: str) -> Uri:
    """The URI; raises UsageError, which does not repeat it, for one that cannot name a spill export."""
    why = _fault(text)
    if why is not None:
        raise UsageError(f"spill=nbd…: {why}; write for example nbd+unix:///?socket=/run/spill.sock")
    return Uri(text)


def _fault(text: str) -> str | None:
    if not is_uri(text):
        return "not an NBD URI"
    if len(text) > _MOST_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        return f"more than {_MOST_CHARS} characters, or one that has to be written as %xx"
    try:
        parts = urllib.parse.urlsplit(text)
        password, queries = parts.password, urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if password is not None:
        return "a password in it would be seen by others; use tls-psk-file="
    given = dict(queries)
    unknown = sorted(given.keys() - set(_QUERIES))
    if unknown:
        return f"unknown parameter {unknown[0]}; known are {', '.join(_QUERIES)}"
    if ("+unix" in parts.scheme) != ("socket" in given):
        return "socket= goes with nbd+unix:// and nbds+unix://, and is needed there"
    relative = [name for name in _FILES if name in given and not given[name].startswith("/")]
    if relative:
        return f"{relative[0]}= must be an absolute path"
    if "s" not in parts.scheme[3:4] and any(name.startswith("tls-") for name in given):
        return "tls- parameters go with nbds:// and nbds+unix://"
    return None
