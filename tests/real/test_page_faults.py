"""The hot path takes no page faults: memory is there, mapped, before a request needs it."""

import pathlib
import random

import nbd
import pytest

from swaptide.cache import threads
from tests.real import server

MIB = 1 << 20
PAGE = 4096
SIZE = 192 * MIB
REQUESTS = 20_000
IN_FLIGHT = 16
OURS = {threads.MOVER, threads.PACKER, threads.LOOP}


def faults(pid: int) -> int:
    """Minor and major page faults so far of the threads that serve requests: ours make memory beside them."""
    found, ours = 0, 0
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name, _, fields = (thread / "stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if name in OURS:
            ours += 1
        else:
            found += int(fields.split()[7]) + int(fields.split()[9])
    assert ours >= 2, "the loop and a mover are there, under their names"
    return found


def run(handle: "nbd.NBD", write: bool, requests: int) -> None:
    """Requests of a page each at random places, many in flight."""
    places, noise = random.Random(requests), random.Random(2).randbytes(PAGE)
    buffers = [memoryview(bytearray(noise)) for _ in range(IN_FLIGHT)]
    cookies: list[int] = []
    for number in range(requests):
        if len(cookies) == IN_FLIGHT:
            cookie = cookies.pop(0)
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
        at = places.randrange(SIZE // PAGE) * PAGE
        begin = handle.aio_pwrite if write else handle.aio_pread
        cookies.append(begin(buffers[number % IN_FLIGHT], at))
    for cookie in cookies:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)


@pytest.mark.parametrize("write", [False, True], ids=["reads", "overwrites"])
def test_hits_take_no_page_faults(tmp_path: pathlib.Path, write: bool) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram=str(2 * SIZE)) as disk:
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        noise = random.Random(1).randbytes(MIB)
        for at in range(0, SIZE, MIB):
            handle.pwrite(noise, at)
        run(handle, write, REQUESTS)  # every thread has its buffers, and writers their free segments
        before = faults(disk.pid)
        run(handle, write, REQUESTS)
        taken = faults(disk.pid) - before
        print(f"{taken} page faults in {REQUESTS} {'overwrites' if write else 'reads'}")
        # Memory that is touched for the first time takes one for each page: as many as requests.
        assert taken < REQUESTS // 100
        handle.shutdown()
