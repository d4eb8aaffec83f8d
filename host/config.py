"""The daemon's configuration: a TOML file, the command line and defaults, frozen before anything starts.

Read once by `serve`; nothing writes to it afterwards.
"""

import dataclasses
import os
import pathlib
import stat
import tomllib
from typing import Annotated

import msgspec

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import paths, uids

_Text = Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^\x00]*$")]
_LONGEST_BYTES = 1 << 20
_UNSET = {
    "memory_dir": "a tmpfs of the daemon's own, else /dev/shm",
    "user": "under a daemon of root each disk has a user of its own, see uids",
    "uids": f"{uids.DEFAULT.start}-{uids.DEFAULT.stop - 1} where they are free, unless user is set",
}


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    run_dir: _Text | None = None
    state_dir: _Text | None = None
    memory_dir: _Text | None = None
    spill_dir: _Text | None = None
    nbdkit: _Text = "nbdkit"
    # Not more: the plugin's base counts the request buffers of 16 (cache/governor.py).
    threads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16
    user: _Text | None = None
    uids: _Text | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """What a daemon runs with.  Directories are absolute.

    `memory_dir` is where state files lie; None means a tmpfs of the daemon's own below the run
    directory, or /dev/shm where it may not mount one.  `user` is who all disks' nbdkit run as under
    a daemon of root; None means that each disk has a number of its own out of `uids`.
    """

    run_dir: pathlib.Path
    state_dir: pathlib.Path
    spill_dir: pathlib.Path
    memory_dir: pathlib.Path | None
    nbdkit: str
    threads: int
    user: str | None = None
    uids: str | None = None

    @property
    def control_socket(self) -> pathlib.Path:
        """Where the daemon listens for the command."""
        return self.run_dir / "control.sock"

    @property
    def definitions_dir(self) -> pathlib.Path:
        """Where this run directory's disks are remembered."""
        return self.state_dir / paths.escape(self.run_dir)

    def as_toml(self) -> str:
        """The effective set, in the form that --config reads."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                lines.append(f"# {field.name} is not set: {_UNSET[field.name]}")
            elif isinstance(value, int):
                lines.append(f"{field.name} = {value}")
            else:
                # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
                text = msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")
                lines.append(f"{field.name} = {text}")
        return "\n".join(lines) + "\n"


def load(file: pathlib.Path | None, run_dir: pathlib.Path | None) -> Config:
    """The configuration of `file`, with `run_dir` of the command line over it.

    Raises SetupError if the file cannot be read, UsageError if it is no TOML or has a bad key.
    """
    chosen = _read(file) if file is not None else _File()
    if chosen.uids is not None:
        _check_uids(file, chosen)
    state_dir = _directory(chosen.state_dir) or paths.default_state_dir()
    return Config(
        run_dir=run_dir or _directory(chosen.run_dir) or paths.default_run_dir(),
        state_dir=state_dir,
        spill_dir=_directory(chosen.spill_dir) or state_dir,
        memory_dir=_directory(chosen.memory_dir),
        nbdkit=chosen.nbdkit,
        threads=chosen.threads,
        user=chosen.user,
        uids=chosen.uids,
    )


def _check_uids(file: pathlib.Path | None, chosen: _File) -> None:
    try:
        uids.parse(chosen.uids or "")
    except UsageError as error:
        raise UsageError(f"configuration {file}: {error}") from None
    if chosen.user is not None:
        raise UsageError(f"configuration {file}: user is one for all disks, uids one for each; choose one")


def _directory(text: str | None) -> pathlib.Path | None:
    return None if text is None else paths.absolute(text)


def _read(file: pathlib.Path) -> _File:
    known = ", ".join(field.name for field in msgspec.structs.fields(_File))
    try:
        return msgspec.convert(tomllib.loads(_text_of(file)), _File)
    except OSError as error:
        raise SetupError(f"configuration {file} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"configuration {file}: {error}; the keys are {known}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or far too long a number
        raise UsageError(f"configuration {file} is not TOML: {error}") from error


def _text_of(file: pathlib.Path) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block
    with open(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"configuration {file} is not a regular file; give another --config")
        raw = opened.read(_LONGEST_BYTES + 1)
    if len(raw) > _LONGEST_BYTES:
        raise UsageError(f"configuration {file} is longer than {_LONGEST_BYTES} bytes; give another --config")
    return raw.decode("utf-8")
