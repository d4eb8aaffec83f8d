"""A store that fails, stalls, lies or goes away: every byte in RAM stays right, and a page that is truly gone
is an I/O error for itself alone.

The real plugin on block devices that fail on demand (stores.py) and on files edited underneath.  What must
fail is known beforehand: the tables in the state file tell which page lies where.
"""

import collections
import contextlib
import dataclasses
import mmap
import os
import pathlib
import random
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import nbd
import pytest

from swaptide.cache import geometry
from tests.real import server, stores
from tests.real.buffers import Buffers

PAGE = geometry.PAGE_BYTES
SEGMENT = geometry.SEGMENT_BYTES
PIECES = geometry.PIECES_PER_SEGMENT
STRIDE = PAGE + geometry.TAG_BYTES
MIB = 1 << 20
SIZE = 64 * MIB
PAGES = SIZE // PAGE
SHAPE = geometry.of_size(SIZE)
FLOOR = SHAPE.working_minimum_bytes
RMAP_OFFSET = PIECES * STRIDE  # of a segment of whole pages: its last chunk
FOOTER_OFFSET = geometry.CHUNKS_PER_SEGMENT * STRIDE
# place, write, age, fill, count, flags (cache/mapping.pxd); the states of a place (cache/entry.pxd)
SEGMENT_ENTRY = struct.Struct("<QQQIHH")
DISK = 5
WRITING, CLEAN = 3, 4  # cache/entry.pxd
PIECE = 2

# Of clean-ahead: all that is in RAM is there alone.
NOTHING = "0%"

both = pytest.mark.parametrize("encrypt", ["yes", "no"])


