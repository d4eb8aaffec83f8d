"""Records samples as JSON lines, for the simulator; bounded in size, and never in anybody's way.

A thread of its own writes, since the file may lie on a store that does not answer: what it cannot take in
time is left out.
"""

import contextlib
import errno
import logging
import os
import pathlib
import queue
import stat
import threading
from typing import IO

import msgspec

from swaptide.balloon import samples

log = logging.getLogger(__name__)

# At four samples a second of two disks, more than two hours each for FILE and FILE.1.
MOST_BYTES = 64 << 20
_QUEUED = 256


class Trace:
    """A file of samples.  When it is full it becomes FILE.1, in place of an older one."""

    def __init__(self, path: pathlib.Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def put(self, sample: samples.Sample) -> None:
        """Record a sample, unless the store is behind.  Never waits."""
        try:
            self._queue.put_nowait(msgspec.json.encode(sample) + b"\n")
        except queue.Full:
            self._left_out += 1
            if self._left_out == 1:
                log.warning("trace left out samples file=%s so='its store does not keep up'", self._path)

    def close(self, seconds: float = 1.0) -> None:
        """Write what is queued, but wait no longer than this."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        file: IO[bytes] | None = None
        written = 0
        try:
            while (line := self._queue.get()) is not None:
                if file is None or written + len(line) > self._most_bytes:
                    if file is not None:
                        file.close()
                    file, written = self._fresh(), 0
                file.write(line)
                written += len(line)
                if self._queue.empty():
                    file.flush()
        except OSError as error:
            log.warning("trace ended file=%s error=%r", self._path, error.strerror)
            while self._queue.get() is not None:
                pass  # so that nobody takes a full queue for a slow store
        finally:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _fresh(self) -> IO[bytes]:
        """An empty file: times of another boot would go back.  Moves only what is a regular file."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._path.lstat().st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
        return open(self._path, "xb", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600))
