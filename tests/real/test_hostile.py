"""NBD clients that do not keep to the protocol: each gets an error or is cut off, and nobody else notices.

Raw sockets, since libnbd refuses to say most of this.  nbdkit 1.32 itself may end with one known failed
assertion when a client vanishes while two threads answer it; the disk is then started again, as the daemon
does, and has to hold the same bytes.
"""

import contextlib
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import hypothesis
import nbd
import pytest
from hypothesis import strategies as st

from swaptide.cache import geometry, layout
from tests.real import server

PAGE = 4096
SIZE = 64 << 20
HALF = SIZE // 2
MIB = 1 << 20
FUZZ_SECONDS = float(os.environ.get("SWAPTIDE_FUZZ_SECONDS") or 60)
REQUEST = struct.Struct(">IHHQQI")
OPTION = struct.Struct(">QII")
REQUEST_MAGIC, OPTION_MAGIC = 0x25609513, 0x49484156454F5054
GREETING_BYTES, EXPORT_BYTES = 18, 10
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
KNOWN_ASSERTION = "raw_send_socket: Assertion"


class Victim:
    """A disk whose lower half is known and never rightly written again."""

    def __init__(self, disk: server.Server) -> None:
        self.disk = disk
        self.known = random.Random(1).randbytes(HALF)
        self.deaths = 0
        with self.client() as handle:
            for at in range(0, HALF, MIB):
                handle.pwrite(self.known[at : at + MIB], at)

    @contextlib.contextmanager
    def client(self) -> Iterator["nbd.NBD"]:
        """A client with manners."""
        handle = nbd.NBD()
        handle.connect_uri(self.disk.uri)
        try:
            yield handle
        finally:
            with contextlib.suppress(nbd.Error):
                handle.shutdown()

    def judge(self, whole: bool = False) -> None:
        """The disk serves, and holds what it held; it may have died of the one known fault, no other."""
        while True:
            self.revive()
            try:
                self._look(whole)
                return
            except nbd.Error:
                # Nor need it have ended by now of what the client before this one did.
                if not self._ends(10.0):
                    raise

    def _look(self, whole: bool) -> None:
        with self.client() as handle:
            handle.pwrite(b"w" * PAGE, SIZE - PAGE)
            assert handle.pread(PAGE, SIZE - PAGE) == b"w" * PAGE
            for at in range(0, HALF if whole else MIB, MIB):
                assert handle.pread(MIB, at) == self.known[at : at + MIB]

    def _ends(self, seconds: float) -> bool:
        """Whether nbdkit has ended, or does within the time."""
        assert self.disk.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.disk.process.wait(seconds)
        return self.disk.process.returncode is not None

    def revive(self) -> None:
        """Start the disk again if nbdkit ended; everything but its known fault is a failure."""
        process = self.disk.process
        assert process is not None
        if not self._ends(0.05):
            return
        text = self.disk.log.read_text()
        assert process.returncode == -signal.SIGABRT and KNOWN_ASSERTION in text, text[-2000:]
        self.deaths += 1
        self.disk.start()

    def settle(self) -> None:
        """Wait until nbdkit is through with clients that are gone, or has ended; the disk serves then."""
        deadline = time.monotonic() + server.WAIT_SECONDS
        with self.disk.face() as face:
            while face.counters()["connections"] and not self._ends(0.02):
                assert time.monotonic() < deadline, "clients that are gone are still served"
        self.revive()

    def raw(self) -> socket.socket:
        """A connection before its handshake."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(str(self.disk.socket))  # waits where the queue is full
        made.settimeout(server.WAIT_SECONDS)
        return made

    def opened(self) -> socket.socket:
        """A connection in the transmission phase, with simple replies."""
        while True:
            self.revive()
            try:
                return self._open()
            except OSError:
                # Of what the client before this one did nbdkit may end only now.
                if not self._ends(10.0):
                    raise

    def _open(self) -> socket.socket:
        made = self.raw()
        receive(made, GREETING_BYTES)
        made.sendall(struct.pack(">I", 3) + OPTION.pack(OPTION_MAGIC, 1, 0))
        receive(made, EXPORT_BYTES)
        return made

    def anonymous_bytes(self) -> int:
        """RssAnon of the process."""
        for line in pathlib.Path(f"/proc/{self.disk.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")


def receive(made: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        more = made.recv(count - len(data))
        if not more:
            raise ConnectionResetError("closed")
        data += more
    return data


def drain(made: socket.socket, seconds: float) -> int:
    """Take whatever comes until it ends or nothing comes for the time; returns how much."""
    made.settimeout(seconds)
    total = 0
    with contextlib.suppress(OSError):
        while data := made.recv(MIB):
            total += len(data)
    return total


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One disk for all attacks, with part of it spilled."""
    where = tmp_path_factory.mktemp("hostile")
    with server.serving(where, size=str(SIZE), ram="40M", spill=str(where / "spill")) as disk:
        made = Victim(disk)
        yield made
        made.judge(whole=True)
        print(f"known deaths of nbdkit: {made.deaths}")


