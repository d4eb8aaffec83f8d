"""What is said about a disk: one flat record from its definition, its process and its counters."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from swaptide.cache import face, geometry, histogram, layout, places
from swaptide.cache.errors import StateError
from swaptide.host import isolation, process, supervisor

_FRESH_SECONDS = 0.2
_POLL_SECONDS = 0.005
_PRIVATE_WORDS = ("owner_pid", "serving", "publish_answer", "frozen_seen")

Report = dict[str, Any]


async def refresh(keeper: supervisor.Keeper) -> None:
    """Have the plugin publish its counters; gives up after 200 ms, when they are as last published."""
    if keeper.process is None:
        return
    try:
        state = keeper.open_face()
        if state is None:
            return
        wanted = state.request_publish()
        end = time.monotonic() + _FRESH_SECONDS
        while state.counters()["publish_answer"] < wanted and time.monotonic() < end:
            await asyncio.sleep(_POLL_SECONDS)
    except (StateError, OSError):
        return  # `of` will say so


async def fresh(keeper: supervisor.Keeper) -> Report:
    """The report of a disk from fresh counters."""
    await refresh(keeper)
    return of(keeper)


async def look(keeper: supervisor.Keeper) -> Report:
    """The same, with `latency_counts`: requests since the disk was made, by kind and histogram bucket.

    Buckets that are empty are left out; two reports say together what came between them.
    """
    return {**await fresh(keeper), "latency_counts": _latency_counts(keeper)}


def connections(keeper: supervisor.Keeper) -> int:
    """NBD clients of the disk; of a process that died, those it had, which may wait to come back."""
    try:
        state = keeper.open_face()
        return 0 if state is None else state.counters()["connections"]
    except (StateError, OSError):
        return 0


def of(keeper: supervisor.Keeper) -> Report:
    """The report of a disk; a damaged state file shows as its state and error."""
    disk = keeper.definition
    report: Report = {
        "name": disk.name,
        "id": disk.disk_id,
        "size_bytes": disk.size_bytes,
        "state": keeper.state.value,
        "pid": None if keeper.process is None else keeper.process.pid,
        "user": _user(keeper),
        "version": None,
        "socket": str(keeper.socket_path),
        "cap_bytes": disk.cap_bytes,
        "target_bytes": disk.cap_bytes,
        "floor_bytes": disk.floor_bytes,
        "ram_bytes": 0,
        **{word: 0 for word in layout.COUNTERS if word not in _PRIVATE_WORDS},
        "frozen": False,
        "gate": "open",
        "origin": None,
        "raw_hits": 0,
        "packing_ratio": None,
        "latency": None,
        "restarts": keeper.deaths.total,
        "weight": disk.weight,
        "compress": disk.compress,
        "clean_ahead_percent": disk.clean_ahead_percent,
        "encrypt": disk.encrypt,
        "swap_label": disk.swap_label,
        "socket_owner": disk.socket_owner,
        "spill": places.show(disk.spill_path),
        "spill_timeout_seconds": keeper.spill_timeout_seconds,
        "state_file": disk.state_path,
        "log": str(keeper.log_path),
        "error": keeper.error or None,
    }
    try:
        state = keeper.open_face()
        if state is not None:
            report.update(_numbers(state))
            if keeper.process is not None:
                report["version"] = state.version() or None
            if report["spill_timeout_seconds"] is not None:  # what holds for the process that serves
                report["spill_timeout_seconds"] = (
                    state.spill_timeout_seconds() or report["spill_timeout_seconds"]
                )
    except (StateError, OSError) as error:
        report.update(state=supervisor.State.FAILED.value, error=str(error))
    if report["state"] == supervisor.State.RUNNING.value:
        if report["degraded"] and report["error"] is None:
            report["error"] = _trouble(keeper)
        # A store that fails hurts nobody before the thaw.
        report["state"] = "frozen" if report["frozen"] else "degraded" if report["degraded"] else "running"
        if report["gate"] != "open":  # whatever else it is, clients are not served
            report["state"] = report["gate"]
    return report


def _trouble(keeper: supervisor.Keeper) -> str | None:
    with contextlib.suppress(StateError, OSError):
        state = keeper.open_face()
        return (state.trouble() or None) if state is not None else None
    return None


def _latency_counts(keeper: supervisor.Keeper) -> dict[str, dict[int, int]]:
    try:
        state = keeper.open_face()
        found = {} if state is None else state.histograms()
    except (StateError, OSError):
        return {}  # `of` has said so
    return {
        kind: {bucket: count for bucket, count in enumerate(each.latency) if count}
        for kind, each in found.items()
    }


def _user(keeper: supervisor.Keeper) -> str | None:
    """Who serves the disk: a process that was adopted may be another user's than the next one."""
    uid = None if keeper.process is None else process.user_of(keeper.process.pid)
    return None if uid is None else isolation.name_of(uid)


def _numbers(state: face.StateFace) -> Report:
    limits = state.limits()
    counters = {word: value for word, value in state.counters().items() if word not in _PRIVATE_WORDS}
    return {
        "id": state.identity.disk_id,
        "cap_bytes": limits.cap_bytes,
        "target_bytes": limits.target_bytes,
        "floor_bytes": limits.floor_bytes,
        "ram_bytes": state.ram_bytes(),
        **counters,
        "frozen": state.is_frozen(),
        "gate": state.gate(),
        "origin": state.origin(),
        "raw_hits": max(0, counters["hits"] - counters["packed_hits"]),
        "packing_ratio": _packing_ratio(counters),
        "latency": {name: _latency(found) for name, found in state.histograms().items()},
    }


def _packing_ratio(counters: Mapping[str, int]) -> float | None:
    """Guest bytes that are packed in RAM for each byte that they take there; null where none are."""
    if not counters["packed_bytes"]:
        return None
    return round(counters["packed_pages"] * geometry.PAGE_BYTES / counters["packed_bytes"], 2)


def _latency(found: histogram.Histogram) -> Report:
    """What a histogram says since the disk was made; times are null where there was no request."""
    return {
        "count": found.count,
        "mean_seconds": found.mean_seconds(),
        "p50_seconds": found.quantile_seconds(0.5),
        "p99_seconds": found.quantile_seconds(0.99),
    }
