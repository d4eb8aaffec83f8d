"""Lines of the log: text for people, JSON for programs, both as systemd's journal wants them.

A call gives a constant template and its arguments, and that is the structure: words that say what happened,
then key=%s for each thing that is told about it.  Text fills the template in; JSON takes it apart, so that
values keep their types.  Imported by nbdkit's interpreter: standard library only.
"""

import contextlib
import datetime
import enum
import functools
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, TextIO

from swaptide.cache.errors import UsageError

ROOT: Final = "swaptide"
# What a disk's process says when it cannot serve, with an `error`; the daemon looks for it.
NO_START: Final = "disk cannot start"
_HANDLER: Final = "swaptide-stderr"
# What every line has, so that no template may use it as a key.
RESERVED: Final = ("time", "level", "part", "event", "exception")
# Words without = and %, then pairs: a value, or a fixed text in quotes.
_PAIR: Final = re.compile(r" ([a-z][a-z0-9_]*)=(?:%[^a-z%]*([a-z])|'([^'%]*)')")
_FORM: Final = re.compile(rf"(?P<words>[^=%]*[^=% ])(?P<pairs>(?:{_PAIR.pattern})*)")
_TEXT: Final = "level=%(levelname)s part=%(name)s %(message)s"
_TIME: Final = "time=%(asctime)s.%(msecs)03d "
# sd-daemon(3)
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)

Pair = tuple[str, str, str | None]


class Form(enum.StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


def parse_form(key: str, text: str) -> Form:
    """The form called `text`; raises UsageError that names `key`."""
    try:
        return Form(text)
    except ValueError:
        raise UsageError(f"{key}={text[:40]}: must be one of {', '.join(Form)}") from None


@functools.lru_cache(maxsize=512)
def take_apart(template: str) -> tuple[str, tuple[Pair, ...]] | None:
    """The words of a template and its pairs: key, conversion ("" for a fixed text), fixed text.

    None for a template that is not of that form: of another package, or a sentence.
    """
    match = _FORM.fullmatch(template)
    if match is None:
        return None
    pairs = tuple((key, kind, fixed) for key, kind, fixed in _PAIR.findall(match["pairs"]))
    return match["words"], pairs


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says: `event`, and each key with its value."""
    apart = take_apart(record.msg) if isinstance(record.msg, str) else None
    if apart is None:
        return {"event": _sound(record.getMessage())}
    words, pairs = apart
    # logging itself takes a mapping that is the only argument out of its tuple.
    values = iter(record.args if isinstance(record.args, tuple) else (record.args,))
    told: dict[str, Any] = {"event": words}
    for key, kind, fixed in pairs:
        told[key] = _plain(next(values, None)) if kind else fixed
    return told


def _plain(value: object) -> Any:
    """A value as JSON has it; what is no number, truth or null is text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, float):
        # There is no word for the others.  More digits than these nobody measured.
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_sound(str(key)): _plain(each) for key, each in value.items()}
    return _sound(str(value))


def _sound(text: str) -> str:
    """Text that every parser takes: bytes of a path that are not UTF-8 are shown as such."""
    return text.encode("utf-8", "backslashreplace").decode()


class TextFormatter(logging.Formatter):
    """time=... level=... part=... words key=value; a traceback follows on lines of its own."""

    def __init__(self, *, timed: bool = True) -> None:
        super().__init__((_TIME if timed else "") + _TEXT, "%Y-%m-%dT%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One object on one line: time, level, part, event, the template's keys, a traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "part": record.name,
            **fields(record),
        }
        if record.exc_info:
            told["exception"] = _sound(self.formatException(record.exc_info))
        return json.dumps(told)


class JournalFormatter(logging.Formatter):
    """What another formatter makes of a record, each line after its priority, as sd-daemon(3) has it."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).splitlines())


def _rfc3339(seconds: float) -> str:
    made = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return made.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to systemd's journal, by systemd.exec(5)."""
    with contextlib.suppress(OSError, ValueError):
        found = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def formatter(form: Form, stream: TextIO) -> logging.Formatter:
    """What makes lines for `stream`; for the journal, which has a clock of its own, text without a time."""
    journal = is_journal(stream)
    made = JsonFormatter() if form is Form.JSON else TextFormatter(timed=not journal)
    return JournalFormatter(made) if journal else made


def to_stderr(form: Form) -> None:
    """Send the log to stderr from now on: ours from INFO, that of others and Python's warnings as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, sys.stderr))
    handler.set_name(_HANDLER)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if old.get_name() == _HANDLER:  # set up once more
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(logging.INFO)
    logging.captureWarnings(True)


def objects(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Those of `lines` that are of the JSON form."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line) if line.startswith("{") else None
            if isinstance(found, dict) and isinstance(found.get("event"), str):
                yield found
