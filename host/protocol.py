"""What the command and the daemon say to each other: JSON lines on the control socket.

The client sends one request; the daemon answers with any number of Progress and Alive lines and then one
Result or one Failure.  To a Result the client answers HEARD.  Sizes are in bytes.  Pure data.
"""

from typing import Annotated, Any, Literal

import msgspec

from swaptide.balloon import limits
from swaptide.cache import errors
from swaptide.host import durations

HEARD = b"\n"
LINE_LIMIT_BYTES = 4 << 20
REPLY_LIMIT_BYTES = 64 << 20
# A daemon that has a call says so this often; one that was silent for so long hangs.
ALIVE_SECONDS = 5.0
SILENCE_SECONDS = 60.0
Compress = Literal["lz4", "zstd", "lz4+zstd", "none"]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
TimeoutSeconds = Annotated[float, msgspec.Meta(gt=0, le=durations.MAX_SECONDS)]
DeadlineSeconds = Annotated[float, msgspec.Meta(gt=0, le=durations.MAX_SECONDS)]
Weight = Annotated[int, msgspec.Meta(ge=1, le=10000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_BYTES)]
Limit = Annotated[int, msgspec.Meta(gt=0, le=limits.MAX_BYTES)]
DEFAULT_WEIGHT = 100
DEFAULT_CLEAN_AHEAD_PERCENT = 25


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag=True):
    pass


class Add(_Message, tag="disk-add"):
    """Make a disk; streams host.steps, the result is its report."""

    name: str
    size_bytes: Size
    ram_bytes: Size
    floor_bytes: Size | None = None
    spill: str | None = None
    spill_timeout_seconds: TimeoutSeconds | None = None
    weight: Weight = DEFAULT_WEIGHT
    compress: Compress = "lz4"
    clean_ahead_percent: Percent = DEFAULT_CLEAN_AHEAD_PERCENT
    encrypt: bool = True
    swap_label: str | None = None
    socket_owner: str | None = None
    force: bool = False


class List(_Message, tag="disk-ls"):
    """The result is the list of all reports, by name."""


class Show(_Message, tag="disk-show"):
    """The result is the disk's report."""

    name: str


class Set(_Message, tag="disk-set"):
    """Change what is given; streams squeeze steps, and the result is the last one.

    With a deadline, which needs `ram_bytes`, the first step is before anything was done.
    """

    name: str
    ram_bytes: Size | None = None
    floor_bytes: Size | None = None
    weight: Weight | None = None
    compress: Compress | None = None
    clean_ahead_percent: Percent | None = None
    spill_timeout_seconds: TimeoutSeconds | None = None
    deadline_seconds: DeadlineSeconds | None = None


class Clear(_Message, tag="disk-clear"):
    """Empty a disk; it comes back with a new id, which is in the resulting report.  Streams host.steps."""

    name: str
    force: bool = False


class Restart(_Message, tag="disk-restart"):
    """Serve a disk with a new process; the result is its report, with `pause_seconds`."""

    name: str


class Remove(_Message, tag="disk-rm"):
    """Remove a disk and its files; streams host.steps, the result is its name and the id that it had."""

    name: str
    force: bool = False


class Freeze(_Message, tag="disk-freeze"):
    """Have a disk stand still; the result, once it does: its name, `frozen` and how long that took."""

    name: str


class Thaw(_Message, tag="disk-thaw"):
    """Have a disk go on; the result is as that of a freeze."""

    name: str


class Migrate(_Message, tag="migrate"):
    """Send a disk to the `receive` of another host, and hand it over; the result is what that took.

    With `uri` QEMU is told to migrate there, by the monitor `qmp` or the guest `guest`; else the disk is
    handed over when its last client leaves.  `bandwidth_bytes` is how much may be sent in a second.  With
    `hand_over_store` nothing of its store is sent, and the disk is removed here at the end.  Streams how far
    it is.  Ends, and is undone, when its client leaves.
    """

    name: str
    to: str
    uri: str | None = None
    qmp: str | None = None
    guest: str | None = None
    tls_certificates: str | None = None
    insecure: bool = False
    bandwidth_bytes: Limit | None = None
    hand_over_store: bool = False
    remove: bool = False


