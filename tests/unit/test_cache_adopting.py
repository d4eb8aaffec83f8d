"""A disk that comes in with its store: what makes no sense is refused, and nothing of it stays."""

import json
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from swaptide.cache import adopting, face, geometry, keys, layout, places, statefile, stream
from swaptide.cache.errors import SetupError
from tests.unit.test_cache_stream import Memory

SIZE = 16 << 20
LIMITS = face.Limits(cap_bytes=64 << 20, target_bytes=32 << 20, floor_bytes=24 << 20)
SPILL = "nbd://nowhere/x"
HEADER = geometry.of_size(SIZE).segment_table_offset


class Called:
    """A daemon that says yes, or what it is told to say."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.orders = [adopting.KEPT, adopting.MINE]

    def tell(self, **what: Any) -> None:
        self.told.append(what)

    def order(self, seconds: float) -> str | None:
        if not self.orders:
            raise stream.StreamError("the daemon took it back")
        return self.orders.pop(0)


class Disk:
    """The disk whose place is taken."""

    is_private = True

    def __init__(self, state: statefile.StateFile) -> None:
        self.state = state
        self.gate, self.origin = "incoming", ""
        self.missing = ""

    def set_gate(self, gate: str) -> None:
        self.gate = gate

    def set_origin(self, disk_id: str | None) -> None:
        self.origin = disk_id or ""

    def own_state(self) -> statefile.StateFile:
        return self.state

    def marks(self, offer: adopting.Offer) -> list[str]:
        places.parse(offer.spill)
        if self.missing:
            raise SetupError(self.missing)
        return ["0" * 64]


class Coming:
    """What a source sends."""

    def __init__(self, state: statefile.StateFile) -> None:
        identity = state.identity
        self.hello: dict[str, Any] = {
            "disk_id": identity.disk_id,
            "size_bytes": identity.size_bytes,
            "store": {**adopting.offer_of(identity, 0x1234), "spill": SPILL},
        }
        assert state.path is not None
        known = state.draft.read_bytes() if state.draft is not None else b""
        self.pieces = [(0, known[:HEADER])]
        self.key: bytes | None = bytes(range(40))
        self.last: dict[str, Any] = {"state_bytes": HEADER, "stored_pages": 3}

    def stream(self, *more: bytes) -> Memory:
        wire = Memory()
        writer = stream.Writer(wire)
        for at, data in self.pieces:
            writer.put(stream.STATE, at.to_bytes(8, "little") + data)
        writer.tick()
        if self.key is not None:
            writer.put(stream.KEY, self.key)
        writer.put_json(stream.LAST, self.last)
        for kind in more:
            writer.put(kind)
        return wire


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[Disk]:
    state = statefile.create(tmp_path / "g1", SIZE, "g1", LIMITS, encrypted=True)
    state.publish()
    yield Disk(state)
    state.close()


@pytest.fixture
def coming(tmp_path: pathlib.Path) -> Iterator[Coming]:
    (tmp_path / "other").mkdir()
    state = statefile.create(tmp_path / "other" / "g1", SIZE, "elsewhere", LIMITS, encrypted=True)
    yield Coming(state)
    state.discard()


def take(disk: Disk, coming: Coming, *more: bytes, called: Called | None = None) -> tuple[Called, Memory]:
    called, answers = called or Called(), Memory()
    reader = stream.Reader(coming.stream(*more))
    adopting.Adopting(disk, called, reader, stream.Writer(answers)).take(coming.hello)
    return called, answers


def drafts(disk: Disk) -> list[pathlib.Path]:
    assert disk.state.path is not None
    return list(disk.state.path.parent.glob(".*.new"))


def test_it_is_kept_aside_as_this_disk(disk: Disk, coming: Coming) -> None:
    before = disk.state.path.read_bytes() if disk.state.path is not None else b""
    called, _ = take(disk, coming, stream.OPEN)
    assert [each["at"] for each in called.told] == ["copying", "kept", "arrived", "given", "done"]
    assert (disk.gate, disk.origin) == ("arrived", coming.hello["disk_id"])
    (draft,) = drafts(disk)
    number = called.told[1]["number"]
    assert number in draft.name and draft.stat().st_mode & 0o777 == 0o600
    assert called.told[1]["spill"] == SPILL
    assert disk.state.path is not None and disk.state.path.read_bytes() == before
    kept = keys.read(number)
    assert kept[:32] == bytes(range(32))
    was = int.from_bytes(bytes(range(32, 40)), "little")
    assert int.from_bytes(kept[32:], "little") == was + adopting.TAKEN_STEP
    keys.erase(number)
    with face.StateFace(draft) as found:
        assert found.identity.disk_id == disk.state.identity.disk_id and found.identity.name == "g1"
        assert found.origin() == coming.hello["disk_id"] and found.gate() == "open"
        assert found.limits() == LIMITS and found.counters()["owner_pid"] == 1
    opened = statefile.reopen(draft)
    assert opened.mapping.control_word(layout.CONTROL.index("seal_seed")) == 0x1234
    opened.close()


def test_what_makes_no_sense_is_dropped(disk: Disk, coming: Coming) -> None:
    whole = dict(coming.__dict__)
    store = coming.hello["store"]
    shape = geometry.of_size(SIZE)
    strange: dict[str, dict[str, Any]] = {
        "make it with --size": {"hello": {**coming.hello, "size_bytes": SIZE * 2}},
        "make it with --encrypt no": {"hello": {**coming.hello, "store": {**store, "flags": 0}}},
        "has the format 99": {"hello": {**coming.hello, "store": {**store, "format": 99}}},
        "no good disk_id": {"hello": {**coming.hello, "disk_id": "../../x"}},
        "no good seal_seed": {"hello": {**coming.hello, "store": {**store, "seal_seed": "f" * 17}}},
        "no good spill": {"hello": {**coming.hello, "store": {**store, "spill": "a\nb"}}},
        "no good store": {"hello": {**coming.hello, "store": 7}},
        "makes no sense: stores of": {
            "hello": {**coming.hello, "store": {**store, "flags": layout.flags_of(True, (1, 1))}}
        },
        "lies outside": {"pieces": [(shape.state_bytes - 4, bytes(8))]},
        "too short": {"pieces": [(0, b"")]},
        "more were there": {"pieces": []},
        "not the state file of the disk": {
            "hello": {**coming.hello, "disk_id": str(uuid.uuid4())},
        },
        "key is none": {"key": bytes(7)},
        "not in the keyring": {"key": None},
        "not a swaptide state file": {"pieces": [(0, bytes(HEADER))]},
        "no good stored_pages": {"last": {"state_bytes": HEADER, "stored_pages": -1}},
    }
    for said, changed in strange.items():
        coming.__dict__.update({**whole, **changed})
        with pytest.raises(stream.StreamError, match=said):
            take(disk, coming, stream.OPEN)
        assert disk.gate == "incoming" and not drafts(disk), said


def test_it_stays_once_it_is_all_here(disk: Disk, coming: Coming) -> None:
    with pytest.raises(stream.StreamError, match="hung up"):
        take(disk, coming)
    assert disk.gate == "arrived" and len(drafts(disk)) == 1
    assert disk.state.path is not None
    statefile.sweep_drafts(disk.state.path)  # as whoever clears the disk
    assert not drafts(disk)


def test_a_daemon_that_is_gone_keeps_nothing(disk: Disk, coming: Coming) -> None:
    called = Called()
    called.orders = []
    with pytest.raises(stream.StreamError, match="took it back"):
        take(disk, coming, stream.OPEN, called=called)
    assert disk.gate == "incoming" and not drafts(disk)
    number = called.told[-1]["number"]
    with pytest.raises(SetupError):
        keys.read(number)
    # One that goes after that is not told that the disk is served.
    called.orders = [adopting.KEPT]
    answers = Memory()
    reader = stream.Reader(coming.stream(stream.OPEN))
    with pytest.raises(stream.StreamError, match="took it back"):
        adopting.Adopting(disk, called, reader, stream.Writer(answers)).take(coming.hello)
    assert disk.gate == "arrived" and stream.DONE not in bytes(answers.data)
    keys.erase(called.told[-1].get("number", number))
    for each in drafts(disk):
        keys.erase(each.name.removeprefix(".g1.").removesuffix(".new"))


def test_the_store_has_to_be_there_and_nobody_may_listen(disk: Disk, coming: Coming) -> None:
    disk.missing = "is the server running?"
    with pytest.raises(stream.StreamError, match="cannot be had there: is the server"):
        take(disk, coming, stream.OPEN)
    disk.missing, disk.is_private = "", False
    with pytest.raises(stream.StreamError, match="not in the clear"):
        take(disk, coming, stream.OPEN)
    assert json.dumps(coming.hello) and not drafts(disk)