EXAMPLES = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

LENGTHS = st.one_of(
    st.sampled_from((0, 1, 511, PAGE, MIB, MIB + 1, 32 * MIB, 64 * MIB, 64 * MIB + 1, (1 << 32) - 1)),
    st.integers(0, 128 * 1024),
)
BEYOND = st.one_of(
    st.sampled_from((SIZE, SIZE + 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - PAGE)),
    st.integers(HALF, SIZE + MIB),
)
# What changes nothing may go anywhere, what changes something not into the half that is known.
REQUESTS = st.one_of(
    st.tuples(
        st.sampled_from((READ, FLUSH, CACHE, BLOCK_STATUS, 8, 9, 255, 0xFFFF)),
        st.integers(0, 0xFFFF),
        st.one_of(BEYOND, st.integers(0, SIZE)),
        LENGTHS,
    ),
    st.tuples(st.sampled_from((WRITE, TRIM, WRITE_ZEROES)), st.integers(0, 0xFFFF), BEYOND, LENGTHS),
    st.tuples(st.just(DISC), st.just(0), st.just(0), st.just(0)),
)


def send(made: socket.socket, request: tuple[int, int, int, int], cookie: int) -> bool:
    """Send one request; of a payload at most 256 KiB, and False where that was not all of it."""
    kind, flags, offset, length = request
    made.sendall(REQUEST.pack(REQUEST_MAGIC, flags, kind, cookie, offset, length))
    if kind != WRITE:
        return True
    made.sendall(b"\xee" * min(length, 1 << 18))
    return length <= 1 << 18


@EXAMPLES
@hypothesis.given(requests=st.lists(REQUESTS, min_size=1, max_size=6))
def test_requests_of_any_shape(victim: Victim, requests: list[tuple[int, int, int, int]]) -> None:
    with victim.opened() as made, contextlib.suppress(OSError):
        for cookie, request in enumerate(requests):
            if not send(made, request, cookie):
                break
        drain(made, 0.02)
    victim.judge()


@EXAMPLES
@hypothesis.given(
    flags=st.sampled_from((0, 1, 2, 3, 0xFFFFFFFF)),
    options=st.lists(
        st.tuples(
            st.sampled_from((OPTION_MAGIC, OPTION_MAGIC, OPTION_MAGIC, 0)),
            st.one_of(st.integers(0, 12), st.integers(0, (1 << 32) - 1)),
            st.one_of(st.none(), st.sampled_from((0, 1, 4096, 65536, (1 << 32) - 1))),
            st.binary(max_size=200),
        ),
        max_size=6,
    ),
    tail=st.binary(max_size=100),
)
def test_handshakes_of_any_shape(
    victim: Victim, flags: int, options: list[tuple[int, int, int | None, bytes]], tail: bytes
) -> None:
    with victim.raw() as made, contextlib.suppress(OSError):
        receive(made, GREETING_BYTES)
        made.sendall(struct.pack(">I", flags))
        for magic, option, length, data in options:
            made.sendall(OPTION.pack(magic, option, len(data) if length is None else length) + data)
        made.sendall(tail)
        drain(made, 0.01)
    victim.judge()


@EXAMPLES
@hypothesis.given(data=st.binary(max_size=400))
def test_no_handshake_at_all(victim: Victim, data: bytes) -> None:
    with victim.raw() as made, contextlib.suppress(OSError):
        made.sendall(data)
        drain(made, 0.01)
    victim.judge()


def test_libnbd_without_its_own_checks(victim: Victim) -> None:
    """Errors, one by one, on a connection that stays."""
    with victim.client() as handle:
        handle.set_strict_mode(0)
        for call in (
            lambda: handle.pread(PAGE, SIZE),
            lambda: handle.pread(PAGE, (1 << 63) - PAGE),
            lambda: handle.pread(2 * MIB, 0),
            lambda: handle.pread(32 * MIB, 0),
            lambda: handle.pwrite(b"x" * PAGE, SIZE - 1),
            lambda: handle.pwrite(b"x" * (2 * MIB), HALF),
            lambda: handle.trim(PAGE, SIZE),
            lambda: handle.trim((1 << 32) - 1, HALF),
            lambda: handle.zero((1 << 32) - 1, SIZE),
            lambda: handle.cache(PAGE, SIZE),
            lambda: handle.pread(PAGE, 0, flags=0x4000),
            lambda: handle.trim(PAGE, HALF, flags=nbd.CMD_FLAG_DF),
        ):
            with pytest.raises(nbd.Error):
                call()
        assert handle.pread(PAGE, 0) == victim.known[:PAGE]
        with contextlib.suppress(nbd.Error):
            handle.pread(0, 0)
        assert handle.pread(PAGE, PAGE) == victim.known[PAGE : 2 * PAGE]
    victim.judge()


