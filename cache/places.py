"""Where a disk's cold data goes, as people write it: one store, or two with a comma between.  Pure.

    /var/spill/g1
    /var/spill/g1,size=20G,nbd://store7/g1

The first is preferred, the second used when the first is full or fails.  `size=` is how much of a store is
used; without it a file has all that the disk needs, a device or an export what it has.  A comma that belongs
to a path is written twice.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Final

from swaptide.cache import sizes, uris
from swaptide.cache.errors import UsageError

_SIZE: Final = "size="
_MOST: Final = 2


@dataclasses.dataclass(frozen=True)
class Part:
    """One store of two, and how much of it is used, in bytes; None for what it has, or what is needed."""

    place: uris.Place
    size_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two stores.  str() is for people and logs."""

    first: Part
    second: Part

    def __str__(self) -> str:
        return f"{self.first.place},{self.second.place}"


Spill = uris.Place | Pair


def parse(text: str) -> Spill:
    """The place or places; a path becomes absolute.  Raises UsageError for what cannot be one."""
    written = _split(text)
    parts = [
        Part(_place(place), sizes.parse("spill: size", size) if size is not None else None)
        for place, size in written
    ]
    if len(parts) == 1:
        if parts[0].size_bytes is not None:
            raise UsageError(f"spill={show(text)}: size= is for one of two stores; name another behind it")
        return parts[0].place
    pair = Pair(parts[0], parts[1])
    if _is_same(pair.first.place, pair.second.place):
        raise UsageError(f"spill={pair}: twice the same store; name two, or one")
    return pair


def each(text: str) -> list[str]:
    """The paths and URIs in `text`, each by itself; raises UsageError."""
    return [place for place, _ in _split(text)]


def show(text: str) -> str:
    """As it was written, but for what a log should not have of a URI."""
    return _rewrite(text, uris.show)


def has_server(text: str) -> bool:
    """Whether one of them is an NBD export; whatever else it is."""
    return any(uris.is_uri(word) for word in _words(text))


def absolute(text: str, to_path: Callable[[str], str]) -> str:
    """The same with every path as `to_path` makes it.  Raises UsageError."""
    _split(text)
    return _rewrite(text, lambda place: place if uris.is_uri(place) else to_path(place))


def quote(path: str) -> str:
    """How a path is written, whatever is in it."""
    return path.replace(",", ",,")


def _rewrite(text: str, change: Callable[[str], str]) -> str:
    return ",".join(
        quote(word if word.startswith(_SIZE) and index else change(word))
        for index, word in enumerate(_words(text))
    )


def _words(text: str) -> list[str]:
    """Cut at single commas."""
    return [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]


def _split(text: str) -> list[tuple[str, str | None]]:
    """Each place with the size behind it, as text."""
    if "\0" in text:
        raise UsageError("spill: a path has no NUL in it")
    found: list[tuple[str, str | None]] = []
    for word in _words(text):
        if word.startswith(_SIZE) and found:
            if found[-1][1] is not None:
                raise UsageError(f"spill={show(text)}: two sizes for one store; give one")
            found[-1] = (found[-1][0], word.removeprefix(_SIZE))
        else:
            found.append((word, None))
    if not all(place for place, _ in found):
        raise UsageError(f"spill={show(text)}: must be a path or URI, or two of them with one comma between")
    if len(found) > _MOST:
        raise UsageError(
            f"spill={show(text)}: {len(found)} stores, at most {_MOST} are possible;"
            " a comma that belongs to a path is written twice"
        )
    return found


def _place(text: str) -> uris.Place:
    return uris.parse(text) if uris.is_uri(text) else pathlib.Path(text).absolute()


def _is_same(one: uris.Place, other: uris.Place) -> bool:
    """As far as the names tell: whoever makes the disk looks into the stores as well."""
    if isinstance(one, pathlib.Path) and isinstance(other, pathlib.Path):
        return os.path.normpath(one) == os.path.normpath(other)
    return one == other
