"""What a check of `swaptide doctor` says, and the few words that checks share.  Pure data."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator

from swaptide.host import sight


class Verdict(enum.StrEnum):
    """`WARN` works, but not as well as it could or not for long; `BAD` has to be mended."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is what to do about it, empty where there is nothing to do."""

    name: str
    verdict: Verdict
    said: str
    remedy: str = ""


Check = Callable[[sight.Sight], Iterable[Finding]]


def ok(name: str, said: str) -> Finding:
    """All is well."""
    return Finding(name, Verdict.OK, said)


def warn(name: str, said: str, remedy: str) -> Finding:
    """It works, but."""
    return Finding(name, Verdict.WARN, said, remedy)


def bad(name: str, said: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, Verdict.BAD, said, remedy)


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a version such as 1.32.5 or 6.1.0-18-amd64; () where there is none."""
    numbers: list[int] = []
    for part in text.replace("-", ".").split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def made(name: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a check; a store that does not answer is one as well."""
    try:
        yield from findings
    except TimeoutError as error:
        yield bad(name, str(error), "mend the file system or server that it lies on")
