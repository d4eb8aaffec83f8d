"""The narrow face of a disk: its counters and limits, read and written from outside.

Used by the daemon and by tests.  Only pread, pwrite and fstat on the state file, never a mapping:
the process that serves the disk is not trusted to leave the file's length alone.
"""

import dataclasses
import errno
import os
import pathlib
import stat
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from swaptide.cache import ages, geometry, histogram, layout
from swaptide.cache.errors import StateError


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a state file is.  `size_bytes` is the disk's size; `disk_id` is also its NBD export name.

    `encrypted` says whether what is spilled is encrypted, with a key that cache.keys keeps; `slots` how many
    disk slots each of its two spill stores has, None where it has one.
    """

    disk_id: str
    name: str
    size_bytes: int
    encrypted: bool
    slots: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """Memory limits in bytes: floor <= target <= cap."""

    cap_bytes: int
    target_bytes: int
    floor_bytes: int


def parse_identity(raw: bytes, where: str) -> Identity:
    """Decode the identity page; raises StateError naming `where` if it is not one of this version."""
    if len(raw) < layout.IDENTITY.size:
        raise StateError(f"{where}: too short for a swaptide state file")
    magic, version, segment_bytes, size_bytes, disk_id, name, flags = layout.IDENTITY.unpack_from(raw)
    if magic != layout.MAGIC:
        raise StateError(f"{where}: not a swaptide state file; choose another path")
    if version != layout.FORMAT_VERSION or segment_bytes != geometry.SEGMENT_BYTES:
        raise StateError(
            f"{where}: state file of format {version}, this program reads format {layout.FORMAT_VERSION};"
            " serve it with the program that made it"
        )
    return Identity(
        str(uuid.UUID(bytes=disk_id)),
        name.rstrip(b"\0").decode("utf-8", "replace"),
        size_bytes,
        bool(flags & layout.ENCRYPTED_FLAG),
        layout.slots_of(flags),
    )


class StateFace:
    """An open state file.  Not thread-safe across set_limits calls; reads may come from anywhere."""

    def __init__(self, path: pathlib.Path, fd: int | None = None) -> None:
        """Open `path`; raises FileNotFoundError, PermissionError, or StateError if it is not ours.

        Never follows a link: the directory may be that of a less privileged user.  Given `fd`, which stays
        the caller's, that is the file, and `path` only what it is called.
        """
        self.path = path
        try:
            if fd is not None:
                self._fd = os.dup(fd)
            else:
                self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise StateError(f"{path}: not a regular file, but a state file is one") from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise StateError(f"{path}: not a regular file, but a state file is one")
            self.identity = parse_identity(os.pread(self._fd, layout.IDENTITY.size, 0), str(path))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def counters(self) -> Mapping[str, int]:
        """Every word of the counters page by name, as last published."""
        return self._words(geometry.COUNTERS_OFFSET, layout.COUNTERS)

    def trouble(self) -> str:
        """Why the disk is degraded, in its process's words, which may be anything printable."""
        return self._text(geometry.TROUBLE_OFFSET, geometry.TROUBLE_BYTES)

    def version(self) -> str:
        """The version of the program that serves the disk, or did last; empty where that does not tell."""
        return self._text(geometry.VERSION_OFFSET, geometry.VERSION_BYTES)

    def histograms(self) -> Mapping[str, histogram.Histogram]:
        """Latencies and sizes of the requests since the disk was made, by the names in layout.HISTOGRAMS."""
        raw = self._read(geometry.HISTOGRAMS_OFFSET, len(layout.HISTOGRAMS) * histogram.BYTES)
        return {
            name: histogram.Histogram.unpack(raw[index * histogram.BYTES :])
            for index, name in enumerate(layout.HISTOGRAMS)
        }

    def ages(self) -> ages.Ages:
        """Pages read since the disk was made, and bytes that live, by how old they are in the log."""
        return ages.Ages.unpack(self._read(geometry.AGES_OFFSET, ages.BYTES))

    def limits(self) -> Limits:
        """The limits in force."""
        words = self._words(geometry.CONTROL_OFFSET, layout.CONTROL)
        return Limits(words["cap_bytes"], words["target_bytes"], words["floor_bytes"])

    def set_limits(
        self,
        *,
        cap_bytes: int | None = None,
        target_bytes: int | None = None,
        floor_bytes: int | None = None,
        deadline_ns: int | None = None,
    ) -> None:
        """Write the given limits; the plugin notices within milliseconds.  Values are not checked here.

        `deadline_ns` of CLOCK_MONOTONIC is when the target has to hold, 0 for no such time; it is there
        before the target is.
        """
        self._put_given(
            deadline_ns=deadline_ns, floor_bytes=floor_bytes, cap_bytes=cap_bytes, target_bytes=target_bytes
        )

    def deadline_ns(self) -> int:
        """When the target has to hold, of CLOCK_MONOTONIC; 0 for no such time."""
        return self._control("deadline_ns")

    def compress(self) -> str:
        """How the disk is to pack, one of layout.COMPRESS; none for what is damaged."""
        index = self._control("compress")
        return layout.COMPRESS[index] if index < len(layout.COMPRESS) else "none"

    def set_orders(self, *, compress: str, clean_ahead_permille: int) -> None:
        """Write how to pack (one of layout.COMPRESS) and what share of the target is kept clean ahead."""
        self._put_given(compress=layout.COMPRESS.index(compress), clean_ahead_permille=clean_ahead_permille)

    def spill_timeout_seconds(self) -> float | None:
        """How long reads wait for a spill server that is gone; None where nobody said."""
        return layout.spill_timeout_seconds(self._control("spill_timeout_ms"))

    def set_spill_timeout(self, seconds: float) -> None:
        """Write how long reads wait for a spill server that is gone: those that are asked from now on."""
        self._put("spill_timeout_ms", round(seconds * 1000))

    def set_frozen(self, frozen: bool) -> int:
        """Have the disk stand still (writes, trims and zeroes wait, nothing moves), or go on.

        Returns the word that says so: in force to the end once `frozen_seen` of the counters is it.
        """
        wanted = layout.after(self._control("frozen"), frozen)
        self._put("frozen", wanted)
        return wanted

    def is_frozen(self) -> bool:
        """Whether the disk is to stand still; it does once it has seen that."""
        return layout.is_frozen(self._control("frozen"))

    def call(self) -> None:
        """Have the process that serves the disk connect to where it was told that calls come from."""
        self._put("call", self._control("call") + 1)

    def gate(self) -> str:
        """Whether clients are served: one of layout.GATES."""
        return layout.gate(self._control("gate"))

    def set_gate(self, gate: str) -> None:
        """Have clients served or not, by one of layout.GATES; in force at once."""
        self._put("gate", layout.GATES.index(gate))

    def origin(self) -> str | None:
        """The id of the disk whose contents were moved into this one, which it answers to as well."""
        words = self._words(geometry.CONTROL_OFFSET, layout.CONTROL)
        number = words["origin_high"] << 64 | words["origin_low"]
        return str(uuid.UUID(int=number)) if number else None

    def request_publish(self) -> int:
        """Ask the plugin for fresh counters; fresh once publish_answer reaches the returned value."""
        wanted = self._control("publish_request") + 1
        self._put("publish_request", wanted)
        return wanted

    def state_blocks_bytes(self) -> int:
        """What the file costs in RAM right now: its allocated blocks, in bytes."""
        return os.fstat(self._fd).st_blocks * 512

    def ram_bytes(self, counters: Mapping[str, int] | None = None) -> int:
        """State-file blocks and the plugin's private memory beyond its base, in bytes; as of `counters`."""
        if counters is None:
            counters = self.counters()
        return self.state_blocks_bytes() + max(0, counters["private_bytes"] - counters["base_bytes"])

    def _control(self, name: str) -> int:
        return self._words(geometry.CONTROL_OFFSET, layout.CONTROL)[name]

    def _put_given(self, **wanted: int | None) -> None:
        for name, value in wanted.items():
            if value is not None:
                self._put(name, value)

    def _put(self, name: str, value: int) -> None:
        offset = geometry.CONTROL_OFFSET + layout.CONTROL.index(name) * layout.WORD.size
        os.pwrite(self._fd, layout.WORD.pack(value), offset)

    def _words(self, offset: int, names: tuple[str, ...]) -> Mapping[str, int]:
        raw = self._read(offset, len(names) * layout.WORD.size)
        return {name: layout.WORD.unpack_from(raw, i * 8)[0] for i, name in enumerate(names)}

    def _text(self, offset: int, length: int) -> str:
        raw = self._read(offset, length).partition(b"\0")[0]
        return "".join(each for each in raw.decode("utf-8", "replace") if each.isprintable())

    def _read(self, offset: int, length: int) -> bytes:
        raw = os.pread(self._fd, length, offset)
        if len(raw) < length:
            raise StateError(f"{self.path}: state file was truncated")
        return raw
