"""The running contenders of one row or of several: started, filled, asked in turn; who fails is out.

One thread.  The servers end with the stack that they were started in.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from bench import fio, load, measure, servers


@dataclasses.dataclass
class Ring:
    """Servers by name, the reasons of those that failed, and what readers of their figures must know.

    `directory` is empty at first; each contender gets one of its own in it.  `packs` percent of what fills
    the disks can be packed away.
    """

    lab: measure.Lab
    directory: pathlib.Path
    size_bytes: int
    packs: int = 0
    running: dict[str, servers.Server] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def ours(self) -> servers.Swaptide | None:
        """Swaptide, while it is in the ring."""
        server = self.running.get(measure.OURS)
        return server if isinstance(server, servers.Swaptide) else None

    def start(self, contenders: Sequence[servers.Contender], stack: contextlib.ExitStack) -> None:
        """Start them all; `stack` ends them."""
        for number, contender in enumerate(contenders):
            self.lab.tell(f"starting {contender.name}")
            own = self.directory / str(number)
            own.mkdir()
            try:
                server = stack.enter_context(contender.serve(own, self.size_bytes))
            except measure.ContenderError as error:
                self.failed[contender.name] = str(error)
                continue
            self.running[contender.name] = server
            self.notes += [contender.note, *server.notes]

    def each(self, what: str, do: Callable[[servers.Server], object]) -> None:
        """Do something with all of them, outside the timing; `what` is for the line of progress."""
        for name in list(self.running):
            self.lab.tell(f"{what} {name}")
            self.attempt(name, do)

    def attempt(self, name: str, do: Callable[[servers.Server], object]) -> None:
        """Do something with one of them, outside the timing; if it fails, it is out."""
        try:
            do(self.running[name])
        except measure.ContenderError as error:
            del self.running[name]
            self.failed[name] = str(error)

    def fill(self) -> None:
        """Fill all disks, in order."""
        self.each("filling", self.fill_one)

    def fill_one(self, server: servers.Server) -> None:
        """Fill one disk, in order; raises ContenderError."""
        load.fill(server, size_bytes=self.size_bytes, directory=self.directory, packs=self.packs)
        server.settle()

    def scatter_one(self, server: servers.Server, at_most_seconds: float) -> bool:
        """Overwrite one disk at random; False if the time was not enough.  Raises ContenderError."""
        done = load.scatter(
            server,
            size_bytes=self.size_bytes,
            at_most_seconds=at_most_seconds,
            directory=self.directory,
            packs=self.packs,
        )
        server.settle()
        return done

    def run(self, name: str, pattern: fio.Pattern, seconds: float) -> load.Sample:
        """One timed load on one of them; raises ContenderError."""
        return load.run(
            self.running[name],
            pattern,
            size_bytes=self.size_bytes,
            seconds=seconds,
            directory=self.directory,
        )

    def counters(self) -> Mapping[str, int]:
        """Swaptide's counters; empty if it is out or gone, which its own measurement says."""
        try:
            return self.ours.counters() if self.ours is not None else {}
        except (measure.ContenderError, OSError):
            return {}


def missed(before: Mapping[str, int], after: Mapping[str, int]) -> float | None:
    """The share of pages read that swaptide read from disk between two readings of its counters."""
    if not before or not after:
        return None
    hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
    return misses / (hits + misses) if hits + misses else None
