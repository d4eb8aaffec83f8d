"""A frozen disk as its clients see it: writes wait and land after the thaw, reads go on, nothing moves."""

import contextlib
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable, Iterator

import nbd
import pytest

from swaptide.cache import geometry, governor, layout
from swaptide.cache.face import StateFace
from tests.real import server, stores
from tests.real.test_faults import SEGMENT_ENTRY, WRITING

PAGE = 4096
MIB = 1 << 20
SIZE = 64 * MIB
SHAPE = geometry.of_size(SIZE)
FLOOR = SHAPE.working_minimum_bytes
WAIT_SECONDS = 60.0
# What reads, who asks, and the process's own memory may change.
READING = {"reads", "read_bytes", "hits", "misses", "packed_hits", "spill_read_bytes", "publish_answer"}
READING |= {"read_ahead_pages", "read_ahead_hits", "private_bytes", "ram_slots_limit"}
STILL = [name for name in layout.COUNTERS if name not in READING]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.005)


def contents(page: int, version: int = 0) -> bytes:
    """A page that is no other's; of three one does not shrink."""
    draw = random.Random(page * 1000 + version)
    return draw.randbytes(PAGE) if page % 3 == 0 else (b"page %d, %d " % (page, version) * 500)[:PAGE]


class Client:
    """One connection, and what it has under way."""

    def __init__(self, disk: server.Server) -> None:
        self.handle = nbd.NBD()
        self.handle.connect_uri(disk.uri)
        self._sent: set[int] = set()

    def fill(self) -> None:
        """Write every page."""
        for start in range(0, SIZE // PAGE, 256):
            self.handle.pwrite(b"".join(contents(start + n) for n in range(256)), start * PAGE)

    def send(self, page: int, version: int) -> None:
        """Write a page, without waiting."""
        data = nbd.Buffer.from_bytearray(bytearray(contents(page, version)))
        self._sent.add(self.handle.aio_pwrite(data, page * PAGE))

    def trim(self, page: int) -> None:
        self._sent.add(self.handle.aio_trim(PAGE, page * PAGE))

    def zero(self, page: int) -> None:
        self._sent.add(self.handle.aio_zero(PAGE, page * PAGE))

    def wait_until_held_up(self, face: StateFace, count: int) -> None:
        """Wait until so many requests in all, of whatever clients, have had to wait for a thaw."""

        def are() -> bool:
            self.unanswered()  # what is not in the socket yet goes there
            return face.counters()["frozen_waits"] >= count

        wait_for(are)
        assert face.counters()["frozen_waits"] == count

    def unanswered(self) -> int:
        """How many of these wait."""
        while self.handle.poll(0):
            pass
        self._sent = {cookie for cookie in self._sent if not self.handle.aio_command_completed(cookie)}
        return len(self._sent)

    def read(self, page: int) -> bytes:
        return bytes(self.handle.pread(PAGE, page * PAGE))

    def check(self, *pages: int, version: int = 0) -> None:
        for page in pages:
            assert self.read(page) == contents(page, version), f"page {page}"


@contextlib.contextmanager
def client_of(disk: server.Server) -> Iterator[Client]:
    client = Client(disk)
    try:
        yield client
    finally:
        with contextlib.suppress(nbd.Error):
            client.handle.shutdown()


def send_until_one_waits(guest: Client, face: StateFace) -> None:
    """Write page 1 as version 1 until the freeze holds it up: one before it is heard of lands."""

    def waits() -> bool:
        if guest.unanswered() == 0:
            guest.send(1, 1)
            guest.unanswered()
        return face.counters()["frozen_waits"] == 1

    wait_for(waits)


def test_writes_land_after_the_thaw_and_reads_go_on(tmp_path: pathlib.Path) -> None:
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M") as disk,
        disk.face() as face,
        client_of(disk) as guest,
        client_of(disk) as other,
    ):
        guest.fill()
        before = face.histograms()
        server.freeze(face)
        assert face.is_frozen()
        for page in range(3):
            guest.send(page, 1)
        guest.trim(3)
        guest.zero(4)
        guest.wait_until_held_up(face, 5)
        # On its own connection as well: its five do not fill nbdkit's sixteen threads.
        for client in (guest, other):
            client.check(*range(0, SIZE // PAGE, 97), *range(5))
        other.handle.flush()
        assert guest.unanswered() == 5
        face.set_frozen(False)
        wait_for(lambda: guest.unanswered() == 0)
        other.check(0, 1, 2, version=1)
        assert other.read(3) == other.read(4) == bytes(PAGE)
        other.check(*range(5, 200))
        after = face.histograms()
        # It is no stall at the cap, but it is part of how long a write took.
        assert (after["stall"] - before["stall"]).count == 0
        assert (after["write"] - before["write"]).count == 3


def test_sixteen_waiting_writes_hold_up_the_reads_behind_them(tmp_path: pathlib.Path) -> None:
    """As documented: nbdkit serves sixteen requests of a connection at a time, and QEMU sends no more."""
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M") as disk,
        disk.face() as face,
        client_of(disk) as guest,
        client_of(disk) as other,
    ):
        guest.fill()
        server.freeze(face)
        for page in range(16):
            guest.send(page, 1)
        guest.wait_until_held_up(face, 16)
        buffer = nbd.Buffer(PAGE)
        cookie = guest.handle.aio_pread(buffer, 100 * PAGE)
        guest.handle.poll(500)
        assert not guest.handle.aio_command_completed(cookie)
        other.check(100, *range(16))
        face.set_frozen(False)
        wait_for(lambda: guest.handle.poll(10) >= 0 and guest.handle.aio_command_completed(cookie))
        assert bytes(buffer.to_bytearray()) == contents(100)
        wait_for(lambda: guest.unanswered() == 0)
        guest.check(*range(16), version=1)


def is_writing(disk: server.Server) -> bool:
    """Whether a segment is on its way to the store."""
    assert disk.state is not None
    with open(disk.state, "rb") as file:
        table = os.pread(file.fileno(), SHAPE.segments * SEGMENT_ENTRY.size, SHAPE.segment_table_offset)
    return any(place & 15 == WRITING for place, *_ in SEGMENT_ENTRY.iter_unpack(table))


def standing(disk: server.Server, face: StateFace) -> tuple[dict[str, int], bytes, int, int]:
    """What may not change: counters, tables, memory, the spill file."""
    counters = server.fresh_counters(face)
    assert disk.state is not None
    with open(disk.state, "rb") as file:
        file.seek(SHAPE.segment_table_offset)
        tables = file.read(SHAPE.tables_end - SHAPE.segment_table_offset)
    changed = pathlib.Path(disk.parameters["spill"]).stat().st_mtime_ns
    return {name: counters[name] for name in STILL}, tables, face.state_blocks_bytes(), changed


def test_nothing_moves_while_the_target_is_lowered(tmp_path: pathlib.Path) -> None:
    spill = str(tmp_path / "spill")
    with (
        server.serving(tmp_path, eager=True, size=str(SIZE), ram="96M", spill=spill) as disk,
        disk.face() as face,
        client_of(disk) as guest,
    ):
        guest.fill()
        server.freeze(face)
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        wait_for(lambda: server.fresh_counters(face)["target_seen_bytes"] == FLOOR)
        before = standing(disk, face)
        begun = time.monotonic()
        guest.check(*range(0, SIZE // PAGE, 2))
        time.sleep(max(0.0, begun + 1.5 - time.monotonic()))
        after = standing(disk, face)
        assert {
            name: (before[0][name], after[0][name]) for name in STILL if before[0][name] != after[0][name]
        } == {}
        assert before[1:] == after[1:]
        assert face.ram_bytes() > FLOOR + 20 * MIB
        face.set_frozen(False)
        server.wait_until_holds(face, FLOOR)
        guest.check(*range(SIZE // PAGE))


def test_frozen_in_the_middle_of_a_squeeze(tmp_path: pathlib.Path) -> None:
    """What is under way is finished first; what was seen then does not change."""
    spill = str(tmp_path / "spill")
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=spill, compress="none") as disk,
        disk.face() as face,
        client_of(disk) as guest,
    ):
        guest.fill()
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        for _ in range(20):
            server.freeze(face)
            before = standing(disk, face)
            time.sleep(0.02)
            assert standing(disk, face) == before
            face.set_frozen(False)
            time.sleep(0.005)
        server.wait_until_holds(face, FLOOR)
        guest.check(*range(SIZE // PAGE))


def test_a_write_to_the_store_that_hangs_is_waited_for(tmp_path: pathlib.Path) -> None:
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes) as store,
        server.serving(
            tmp_path,
            size=str(SIZE),
            ram="96M",
            spill=str(store.path),
            compress="none",
            clean_ahead="0%",  # what is checked while the store stalls has to be in RAM
        ) as disk,
        disk.face() as face,
        client_of(disk) as guest,
    ):
        guest.fill()
        with store.stalled():
            face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
            wait_for(lambda: is_writing(disk))
            word = face.set_frozen(True)
            send_until_one_waits(guest, face)
            time.sleep(0.3)
            assert face.counters()["frozen_seen"] != word
            guest.check(*range(2, 300))
        wait_for(lambda: face.counters()["frozen_seen"] == word)
        assert guest.unanswered() == 1
        face.set_frozen(False)
        wait_for(lambda: guest.unanswered() == 0)
        server.wait_until_holds(face, FLOOR)
        guest.check(1, version=1)
        guest.check(*range(2, SIZE // PAGE))


def test_a_kill_while_frozen_loses_nothing_and_thaws_nothing(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="40M") as disk, disk.face() as face:
        with client_of(disk) as guest:
            guest.fill()
            server.freeze(face)
            for page in range(5):
                guest.send(page, 1)
            guest.wait_until_held_up(face, 5)
            disk.stop(signal.SIGKILL)
        ages = face.ages().reads
        disk.start()
        assert face.is_frozen()
        with client_of(disk) as guest:
            guest.check(*range(0, SIZE // PAGE, 7), *range(5))
            assert face.ages().reads > ages
            guest.send(0, 2)
            guest.wait_until_held_up(face, 6)
            before = server.fresh_counters(face)
            assert before["frozen_seen"] % 2
            guest.check(*range(0, SIZE // PAGE, 7))
            face.set_frozen(False)
            wait_for(lambda: guest.unanswered() == 0)
            guest.check(0, version=2)
            guest.check(*range(1, SIZE // PAGE))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_end_does_not_wait_for_the_thaw(tmp_path: pathlib.Path, how: signal.Signals) -> None:
    """Its clients get no answer, in particular no error: QEMU sends again."""
    with server.serving(tmp_path, size=str(SIZE), ram="96M") as disk, disk.face() as face:
        with client_of(disk) as guest:
            guest.fill()
            server.freeze(face)
            for page in range(40):
                guest.send(page, 1)
            guest.wait_until_held_up(face, 16)
            disk.stop(how)  # raises if it waits for the thaw
            with pytest.raises(nbd.Error, match="disconnect|dead|closed|reset|not connected"):
                while guest.unanswered():
                    guest.handle.poll(100)
        disk.start()
        with client_of(disk) as guest:
            guest.check(*range(40))
            face.set_frozen(False)
            guest.send(0, 2)
            wait_for(lambda: guest.unanswered() == 0)
            guest.check(0, version=2)


def test_the_writes_of_a_vanished_client_never_land(tmp_path: pathlib.Path) -> None:
    """Sixteen wait for the thaw, more are in the socket; the next client is served before that."""
    with server.serving(tmp_path, size=str(SIZE), ram="96M") as disk, disk.face() as face:
        gone = Client(disk)
        gone.fill()
        server.freeze(face)
        for page in range(60):
            gone.send(page, 1)
        gone.wait_until_held_up(face, 16)
        del gone  # closes the socket without a goodbye, as a killed QEMU does
        with client_of(disk) as new:
            new.check(*range(60))
            for page in range(0, 60, 2):
                new.send(page, 2)
            wait_for(lambda: new.unanswered() and face.counters()["frozen_waits"] >= 32)
            face.set_frozen(False)
            wait_for(lambda: new.unanswered() == 0)
            time.sleep(0.5)
            new.check(*range(0, 60, 2), version=2)
            new.check(*range(1, 60, 2))


def test_who_waits_at_the_cap_is_frozen_as_well(tmp_path: pathlib.Path) -> None:
    """RAM is full and the store stalls; a writer that holds nothing is no obstacle to a freeze."""
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes) as store,
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(store.path)) as disk,
        disk.face() as face,
        client_of(disk) as guest,
    ):
        with store.refusing("write"):
            sent = 0
            while face.counters()["stalls"] == 0:
                guest.send(sent, 0)
                guest.unanswered()
                sent += 1
            for page in range(sent, sent + 32):  # some for each of nbdkit's threads
                guest.send(page, 0)
            server.freeze(face)
            # Then each of those holds one; before that, answers may still be on their way.
            guest.wait_until_held_up(face, 16)
            waiting = guest.unanswered()
            assert waiting >= 16
        time.sleep(0.5)
        assert guest.unanswered() == waiting, "the store works again, but the disk is frozen"
        face.set_frozen(False)
        wait_for(lambda: guest.unanswered() == 0)
        guest.check(*range(sent + 32))


def test_a_connection_is_admitted_where_no_room_can_come(tmp_path: pathlib.Path) -> None:
    with (
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR + 8 * MIB)) as disk,
        disk.face() as face,
        client_of(disk) as guest,
    ):
        guest.fill()
        server.freeze(face)
        took = []
        for _ in range(3):  # one may be slow on a busy host
            begun = time.monotonic()
            with client_of(disk) as other:
                took.append(time.monotonic() - begun)
                other.check(*range(0, SIZE // PAGE, 50))
        assert min(took) < governor.ROOM_SECONDS, "not the time that it takes where there is hope"
        face.set_frozen(False)
        server.wait_until_holds(face, FLOOR + 8 * MIB)