class TakeBack(_Message, tag="migrate-take-back"):
    """Serve a disk that was given away and not taken; the result is its name and gate."""

    name: str


class Receive(_Message, tag="receive"):
    """Take a disk in at an address; streams how far it is.  Ends when its client leaves."""

    name: str
    listen: str
    tls_certificates: str | None = None
    insecure: bool = False


class Accept(_Message, tag="receive-accept"):
    """Serve a disk that arrived and was not given; the result is its name and gate."""

    name: str


class Save(_Message, tag="disk-save"):
    """Write a disk into a file; streams how far it is.  Ends when its client leaves."""

    name: str
    file: str
    force: bool = False


class Load(_Message, tag="disk-load"):
    """Fill an empty disk from a file; streams how far it is.  Ends when its client leaves."""

    name: str
    file: str


class Look(_Message, tag="look"):
    """The result is host.overview's: all disks with their latency counts, all guests, the host."""


class Names(_Message, tag="names"):
    """The result is what there is, by name: `disks`, `guests`, `reservations`.  Quick, for shells."""


class GuestAdd(_Message, tag="guest-add"):
    """Register a guest; the result is its report after the first attempt to reach it."""

    name: str
    qmp: str
    min_bytes: Limit | None = None
    max_bytes: Limit | None = None
    disks: list[str] = []
    clear_on_reset: bool = False


class GuestList(_Message, tag="guest-ls"):
    """The result is the list of all guests' reports, by name."""


class GuestRemove(_Message, tag="guest-rm"):
    """Forget a guest; the result is its last report."""

    name: str


class Attach(_Message, tag="attach"):
    """Plug a disk into the guest whose monitor is `qmp`, or which is registered as `guest`.

    Streams what has been done.  Ends, and is undone, when its client leaves.
    """

    name: str
    qmp: str | None = None
    guest: str | None = None
    bus: str | None = None
    deadline_seconds: DeadlineSeconds | None = None


class Detach(_Message, tag="detach"):
    """Unplug a disk; streams what has been done.  With `force` even while the guest uses it."""

    name: str
    qmp: str | None = None
    guest: str | None = None
    deadline_seconds: DeadlineSeconds | None = None
    force: bool = False


class Reserve(_Message, tag="reserve"):
    """Have memory free by the deadline and hold it; the result is a balloon.desk.Standing.

    Streams the same on the way.  Unlike other calls it ends with its client: what is under way when the
    connection closes is given up.
    """

    size_bytes: Size
    deadline_seconds: DeadlineSeconds
    hold_seconds: DeadlineSeconds


class Reservations(_Message, tag="reserve-ls"):
    """The result is the list of what is held, oldest first."""


class Release(_Message, tag="reserve-release"):
    """Give a reservation back; the result is its id."""

    id: str


Request = (
    Add
    | List
    | Show
    | Set
    | Clear
    | Restart
    | Remove
    | Freeze
    | Thaw
    | Migrate
    | TakeBack
    | Receive
    | Accept
    | Save
    | Load
    | Look
    | Names
    | GuestAdd
    | GuestList
    | GuestRemove
    | Attach
    | Detach
    | Reserve
    | Reservations
    | Release
)


class Progress(_Message, tag="progress"):
    """Something on the way."""

    value: dict[str, Any]


class Alive(_Message, tag="alive"):
    """The daemon has not forgotten the call; there is nothing new."""


class Result(_Message, tag="result"):
    """The end of a call that worked."""

    value: Any


class Failure(_Message, tag="failure"):
    """The end of a call that did not; `kind` says which class of error to raise."""

    kind: str
    message: str


Reply = Progress | Alive | Result | Failure

_KINDS: dict[str, type[errors.SwaptideError]] = {
    "usage": errors.UsageError,
    "setup": errors.SetupError,
    "state": errors.StateError,
    "busy": errors.BusyError,
    "error": errors.SwaptideError,
}


def failure_of(error: errors.SwaptideError) -> Failure:
    """`error` as a line."""
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(error, cls))
    return Failure(kind, "; ".join((str(error), *getattr(error, "__notes__", ()))))


def error_of(failure: Failure) -> errors.SwaptideError:
    """The error that a line stands for."""
    return _KINDS.get(failure.kind, errors.SwaptideError)(failure.message)