@pytest.mark.parametrize("structured", [True, False])
def test_block_status_on_odd_ranges(victim: Victim, structured: bool) -> None:
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(victim.disk.uri)
    handle.set_strict_mode(0)
    for offset, length in (
        (1, 1),
        (4095, 2),
        (SIZE - 1, 1),
        (SIZE - 513, 513),
        (7, SIZE - 7),
        (HALF - 1, 4097),
    ):
        told: list[int] = []

        def add(_context: str, _at: int, entries: list[int], _error: object, into: list[int] = told) -> int:
            into.extend(entries)
            return 0

        with contextlib.ExitStack() as stack:
            if not structured:
                stack.enter_context(pytest.raises(nbd.Error))
            handle.block_status(length, offset, add)
        assert structured == bool(told) and (not told or sum(told[::2]) > 0)
    for offset, length in ((SIZE, 1), (0, SIZE + 1), (SIZE - 1, 2), (0, 0), ((1 << 63) - 1, 1)):
        with pytest.raises(nbd.Error):
            handle.block_status(length, offset, lambda *_: 0)
    handle.shutdown()
    victim.judge()


def test_clients_that_vanish_in_the_middle_of_a_payload(victim: Victim) -> None:
    for cut in (0, 1, 100, PAGE, 65537, MIB - 1):
        for _ in range(4):
            with victim.opened() as made:
                made.sendall(REQUEST.pack(REQUEST_MAGIC, 0, WRITE, 1, HALF, MIB) + bytes(cut))
    victim.judge()


def test_clients_that_vanish_with_answers_on_their_way(victim: Victim) -> None:
    """The one place where nbdkit 1.32 is known to fail by itself."""
    for _ in range(20):
        with victim.opened() as made, contextlib.suppress(OSError):
            for cookie in range(24):
                made.sendall(REQUEST.pack(REQUEST_MAGIC, 0, READ, cookie, cookie * MIB, MIB))
        victim.settle()
    victim.judge(whole=True)


def test_hundreds_of_half_open_connections(victim: Victim) -> None:
    """They cost their own disk some of its budget, no more; others come through, and it comes back."""
    victim.judge()
    before = victim.anonymous_bytes()
    with contextlib.ExitStack() as stack:
        for n in range(300):
            made = stack.enter_context(victim.raw())
            if n % 3 == 0:
                made.sendall(struct.pack(">I", 3))
            elif n % 3 == 1:
                made.sendall(struct.pack(">I", 3) + OPTION.pack(OPTION_MAGIC, 7, 1000) + b"half")
        stack.enter_context(victim.opened())
        victim.judge()
    assert_comes_back(victim, before)
    victim.judge()


def test_a_client_that_ignores_the_largest_request(victim: Victim) -> None:
    """nbdkit buffers up to 64 MiB for each of its threads before it asks the plugin; it all comes back."""
    victim.judge()
    before = victim.anonymous_bytes()
    with victim.opened() as made, contextlib.suppress(OSError):
        for cookie in range(8):
            made.sendall(REQUEST.pack(REQUEST_MAGIC, 0, READ, cookie, 0, 32 * MIB))
            made.sendall(REQUEST.pack(REQUEST_MAGIC, 0, WRITE, cookie, HALF, 32 * MIB))
            made.sendall(b"\xee" * (32 * MIB))
        drain(made, 0.3)
        print(f"RssAnon {before >> 20} MiB before, {victim.anonymous_bytes() >> 20} MiB meanwhile")
    assert_comes_back(victim, before)
    victim.judge(whole=True)


def assert_comes_back(victim: Victim, before: int) -> None:
    """RssAnon is soon where it was, but for what a connection may keep."""
    deadline = time.monotonic() + server.WAIT_SECONDS
    while victim.anonymous_bytes() > before + 24 * MIB:
        assert time.monotonic() < deadline, f"{before} bytes before, {victim.anonymous_bytes()} now"
        time.sleep(0.05)


