"""What a process that holds a guest's memory does for itself, once, before it serves.

No core dumps, no waiting for memory behind its own disk, last to be killed, and nothing of it in the host's
swap.  Each is done where the kernel allows it; what could matter and is refused is a warning.  Called by the
thread that starts all others, since they inherit what it has.
"""

import contextlib
import ctypes
import logging
import os
import pathlib
import resource
from typing import Final

from swaptide.cache.mapping import Mapping

log = logging.getLogger(__name__)

# prctl(2)
_SET_DUMPABLE: Final = 4
_SET_IO_FLUSHER: Final = 57
_GET_IO_FLUSHER: Final = 58
# The kernel kills by need and this; the guest's own QEMU, which is larger, is to be preferred.
_OOM_SCORE_ADJ: Final = -500
# mlockall(2), capabilities(7)
_CURRENT: Final = 1
_FUTURE: Final = 2
_ON_FAULT: Final = 4  # not all of a sparse pool, only what gets there
_CAP_IPC_LOCK: Final = 1 << 14
_PROC: Final = pathlib.Path("/proc")


def protect(mapping: Mapping, *, may_be_swapped: bool) -> None:
    """Protect this process and the memory of `mapping`; `may_be_swapped` if its file system allows that."""
    hide()
    mark_io_flusher()
    _lower_oom_score()
    _lock(mapping, may_be_swapped=may_be_swapped)


def hide() -> None:
    """Keys and guest pages: neither a core dump nor a debugger of the same user may see them."""
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def mark_io_flusher() -> None:
    """Allocating must not wait for pages to be written to a disk that waits for us.

    Children inherit it: a daemon of root marks itself, since an unprivileged user may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_GET_IO_FLUSHER, 0, 0, 0, 0) != 1 and libc.prctl(_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        log.info("not marked as an I/O flusher reason=%r", os.strerror(ctypes.get_errno()))


def host_has_swap(proc: pathlib.Path = _PROC) -> bool:
    """Whether the host swaps to anything."""
    return len((proc / "swaps").read_text().splitlines()) > 1


def _lower_oom_score() -> None:
    score = _PROC / "self" / "oom_score_adj"
    try:
        if int(score.read_text()) > _OOM_SCORE_ADJ:
            score.write_text(str(_OOM_SCORE_ADJ))
    except OSError as error:
        log.warning(
            "oom_score_adj cannot be lowered reason=%r remedy='give CAP_SYS_RESOURCE'", error.strerror
        )


def _lock(mapping: Mapping, *, may_be_swapped: bool) -> None:
    """Everything, since the key lies in the heap, and guest pages in buffers of nbdkit's and ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    # What comes later counts against the limit, and an mmap beyond it fails: not where there is a limit.
    flags = _CURRENT | _ON_FAULT | (_FUTURE if _may_lock_all() else 0)
    if libc.mlockall(flags) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    if may_be_swapped:
        with contextlib.suppress(OSError):
            mapping.lock_on_fault()
    if host_has_swap():
        log.warning(
            "the key and guest pages can reach the host's swap: locking them is refused reason=%r"
            " remedy='raise RLIMIT_MEMLOCK'",
            reason,
        )


def _may_lock_all(proc: pathlib.Path = _PROC) -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    for line in (proc / "self" / "status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_IPC_LOCK)
    return False
