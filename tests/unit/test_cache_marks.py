"""Exports that change hands: what they are told by is looked at when all of them are reached."""

import contextlib
import errno
import uuid
from collections.abc import Callable, Iterator

import pytest

from swaptide.cache import exports, geometry, link, marks, spillfile, uris
from swaptide.cache.errors import BusyError, SetupError

SPILL = "nbd://near/x,nbd://far/x"
OURS, THEIRS = str(uuid.uuid4()), str(uuid.uuid4())


class Export:
    """What a server has of an export, and a connection to it."""

    def __init__(self, part: int) -> None:
        header = spillfile.SpillHeader(THEIRS, "/there/g1", spillfile.boot_id(), part)
        self.raw = exports.pack_header(header) + bytes(geometry.PAGE_BYTES)
        self.reached: Callable[[], None] = lambda: None
        self.broken = False

    def live(self, number: int) -> None:
        self.write(exports.beat_page(number), exports.BEAT_OFFSET, 1.0)

    def read(self, count: int, offset: int, seconds: float) -> bytes:
        if self.broken:
            raise link.LinkError(errno.EIO, "gone")
        return self.raw[offset : offset + count]

    def write(self, data: bytes, offset: int, seconds: float) -> None:
        self.raw = self.raw[:offset] + data + self.raw[offset + len(data) :]

    def flush(self, seconds: float) -> None:
        pass

    @property
    def owner(self) -> str:
        found = exports.owner_in(self.raw)
        assert found is not None
        return found.header.disk_id


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> list[Export]:
    made = {"near": Export(1), "far": Export(2)}

    @contextlib.contextmanager
    def reached(uri: uris.Uri) -> Iterator[Export]:
        found = made["near" if "near" in uri.text else "far"]
        found.reached()
        with marks._told(uri):
            yield found

    monkeypatch.setattr(marks, "_reached", reached)
    return list(made.values())


def claim(both: list[Export], seen: list[str]) -> None:
    marks.claim(SPILL, seen, OURS, "/here/g1")


def test_both_become_the_disks(both: list[Export]) -> None:
    claim(both, [marks._digest(each.raw) for each in both])
    assert [each.owner for each in both] == [OURS, OURS]
    claim(both, ["", ""])  # again, as by another daemon


def test_one_that_was_used_while_the_other_was_reached_is_not_taken(both: list[Export]) -> None:
    near, far = both
    far.reached = lambda: near.live(7)  # a server that takes its time
    with pytest.raises(BusyError, match="used by the disk"):
        claim(both, [marks._digest(each.raw) for each in both])
    assert [each.owner for each in both] == [THEIRS, THEIRS]


def test_the_one_that_fails_is_named(both: list[Export]) -> None:
    both[0].broken = True
    with pytest.raises(SetupError, match="nbd://near/x: gone"):
        claim(both, ["", ""])
