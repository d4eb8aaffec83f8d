"""One disk, used as a guest would, on a release that has nothing of a checkout: run inside by its Python.

`smoke.py write SOCKET` fills it with more than its RAM holds, `smoke.py read SOCKET` compares;
`smoke.py use SOCKET` goes on reading, comparing and writing over one connection until SIGTERM.
"""

import random
import signal
import sys
from collections.abc import Iterator

import nbd

BLOCK = 1 << 20
SIZE = 64 << 20


def blocks() -> Iterator[tuple[int, bytes]]:
    """What is written: the same each time, and nothing that can be packed."""
    dice = random.Random(7)
    for offset in range(0, SIZE, BLOCK):
        yield offset, dice.randbytes(BLOCK)


def use(client: nbd.NBD) -> None:
    """Read, compare and write what is there anyway, until SIGTERM."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    content = list(blocks())
    dice = random.Random()
    requests = 0
    while not ended:
        offset, block = dice.choice(content)
        assert client.pread(BLOCK, offset) == block, offset
        client.pwrite(block, offset)
        requests += 2
    print(f"use: {requests} requests")


def main(what: str, socket: str) -> None:
    """Write, read or use; raises AssertionError where a byte is wrong, nbd.Error where a request fails."""
    client = nbd.NBD()
    client.connect_unix(socket)
    assert client.get_size() == SIZE, client.get_size()
    if what == "use":
        use(client)
        return
    for offset, block in blocks():
        if what == "write":
            client.pwrite(block, offset)
        else:
            assert client.pread(BLOCK, offset) == block, offset
    client.flush()
    client.shutdown()
    print(f"{what}: {SIZE >> 20} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
