"""The plugin's parameters: key=value pairs from nbdkit's command line to the engine's settings."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from swaptide.cache import engine, geometry, layout, logs, places, sizes
from swaptide.cache.errors import UsageError

if TYPE_CHECKING:
    from swaptide.cache import endpoint

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SHOWN_CHARS: Final = 40


def _disk_size(key: str, text: str) -> int:
    value = sizes.parse(key, text)
    if value % geometry.PAGE_BYTES or value > geometry.MAX_SIZE_BYTES:
        raise UsageError(f"{key}={text}: must be a multiple of {geometry.PAGE_BYTES} bytes and at most 16T")
    return value


def _path(key: str, text: str) -> pathlib.Path:
    if not text:
        raise UsageError(f"{key}=: must be a path")
    return pathlib.Path(text).absolute()


def _spill(_key: str, text: str) -> places.Spill:
    return places.parse(text)


def _seconds(key: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?s?", text) or not float(text.rstrip("s")):
        raise UsageError(f"{key}={text[:_SHOWN_CHARS]}: must be seconds, for example 30")
    return float(text.rstrip("s"))


def _name(key: str, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{key}={text}: use letters, digits, '.', '_' and '-', at most 64, not first '.' or '-'"
        )
    return text


def _choice(key: str, text: str) -> str:
    if text not in layout.COMPRESS:
        raise UsageError(f"{key}={text}: must be one of {', '.join(layout.COMPRESS)}")
    return text


def _share(key: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}%?", text) or int(text.rstrip("%")) > 100:
        raise UsageError(f"{key}={text}: must be a share of the target from 0% to 100%")
    return int(text.rstrip("%")) / 100


def _boolean(key: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise UsageError(f"{key}={text}: must be yes or no")
    return text == "yes"


def _text(_key: str, text: str) -> str:
    return text


# parameter -> (field of engine.Settings, parser)
_PARAMETERS: Final[Mapping[str, tuple[str, Callable[[str, str], object]]]] = {
    "size": ("size_bytes", _disk_size),
    "ram": ("ram_bytes", sizes.parse),
    "floor": ("floor_bytes", sizes.parse),
    "target": ("target_bytes", sizes.parse),
    "spill": ("spill", _spill),
    "spill-timeout": ("spill_timeout_seconds", _seconds),
    "state": ("state", _path),
    "name": ("name", _name),
    "swap-label": ("swap_label", _text),
    "encrypt": ("encrypt", _boolean),
    "compress": ("compress", _choice),
    "clean-ahead": ("clean_ahead", _share),
    "force": ("force", _boolean),
}
# Not about the disk: where Prometheus may ask, and how the log looks.
METRICS: Final = "metrics"
CALLS: Final = "calls"  # the socket of whoever may want the whole disk moved (nbdkit_plugin/gate.py)
LOG_FORMAT: Final = "log-format"


def apply(settings: engine.Settings, key: str, value: str) -> engine.Settings:
    """The settings with one parameter set.  Raises UsageError for an unknown key or a bad value."""
    if key not in _PARAMETERS:
        known = ", ".join([*_PARAMETERS, METRICS, CALLS, LOG_FORMAT])
        raise UsageError(f"unknown parameter {key}={value}; known are {known}")
    field, parse = _PARAMETERS[key]
    # Any: that each parser fits its field is in the table, where the type checker does not look.
    parsed: Any = parse(key, value)
    return dataclasses.replace(settings, **{field: parsed})


def calls(value: str) -> str:
    """The path of the parameter `calls`.  Raises UsageError for what is none."""
    return str(_path(CALLS, value))


def metrics(value: str) -> "endpoint.Address | None":
    """The address of the parameter `metrics`, None for off.  Raises UsageError for what is none."""
    from swaptide.cache import endpoint  # half a MiB, for the few disks that are asked

    return endpoint.parse(METRICS, value)


def log_format(value: str) -> logs.Form:
    """The form of the parameter `log-format`.  Raises UsageError for what is none."""
    return logs.parse_form(LOG_FORMAT, value)
