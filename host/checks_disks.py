"""What `swaptide doctor` looks at of a daemon, and of its disks.  Pure functions of a sight."""

import os
import pathlib
import pwd
from collections.abc import Callable, Iterator
from typing import Any, Final

import swaptide
from swaptide.cache import endpoint, places, uris
from swaptide.host import sizes
from swaptide.host.diagnosis import Finding, bad, ok, warn
from swaptide.host.sight import Sight

Report = dict[str, Any]


def daemon(sight: Sight) -> Iterator[Finding]:
    """Whether it runs, may be asked, and is of this version."""
    look = sight.daemon.look
    if look is None:
        said, _, remedy = sight.daemon.error.partition("; ")
        if "permission denied" in said or "does not answer" in said or sight.defined():
            yield bad("daemon", said, remedy)
        else:
            yield warn("daemon", f"{said}, and no disk is defined", remedy)
        return
    version = look.get("version", "an older one")
    if version != swaptide.__version__:
        yield warn(
            "daemon",
            f"pid {look.get('pid', 'unknown')} is version {version}, this is {swaptide.__version__}",
            "end it and start it again; its disks go on",
        )
        return
    yield ok("daemon", f"pid {look['pid']}, version {version}, {sizes.count(look['disks'], 'disk')}")


def metrics(sight: Sight) -> Iterator[Finding]:
    """The port that Prometheus asks."""
    address = endpoint.parse("metrics", sight.config.metrics)
    if address is None or address.port == 0:
        yield ok("metrics", "off, as configured" if address is None else "on a port that the kernel chooses")
        return
    said = sight.asks(address)
    if sight.daemon.look is None:
        if said is None:
            yield ok("metrics", f"{address} is free")
        else:
            remedy = (
                "give `swaptide serve` another --metrics, if that is not a daemon of another run directory"
            )
            yield warn("metrics", f"somebody answers at {address}, and no daemon runs here", remedy)
    elif said is None or " 200 " not in said:
        yield warn(
            "metrics",
            f"nothing that tells metrics answers at {address}" + (f": {said!r}" if said else ""),
            "give doctor the --config that the daemon has; else see the daemon's log",
        )
    else:
        yield ok("metrics", f"http://{address}/metrics")


def promises(sight: Sight) -> Iterator[Finding]:
    """What disks are promised, beside what there is to take it from."""
    disks = sight.daemon.disks
    floors, caps = (sum(disk[key] for disk in disks) for key in ("floor_bytes", "cap_bytes"))
    steered = sight.daemon.look is None or sight.daemon.look["host"]["balloon"]
    used = sum(disk["ram_bytes"] for disk in disks)
    for index, room in enumerate(sight.rooms):
        name = "host memory" if index == 0 else "memory cgroup"
        where = "" if index == 0 else f" of {room.name.removeprefix('cgroup:')}"
        most = room.size_bytes - room.reserve_bytes
        size, kept = sizes.show(room.size_bytes), sizes.show(room.reserve_bytes)
        if floors > most:
            yield bad(
                name,
                f"the floors are {sizes.show(floors)}, of {size}{where} {kept} is to stay free",
                "lower them (`swaptide disk set NAME --floor`), move disks elsewhere, or raise the limit",
            )
        elif caps > most and not steered:
            yield bad(
                name,
                f"the caps are {sizes.show(caps)} of {size}{where}, and balloon = false",
                "lower them (`swaptide disk set NAME --ram`), or switch the balloon on",
            )
        elif caps > most and index > 0:
            yield warn(
                name,
                f"the caps are {sizes.show(caps)}, more than the limit of {size}{where} leaves",
                "raise the limit, or lower the caps; until then disks get what there is, by weight and use",
            )
        elif room.free_bytes < room.reserve_bytes:
            yield warn(
                name,
                f"{sizes.show(max(0, room.free_bytes))} of {size}{where} is free, {kept} is to stay free",
                "look who uses it; the caches have given what they can down to their floors",
            )
        else:
            over = ", more than there is: the daemon divides it" if caps > most else ""
            told = f"; caps {sizes.show(caps)}{over}, in use {sizes.show(used)}" if disks else ""
            yield ok(name, f"{sizes.show(room.free_bytes)} of {size}{where} free, {kept} kept{told}")


def disk_state(sight: Sight, disk: Report) -> Iterator[Finding]:
    """Whether it serves, and how it fared."""
    name, state, log = f"disk {disk['name']}", disk["state"], disk["log"]
    if state == "running":
        clients = disk["connections"]
        yield ok(name, f"serves, pid {disk['pid']}, " + ("no guest" if not clients else "connected"))
    elif state == "frozen":
        yield warn(name, "is frozen: a guest that swaps out waits", f"swaptide disk thaw {disk['name']}")
    elif state in ("starting", "unstable"):
        yield warn(name, f"is {state}", f"wait, and see its log {log}")
    elif state == "degraded":
        remedy = "mend the device, file system or server of its spill; nothing is lost meanwhile"
        yield bad(name, f"its store fails: {disk['error']}", remedy)
    else:
        yield bad(name, f"is {state}: {disk['error']}", f"see its log {log}")
    if disk["spill_read_errors"]:
        times = f"{disk['spill_read_errors']} reads of its store failed or were damaged"
        yield bad(
            name, times, "the guest got I/O errors for those pages: replace the store, restart the guest"
        )
    if disk["restarts"] and state == "running":
        yield warn(name, f"its process died {disk['restarts']} times", f"see its log {log}")


