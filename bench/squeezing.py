"""Ours under a target that falls step by step: as far as it packs, and to the edge where pages go to disk.

One thread lowers and reads; swaptide's own movers do the work.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from bench import measure, servers

T = TypeVar("T")

MIB: Final = 1 << 20
# Of what is held, a step; at least a segment.
STEP_SHARE: Final = 1 / 128
# Of the pages, what may be on disk before it counts: packers that find no free slot at once have one segment
# written instead.  What is there is never counted as held.
STRAY_SHARE: Final = 0.01
SEGMENT_BYTES: Final = 2 * MIB
PAGE_BYTES: Final = 4096
STEP_SECONDS: Final = 30.0


def steps(server: servers.Swaptide) -> Iterator[Mapping[str, int]]:
    """Lower the target, one step for each counters asked for, down to the floor; raises ContenderError."""
    server.counters()  # what it holds was published now
    with server.face() as disk:
        target, floor = disk.ram_bytes(), disk.limits().floor_bytes
    while (target := lower(target)) >= floor:
        server.squeeze(target, STEP_SECONDS)
        yield server.counters()


def lower(target_bytes: int) -> int:
    """The next target."""
    return target_bytes - max(SEGMENT_BYTES, int(target_bytes * STEP_SHARE))


def until_packed(server: servers.Swaptide, share: float) -> Mapping[str, int]:
    """Lower it until that share of the pages is packed; raises ContenderError if many go to disk before."""
    for counters in steps(server):
        if not is_in_ram(counters):
            spilled = counters["spilled_bytes"] // MIB
            raise measure.ContenderError(f"{spilled} MiB went to disk before {share:.0%} were packed")
        if counters["packed_pages"] >= share * counters["stored_pages"]:
            return counters
    raise measure.ContenderError(f"less than {share:.0%} of its pages are packed at its floor")


def to_the_edge(server: servers.Swaptide, read: Callable[[], T]) -> tuple[T, int]:
    """Lower it until pages go to disk; what `read` said before that, and the bytes of strays on disk then.

    Raises ContenderError.
    """
    found, strays = read(), 0
    for counters in steps(server):
        if not is_in_ram(counters):
            break
        found, strays = read(), counters["spilled_bytes"]
    return found, strays


def is_in_ram(counters: Mapping[str, int]) -> bool:
    """Whether all pages are in RAM, but for a few."""
    return counters["spilled_bytes"] <= STRAY_SHARE * counters["stored_pages"] * PAGE_BYTES
