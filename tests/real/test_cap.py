"""The cap, seen from outside: memory stays under it, writers wait at it, nothing wedges."""

import contextlib
import os
import pathlib
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator

import nbd
import pytest

from swaptide.cache import geometry, planning
from swaptide.cache.face import StateFace
from tests.real import driver, server
from tests.real.buffers import Buffers

PAGE = 4096
SIZE = 128 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
SEGMENT = geometry.SEGMENT_BYTES
OLD = random.Random(0).randbytes(PAGE)


class Sampler:
    """Looks at a server's memory from outside, many times a second: st_blocks of the state file and smaps.

    The server is stopped meanwhile: memory moves from one to the other, and on a busy machine seconds can
    pass between the two looks.
    """

    def __init__(self, disk: server.Server) -> None:
        self._disk = disk
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[tuple[float, int]] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.samples.append((time.monotonic(), self.now()))

    def now(self) -> int:
        """Bytes of RAM that the disk costs beyond its base."""
        assert self._disk.state is not None
        with self._disk.face() as face:
            base = face.counters()["base_bytes"]
        with stopped(self._disk.pid):
            private = private_bytes(self._disk.pid)
            return os.stat(self._disk.state).st_blocks * 512 + max(0, private - base)

    def since(self, when: float) -> list[int]:
        """Samples taken after `when`."""
        return [value for at, value in self.samples if at >= when]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Nothing of a child process runs inside: what is read one after the other is true of one moment."""
    os.kill(pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def private_bytes(pid: int) -> int:
    """Private memory by smaps; written apart from the plugin's own meter.

    Without shared mappings, and without clean pages of files: those are the page cache's, and become
    private or shared as any other process that maps the same library comes and goes.
    """
    total, shared, of_file = 0, False, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0] == "Private_Dirty:" or (words[0] == "Private_Clean:" and not of_file):
            total += 0 if shared else int(words[1]) * 1024
        elif not words[0].endswith(":"):
            shared, of_file = words[1][3] == "s", words[4] != "0"
    return total


def fill(uri: str, size: int, seed: int = 0, block: int = 1 << 20) -> bytearray:
    """Write the whole disk with pages that share nothing; returns what was written."""
    noise = random.Random(seed).randbytes(block + PAGE)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    model = bytearray(size)
    for start in range(0, size, block):
        data = bytearray(noise[start // block % PAGE :][:block])
        for page in range(0, block, PAGE):
            data[page : page + 8] = (start + page).to_bytes(8, "little")
        model[start : start + block] = data
        handle.pwrite(bytes(data), start)
    handle.shutdown()
    return model


def test_memory_never_passes_the_cap(tmp_path: pathlib.Path) -> None:
    cap = 48 << 20
    with server.serving(tmp_path, size=str(SIZE), ram=str(cap), spill=str(tmp_path / "spill")) as disk:
        with Sampler(disk) as sampler:
            load = driver.Driver(disk.uri, SIZE, seed=11)
            fill(disk.uri, SIZE)
            load.model[:] = read_all(disk.uri)
            load.run(8_000)
            while len(sampler.samples) <= 50:  # on a busy host it takes some time to look
                load.run(1_000)
            load.check_all()
            load.close()
        assert max(sampler.since(0)) <= cap
        assert max(sampler.since(0)) > cap // 2


def connected(disk: server.Server) -> "nbd.NBD":
    """A client of the disk."""
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    return handle


def connected_or_not(disk: server.Server) -> None:
    """Try to be a client."""
    with contextlib.suppress(nbd.Error):
        connected(disk)


def read_with_all_threads(handle: "nbd.NBD") -> None:
    """Have each of nbdkit's threads of this connection make a buffer of 1 MiB, all at once."""
    buffers = [nbd.Buffer(1 << 20) for _ in range(32)]
    for _ in range(8):
        cookies = [handle.aio_pread(buffer, n << 20) for n, buffer in enumerate(buffers)]
        while cookies := [c for c in cookies if not handle.aio_command_completed(c)]:
            handle.poll(-1)