def disk_process(sight: Sight, disk: Report) -> Iterator[Finding]:
    """Whether its process, which an upgrade leaves alone, is of this version and can do the host no harm."""
    if disk["pid"] is None:
        return
    name, version = f"process of {disk['name']}", disk.get("version") or "an older one"
    if version != swaptide.__version__:
        yield warn(
            name,
            f"pid {disk['pid']} is version {version}, this is {swaptide.__version__}",
            f"swaptide disk restart {disk['name']}; its guest only waits for a moment",
        )
    if disk["user"] == "root" and sight.config.user is None:
        yield warn(
            name,
            f"pid {disk['pid']} is root's: whoever takes it over has the host",
            "the daemon's log says why no other user can serve it: mend that, start the daemon again,"
            f" then swaptide disk restart {disk['name']}",
        )
    elif version == swaptide.__version__:
        yield ok(name, f"version {version}, user {disk['user']}")


def disk_socket(sight: Sight, disk: Report) -> Iterator[Finding]:
    """Who may connect."""
    name, path = f"socket of {disk['name']}", pathlib.Path(disk["socket"])
    status = sight.status(path)
    if status is None:
        yield bad(name, f"{path} is not there", f"swaptide disk restart {disk['name']}")
        return
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    shut = [each for each in path.parents if (found := sight.status(each)) and not found.st_mode & 0o001]
    if shut and status.st_uid != 0 and disk["socket_owner"] is not None:
        yield bad(name, f"{owner} owns it and may not pass {shut[0]}", f"chmod o+x {shut[0]}")
    elif status.st_uid == 0 and sight.uid == 0:
        yield ok(name, "only root's QEMU may connect; under libvirt make it with --socket-owner libvirt-qemu")
    elif sight.uid not in (0, status.st_uid):
        yield warn(name, f"{owner} may connect, you may not", "run QEMU as that user, or see --socket-owner")
    else:
        yield ok(name, f"{owner} may connect")


def disk_spill(sight: Sight, disk: Report) -> Iterator[Finding]:
    """Where it spills to: one store, or two."""
    for place in places.each(disk["spill"]):
        yield _store(sight, disk, place)


def _store(sight: Sight, disk: Report, place: str) -> Finding:
    name = f"spill of {disk['name']}"
    if uris.is_uri(place):
        return ok(name, place)
    path = pathlib.Path(place)
    status = sight.status(path)
    if status is None:
        remedy = "put it back: it holds pages of this disk; its next process does not start without"
        return bad(name, f"{path} is not there", remedy)
    found = sight.space(path)
    if found is not None and found.kind in ("tmpfs", "ramfs"):
        return bad(
            name, f"{path} is itself in memory ({found.kind})", "make the disk anew with another --spill"
        )
    if sight.rotates(path):
        said = (
            f"{path} is on what the kernel takes for a spinning disk: reading a page back takes milliseconds"
        )
        remedy = "an SSD, or a server with memory to spare (docs/spill.md); nothing, if it is a virtual disk"
        return warn(name, said, remedy)
    speed = disk["spill_bytes_per_second"]
    return ok(name, f"{path}" + (f", takes {sizes.show(speed)}/s as measured" if speed else ""))


def disk_memory(sight: Sight, disk: Report) -> Iterator[Finding]:
    """Its limits beside what its guest does."""
    name = f"memory of {disk['name']}"
    target, cap, floor = (sizes.show(disk[f"{key}_bytes"]) for key in ("target", "cap", "floor"))
    if disk["ram_blocked"]:
        yield warn(
            name,
            f"is refused below its target of {target}",
            "a memory cgroup or the tmpfs is full: see above",
        )
    elif disk["target_bytes"] < disk["cap_bytes"]:
        yield ok(
            name,
            f"{sizes.show(disk['ram_bytes'])}, target {target} of {cap} as the host has it, floor {floor}",
        )
    else:
        yield ok(name, f"{sizes.show(disk['ram_bytes'])} of {cap}, floor {floor}")
    content = disk["raw_bytes"] + disk["spilled_bytes"] + disk["packed_pages"] * 4096
    if content > disk["size_bytes"] // 2 and not disk["trims"]:
        yield warn(
            name,
            f"{sizes.show(content)} of {sizes.show(disk['size_bytes'])} kept, its guest never discarded any",
            "in the guest: write 0 to /sys/block/vdX/queue/rotational, then swapon --discard",
        )


def reachable(sight: Sight) -> Iterator[Finding]:
    """Whether who asks may have disks made and changed."""
    path = sight.config.control_socket
    if sight.status(path) is None:
        return
    if sight.may(path, os.R_OK | os.W_OK):
        yield ok("control", f"{path} takes your calls")
    else:
        yield bad("control", f"{path} is not for you", "run as the user of `swaptide serve`")


ALL: Final[tuple[Callable[[Sight], Iterator[Finding]], ...]] = (reachable, daemon, metrics, promises)
DISK: Final[tuple[Callable[[Sight, Report], Iterator[Finding]], ...]] = (
    disk_state,
    disk_process,
    disk_socket,
    disk_spill,
    disk_memory,
)
