"""Metrics as Prometheus reads them: its text format, version 0.0.4.  Pure functions.

Beside prometheus-client, which the daemon has as well, for two reasons.  The interpreter in nbdkit knows
nothing of the environment that swaptide is installed in, and what it imports is RAM of the disk.  And this
is several times as quick: see docs/metrics.md.
"""

import math
from collections.abc import Iterator
from typing import Final

from swaptide.cache import metrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
_LABEL: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def render(sheet: metrics.Sheet) -> bytes:
    """The whole of it."""
    return "".join(_lines(sheet)).encode("utf-8", "replace")


def _lines(sheet: metrics.Sheet) -> Iterator[str]:
    for metric, samples in sheet.families():
        name = metric.name
        yield f"# HELP {name} {metric.help.translate(_HELP)}\n# TYPE {name} {metric.kind}\n"
        for values, value in samples:
            labels = ",".join(map(_label, metric.labels, values))
            if isinstance(value, metrics.Distribution):
                yield _histogram(name, labels, value)
            else:
                yield f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n"


def _label(name: str, value: str) -> str:
    return f'{name}="{value.translate(_LABEL)}"'


def _histogram(name: str, labels: str, value: metrics.Distribution) -> str:
    head = f'{name}_bucket{{{labels}{"," if labels else ""}le="'
    lines = [
        f'{head}{bound}"}} {count}\n'
        for bound, count in zip((*value.bounds, "+Inf"), value.counts, strict=True)
    ]
    about = f"{{{labels}}}" if labels else ""
    lines.append(f"{name}_sum{about} {_number(value.sum_seconds)}\n{name}_count{about} {value.counts[-1]}\n")
    return "".join(lines)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
