"""The private memory of this process, measured cheaply and often.

Private memory is what would come free if the process ended, the state file excepted.  smaps tells
it exactly but walks every mapping; the kernel's RssAnon counter follows its changes for nothing.
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
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel reports no RssAnon")


def private_bytes(proc: pathlib.Path) -> int:
    """Private_Clean and Private_Dirty of all mappings that are not shared memory, in bytes."""
    total = 0
    shared = False
    for line in (proc / "smaps").read_text().splitlines():
        field, _, rest = line.partition(":")
        if field in ("Private_Clean", "Private_Dirty"):
            if not shared:
                total += int(rest.split()[0]) * 1024
        elif " " in field:  # the first line of a mapping: addresses, then permissions
            shared = line.split()[1].endswith("s")
    return total
