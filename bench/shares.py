"""CPU cgroups of the benchmark's own, and cores: what keeps guests out of each other's way.

One thread uses it; groups are removed in the end, when nothing runs in them any more.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Final

from bench import measure, memcg

# v1 counts shares from 1024 where v2 counts weights from 100.
_V1_PER_WEIGHT: Final = 1024 / 100
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a guest runs: the file that lets a process enter a CPU cgroup, and the cores it may use."""

    entry: pathlib.Path | None = None
    cores: frozenset[int] | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What starts a command there."""
        words: tuple[str, ...] = ()
        if self.cores is not None:
            words += ("taskset", "-c", ",".join(map(str, sorted(self.cores))))
        if self.entry is not None:
            words += ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.entry))
        return words

    def take(self, pid: int) -> None:
        """Move a running process there; raises ContenderError."""
        try:
            if self.entry is not None:
                self.entry.write_text(str(pid))
            cores = self.cores or os.sched_getaffinity(0)
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(task.name), cores)
        except OSError as error:
            raise measure.ContenderError(f"process {pid} cannot be moved: {error.strerror}") from error


@contextlib.contextmanager
def weighted(weights: Sequence[int]) -> Iterator[list[pathlib.Path]]:
    """A CPU cgroup for each weight (100 is the usual one): the files that processes enter them by.

    Raises ContenderError where this user or this machine cannot make any.
    """
    parent, name = _home()
    with contextlib.ExitStack() as stack:
        entries = []
        for weight in weights:
            group = parent / f"swaptide-bench-{os.getpid()}-{next(_numbers)}"
            try:
                group.mkdir()
                stack.callback(memcg.remove, group)
                value = weight if name == "cpu.weight" else round(weight * _V1_PER_WEIGHT)
                (group / name).write_text(str(value))
            except OSError as error:
                raise measure.ContenderError(f"no CPU cgroup {group}: {error.strerror}") from error
            entries.append(group / "cgroup.procs")
        # Whoever was moved there goes back where they were, so that the groups can be removed.
        stack.callback(_empty, entries, parent / "cgroup.procs")
        yield entries


def _empty(entries: Sequence[pathlib.Path], back: pathlib.Path) -> None:
    for entry in entries:
        with contextlib.suppress(OSError):
            for pid in entry.read_text().split():
                with contextlib.suppress(OSError):
                    back.write_text(pid)


def _home() -> tuple[pathlib.Path, str]:
    """Where groups may be made, and the file that has their weight; raises ContenderError."""
    for parent, name in memcg.parents("cpu", ("cpu.shares", "cpu.weight")):
        # v2 lists what children may have; v1 has the controller in all of its hierarchy.
        control = parent / "cgroup.subtree_control"
        with contextlib.suppress(OSError):
            if name == "cpu.shares" or "cpu" in control.read_text().split():
                return parent, name
    raise measure.ContenderError("no CPU cgroups to be had on this machine")
