"""What a guest says on its console, as typed values.  Pure functions and frozen values, no concurrency."""

import dataclasses
import re
from typing import Final

# The last one in a line: what a guest was saying when it was reset has no end.
_LINE: Final = re.compile(r".*GUEST-([A-Z]+)\s+(.*)$")
_FIELD: Final = re.compile(r"([a-z_]+)=(\S*)")
# Kernel words that mean that the disk or the guest failed, whatever the work's own verdict is.
_TROUBLE: Final = re.compile(
    r"I/O error|(Read|Write)-error on swap-device|Kernel panic|BUG:|Oops|[Oo]ut of memory|blocked for more"
)
PAGE_BYTES: Final = 4096


@dataclasses.dataclass(frozen=True)
class Report:
    """One GUEST-… line: `kind` is one of those that vm-images/README.md lists."""

    kind: str
    text: str
    fields: dict[str, str]

    def number(self, name: str) -> int:
        """An integer field; 0 if the line was cut short and lacks it."""
        value = self.fields.get(name, "")
        return int(value) if value.isdigit() else 0


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The work so far, in pages; `swapped_bytes` is what the guest has on its swap disk right now.

    `free_bytes` and `total_bytes` are MemFree and MemTotal of its own /proc/meminfo.
    """

    phase: str = "boot"
    wrong: int = 0
    checked: int = 0
    filled: int = 0
    rewritten: int = 0
    rounds: int = 0
    pswpin: int = 0
    pswpout: int = 0
    swapped_bytes: int = 0
    free_bytes: int = 0
    total_bytes: int = 0
    died: int = 0


def parse(line: str) -> Report | None:
    """The report in a console line, or None if there is none."""
    found = _LINE.search(line.rstrip())
    if found is None:
        return None
    return Report(found[1], found[2], dict(_FIELD.findall(found[2])))


def is_trouble(line: str) -> bool:
    """Whether the guest's kernel complains in this line."""
    return _TROUBLE.search(line) is not None


def numbers_of(report: Report) -> Numbers:
    """The figures of a PROGRESS or RESULT report."""
    names = ("wrong", "checked", "filled", "rewritten", "rounds", "pswpin", "pswpout", "died")
    values = {name: report.number(name) for name in names}
    return Numbers(
        phase=report.fields.get("phase", "?"),
        swapped_bytes=report.number("swapped_kib") * 1024,
        free_bytes=report.number("free_kib") * 1024,
        total_bytes=report.number("total_kib") * 1024,
        **values,
    )
