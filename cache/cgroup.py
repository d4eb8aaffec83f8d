"""How much memory this process's cgroups still allow.

At a memory cgroup's limit an allocation on tmpfs does not fail: the process is killed.  So whoever is
about to populate a segment asks here first.  Both hierarchies are read, v1 and v2, every ancestor
included; page cache counts as available, since the kernel reclaims it before it kills.
"""

import pathlib

_PROC = pathlib.Path("/proc/self")
# v1 writes "no limit" as the largest multiple of a page that fits.
_UNLIMITED = 1 << 62


class Headroom:
    """The memory cgroups of this process, found once; `bytes` reads them anew."""

    def __init__(self, proc: pathlib.Path = _PROC) -> None:
        self._groups = _own_groups(proc)

    def bytes(self) -> int | None:
        """Bytes that may still be allocated; None where no cgroup limits memory."""
        rooms = [room for group in self._groups if (room := _room(group)) is not None]
        return min(rooms, default=None)


def _own_groups(proc: pathlib.Path) -> list[pathlib.Path]:
    """Directories of this process's memory cgroups and all their ancestors."""
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


def _limit(group: pathlib.Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _read(group / name)
        if text is not None and text != "max" and int(text) < _UNLIMITED:
            return int(text)
    return None


def _room(group: pathlib.Path) -> int | None:
    limit = _limit(group)
    if limit is None:
        return None
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    stat = _read(group / "memory.stat")
    if used is None or stat is None:
        return None
    values = dict(line.split() for line in stat.splitlines())
    # v1 has the totals of the whole subtree under another name.
    cache = sum(
        int(values.get(f"total_{name}", values.get(name, 0))) for name in ("active_file", "inactive_file")
    )
    return limit - int(used) + cache


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
