"""A guest's disk in use: a client that has written everywhere, and reads and writes now and then."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.real import daemons

MIB = daemons.MIB
_PAUSE_SECONDS = 0.02


def half_noise() -> bytes:
    """A MiB of which every other page shrinks to next to nothing."""
    return b"".join(os.urandom(4096) + b"swaptide" * 512 for _ in range(MIB // 8192))


def shrinking() -> bytes:
    """A MiB of pages that shrink, no two of them alike."""
    return b"".join(os.urandom(8) + b"swaptide" * 511 for _ in range(MIB // 4096))


def fill(report: dict[str, Any], mib: int, content: Callable[[], bytes] = half_noise) -> None:
    """Write the first `mib` MiB of a disk."""
    with daemons.client(report) as handle:
        for at in range(mib):
            handle.pwrite(content(), at * MIB)


@contextlib.contextmanager
def loaded(report: dict[str, Any], mib: int = 96) -> Iterator[None]:
    """Fill so much of a disk, and use it until the end."""
    over = threading.Event()

    def work() -> None:
        with daemons.client(report) as handle:
            at = 0
            while not over.wait(_PAUSE_SECONDS):
                at = (at + 37) % mib
                handle.pread(65536, at * MIB)
                handle.pwrite(os.urandom(16384), at * MIB)

    fill(report, mib)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
