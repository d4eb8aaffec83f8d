"""A damaged state file is refused and left alone, or served; never a crash, a hang or another page's bytes.

Each example restores one real disk (killed in the middle of its work, with segments in every state), damages
its XX
"""

import contextlib
import ctypes
import os
import pathlib
import random
import signal
import struct
import time
import traceback
import uuid
from collections.abc import Callable, Iterator

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.cache import ages, engine, geometry, keys, layout
from swaptide.cache.errors import SwaptideError

PAGE = 4096
SIZE = 8 << 20
SHAPE = geometry.of_size(SIZE)
FULL = geometry.CONTENT_BYTES
PAGES = SHAPE.pages
STAMP = struct.Struct("<QQ")
SEGMENT_ENTRY = struct.Struct("<QQQII")
FUZZ_SECONDS = float(os.environ.get("SWAPTIDE_FUZZ_SECONDS") or 60)
CHILD_SECONDS = 120

# What a child found, as its exit status.
SERVED, REFUSED, WRONG = 0, 3, 4
# Regions of the state file that are damaged, and their offsets.
REGIONS = {
    "identity": (0, layout.IDENTITY.size + 8),
    "control": (geometry.CONTROL_OFFSET, len(layout.CONTROL) * 8),
    "counters": (geometry.COUNTERS_OFFSET, len(layout.COUNTERS) * 8),
    "histograms": (geometry.HISTOGRAMS_OFFSET, 5120),
    "ages": (geometry.AGES_OFFSET, ages.BYTES),
    "directory": (geometry.DIRECTORY_OFFSET, 8),
    "segments": (SHAPE.segment_table_offset, 40 * SEGMENT_ENTRY.size),
    "pages": (SHAPE.page_table_offset, PAGES * 8),
}
LATE_WRITE = SHAPE.segment_table_offset + 8
WORDS = st.one_of(
    st.sampled_from((0, 1, 2, (1 << 62) - 1, (1 << 63), (1 << 64) - 1)), st.integers(0, (1 << 64) - 1)
)

Damage = tuple[str, int, object]


