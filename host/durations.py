"""Times as people write them: `2s`, `500ms`, `1.5m`.  Pure functions."""

import re

from swaptide.cache.errors import UsageError

MAX_SECONDS = 86400.0
_SHOWN_CHARS = 40
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?)(?P<unit>ms|s|m|h)")


def parse(text: str) -> float:
    """Seconds for `text`, such as 500ms or 2s; raises UsageError if it is no time, zero, or over a day."""
    match = _DURATION.fullmatch(text.strip())
    text = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    if match is None:
        raise UsageError(f"time '{text}' is not a number with ms, s, m or h; write for example 500ms or 2s")
    seconds = float(match["number"]) * _UNITS[match["unit"]]
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"time '{text}' must be more than 0 and at most 24h; write for example 500ms or 2s")
    return seconds


def show(seconds: float) -> str:
    """A short form for people: three digits, in seconds."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
