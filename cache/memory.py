"""The private memory of this process, measured cheaply and often.

Private memory is what would come free if the process ended, the state file excepted: its anonymous pages.
Clean pages of program files belong to the page cache; which of them the kernel calls private changes as
other processes that map them come and go (measured: by 2 to 5 MiB), so they are left out.  smaps_rollup
tells it exactly but walks every mapping; the kernel's RssAnon counter follows its changes for nothing.
"""

import pathlib

_PROC = pathlib.Path("/proc/self")


class Meter:
    """Measures once in full, at construction, and from then on by difference.  Bytes."""

    def __init__(self, proc: pathlib.Path = _PROC) -> None:
        self._proc = proc
        self._anonymous_at_start = anonymous_bytes(proc)
        self.start_bytes = private_bytes(proc)

    def now_bytes(self) -> int:
        """Private memory now."""
        return self.start_bytes + anonymous_bytes(self._proc) - self._anonymous_at_start


def anonymous_bytes(proc: pathlib.Path) -> int:
    """RssAnon of the process, in bytes."""
    return _field(proc / "status", "RssAnon")


def private_bytes(proc: pathlib.Path) -> int:
    """The anonymous pages of all mappings, in bytes."""
    return _field(proc / "smaps_rollup", "Anonymous")


def _field(path: pathlib.Path, name: str) -> int:
    for line in path.read_text().splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"the kernel reports no {name}")
