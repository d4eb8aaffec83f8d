"""The daemon's configuration: a TOML file, the command line and defaults, frozen before anything starts.

Read once by `serve`; nothing writes to it afterwards.
"""

import dataclasses
import os
import pathlib
import re
import stat
import tomllib
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from swaptide.balloon import rooms
from swaptide.cache import endpoint, logs
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import durations, paths, sizes, uids

_Text = Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^\x00]*$")]
_LONGEST_BYTES = 1 << 20
_PERCENT = re.compile(r"([0-9]{1,2})%")
_UNSET = {
    "memory_dir": "a tmpfs of the daemon's own, else /dev/shm",
    "user": "under a daemon of root each disk has a user of its own, see uids",
    "host_reserve": "5% of the host's RAM, at least 512M, at most 8G",
    "cgroup_reserve": "10% of a memory cgroup's limit, at least 64M, at most 2G",
    "cgroup": "disks' processes stay in the daemon's CPU cgroup",
    "trace": "samples are not recorded",
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
    balloon: bool = True
    host_reserve: _Text | None = None
    cgroup_reserve: _Text | None = None
    cgroup: _Text | None = None
    spill_timeout: _Text = "30s"
    trace: _Text | None = None
    metrics: _Text = endpoint.DEFAULT
    log_format: _Text = logs.Form.TEXT.value
    proc_dir: _Text = "/proc"


@dataclasses.dataclass(frozen=True)
class Config:
    """What a daemon runs with.  Directories are absolute.

    `memory_dir` is where state files lie; None means a tmpfs of the daemon's own below the run
    directory, or /dev/shm where it may not mount one.  `user` is who all disks' nbdkit run as under
    a daemon of root; None means that each disk has a number of its own out of `uids`.

    `balloon` divides the host's RAM among the disks; without it each may use its cap.  `host_reserve` and
    `cgroup_reserve` are what it leaves free, sizes or shares with a percent sign; `cgroup` is a directory in
    a cgroup file system, below which each disk's process gets a CPU cgroup of its own; `spill_timeout` is
    how long reads of spilled pages wait for a server that is gone, where the disk does not say; `trace` is
    where it records what it saw; `metrics` is the address where Prometheus may ask, or off; `log_format` is
    how its lines and those of the disks' processes look; `proc_dir` is where it finds the host's /proc.
    """

    run_dir: pathlib.Path
    state_dir: pathlib.Path
    spill_dir: pathlib.Path
    memory_dir: pathlib.Path | None
    nbdkit: str
    threads: int
    user: str | None = None
    uids: str | None = None
    balloon: bool = True
    host_reserve: str | None = None
    cgroup_reserve: str | None = None
    cgroup: pathlib.Path | None = None
    spill_timeout: str = "30s"
    trace: pathlib.Path | None = None
    metrics: str = endpoint.OFF
    log_format: logs.Form = logs.Form.TEXT
    proc_dir: pathlib.Path = pathlib.Path("/proc")

    @property
    def control_socket(self) -> pathlib.Path:
        """Where the daemon listens for the command."""
        return self.run_dir / "control.sock"

    @property
    def definitions_dir(self) -> pathlib.Path:
        """Where this run directory's disks are remembered."""
        return self.state_dir / paths.escape(self.run_dir)

    @property
    def spill_timeout_seconds(self) -> float:
        """`spill_timeout` in seconds."""
        return _spill_timeout("spill_timeout", self.spill_timeout)

    def as_toml(self) -> str:
        """The effective set, in the form that --config reads."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                lines.append(f"# {field.name} is not set: {_UNSET[field.name]}")
            elif isinstance(value, bool):
                lines.append(f"{field.name} = {str(value).lower()}")
            elif isinstance(value, int):
                lines.append(f"{field.name} = {value}")
            else:
                # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
                text = msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")
                lines.append(f"{field.name} = {text}")
        return "\n".join(lines) + "\n"


def load(
    file: pathlib.Path | None,
    run_dir: pathlib.Path | None,
    metrics: str | None = None,
    log_format: str | None = None,
) -> Config:
    """The configuration of `file`, with what the command line gives over it.

    Raises SetupError if the file cannot be read, UsageError if it is no TOML or has a bad key.
    """
    chosen = _read(file) if file is not None else _File()
    if chosen.uids is not None:
        _check_uids(file, chosen)
    if metrics is not None:
        endpoint.parse("--metrics", metrics)
    for key, check in _CHECKS.items():
        try:
            check(key, getattr(chosen, key))
        except UsageError as error:
            raise UsageError(f"configuration {file}: {error}") from None
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
        balloon=chosen.balloon,
        host_reserve=chosen.host_reserve,
        cgroup_reserve=chosen.cgroup_reserve,
        cgroup=_directory(chosen.cgroup),
        spill_timeout=chosen.spill_timeout,
        trace=_directory(chosen.trace),
        metrics=metrics or chosen.metrics,
        log_format=logs.parse_form("--log-format", log_format or chosen.log_format),
        proc_dir=paths.absolute(chosen.proc_dir),
    )


def reserve(key: str, text: str | None) -> rooms.Reserve:
    """What `text` leaves free, a size or a share; None for the default.  Raises UsageError, naming `key`."""
    if text is None:
        return rooms.HOST_RESERVE if key == "host_reserve" else rooms.CGROUP_RESERVE
    match = _PERCENT.fullmatch(text)
    if match is not None:
        return rooms.Reserve(percent=int(match[1]))
    try:
        return rooms.Reserve(fixed_bytes=sizes.parse(text))
    except UsageError:
        raise UsageError(
            f"{key} '{text[:40]}' is neither a size nor a share; write for example 2G or 5%"
        ) from None


def _spill_timeout(key: str, text: str) -> float:
    try:
        seconds = durations.parse(text)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None
    if seconds < 1:
        raise UsageError(f"{key}: time '{text}' is less than 1s; write for example 30s")
    return seconds


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "host_reserve": reserve,
    "cgroup_reserve": reserve,
    "spill_timeout": _spill_timeout,
    "metrics": endpoint.parse,
    "log_format": logs.parse_form,
}


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
        raise SetupError(
            f"configuration {file} cannot be read: {error.strerror}; give another --config"
        ) from error
    except msgspec.ValidationError as error:
        raise UsageError(f"configuration {file}: {error}; the keys are {known}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or far too long a number
        raise UsageError(
            f"configuration {file} is not TOML: {error}; mend it, or give another --config"
        ) from error


def _text_of(file: pathlib.Path) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block
    with open(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"configuration {file} is not a regular file; give another --config")
        raw = opened.read(_LONGEST_BYTES + 1)
    if len(raw) > _LONGEST_BYTES:
        raise UsageError(f"configuration {file} is longer than {_LONGEST_BYTES} bytes; give another --config")
    return raw.decode("utf-8")