def stamp(page: int, version: int) -> bytes:
    """A page that says whose it is; every seventh is one repeated word."""
    if page % 7 == 3:
        return struct.pack("<I", (page + 1) * 16 + version) * (PAGE // 4)
    return STAMP.pack(page + 1, version) * (PAGE // STAMP.size)


def owner_of(data: bytes) -> int | None:
    """Which page wrote these bytes, None where none did."""
    number, version = STAMP.unpack_from(data)
    known = 0 < number <= PAGES and version < 16 and data == stamp(number - 1, version)
    return number - 1 if known else None


def word_at(tables: bytes, at: int) -> int:
    """The word there, 0 where there is none."""
    word: int = struct.unpack_from("<Q", tables, at)[0] if at + 8 <= len(tables) else 0
    return word


class Disk:
    """The files of one killed disk; `restore` puts them back as the kill left them."""

    def __init__(self, state: pathlib.Path, spill: pathlib.Path) -> None:
        self.settings = engine.Settings(SIZE, 256 << 20, state=state, spill=spill)
        self.state = state
        self.spill = spill
        assert status_of(self._make) == -signal.SIGKILL
        self._kept = {path: extents_of(path) for path in (state, spill)}
        self.tables = self.hurt_tables = tables_of(state)

    def _make(self) -> int:
        """Segments open, dirty, clean and on disk, half of the pages overwritten; then die."""
        made = engine.Engine.prepare(self.settings)
        made.segments.ram.set_budget(1 << 40, 0)
        made.moves.populate(20)
        for page in range(PAGES - 100):
            made.log.write_bytes(stamp(page, 0), page * PAGE)
        for _ in range(3):
            assert made.moves.spill(0, 1, False) == 1
        assert made.moves.drop(2) == 2
        for page in range(0, PAGES - 100, 2):
            made.log.write_bytes(stamp(page, 1), page * PAGE)
        os.kill(os.getpid(), signal.SIGKILL)
        return WRONG

    def expected(self, page: int) -> bytes:
        """What the page held when the disk was killed."""
        if page >= PAGES - 100:
            return bytes(PAGE)
        return stamp(page, 1 - page % 2)

    def restore(self) -> None:
        """Both files as they were."""
        for path, kept in self._kept.items():
            with open(path, "r+b") as file:
                size = kept[-1][0]
                if path == self.state:
                    os.truncate(file.fileno(), 0)
                os.truncate(file.fileno(), size)
                for at, data in kept[:-1]:
                    os.pwrite(file.fileno(), data, at)

    def take_over(self, hurt: set[int]) -> int:
        """Take the disk over in a child and judge what it serves; `hurt`: pages whose entry was damaged."""
        return status_of(lambda: self._serve(hurt))

    def _serve(self, hurt: set[int]) -> int:
        signal.alarm(CHILD_SECONDS)  # a hang is a death by SIGALRM
        try:
            made = engine.Engine.prepare(self.settings)
        except SwaptideError as error:
            assert "\n" not in str(error)
            return REFUSED
        before = made.counter("write_clock")
        self._judge(made, self.expected, hurt)
        made.segments.ram.set_budget(1 << 40, 0)
        made.moves.populate(14)
        for page in range(PAGES):
            made.log.write_bytes(stamp(page, 2), page * PAGE)
        while made.moves.spill(1, 1, False) == 1:
            pass
        made.moves.drop(99)
        for page in range(0, PAGES, 3):
            made.log.write_bytes(stamp(page, 3), page * PAGE)
        made.moves.clean(True, FULL, 2, False)
        made.moves.clean(False, FULL, 2, True)
        self._judge(made, lambda page: stamp(page, 2 + (page % 3 == 0)), set())
        assert before < made.counter("write_clock") < 1 << 63
        made.start()  # and the movers with whatever the control words say
        made.set_frozen(False)
        made.set_target(SHAPE.working_minimum_bytes)
        for page in range(PAGES):
            made.log.write_bytes(stamp(page, 4), page * PAGE)
        self._judge(made, lambda page: stamp(page, 4), set())
        made.stop()
        return SERVED

    def is_taken_over(self) -> int:
        """Whether it can be taken over as it is."""
        engine.Engine.prepare(self.settings)
        return SERVED

    def _judge(self, made: engine.Engine, expected: Callable[[int], bytes], hurt: set[int]) -> None:
        for page in range(PAGES):
            try:
                data = made.log.read_bytes(PAGE, page * PAGE)
            except OSError:
                continue
            if data != expected(page):
                assert page in hurt, f"page {page} has {data[:16]!r}"
                assert owner_of(data) in (None, page) or self.names_disk(page), f"page {page} is another"

    def names_disk(self, page: int) -> bool:
        """Whether the damaged entry names a piece that is on disk only: there, nothing tells whose it is."""
        entry = word_at(self.hurt_tables, SHAPE.page_table_offset + page * 8)
        return word_at(self.hurt_tables, SHAPE.segment_table_offset + (entry >> 36) * 32) & 15 == 5


def status_of(body: Callable[[], int]) -> int:
    """Run `body` in a forked child; its result, or the negative number of the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = WRONG
        try:
            status = body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tables_of(path: pathlib.Path) -> bytes:
    """Everything before the pool."""
    with open(path, "rb") as file:
        return file.read(SHAPE.pool_offset)


def extents_of(path: pathlib.Path) -> list[tuple[int, bytes]]:
    """Everything in the file that is not zeros, by offset, and its length with nothing at the end."""
    found = []
    with open(path, "rb") as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:
            with contextlib.suppress(OSError):
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                data = os.pread(file.fileno(), end - at, at)
                found += [
                    (at + n, data[n : n + (1 << 20)])
                    for n in range(0, len(data), 1 << 20)
                    if path.suffix != ".spill" or any(data[n : n + (1 << 20)])
                ]
                at = end
                continue
            break
    return [*found, (size, b"")]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """One killed disk for all examples, its state on tmpfs."""
    state = pathlib.Path(f"/dev/shm/swaptide-test-hostile-{os.getpid()}")
    made = Disk(state, tmp_path_factory.mktemp("hostile") / "disk.spill")
    yield made
    keys.erase(str(uuid.UUID(bytes=made.tables[32:48])))
    state.unlink(missing_ok=True)


# Damages: (kind, where, what).


def words_in(region: str) -> st.SearchStrategy[Damage]:
    at, length = REGIONS[region]
    return st.tuples(st.just("word"), st.integers(0, length // 8 - 1).map(lambda n: at + n * 8), WORDS)


def bytes_in(region: str) -> st.SearchStrategy[Damage]:
    at, length = REGIONS[region]
    where = st.integers(at, at + length - 1)
    return st.tuples(st.just("bytes"), where, st.binary(min_size=1, max_size=16))


PLACES = st.builds(
    lambda state, ram, disk: state | ram << 4 | disk << 32,
    st.integers(0, 8),
    st.one_of(st.integers(0, 12), st.integers(0, (1 << 28) - 1)),
    st.one_of(st.integers(0, 12), st.integers(0, (1 << 28) - 1)),
)
ENTRIES = st.builds(
    lambda segment, index, length: 2 | length << 2 | index << 27 | segment << 36,
    st.one_of(st.integers(0, 12), st.integers(0, (1 << 28) - 1)),
    st.integers(0, 511),
    st.sampled_from((PAGE, PAGE, 0, 8191)),
)
TABLE_PIECES = st.integers(0, SHAPE.pool_offset // PAGE - 1).map(lambda n: n * PAGE)
DAMAGE: st.SearchStrategy[Damage] = st.one_of(
    *(words_in(region) for region in REGIONS),
    *(bytes_in(region) for region in REGIONS),
    st.tuples(st.just("word"), st.integers(0, 12).map(lambda n: SHAPE.segment_table_offset + n * 32), PLACES),
    st.tuples(
        st.just("word"), st.integers(0, PAGES - 1).map(lambda n: SHAPE.page_table_offset + n * 8), ENTRIES
    ),
    st.tuples(st.just("zeros"), TABLE_PIECES, st.none()),
    st.tuples(st.just("hole"), TABLE_PIECES, st.none()),
    st.tuples(
        st.just("hole"),
        st.integers(0, 12 * 512).map(lambda n: SHAPE.pool_offset + n * PAGE),
        st.none(),
    ),
    st.tuples(
        st.just("copy"),
        st.integers(0, 12).map(lambda n: SHAPE.segment_table_offset + n * 32),
        st.integers(0, 12).map(lambda n: SHAPE.segment_table_offset + n * 32),
    ),
    st.tuples(
        st.just("copy"),
        st.integers(0, PAGES - 1).map(lambda n: SHAPE.page_table_offset + n * 8),
        st.integers(0, PAGES - 1).map(lambda n: SHAPE.page_table_offset + n * 8),
    ),
    st.tuples(st.just("length"), st.integers(0, SHAPE.state_bytes * 2), st.none()),
    st.tuples(st.just("cut"), st.integers(0, SHAPE.state_bytes), st.none()),
)


def inflict(path: pathlib.Path, damages: list[Damage]) -> set[int]:
    """Damage the state file; the pages whose entries (or what lies behind them) were touched."""
    touched: list[tuple[int, int]] = []
    with open(path, "r+b", buffering=0) as file:
        fd = file.fileno()
        for kind, at, what in damages:
            length = 8
            if kind == "word":
                assert isinstance(what, int)
                os.pwrite(fd, struct.pack("<Q", what), at)
            elif kind == "bytes":
                assert isinstance(what, bytes)
                length = os.pwrite(fd, what, at)
            elif kind == "zeros":
                length = os.pwrite(fd, bytes(PAGE), at)
            elif kind == "hole":
                length = punch(fd, at)
            elif kind == "copy":
                assert isinstance(what, int)
                os.pwrite(fd, os.pread(fd, 32 if at < SHAPE.page_table_offset else 8, what), at)
            elif kind == "length":
                os.truncate(fd, at)
                length = SHAPE.state_bytes - at
            else:  # cut short, then long again
                os.truncate(fd, at)
                os.truncate(fd, SHAPE.state_bytes)
                length = SHAPE.state_bytes - at
            touched.append((at, length))
    return {page for at, length in touched for page in pages_of(at, length)}


def pages_of(at: int, length: int) -> set[int]:
    """The pages whose entries lie in the range, or in pieces that the directory's bytes in it name."""
    table = SHAPE.page_table_offset
    found = set(range(max(0, (at - table) // 8), min(PAGES, max(0, -(-(at + length - table) // 8)))))
    first = geometry.DIRECTORY_OFFSET + (table - SHAPE.segment_table_offset) // PAGE
    for piece in range(PAGES // 512):
        if at <= first + piece < at + length:
            found |= set(range(piece * 512, piece * 512 + 512))
    return found


def punch(fd: int, at: int) -> int:
    """Make a hole of one page."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(PAGE)) == 0
    return PAGE


def judge(disk: Disk, damages: list[Damage]) -> int:
    """Restore, damage, take over: the outcome, which has to be one of the two good ones."""
    disk.restore()
    hurt = inflict(disk.state, damages)
    before, blocks = tables_of(disk.state), disk.state.stat().st_blocks
    disk.hurt_tables = before
    status = disk.take_over(hurt)
    assert status in (SERVED, REFUSED), f"ended with {status}: {damages}"
    if status == REFUSED:
        assert tables_of(disk.state) == before, "refused, but changed"
        assert disk.state.stat().st_blocks >= blocks, "refused, but memory was given back"
    return status


def test_what_is_not_damaged_is_served(disk: Disk) -> None:
    assert judge(disk, []) == SERVED


@pytest.mark.parametrize("region", ["control", "counters", "histograms", "ages"])
def test_lost_words_cost_nothing(disk: Disk, region: str) -> None:
    """Garbage in what can be made anew is no reason to lose a guest's swap."""
    at, length = REGIONS[region]
    for garbage in (bytes(length), b"\xff" * length, random.Random(region).randbytes(length)):
        assert judge(disk, [("bytes", at, garbage)]) == SERVED


@pytest.mark.parametrize(("word", "frozen"), [(1, True), (7, True), (6, False), ((1 << 63) + 1, False)])
def test_a_word_that_freezes_is_obeyed_and_undone(disk: Disk, word: int, frozen: bool) -> None:
    disk.restore()
    at = geometry.CONTROL_OFFSET + layout.CONTROL.index("frozen") * 8
    inflict(disk.state, [("word", at, word)])

    def serve() -> int:
        signal.alarm(CHILD_SECONDS)
        made = engine.Engine.prepare(disk.settings)
        made.start()
        while made.counter("frozen_seen") != word:
            time.sleep(0.01)
        assert made.segments.turnstile.is_still() == frozen
        made.set_frozen(False)
        made.log.write_bytes(stamp(0, 2), 0)
        made.set_frozen(True)
        made.stop()
        return SERVED

    assert status_of(serve) == SERVED


def entry_at(disk: Disk, page: int) -> int:
    return word_at(disk.tables, SHAPE.page_table_offset + page * 8)


def place_at(disk: Disk, segment: int) -> int:
    return word_at(disk.tables, SHAPE.segment_table_offset + segment * 32)


def test_the_disk_has_segments_of_every_kind(disk: Disk) -> None:
    states = {place_at(disk, segment) & 15 for segment in range(12)}
    assert states >= {1, 2, 4, 5}, states


@pytest.mark.parametrize("page", [0, 1])
def test_two_pages_with_one_piece_are_refused(disk: Disk, page: int) -> None:
    """Page 0 lies in RAM, page 1 on disk."""
    state = place_at(disk, entry_at(disk, page) >> 36) & 15
    assert state == (5 if page else 2)
    assert judge(disk, [("word", SHAPE.page_table_offset + 900 * 8, entry_at(disk, page))]) == REFUSED


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("cut", 0),
        ("cut", SHAPE.pool_offset),
        ("cut", SHAPE.page_table_offset),
        ("length", SHAPE.state_bytes + PAGE),
        ("length", SHAPE.state_bytes - PAGE),
        ("length", 100),
        ("hole", geometry.COUNTERS_OFFSET),
        ("hole", geometry.DIRECTORY_OFFSET),
        ("hole", SHAPE.page_table_offset),
        ("hole", SHAPE.segment_table_offset),
        ("zeros", SHAPE.segment_table_offset),
        ("zeros", geometry.DIRECTORY_OFFSET),
    ],
)
def test_missing_parts_are_refused(disk: Disk, kind: str, at: int) -> None:
    assert judge(disk, [(kind, at, None)]) == REFUSED


def test_a_size_or_flag_that_changed_is_refused(disk: Disk) -> None:
    for at, word in ((24, SIZE - PAGE), (24, 5), (24, 0), (24, 1 << 63), (112, 0), (112, 3)):
        assert judge(disk, [("word", at, word)]) == REFUSED


def test_a_segment_written_in_the_far_future_is_refused(disk: Disk) -> None:
    assert judge(disk, [("word", LATE_WRITE, (1 << 64) - 1)]) == REFUSED


def test_absurd_clocks_are_mended_without_using_a_number_twice(disk: Disk) -> None:
    for name in ("log_clock", "write_clock"):
        at = geometry.COUNTERS_OFFSET + layout.COUNTERS.index(name) * 8
        for word in (0, 1, (1 << 63), (1 << 64) - 1):
            assert judge(disk, [("word", at, word)]) == SERVED
    ages = [("word", SHAPE.segment_table_offset + n * 32 + 16, (1 << 64) - 1 - n) for n in range(5)]
    assert judge(disk, list(ages)) == SERVED


def test_a_clock_at_its_end_costs_nothing_at_the_next_restart_either(disk: Disk) -> None:
    at = geometry.COUNTERS_OFFSET + layout.COUNTERS.index("write_clock") * 8
    for clock in ((1 << 62) - 1, 1 << 62, (1 << 62) + 1):
        assert judge(disk, [("word", at, clock)]) == SERVED  # which spills
        assert status_of(disk.is_taken_over) == SERVED, clock


EXAMPLES = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@EXAMPLES
@hypothesis.given(damages=st.lists(DAMAGE, min_size=1, max_size=4))
def test_damages_at_random(disk: Disk, damages: list[Damage]) -> None:
    judge(disk, damages)


@pytest.mark.long
def test_damages_for_as_long_as_asked(disk: Disk) -> None:
    deadline = time.monotonic() + FUZZ_SECONDS
    outcomes = [0, 0]

    @hypothesis.settings(EXAMPLES, max_examples=200, derandomize=False)
    @hypothesis.given(damages=st.lists(DAMAGE, min_size=1, max_size=4))
    def body(damages: list[Damage]) -> None:
        outcomes[judge(disk, damages) == SERVED] += 1

    while time.monotonic() < deadline:
        body()
    print(f"refused {outcomes[0]}, served {outcomes[1]}")