class Guest:
    """One client and what it has written."""

    def __init__(self, disk: server.Server) -> None:
        self._disk = disk
        self._draw = random.Random(7)
        self._answered: set[int] = set()
        self._buffers = Buffers(PAGE)
        self._sent: dict[int, memoryview] = {}
        self.model = bytearray(SIZE)
        self.handle = self.connect()

    def connect(self) -> "nbd.NBD":
        """A connection of its own."""
        handle = nbd.NBD()
        handle.connect_uri(self._disk.uri)
        return handle

    def resume(self) -> None:
        """Go on with the successor of a server that died."""
        self.handle = self.connect()
        self._answered = set()
        self._sent = {}

    def new(self, page: int) -> bytes:
        """Contents that no page had before; the model has them from now on."""
        data = self._draw.randbytes(PAGE)
        self.model[page * PAGE : (page + 1) * PAGE] = data
        return data

    def fill(self) -> None:
        """Write the whole disk."""
        for start in range(0, PAGES, MIB // PAGE):
            self.handle.pwrite(b"".join(self.new(start + n) for n in range(MIB // PAGE)), start * PAGE)

    def write(self, page: int) -> None:
        """Write one page anew."""
        self.handle.pwrite(self.new(page), page * PAGE)

    def is_right(self, page: int) -> bool:
        """True where the page is what was written, False where it is an I/O error; else AssertionError."""
        try:
            got = self.handle.pread(PAGE, page * PAGE)
        except nbd.Error as error:
            assert error.errno == "EIO"
            return False
        assert got == self.model[page * PAGE : (page + 1) * PAGE], f"page {page} is wrong"
        return True

    def lost(self, pages: Iterable[int] = range(PAGES)) -> set[int]:
        """Read these pages one by one; returns those that are I/O errors."""
        return {page for page in pages if not self.is_right(page)}

    def send(self, page: int) -> int:
        """Write one page anew without waiting for the answer; returns its cookie."""
        buffer = self._buffers.filled(self.new(page))
        cookie: int = self.handle.aio_pwrite(buffer, page * PAGE)
        self._sent[cookie] = buffer
        return cookie

    def answered(self, cookies: Iterable[int], seconds: float) -> bool:
        """Whether all of these are answered within the time.  Raises nbd.Error for an error."""
        # libnbd forgets a request once it said that it is completed.
        waiting, deadline = set(cookies) - self._answered, time.monotonic() + seconds
        while waiting and time.monotonic() < deadline:
            self.handle.poll(20)
            done = {cookie for cookie in waiting if self.handle.aio_command_completed(cookie)}
            self._answered |= done
            for cookie in done & self._sent.keys():
                self._buffers.give(self._sent.pop(cookie))
            waiting -= done
        return not waiting

    def write_until_one_waits(self, seconds: float = 1.0) -> int:
        """Write pages in turn until one waits for a store that fails; returns that one's cookie."""
        for page in range(PAGES):
            cookie = self.send(page)
            while not self.answered([cookie], seconds):
                if counter(self._disk, "degraded") and not self.answered([cookie], seconds):
                    return cookie
        raise AssertionError("no write had to wait")


@contextlib.contextmanager
def guest_of(disk: server.Server) -> Iterator[Guest]:
    guest = Guest(disk)
    yield guest
    guest.handle.shutdown()


@dataclasses.dataclass(frozen=True)
class Home:
    """Where a page lies on disk."""

    slot: int
    index: int

    @property
    def offset(self) -> int:
        """Of its piece in the spill file, in bytes."""
        return offset_of(self.slot) + self.index * STRIDE


def offset_of(slot: int) -> int:
    return geometry.SPILL_HEADER_BYTES + slot * SEGMENT


def homes(disk: server.Server, *states: int) -> dict[int, Home]:
    """The pages that are on disk only, or in segments of these states, from the tables of the state file."""
    assert disk.state is not None
    with open(disk.state, "rb") as file:
        segments = os.pread(file.fileno(), SHAPE.segments * SEGMENT_ENTRY.size, SHAPE.segment_table_offset)
        entries = os.pread(file.fileno(), PAGES * 8, SHAPE.page_table_offset)
    slots = {
        number: (place >> 32) - 1
        for number, (place, *_) in enumerate(SEGMENT_ENTRY.iter_unpack(segments))
        if place & 15 in (states or (DISK,))
    }
    return {
        page: Home(slots[entry >> 36], entry >> 27 & 0x1FF)
        for page, (entry,) in enumerate(struct.iter_unpack("<Q", entries))
        if entry & 3 == PIECE and entry >> 36 in slots
    }


def by_slot(at: dict[int, Home]) -> dict[int, set[int]]:
    """The pages of each slot that are on disk only."""
    found: dict[int, set[int]] = collections.defaultdict(set)
    for page, home in at.items():
        found[home.slot].add(page)
    return dict(found)


def squeeze(disk: server.Server, target: int = FLOOR, spare: int = 16 * MIB) -> None:
    """Lower the target, and wait until it holds and nothing moves any more.

    `spare` is given back then: request buffers may grow without another segment going to disk.
    """
    set_target(disk, target)
    with disk.face() as face:
        server.wait_until_holds(face, target)
    set_target(disk, target + spare)
    with disk.face() as face:
        # What is under way ends before a disk stands still; after that there is no reason for more.
        server.freeze(face)
        server.thaw(face)
    before: dict[int, Home] = {}
    while (now := homes(disk)) != before:
        before = now
        time.sleep(0.4)


def set_target(disk: server.Server, target: int) -> None:
    with disk.face() as face:
        face.set_limits(cap_bytes=target, target_bytes=target)


def counter(disk: server.Server, name: str) -> int:
    with disk.face() as face:
        return server.fresh_counters(face)[name]


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def flip(file: int, offset: int) -> None:
    """Turn one bit round."""
    os.pwrite(file, bytes([os.pread(file, 1, offset)[0] ^ 0x10]), offset)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# Writes that fail.


@pytest.mark.parametrize(("error", "words"), [("EIO", "Input/output error"), ("ENOSPC", "No space left")])
@both
def test_while_writes_fail_everything_stays_in_ram(
    tmp_path: pathlib.Path, error: str, words: str, encrypt: str
) -> None:
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes, error) as store,
        server.serving(
            tmp_path, size=str(SIZE), ram="96M", spill=str(store.path), encrypt=encrypt, clean_ahead=NOTHING
        ) as disk,
        guest_of(disk) as guest,
        disk.face() as face,
    ):
        guest.fill()
        with store.refusing("write"):
            face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
            wait_until(lambda: counter(disk, "degraded") == 1)
            waiting = guest.write_until_one_waits()
            assert face.ram_bytes() > FLOOR + SIZE // 2, "late, not lossy"
            assert counter(disk, "usable_stores") == 0
            assert not homes(disk)
            assert guest.lost(range(1000, PAGES)) == set()
            assert counter(disk, "spill_write_errors") > 0
        assert guest.answered([waiting], 60)
        server.wait_until_holds(face, FLOOR)
        assert (counter(disk, "degraded"), counter(disk, "usable_stores")) == (0, 1)
        assert counter(disk, "spill_read_errors") == 0
        assert guest.lost() == set()
        text = disk.log.read_text()
        assert "spill write failed" in text and words in text and "spill store works again" in text


def test_a_thin_device_that_is_full_stops_writers_and_nothing_else(tmp_path: pathlib.Path) -> None:
    with (
        stores.thin(tmp_path / "store", SHAPE.spill_bytes, 24 * MIB) as store,
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        waiting = guest.write_until_one_waits()
        assert counter(disk, "degraded") == 1
        written = range(20 * MIB // PAGE)
        assert guest.lost(written) == set()
        store.grow(2 * SIZE)
        assert guest.answered([waiting], 60)
        guest.fill()
        assert guest.lost() == set()
        wait_until(lambda: counter(disk, "degraded") == 0)


def test_a_full_thin_device_goes_on_in_the_space_that_it_has(tmp_path: pathlib.Path) -> None:
    """What was trimmed leaves slots that can be written; those that cannot must not keep them from use."""
    with (
        stores.thin(tmp_path / "store", SHAPE.spill_bytes, 24 * MIB) as store,
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        waiting = guest.write_until_one_waits()
        for _ in range(4):
            # Ten segments' worth goes, six come.
            guest.handle.trim(20 * MIB, 0)
            guest.model[: 20 * MIB] = bytes(20 * MIB)
            cookies = [guest.send(page) for page in range(12 * MIB // PAGE)]
            assert guest.answered([waiting, *cookies], 60), "there is space, and it is not used"
        assert guest.lost(range(20 * MIB // PAGE)) == set()


def test_short_writes_in_the_middle_of_the_file(tmp_path: pathlib.Path) -> None:
    """A limit on the file's size: the write that crosses it is short, those behind it fail."""
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(tmp_path / "spill")) as disk,
        guest_of(disk) as guest,
        disk.face() as face,
    ):
        guest.fill()
        before = resource.prlimit(disk.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(disk.pid, resource.RLIMIT_FSIZE, (offset_of(12) + 300 * 1024 + 512, before[1]))
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        wait_until(lambda: counter(disk, "spill_write_errors") > 20)
        at = homes(disk)
        assert at and max(home.slot for home in at.values()) < 12
        assert guest.lost() == set()
        assert face.ram_bytes() > FLOOR
        resource.prlimit(disk.pid, resource.RLIMIT_FSIZE, before)
        server.wait_until_holds(face, FLOOR)
        assert guest.lost() == set()
        assert counter(disk, "degraded") == 0


def test_a_few_bad_slots_do_not_stop_the_writers(tmp_path: pathlib.Path) -> None:
    """A device that has no space for some slots in its middle: all that lives fits into the others."""
    bad = range(5, 9)
    with (
        stores.thin(tmp_path / "store", SHAPE.spill_bytes, 2 * SIZE) as store,
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        store.allocate(0, offset_of(bad.start))
        store.allocate(offset_of(bad.stop), SHAPE.spill_bytes - offset_of(bad.stop))
        store.fill_up()
        pages = [*range(PAGES), *random.Random(3).choices(range(PAGES), k=PAGES)]
        for start in range(0, len(pages), 256):
            cookies = [guest.send(page) for page in dict.fromkeys(pages[start : start + 256])]
            assert guest.answered(cookies, 60), "writers wait though good slots are free"
        assert counter(disk, "spill_write_errors") > 0
        assert not set(by_slot(homes(disk))) & set(bad)
        assert guest.lost() == set()


# A store that does not answer.


def test_while_the_store_stalls_ram_is_served(tmp_path: pathlib.Path) -> None:
    target = FLOOR + 32 * MIB  # half of that for the buffers of the second connection
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes) as store,
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        other = guest.connect()
        guest.fill()
        squeeze(disk, target, spare=0)
        gone = homes(disk)
        here = [page for page in range(PAGES) if page not in gone]
        assert len(here) > 2000 and len(gone) > 5000
        buffers = {page: nbd.Buffer(PAGE) for page in list(gone)[::1500]}
        with store.stalled():
            cookies = [other.aio_pread(buffer, page * PAGE) for page, buffer in buffers.items()]
            begun, slowest = time.monotonic(), 0.0
            while time.monotonic() - begun < 3:
                for page in random.Random(1).sample(here, 100):
                    asked = time.monotonic()
                    assert guest.is_right(page)
                    slowest = max(slowest, time.monotonic() - asked)
                other.poll(0)
            assert slowest < 30, "they wait for the store"
            assert guest.answered([guest.send(page) for page in here[:128]], 30)
            assert not any(other.aio_command_completed(cookie) for cookie in cookies)
            waiting = [guest.send(page) for page in list(gone)[: 20 * MIB // PAGE]]
            assert not guest.answered(waiting, 1), "the cap holds"
        assert guest.answered(waiting, 60)
        while cookies := [cookie for cookie in cookies if not other.aio_command_completed(cookie)]:
            assert other.poll(60_000) == 1
        other.shutdown()
        assert counter(disk, "spill_read_errors") == 0
        assert guest.lost() == set()


# Reads that fail.


@both
def test_a_region_that_cannot_be_read_is_an_error_for_its_pages_until_it_can(
    tmp_path: pathlib.Path, encrypt: str
) -> None:
    """A loop device whose backing file ends early: reads behind the end fail."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, SHAPE.spill_bytes)
    with (
        stores.loop(image) as device,
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(device), encrypt=encrypt) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        squeeze(disk)
        at = homes(disk)
        slot = max(home.slot for home in at.values()) - 3
        end = offset_of(slot) + 128 * STRIDE
        end -= end % PAGE
        content = image.read_bytes()
        os.truncate(image, end)
        lost = guest.lost()
        # The file ends in the middle of a piece; a direct read brings whole sectors.
        certain = {page for page, home in at.items() if home.offset >= end}
        assert certain <= lost <= {page for page, home in at.items() if home.offset + STRIDE > end - PAGE}
        assert PIECES < len(lost) < len(at)  # how full the last slots are is the movers' affair
        assert counter(disk, "spill_read_errors") >= len(lost)
        image_write(image, content)
        assert guest.lost() == set()


def image_write(image: pathlib.Path, content: bytes) -> None:
    """Put the contents back without making a new file."""
    with opened(image) as fd:
        os.pwrite(fd, content, 0)


def test_reads_that_fail_for_a_while(tmp_path: pathlib.Path) -> None:
    """RAM is right, the rest is an error meanwhile and right afterwards; whole pages can be overwritten."""
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes) as store,
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        squeeze(disk)
        gone = set(homes(disk))
        some = sorted(gone)[100]
        with store.refusing("read"):
            lost = guest.lost()
            assert gone <= lost <= set(homes(disk))  # the last segments may go a little later
            with pytest.raises(nbd.Error) as refused:
                guest.handle.pwrite(b"part", some * PAGE + 10)
            assert refused.value.errno == "EIO"
            guest.write(some)
            assert guest.is_right(some)
        assert guest.lost() == set()


def test_failing_reads_of_the_cleaner_do_not_flood_the_log(tmp_path: pathlib.Path) -> None:
    with (
        stores.faulty(tmp_path / "store", SHAPE.spill_bytes) as store,
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(store.path)) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        overwrite(guest, 8_000)
        with store.refusing("read"):
            cookies = [guest.send(page) for page in random.Random(5).sample(range(PAGES), 6_000)]
            wait_until(lambda: guest.answered(cookies, 0.5) or said(disk) > 0)
            guest.answered(cookies, 6)
        assert guest.answered(cookies, 60)
        assert said(disk) in range(1, 4)
        assert guest.lost() == set()


def said(disk: server.Server) -> int:
    """How often the cleaner complained."""
    return disk.log.read_text().count("cannot read what was spilled")


# A store that lies.


def overwrite(guest: Guest, count: int, among: range = range(PAGES), deadline: float = 60.0) -> set[int]:
    """Random whole pages, some at a time; returns which."""
    chooser, done = random.Random(11), set[int]()
    until = time.monotonic() + deadline
    for _ in range(count // 250):
        pages = chooser.sample(among, 250)
        assert guest.answered([guest.send(page) for page in pages], max(1.0, until - time.monotonic()))
        done.update(pages)
    return done


def damage(fd: int, at: dict[int, Home], older: dict[int, bytes]) -> set[int]:
    """Every kind of damage, each to slots of its own; returns the pages that are gone by it."""
    pages = by_slot(at)
    slots = iter(sorted(slot for slot in pages if slot not in older))
    lost: set[int] = set()
    for within in (random.Random(1).randrange(PAGE), PAGE + 3):  # the data, the tag
        slot = next(slots)
        for page in sorted(pages[slot])[10:13]:
            flip(fd, at[page].offset + within)
            lost.add(page)
    for place in (RMAP_OFFSET + 4000, RMAP_OFFSET + PAGE + 3, FOOTER_OFFSET + 3):
        flip(fd, offset_of(next(slots)) + place)  # only the cleaner looks there
    zeroed = next(slots)
    os.pwrite(fd, bytes(SEGMENT), offset_of(zeroed))
    one, two = next(slots), next(slots)
    images = [os.pread(fd, SEGMENT, offset_of(slot)) for slot in (one, two)]
    os.pwrite(fd, images[1], offset_of(one))
    os.pwrite(fd, images[0], offset_of(two))
    for slot, image in older.items():
        os.pwrite(fd, image, offset_of(slot))
    for slot in (zeroed, one, two, *older):
        lost |= pages[slot]
    return lost


@both
def test_damage_is_never_a_wrong_byte_and_does_not_spread(tmp_path: pathlib.Path, encrypt: str) -> None:
    spill = tmp_path / "spill"
    with (
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(spill), encrypt=encrypt) as disk,
        guest_of(disk) as guest,
        opened(spill) as fd,
    ):
        guest.fill()
        first = {slot: os.pread(fd, SEGMENT, offset_of(slot)) for slot in by_slot(homes(disk))}
        overwrite(guest, 12_000)
        squeeze(disk)
        at = homes(disk)
        pages = by_slot(at)
        older = {
            slot: image
            for slot, image in first.items()
            if slot in pages and os.pread(fd, SEGMENT, offset_of(slot)) != image
        }
        older = dict(sorted(older.items())[:2])
        assert len(older) == 2, "no slot was used twice"
        lost = damage(fd, at, older)
        assert guest.lost() == lost
        restart(disk, guest)
        assert guest.lost() == lost
        with disk.face() as face:
            cleaned = server.fresh_counters(face)["cleaned_segments"]
        set_target(disk, FLOOR)
        lost -= overwrite(guest, 12_000)
        assert counter(disk, "cleaned_segments") > cleaned
        assert guest.lost() == lost, "the cleaner neither spreads damage nor drops what it cannot open"
        assert disk.log.read_text().count("cannot be read back") < 60
        for page in lost:
            guest.write(page)
        assert guest.lost() == set()


def restart(disk: server.Server, guest: Guest) -> None:
    """Kill it and start it again."""
    disk.stop(signal.SIGKILL)
    disk.start()
    guest.resume()


def test_segments_without_a_reverse_map_do_not_wedge_the_disk(tmp_path: pathlib.Path) -> None:
    """Every footer on disk is damaged: all pages read right, and overwrites go on."""
    spill = tmp_path / "spill"
    with (
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(spill)) as disk,
        guest_of(disk) as guest,
        opened(spill) as fd,
    ):
        guest.fill()
        squeeze(disk)
        for slot in by_slot(homes(disk)):
            flip(fd, offset_of(slot) + FOOTER_OFFSET + 3)
        assert guest.lost() == set()
        set_target(disk, FLOOR)
        # Every damaged segment keeps an eighth of its pages, so that only cleaning could free its slot.
        chooser, pages = random.Random(2), [page for page in range(PAGES) if page % 8]
        for _ in range(200):
            cookies = [guest.send(page) for page in chooser.sample(pages, 250)]
            assert guest.answered(cookies, 60), "writers wait for slots that the cleaner cannot free"
        assert guest.lost() == set()


# A file that goes away.


@both
def test_a_file_that_is_cut_short(tmp_path: pathlib.Path, encrypt: str) -> None:
    spill = tmp_path / "spill"
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(spill), encrypt=encrypt) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        squeeze(disk)
        at = homes(disk)
        # What is in RAM as well is right until its RAM is given back: nobody looks at its copy then.
        doomed = set(homes(disk, WRITING, CLEAN, DISK))
        cut = offset_of(9) + 77 * STRIDE + 1000
        os.truncate(spill, cut)
        gone = {page for page, home in at.items() if home.offset + STRIDE > cut}
        assert guest.lost() == gone and gone
        # What is written from now on makes the file grow again.
        overwrite(guest, 8_000)
        for page in doomed:
            guest.write(page)
        assert guest.lost() == set()
        assert disk.process is not None and disk.process.poll() is None
        assert counter(disk, "degraded") == 0
        assert spill.stat().st_size > cut


def test_a_file_that_is_cut_to_nothing_leaves_ram(tmp_path: pathlib.Path) -> None:
    spill = tmp_path / "spill"
    with (
        server.serving(tmp_path, size=str(SIZE), ram="96M", spill=str(spill)) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        squeeze(disk)
        gone = set(homes(disk))
        # What is in RAM as well is right until its RAM is given back: nobody looks at its copy then.
        doomed = set(homes(disk, WRITING, CLEAN, DISK))
        os.truncate(spill, 0)
        assert guest.lost() == gone
        assert len(gone) < PAGES
        overwrite(guest, 8_000)
        assert guest.lost() <= doomed


def test_a_file_that_is_deleted_serves_on(tmp_path: pathlib.Path) -> None:
    """The open file stays whole; only a successor cannot have it, says so, and leaves the state alone."""
    spill = tmp_path / "spill"
    with (
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(spill)) as disk,
        guest_of(disk) as guest,
    ):
        guest.fill()
        spill.unlink()
        assert guest.lost() == set()
        overwrite(guest, 8_000)
        assert guest.lost() == set()
        assert counter(disk, "spill_write_errors") == counter(disk, "spill_read_errors") == 0
        kept = os.open(f"/proc/{disk.pid}/fd/{spill_fd(disk.pid)}", os.O_RDONLY)
        disk.stop(signal.SIGKILL)
        assert disk.state is not None
        before = disk.state.read_bytes()
        with pytest.raises(server.Ended, match="put it back"):
            disk.start()
        assert disk.state.read_bytes() == before
        put_back(kept, spill)
        disk.start()
        guest.resume()
        assert guest.lost() == set()


def spill_fd(pid: int) -> str:
    """The descriptor of the deleted spill file."""
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).endswith("spill (deleted)"):
            return entry.name
    raise AssertionError("no spill file is open")


def put_back(fd: int, path: pathlib.Path) -> None:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        path.write_bytes(content)
    os.close(fd)