def test_limits_that_make_no_sense_while_it_serves(victim: Victim) -> None:
    """The daemon's words are garbage for a while; nothing dies, nothing is lost."""
    with victim.disk.face() as opened:
        right = opened.limits()
        for word in (0, 1, (1 << 63), (1 << 64) - 1, geometry.PAGE_BYTES - 1):
            for name in ("cap_bytes", "target_bytes", "floor_bytes"):
                opened.set_limits(**{name: word})
                time.sleep(0.02)
            victim.judge()
        opened.set_limits(
            cap_bytes=right.cap_bytes, target_bytes=right.target_bytes, floor_bytes=right.floor_bytes
        )
    victim.judge(whole=True)
    assert victim.disk.process is not None and victim.disk.process.poll() is None


# Words of the counters page that are only told; the others belong to the log and its process.
TOLD = [w for w in layout.COUNTERS if w not in ("owner_pid", "serving", "log_clock", "write_clock")]


@pytest.mark.parametrize("word", [0, (1 << 63), (1 << 64) - 1])
def test_counters_that_somebody_overwrites_while_it_serves(victim: Victim, word: int) -> None:
    with open(victim.disk.state or "", "r+b", buffering=0) as file:
        for name in TOLD:
            os.pwrite(
                file.fileno(),
                struct.pack("<Q", word),
                geometry.COUNTERS_OFFSET + 8 * layout.COUNTERS.index(name),
            )
            if name == "connections":
                victim.judge()
        time.sleep(0.3)
    victim.judge(whole=True)
    assert victim.disk.process is not None and victim.disk.process.poll() is None


def word(at: int, value: int) -> tuple[int, bytes]:
    return at, value.to_bytes(8, "little")


SHAPE = geometry.of_size(SIZE)
REFUSED = {
    "a size that changed": word(24, SIZE + PAGE),
    "an id that changed": word(32, 1),
    "a page that lies nowhere": word(SHAPE.page_table_offset, (1 << 64) - 2),
    "a page that is another's": word(SHAPE.page_table_offset + 40, 2 | PAGE << 2),
    "a slot that there is not": word(SHAPE.segment_table_offset, 2 | 0xFFFFFFF << 4),
    "a table that was lost": (SHAPE.segment_table_offset, bytes(PAGE)),
    "a directory that was lost": (geometry.DIRECTORY_OFFSET, bytes(PAGE)),
    "a write of the far future": word(SHAPE.segment_table_offset + 8, (1 << 64) - 1),
}
SERVED = {
    "limits that make no sense": (geometry.CONTROL_OFFSET, b"\xff" * 32),
    "counters of ones": (geometry.COUNTERS_OFFSET, b"\xff" * len(layout.COUNTERS) * 8),
    "counters of zeros": (geometry.COUNTERS_OFFSET, bytes(len(layout.COUNTERS) * 8)),
    "histograms of ones": (geometry.HISTOGRAMS_OFFSET, b"\xff" * 5120),
}


@pytest.mark.parametrize("damage", [*REFUSED, *SERVED])
def test_a_damaged_state_file_after_a_kill(victim: Victim, damage: str) -> None:
    """nbdkit itself on damages of each kind; test_hostile_state.py draws many more, without it."""
    at, raw = {**REFUSED, **SERVED}[damage]
    disk = victim.disk
    victim.revive()
    disk.stop(signal.SIGKILL)
    assert disk.state is not None
    with open(disk.state, "r+b", buffering=0) as file:
        kept = os.pread(file.fileno(), len(raw), at)
        os.pwrite(file.fileno(), raw, at)
        if damage in REFUSED:
            said = disk.log.stat().st_size
            with pytest.raises(server.Ended):
                disk.start()
            told = disk.log.read_bytes()[said:].decode()
            assert told.startswith("nbdkit: error: swaptide: ") and told.count("\n") == 1, told
            assert os.pread(file.fileno(), len(raw), at) == raw
            os.pwrite(file.fileno(), kept, at)
        else:
            disk.start()
            victim.judge(whole=True)
            if at == geometry.CONTROL_OFFSET:
                os.pwrite(file.fileno(), kept, at)
            disk.stop(signal.SIGKILL)
    disk.start()
    victim.judge(whole=True)


@pytest.mark.long
def test_requests_for_as_long_as_asked(victim: Victim) -> None:
    deadline = time.monotonic() + FUZZ_SECONDS

    @hypothesis.settings(EXAMPLES, max_examples=100, derandomize=False)
    @hypothesis.given(requests=st.lists(REQUESTS, min_size=1, max_size=20))
    def body(requests: list[tuple[int, int, int, int]]) -> None:
        with victim.opened() as made, contextlib.suppress(OSError):
            for cookie, request in enumerate(requests):
                if not send(made, request, cookie):
                    break
            drain(made, 0.01)
        victim.judge()

    while time.monotonic() < deadline:
        body()
    victim.judge(whole=True)
