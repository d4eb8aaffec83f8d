"""What is said twice, too early or by the wrong one while a disk moves: nobody gets what is another's."""

import contextlib
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import nbd
import pytest

from swaptide.cache import face, handing, stream
from tests.real import daemons, movers, remotes, test_migrate, test_migrate_store

PAGE, SIZE = movers.PAGE, movers.SIZE
RAM = "32M"


@pytest.fixture
def remote(root: pathlib.Path) -> Iterator[remotes.Remote]:
    """A store that both hosts see."""
    with remotes.serving(root / "store", 4 * SIZE, open_to_all=True) as running:
        yield running


@pytest.fixture
def pair(root: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[movers.Pair]:
    """Disks of their own files; the source's on the store where a test has one."""
    where = ("--spill", request.getfixturevalue("remote").uri) if "remote" in request.fixturenames else ()
    with movers.hosts(root) as made:
        made.here.add("g1", *where, size=SIZE, ram=RAM)
        made.there.add(size=SIZE, ram=RAM)
        yield made


def set_gate(daemon: daemons.Daemon, gate: str) -> None:
    with face.StateFace(pathlib.Path(daemon.show()["state_file"])) as state:
        state.set_gate(gate)


def test_a_client_whose_write_waits_for_a_disk_that_leaves_can_go(pair: movers.Pair) -> None:
    set_gate(pair.here, "leaving")
    report = pair.here.show()
    handle = nbd.NBD()
    handle.set_export_name(report["id"])
    handle.connect_unix(report["socket"])
    assert bytes(handle.pread(PAGE, PAGE)) == bytes(PAGE)
    cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(PAGE)), 0)
    for _ in range(20):
        handle.poll(10)
    assert not handle.aio_command_completed(cookie)
    assert pair.here.show()["connections"] == 1
    del handle
    daemons.wait_for(lambda: pair.here.show()["connections"] == 0)
    set_gate(pair.here, "open")


def test_a_disk_that_was_received_is_not_received_again(pair: movers.Pair, guest: movers.Guest) -> None:
    """A second command waits with a connection of its own until the first one is through."""
    other = f"unix:{pair.root}/other.sock"
    with pair.receiving(listen=other) as late, contextlib.ExitStack() as stack:
        with movers.Command(
            pair.there, "receive", "g1", "--listen", f"unix:{pair.root}/stream.sock", "--json"
        ) as receiving:
            assert receiving.line().startswith("listening at ")
            pair.address = f"unix:{pair.root}/stream.sock"
            guest.start()
            with pair.migrating() as migrating:
                daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 3000)
                stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
                stranger.connect(other.removeprefix("unix:"))
                guest.leave()
                assert migrating.end()[0] == 0 and receiving.end()[0] == 0
        daemons.wait_for(late.is_over)
        status, _, errors = late.end()
        assert status == 1 and "disk g1 is open" in errors
    assert pair.gate(pair.there) == "open"
    guest.check(pair.there.show())


class Hesitant:
    """A destination that takes a disk, and says so only once it is told to."""

    def __init__(self, address: str) -> None:
        self.given, self.says_so = threading.Event(), threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(address.removeprefix("unix:"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Hesitant":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.says_so.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            wire = stream.SocketWire(connection)
            reader, writer = stream.Reader(wire), stream.Writer(wire)
            reader.greet()
            reader.expect(stream.HELLO)
            writer.put_json(stream.HELLO, {"disk_id": "x"})
            while reader.next()[0] != stream.LAST:
                pass
            writer.put(stream.GOOD)
            reader.expect(stream.OPEN)
            self.given.set()
            self.says_so.wait(20)
            writer.put(stream.DONE)


def test_a_disk_is_not_taken_back_while_it_is_being_given(pair: movers.Pair, guest: movers.Guest) -> None:
    with Hesitant(pair.address) as there, pair.migrating() as migrating:
        guest.leave()
        assert there.given.wait(daemons.WAIT_SECONDS)
        refused = pair.here.run("migrate", "g1", "--take-back")
        assert refused.returncode == 1 and "is being moved" in refused.stderr
        assert "is being moved" in pair.here.run("migrate", "g1", "--to", "unix:/nowhere").stderr
        there.says_so.set()
        assert migrating.end()[0] == 0
    assert pair.gate(pair.here) == "gone"


def test_a_disk_that_was_opened_again_is_not_emptied(pair: movers.Pair, guest: movers.Guest) -> None:
    with Hesitant(pair.address) as there, pair.migrating() as migrating:
        guest.leave()
        assert there.given.wait(daemons.WAIT_SECONDS)
        set_gate(pair.here, "open")  # by another daemon, perhaps
        there.says_so.set()
        assert migrating.end()[0] == 0
    assert pair.gate(pair.here) == "given"
    set_gate(pair.here, "open")
    guest.check(pair.here.show())


@pytest.mark.long
def test_a_disk_whose_store_was_taken_meanwhile_does_not_go_on(
    pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote, qemu: movers.Qemu
) -> None:
    """The operator said that the guest is there; then its migration fails after all."""
    there = pair.there.show()
    words = (test_migrate_store.OVER, *test_migrate.with_qemu(qemu))
    with pair.receiving(), pair.migrating(*words) as migrating:
        test_migrate_store.reach(pair, qemu, "device")
        test_migrate.kill_process(pair.there)
        daemons.wait_for(lambda: pair.there.show()["pid"] not in (None, there["pid"]))
        pair.there.ok("receive", "g1", "--accept")
        qemu.reaches("failed")
        status, _, errors = migrating.end()
        assert status == 1 and "taken over there" in errors
    assert pair.gate(pair.here) == "handed"
    assert test_migrate_store.owner(remote) == there["id"]
    guest.check(pair.there.show())
    pair.here.ok("disk", "rm", "g1", "--force")
    guest.check(pair.there.show())


@pytest.mark.long
def test_a_disk_that_stood_still_for_long_goes_on(
    pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote, qemu: movers.Qemu
) -> None:
    """Its store is still its own; and after that nobody there gets it."""
    words = (test_migrate_store.OVER, *test_migrate.with_qemu(qemu))
    with pair.receiving(), pair.migrating(*words) as migrating:
        test_migrate_store.reach(pair, qemu, "device")
        time.sleep(handing._SURE_SECONDS + 0.1)
        qemu.reaches("failed")
        assert migrating.end()[0] == 1
    assert pair.gate(pair.here) == "open" and pair.here.show()["pid"] is not None
    guest.start()
    guest.goes_on()
    guest.stop()
    guest.check(pair.here.show())
    refused = pair.there.run("receive", "g1", "--accept")
    assert refused.returncode == 1 and "the disk is where it was" in refused.stderr
    assert test_migrate_store.owner(remote) == pair.here.show()["id"]
