"""How much memory this process's cgroups still allow.

At a memory cgroup's limit an allocation on tmpfs does not fail: the process is killed.  So whoever is
about to populate a segment asks here first.  Both hierarchies are read, v1 and v2, every ancestor
included; page cache counts as available, since the kernel reclaims it before it kills.
"""

import pathlib

PROC = pathlib.Path("/proc/self")
# v1 writes "no limit" as the largest multiple of a page that fits.
_UNLIMITED = 1 << 62
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
_USAGES = ("memory.current", "memory.usage_in_bytes")


class Headroom:
    """The memory cgroups of this process, found once; `bytes` reads them anew."""

    def __init__(self, proc: pathlib.Path = PROC) -> None:
        self._groups = own_groups(proc)

    def bytes(self) -> int | None:
        """Bytes that may still be allocated; None where no cgroup limits memory."""
        rooms = [room for group in self._groups if (room := room_bytes(group)) is not None]
        return min(rooms, default=None)


def own_groups(proc: pathlib.Path = PROC) -> list[pathlib.Path]:
    """Directories of the memory cgroups of the process in `proc`, innermost first, with all their ancestors.

    Raises OSError or ValueError where `proc` does not tell.
    """
    mounts = _mounts(proc)
    groups = []
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else "cgroup2" if not controllers else ""
        for mount in mounts.get(kind, []):
            group = mount / path.lstrip("/")
            groups += [group, *(p for p in group.parents if p.is_relative_to(mount))]
    return groups


def _mounts(proc: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Mount points of the v1 memory controller and of v2."""
    mounts: dict[str, list[pathlib.Path]] = {"memory": [], "cgroup2": []}
    for line in (proc / "mountinfo").read_text().splitlines():
        fields = line.split()
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2":
            mounts["cgroup2"].append(pathlib.Path(fields[4]))
        elif kind == "cgroup" and "memory" in options:
            mounts["memory"].append(pathlib.Path(fields[4]))
    return mounts


def limit_bytes(group: pathlib.Path) -> int | None:
    """What a cgroup may use; None where it is not limited.  Raises ValueError for what is no number.

    v2's memory.high counts as well: beyond it the kernel does not kill, but stops whoever allocates.
    """
    return min((limit for name in _LIMITS if (limit := _bytes(group / name)) is not None), default=None)


def usage_bytes(group: pathlib.Path) -> int | None:
    """What a cgroup uses, page cache included; None where it does not tell.  Raises ValueError."""
    return next((used for name in _USAGES if (used := _bytes(group / name)) is not None), None)


def room_bytes(group: pathlib.Path) -> int | None:
    """What may still be allocated in a cgroup; None where it is not limited or does not tell its usage.

    Raises ValueError for what is no number.
    """
    limit = limit_bytes(group)
    if limit is None:
        return None
    used = usage_bytes(group)
    stat = _read(group / "memory.stat")
    if used is None or stat is None:
        return None
    values = dict(line.split() for line in stat.splitlines())
    # v1 has the totals of the whole subtree under another name.
    cache = sum(
        int(values.get(f"total_{name}", values.get(name, 0))) for name in ("active_file", "inactive_file")
    )
    return limit - used + cache


def _bytes(path: pathlib.Path) -> int | None:
    text = _read(path)
    if text is None or text == "max" or int(text) >= _UNLIMITED:
        return None
    return int(text)


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