def write_in_turn(handle: "nbd.NBD", size: int) -> None:
    """Write the first `size` bytes with pages that share nothing."""
    for start in range(0, size, 1 << 20):
        handle.pwrite(random.Random(start).randbytes(1 << 20), start)


def test_further_connections_get_their_buffers_below_the_cap(tmp_path: pathlib.Path) -> None:
    """RAM is full to the cap when they come, and stays so for a while; they use all their buffers at once."""
    cap = 48 << 20
    with server.serving(tmp_path, size=str(SIZE), ram=str(cap), spill=str(tmp_path / "spill")) as disk:
        clients = [connected(disk)]
        write_in_turn(clients[0], SIZE)

        def come() -> None:
            clients.append(connected(disk))
            read_with_all_threads(clients[-1])

        with Sampler(disk) as sampler:
            for _ in range(2):
                coming = threading.Thread(target=come)
                with FailingStore(disk.pid):
                    coming.start()
                    time.sleep(0.5)
                coming.join()
        for client in clients:
            client.shutdown()
        assert max(sampler.since(0)) <= cap
        assert "beyond the target" not in disk.log.read_text()


def test_a_connection_waits_for_room_neither_for_ever_nor_after_the_end(tmp_path: pathlib.Path) -> None:
    """No room comes: the store fails."""
    beyond = "connection admitted beyond the target"
    with server.serving(tmp_path, size=str(SIZE), ram="48M", spill=str(tmp_path / "spill")) as disk:
        first = connected(disk)
        write_in_turn(first, 40 << 20)
        with FailingStore(disk.pid):
            started = time.monotonic()
            second = connected(disk)
            assert 4 < time.monotonic() - started < 60
            assert disk.log.read_text().count(beyond) == 1
            third = threading.Thread(target=connected_or_not, args=(disk,))
            third.start()
            time.sleep(0.5)
            assert third.is_alive()
            disk.stop()
            third.join()
            assert disk.log.read_text().count(beyond) == 1, "the end has waited for it"
        del first, second


def test_a_squeeze_only_falls_and_then_holds(tmp_path: pathlib.Path) -> None:
    with (
        server.serving(tmp_path, size=str(SIZE), ram="256M", spill=str(tmp_path / "spill")) as disk,
        disk.face() as face,
        Sampler(disk) as sampler,
    ):
        fill(disk.uri, SIZE)
        # One connection: the request buffers of a second one would not fit under the floor.
        load = driver.Driver(disk.uri, SIZE, seed=12, connections=1)
        load.model[:] = read_all(disk.uri)
        load.run(1_000)
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        while face.counters()["target_seen_bytes"] != FLOOR:
            time.sleep(0.001)
        started = time.monotonic()
        loaded = threading.Thread(target=load.run, args=(4_000,))
        loaded.start()
        server.wait_until_holds(face, FLOOR)
        held = time.monotonic()
        loaded.join()
        falling = [v for at, v in sampler.samples if started <= at < held]
        assert all(later <= earlier + SEGMENT for earlier, later in zip(falling, falling[1:], strict=False))
        load.run(2_000)
        load.check_all()
        load.close()
        assert max(sampler.since(held)) <= FLOOR + SEGMENT
        counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] > 0


def test_private_memory_and_mappings_stay_at_the_base(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="64M", spill=str(tmp_path / "spill")) as disk:
        load = driver.Driver(disk.uri, SIZE, seed=13, connections=1, depth=32)
        load.run(6_000)
        with disk.face() as face:
            base = face.counters()["base_bytes"]
            assert base <= geometry.MAX_BASE_BYTES
            assert private_bytes(disk.pid) <= base
        load.close()


