"""How a disk's nbdkit is called, found again, and what it said when it failed.  No state of its own."""

import asyncio
import contextlib
import errno
import os
import pathlib
import shutil

from swaptide.balloon import squeeze
from swaptide.cache import face, logs, places
from swaptide.cache.errors import SetupError, StateError
from swaptide.host import config, definitions, isolation, paths, process

_ERROR = "nbdkit: error: "
_OURS = "swaptide: "
_POLL_SECONDS = 0.02


def command(
    chosen: config.Config,
    disk: definitions.Definition,
    *,
    fresh: bool,
    force: bool,
    user: isolation.User | None = None,
) -> list[str]:
    """The command line that serves `disk` as `user`; `fresh` if its state file is yet to be made.

    One that is made has the limits and orders in it (`remind`): a process that wrote them there, once it has
    started, would undo what was said to the disk since its command line was.
    """
    words = [
        *isolation.prefix(user),
        chosen.nbdkit,
        "-f",
        "-t",
        str(chosen.threads),
        "python",
        str(paths.plugin()),
        # First, so that whatever it says of the others has this form.
        f"log-format={chosen.log_format}",
    ]
    words += [f"size={disk.size_bytes}", f"name={disk.name}", f"spill={disk.spill_path}"]
    if fresh:
        words += [f"ram={disk.cap_bytes}", f"floor={disk.floor_bytes}"]
        words += [f"compress={disk.compress}", f"clean-ahead={disk.clean_ahead_percent}%"]
    if places.has_server(disk.spill_path):
        words.append(f"spill-timeout={spill_timeout_seconds(chosen, disk):.3f}")
    if fresh and chosen.balloon:
        # A new disk gets nothing beyond its floor before the policy has seen it.
        words.append(f"target={disk.floor_bytes}")
    words.append(f"calls={paths.calls(chosen.run_dir, disk.name)}")
    words += [f"encrypt={'yes' if disk.encrypt else 'no'}", _state_argument(disk)]
    # Only onto a new disk: on one with contents the first page is the guest's.
    if fresh and disk.swap_label is not None:
        words.append(f"swap-label={disk.swap_label}")
    if force:
        words.append("force=yes")
    return words


def remind(chosen: config.Config, disk: definitions.Definition, state: face.StateFace) -> None:
    """Have a disk's state file say what its definition says: limits, how to pack, how long to wait.

    The target stays where it is, as far as it fits.  Raises OSError.
    """
    found = state.limits()
    if (found.cap_bytes, found.floor_bytes) != (disk.cap_bytes, disk.floor_bytes):
        wanted = face.Limits(
            cap_bytes=disk.cap_bytes, target_bytes=found.target_bytes, floor_bytes=disk.floor_bytes
        )
        squeeze.apply(state, squeeze.keeping_target(state, wanted))
    state.set_orders(compress=disk.compress, clean_ahead_permille=disk.clean_ahead_percent * 10)
    seconds = spill_timeout_seconds(chosen, disk)
    if seconds is not None:
        state.set_spill_timeout(seconds)


def spill_timeout_seconds(chosen: config.Config, disk: definitions.Definition) -> float | None:
    """How long reads wait for the disk's spill server; None where it has none."""
    if not places.has_server(disk.spill_path):
        return None
    own = disk.spill_timeout_seconds
    return chosen.spill_timeout_seconds if own is None else own


def owner(disk: definitions.Definition) -> process.Process | None:
    """The process that serves `disk`'s state file already, if it truly is an nbdkit with this file."""
    try:
        with face.StateFace(pathlib.Path(disk.state_path)) as state:
            counters = state.counters()
        # The word is the plugin's, and we shall send signals to that pid: believe only /proc.
        pid = counters["owner_pid"]
        if not counters["serving"] or _state_argument(disk) not in process.command_line(pid):
            return None
        return process.Process(pid)
    except (StateError, OSError):
        return None


async def until_serving(
    disk: definitions.Definition,
    starting: process.Process,
    log: pathlib.Path,
    since: int,
    user: isolation.User | None,
) -> None:
    """Return once it serves; raises SetupError with what it wrote last, after `since`, if it ends before."""
    path = pathlib.Path(disk.state_path)
    while not starting.exited.is_set():
        with contextlib.suppress(FileNotFoundError, StateError), face.StateFace(path) as state:
            counters = state.counters()
            if counters["serving"] and counters["owner_pid"] == starting.pid:
                return
        await asyncio.sleep(_POLL_SECONDS)
    said = last_word(log, since)
    if user is not None and os.strerror(errno.EACCES) in said:
        said += f" (nbdkit runs as the user {user.name})"
    raise SetupError(said)


def last_word(log: pathlib.Path, since: int) -> str:
    """Why a process ended before it served, in one line: from what it wrote to `log` after `since`."""
    try:
        with open(log, "rb") as file:
            file.seek(since)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = []
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    ours = [line.removeprefix(_OURS) for line in errors if line.startswith(_OURS)]
    ours += [str(told.get("error")) for told in logs.objects(lines) if told["event"] == logs.NO_START]
    if ours:
        return ours[-1]
    last = next((line for line in [*reversed(errors), *reversed(lines)] if line), "it said nothing")
    return f"nbdkit ended before it served: {_words(last)}"


def _words(line: str) -> str:
    """A line of the log as it is told to people."""
    for told in logs.objects([line]):
        last = str(told.get("exception", "")).splitlines()[-1:]
        return ": ".join([told["event"], *(str(each) for each in [told.get("error"), *last] if each)])
    return line


def require(nbdkit: str) -> None:
    """Raises SetupError if nbdkit is not there."""
    if shutil.which(nbdkit) is None:
        raise SetupError(
            f"{nbdkit} is missing, or no program; install the Debian packages nbdkit and nbdkit-plugin-python"
        )


def _state_argument(disk: definitions.Definition) -> str:
    return f"state={disk.state_path}"
