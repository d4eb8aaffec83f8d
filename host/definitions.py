"""What a daemon shall remember across its end, its disks above all: one small JSON file for each.

Owned by the daemon's loop, which never waits long for the directory: it often shares a store with spill
files, and that may be dead.  Files are replaced whole, so that a crash leaves the old or the new one.
"""

import contextlib
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec

from swaptide.cache import detached, places, uris
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import durations

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# Names that the daemon has uses for in its run directory: control.sock, daemon.lock, mem.
_RESERVED = frozenset(("control", "daemon", "mem"))
LIMIT_SECONDS = 2.0
LEAST_SPILL_TIMEOUT_SECONDS = 1.0
_LABEL_BYTES = 15  # what mkswap leaves of a label: 16 bytes with their NUL


class Adoption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk that came in together with its store, and is to take this one's place (host/adoption.py).

    `number` names its state file's draft and its key; `spill_path` its stores, and `marks` what they looked
    like when it was copied.  `kept`: all of it is here; `claimed`: the stores are this disk's; `swapped`: it
    is this disk, and `spill_path` is what this one had before, which is to be released.
    """

    stage: Literal["kept", "claimed", "swapped"]
    number: str
    spill_path: str
    marks: tuple[str, ...]


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk as it shall be.  Sizes in bytes; paths absolute.

    `disk_id` is the instance that was served last, None before the first start; `socket_owner` the user
    that may connect, None for the daemon's own; `uid` the user and group that serve this disk and no other,
    None where it has none.  `spill_timeout_seconds` is how long reads wait for an export's server that is
    gone, None for what the configuration says.  `removing` marks one whose removal has begun: a daemon that
    finds it goes on with that.  `store_given`: its store may be another disk's by now, and is left alone
    where its state file does not say.
    """

    name: str
    size_bytes: int
    cap_bytes: int
    floor_bytes: int
    weight: int
    compress: str
    encrypt: bool
    swap_label: str | None
    spill_path: str
    spill_chosen: bool
    state_path: str
    disk_id: str | None = None
    socket_owner: str | None = None
    removing: bool = False
    uid: Annotated[int, msgspec.Meta(gt=0, lt=0xFFFFFFFF)] | None = None
    clean_ahead_percent: int = 25
    spill_timeout_seconds: float | None = None
    adoption: Adoption | None = None
    store_given: bool = False


def check_name(name: str, what: str = "disk") -> None:
    """Raises UsageError unless `name` can name a disk, or `what` else, and its files."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} name {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' and '-',"
            " not starting with '.' or '-'"
        )
    if name in _RESERVED:
        raise UsageError(
            f"{what} name {name!r} is not allowed: the daemon uses it itself; choose another name"
        )


def check_label(label: str) -> None:
    """Raises UsageError unless `label` fits a swap signature."""
    if not label or not label.isprintable() or len(label.encode()) > _LABEL_BYTES:
        raise UsageError(f"swap label {label!r} is not allowed: use 1 to {_LABEL_BYTES} printable bytes")


def check_spill(path: str) -> None:
    """Raises UsageError unless `path` can be a spill path, absolute and without NUL, an NBD URI, or two."""
    for each in places.each(path):
        if not uris.is_uri(each) and not os.path.isabs(each):
            raise UsageError(f"spill path {each!r} is not allowed: give an absolute path")
    places.parse(path)


def check_spill_timeout(spill_path: str, seconds: float) -> None:
    """Raises UsageError unless reads from there can wait for so long and no longer."""
    if not places.has_server(spill_path):
        raise UsageError(
            f"--spill-timeout is for NBD exports; reads of {spill_path or 'a file'} wait as long as the"
            " kernel does; leave it out"
        )
    if not LEAST_SPILL_TIMEOUT_SECONDS <= seconds <= durations.MAX_SECONDS:
        raise UsageError(f"--spill-timeout {durations.show(seconds)} is not allowed; give 1s to 24h")


class Files:
    """A directory of small files, each with what is remembered of one thing."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._latest: dict[str, int] = {}

    def names(self) -> list[str]:
        """The names of all that is remembered, damaged files too."""
        return sorted(path.stem for path in self.directory.glob("*.json"))

    async def forget(self, name: str) -> None:
        """Drop what is remembered; missing is fine.

        Raises SetupError if the directory refuses, or its store does not answer.
        """
        await self._in_order(name, lambda: self._remove(name))

    def _load(self, kind: type[T]) -> list[T]:
        found = []
        for path in sorted(self.directory.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=kind))
            except (OSError, msgspec.MsgspecError) as error:
                log.error("definition unreadable file=%s error=%r", path, str(error))
        return found

    async def _save(self, name: str, value: msgspec.Struct) -> None:
        await self._in_order(name, lambda: self._write(name, value))

    async def _in_order(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` off the loop; one that a dead store held up does not undo a later one."""
        order = self._latest[name] = self._latest.get(name, 0) + 1

        def body() -> None:
            with self._lock:
                if self._latest[name] == order:
                    work()

        try:
            await detached.call(body, LIMIT_SECONDS)
        except TimeoutError:
            raise SetupError(f"state directory {self.directory} does not answer; mend its store") from None
        except OSError as error:
            raise SetupError(
                f"{self._path(name)} cannot be written: {error.strerror}; make room or mend it"
            ) from error

    def _write(self, name: str, value: msgspec.Struct) -> None:
        path = self._path(name)
        fresh = path.with_suffix(".new")
        try:
            with open(fresh, "wb", opener=_private) as file:
                file.write(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        self._sync()

    def _remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        self._sync()

    def _path(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.json"

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Store(Files):
    """The directory of the disks' definitions of one run directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Makes `directory` with mode 0700; raises SetupError if that is not possible."""
        super().__init__(directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"state directory {directory} cannot be made: {error.strerror};"
                " run as another user or set state_dir in the configuration"
            ) from error

    def load(self) -> list[Definition]:
        """Every readable definition by name; one that is damaged is left alone and logged."""
        return self._load(Definition)

    async def save(self, definition: Definition) -> None:
        """Write `definition` so that it survives a crash.

        Raises SetupError if the directory refuses, or its store does not answer.
        """
        await self._save(definition.name, definition)

    def close(self) -> None:
        """Remove the directory if nothing is in it."""
        if not any(self.directory.iterdir()):
            self.directory.rmdir()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