def test_a_scan_of_what_was_never_written_costs_nothing(tmp_path: pathlib.Path) -> None:
    size = 2 << 30
    with (
        server.serving(tmp_path, size=str(size), ram="64M", spill=str(tmp_path / "spill")) as disk,
        disk.face() as face,
    ):
        # The first segments are made ahead.
        while server.fresh_counters(face)["droppable_bytes"] < planning.LEAST_FREE * SEGMENT:
            time.sleep(0.01)
        before = face.state_blocks_bytes()
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(disk.uri)
        for at in range(0, size, 2 << 20):
            assert not any(handle.pread(512, at))
        handle.block_status(size // 2, 0, lambda *_: 0)
        handle.trim(size // 2, size // 2)
        handle.zero(size // 2, size // 2)
        handle.shutdown()
        assert face.state_blocks_bytes() == before


def read_all(uri: str) -> bytes:
    """The whole disk."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    size = handle.get_size()
    data = b"".join(handle.pread(min(1 << 20, size - at), at) for at in range(0, size, 1 << 20))
    handle.shutdown()
    return data


class FailingStore:
    """Makes every spill write of a server fail (EFBIG), by the file size limit of its process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1 << 16, self.before[1]))

    def __exit__(self, *_: object) -> None:
        self.mend()

    def mend(self) -> None:
        """Let the store work again, if the server is still there."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, self.before)


def write_pages_until_one_waits(handle: "nbd.NBD", page: int, model: bytearray) -> int:
    """Write distinct pages in turn until one is not answered; returns the page that waits."""
    while True:
        data = bytearray(random.Random(page).randbytes(PAGE))
        cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(data), page * PAGE)
        deadline = time.monotonic() + 1.0
        while not handle.aio_command_completed(cookie):
            if time.monotonic() > deadline:
                return page
            handle.poll(50)
        model[page * PAGE : (page + 1) * PAGE] = data
        page += 1


def test_a_client_that_vanishes_while_its_writes_wait_changes_nothing(tmp_path: pathlib.Path) -> None:
    """More writes than threads: some wait at the cap, some are still in the socket when the client dies."""
    with server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(tmp_path / "spill")) as disk:
        store = FailingStore(disk.pid)
        with store:
            model = bytearray(SIZE)
            gone = nbd.NBD()
            gone.connect_uri(disk.uri)
            waiting = write_pages_until_one_waits(gone, 0, model)
            contested = range(waiting, waiting + 60)
            for page in contested:
                gone.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(OLD)), page * PAGE)
            while gone.poll(100):
                pass
            del gone  # closes the socket without a goodbye, as a killed QEMU does
            new = nbd.NBD()
            new.connect_uri(disk.uri)
            cookies = []
            for page in contested:
                data = random.Random(-page).randbytes(PAGE)
                model[page * PAGE : (page + 1) * PAGE] = data
                cookies.append(new.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), page * PAGE))
            new.poll(300)
            store.mend()
            while cookies := [c for c in cookies if not new.aio_command_completed(c)]:
                assert new.poll(60_000) == 1, "the new client's writes are not answered"
            time.sleep(1.5)
            for at in range(0, (contested[-1] + 1) * PAGE, PAGE):
                assert new.pread(PAGE, at) == model[at : at + PAGE], f"page {at // PAGE}"
            new.shutdown()


def test_a_failing_store_loses_nothing_and_says_so(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="160M", spill=str(tmp_path / "spill")) as disk:
        model = fill(disk.uri, SIZE)
        with disk.face() as face:
            with FailingStore(disk.pid):
                face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
                wait_for(lambda: server.fresh_counters(face)["degraded"] == 1)
                assert server.fresh_counters(face)["spill_write_errors"] > 0
                assert face.ram_bytes() > FLOOR
                assert read_all(disk.uri) == model
            server.wait_until_holds(face, FLOOR)
            wait_for(lambda: server.fresh_counters(face)["degraded"] == 0)
        assert read_all(disk.uri) == model
        assert "spill write failed" in disk.log.read_text()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + server.WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def overwrite_at_random(
    uri: str, size: int, seconds: float, model: bytearray, enough: Callable[[], bool]
) -> list[int]:
    """Random 4 KiB overwrites, 16 in flight, for a time and until it is `enough`; none may wait for ever.

    Returns how many were done in each tenth of the time.
    """
    chooser = random.Random(99)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    buffers = Buffers(PAGE)
    flying: dict[int, tuple[int, memoryview]] = {}
    done: list[int] = [0] * 10
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds or not enough():
        assert elapsed < seconds + 120, "it never is enough"
        while len(flying) < 16:
            page = chooser.randrange(size // PAGE)
            if any(page == other for other, _ in flying.values()):
                continue
            data = bytearray(chooser.randbytes(64) * (PAGE // 64))
            data[:8] = chooser.randbytes(8)
            model[page * PAGE : (page + 1) * PAGE] = data
            buffer = buffers.filled(data)
            flying[handle.aio_pwrite(buffer, page * PAGE)] = page, buffer
        assert handle.poll(60_000) == 1, "no write was answered for a minute"
        for cookie in [c for c in flying if handle.aio_command_completed(c)]:
            buffers.give(flying.pop(cookie)[1])
            done[min(9, int(elapsed * 10 / seconds))] += 1
    while flying:
        assert handle.poll(60_000) == 1
        for cookie in [c for c in flying if handle.aio_command_completed(c)]:
            del flying[cookie]
    handle.shutdown()
    return done


def cleaned(face: StateFace) -> int:
    """Segments that were cleaned."""
    return face.counters()["cleaned_segments"]


@pytest.mark.parametrize("seconds", [12, pytest.param(180, marks=pytest.mark.long)])
def test_worst_case_goes_on_for_ever(tmp_path: pathlib.Path, seconds: int) -> None:
    """Full of pages that share nothing, target at the floor, random overwrites: they go on and on."""
    with (
        server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(tmp_path / "spill")) as disk,
        disk.face() as face,
    ):
        model = fill(disk.uri, SIZE)
        with Sampler(disk) as sampler:
            done = overwrite_at_random(disk.uri, SIZE, seconds, model, lambda: cleaned(face) > 0)
        assert max(sampler.since(0)) <= FLOOR + SEGMENT
        counters = server.fresh_counters(face)
        print(
            "writes by tenth:", done, "cleaned:", counters["cleaned_segments"], "stalls:", counters["stalls"]
        )
        assert counters["cleaned_segments"] > 0
        assert read_all(disk.uri) == model


def test_damage_on_disk_is_an_error_for_its_pages_and_never_a_wrong_byte(tmp_path: pathlib.Path) -> None:
    """Flipped, stale and misplaced sectors in the spill file."""
    spill = tmp_path / "spill"
    with server.serving(tmp_path, size=str(SIZE), ram=str(FLOOR), spill=str(spill)) as disk:
        model = fill(disk.uri, SIZE)
        with open(spill, "r+b") as file:
            slots = [geometry.SPILL_HEADER_BYTES + n * SEGMENT for n in range(10)]
            file.seek(slots[1] + 5 * 4112 + 100)
            file.write(b"\xa5" * 16)  # one flipped piece
            file.seek(slots[3])
            other = file.read(SEGMENT)
            file.seek(slots[4])
            file.write(other)  # a whole segment that belongs elsewhere
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        failed = 0
        for at in range(0, SIZE, PAGE):
            try:
                assert handle.pread(PAGE, at) == model[at : at + PAGE]
            except nbd.Error as error:
                assert error.errno == "EIO"
                failed += 1
        handle.shutdown()
        # At most the one flipped piece and one segment; some of it may have been in RAM or dead.
        assert 0 < failed <= 1 + geometry.PIECES_PER_SEGMENT
        with disk.face() as face:
            assert server.fresh_counters(face)["spill_read_errors"] >= failed
