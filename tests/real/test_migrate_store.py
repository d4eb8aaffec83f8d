"""Disks that move together with their store: nothing of it is sent, and never do two disks have it."""

import json
import os
import pathlib
import signal
import uuid
from collections.abc import Iterator

import pytest

from swaptide.cache import exports, marks, spillfile, uris
from tests.real import certificates, daemons, movers, remotes, test_migrate

PAGE, SIZE = movers.PAGE, movers.SIZE
RAM = "32M"
OVER = "--hand-over-store"


@pytest.fixture
def remote(root: pathlib.Path) -> Iterator[remotes.Remote]:
    """The store that both hosts see, a disk of twice the usual size fits."""
    with remotes.serving(root / "store", 4 * SIZE, open_to_all=True) as running:
        yield running


@pytest.fixture
def pair(root: pathlib.Path) -> Iterator[movers.Pair]:
    with movers.hosts(root) as made:
        yield made


@pytest.fixture
def guest(pair: movers.Pair, remote: remotes.Remote) -> Iterator[movers.Guest]:
    """A client of a disk on that store, which has written more than its cap holds."""
    pair.here.add("g1", "--spill", remote.uri, size=SIZE, ram=RAM)
    pair.there.add(size=SIZE, ram=RAM)
    with movers.at_work(pair) as made:
        yield made


@pytest.fixture
def qemu(pair: movers.Pair, guest: movers.Guest) -> Iterator[movers.Qemu]:
    with movers.qemu_of(pair) as made:
        yield made


def owner(remote: remotes.Remote) -> str | None:
    """The disk that the export says it is of."""
    found = exports.owner_of(uris.parse(remote.uri))
    return None if found is None or found.is_nobody else found.header.disk_id


def test_a_store_is_handed_over(pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote) -> None:
    guest.start()
    before, there = pair.here.show(), pair.there.show()
    with pair.receiving() as receiving, pair.migrating(OVER) as migrating:
        guest.goes_on()
        guest.leave()
        status, out, errors = migrating.end()
        assert status == 0, errors
        took = json.loads(out)
        status, out, errors = receiving.end()
        assert status == 0, errors
        came = json.loads(out)
    assert guest.error is None
    assert took["removed"] and came["store"] == remote.uri and came["origin"] == before["id"]
    assert pair.here.ok("disk", "ls", "--json").strip() == "[]"
    moved = pair.there.show()
    assert (moved["state"], moved["id"], moved["origin"]) == ("running", there["id"], before["id"])
    assert moved["spill"] == remote.uri and owner(remote) == there["id"]
    guest.check(moved)
    guest.check(moved, export=before["id"])
    # What was there before has gone, and nothing is left to be done.
    assert not list((pair.there.root).rglob("*.spill")) and adoption(pair.there) is None
    # It is a disk like any other, under its successor as well, and moves on.
    pid = moved["pid"]
    os.kill(pid, signal.SIGKILL)
    again = movers.Guest(pair.there.wait_running(not_pid=pid))
    again.model, again.doubt = guest.model, guest.doubt
    again.fill(3_000)
    again.check(pair.there.show())
    again.leave()
    back = movers.Pair(pair.there, pair.here, pair.root)
    pair.here.add(size=SIZE, ram=RAM)
    with back.receiving() as receiving:
        back.here.ok("migrate", "g1", "--to", back.address, OVER)
        assert receiving.end()[0] == 0
    again.check(pair.here.show())
    assert owner(remote) == pair.here.show()["id"]
    pair.here.ok("disk", "rm", "g1")
    assert owner(remote) is None


def adoption(daemon: daemons.Daemon) -> dict[str, object] | None:
    """What the daemon remembers of a disk that came in with its store."""
    (path,) = daemon.state_dir.rglob("g1.json")
    found: dict[str, object] | None = json.loads(path.read_text())["adoption"]
    return found


def test_little_is_sent(
    pair: movers.Pair, root: pathlib.Path, remote: remotes.Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a disk that is mostly spilled."""
    size = 192 << 20
    monkeypatch.setattr(movers, "SIZE", size)
    monkeypatch.setattr(movers, "PAGES", size // PAGE)
    pair.here.add("g1", "--spill", remote.uri, "--compress", "none", size=size, ram="64M")
    pair.there.add(size=size, ram="64M")
    guest = movers.Guest(pair.here.show())
    guest.fill(36_000)
    stored = pair.here.show()["stored_pages"] * PAGE
    guest.leave()
    with pair.receiving() as receiving:
        took = json.loads(pair.here.ok("migrate", "g1", "--to", pair.address, OVER, "--json"))
        assert receiving.end()[0] == 0
    assert stored > 90 << 20 and took["sent_bytes"] < stored / 4
    guest.check(pair.there.show())


def reach(pair: movers.Pair, qemu: movers.Qemu, status: str) -> None:
    """Until QEMU is there: `active` with all of it under way, `device` with the disk ready to be given."""
    test_migrate.wait_status(qemu, "active")
    if status == "device":
        qemu.reaches("pre-switchover")
        test_migrate.wait_status(qemu, "device")
        assert (pair.gate(pair.here), pair.gate(pair.there)) == ("leaving", "arrived")


def contents_of(remote: remotes.Remote) -> bytes:
    return remote.path.read_bytes()


def test_qemu_is_told_to_move_the_guest(pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu) -> None:
    guest.start()
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "active")
        guest.goes_on()
        guest.stop()
        reach(pair, qemu, "device")
        assert not migrating.is_over() and not receiving.is_over()
        qemu.reaches("completed")
        status, out, errors = migrating.end()
        assert status == 0, errors
        assert receiving.end()[0] == 0
    assert json.loads(out)["pause_seconds"] is not None
    guest.check(pair.there.show())


# Ctrl-C later than that is too late.
@pytest.mark.parametrize(
    ("status", "how"), [("active", "failed"), ("active", "ctrl-c"), ("device", "failed")]
)
def test_a_guest_that_does_not_move_goes_on_here(
    pair: movers.Pair,
    guest: movers.Guest,
    qemu: movers.Qemu,
    remote: remotes.Remote,
    status: str,
    how: str,
) -> None:
    guest.start()
    target = pair.here.show()["target_bytes"]
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "active")
        guest.goes_on()
        guest.stop()
        reach(pair, qemu, status)
        if how == "failed":
            qemu.reason = "no room over there"
            qemu.reaches("failed")
        else:
            migrating.interrupt()
        assert migrating.end()[0] != 0
        assert receiving.end()[0] == 1
    guest.start()
    guest.goes_on()
    guest.stop()
    report = pair.here.show()
    assert (report["gate"], report["target_bytes"]) == ("open", target)
    guest.check(report)
    if status == "device":
        # Its operator is wrong: the disk lives here.
        refused = pair.there.run("receive", "g1", "--accept")
        assert refused.returncode == 1 and "the disk is where it was" in refused.stderr, refused.stderr
    assert owner(remote) == report["id"]
    pair.there.ok("disk", "clear", "g1")
    assert adoption(pair.there) is None and owner(remote) == report["id"]
    guest.check(report)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["source", "destination"])
def test_a_process_dies_on_the_way(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, victim: str
) -> None:
    """The guest goes on, and another try gets everything there."""
    guest.start()
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "active")
        guest.goes_on()
        guest.stop()
        test_migrate.kill_process(pair.here if victim == "source" else pair.there)
        assert migrating.end()[0] == 1 and receiving.end()[0] == 1
    guest.leave()
    guest = test_migrate.movers_again(pair, guest)
    guest.leave()
    with pair.receiving() as receiving:
        pair.here.ok("migrate", "g1", "--to", pair.address, OVER)
        assert receiving.end()[0] == 0
    guest.check(pair.there.show())


@pytest.mark.long
@pytest.mark.parametrize("victim", ["source", "destination", "destination's daemon", "store"])
def test_nobody_is_told_and_the_operator_says_that_it_is_there(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, remote: remotes.Remote, victim: str
) -> None:
    """The guest is the other QEMU's, and the last word is lost: neither has the store before it is said."""
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        before = contents_of(remote)
        if victim == "source":
            test_migrate.kill_process(pair.here)
        elif victim == "destination":
            test_migrate.kill_process(pair.there)
        elif victim == "store":
            remote.stop()
        else:
            test_migrate.kill_daemon(pair.there)
        qemu.reaches("completed")
        status, _, errors = migrating.end()
        assert status == 1 and "receive DISK --accept" in errors, errors
        assert receiving.end()[0] == 1
    if victim == "store":
        remote.start()
    if victim == "destination's daemon":
        pair.there.start()
    assert pair.gate(pair.here) == "handed"
    assert pair.there.show()["gate"] == "arrived"
    # Whatever becomes of the disk here, the store is left alone.
    pair.here.ok("disk", "rm", "g1", "--force")
    assert contents_of(remote) == before
    assert "disk g1 is served" in pair.there.ok("receive", "g1", "--accept")
    guest.check(pair.there.show())
    assert "has not arrived" in pair.there.run("receive", "g1", "--accept").stderr


@pytest.mark.long
def test_a_disk_that_was_handed_over_and_not_taken_is_taken_back(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, remote: remotes.Remote
) -> None:
    with pair.receiving(), pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        test_migrate.kill_process(pair.there)
        qemu.reaches("completed")
        assert migrating.end()[0] == 1
    # Also a process that begins anew does not so much as look at the store.
    test_migrate.kill_process(pair.here)
    daemons.wait_for(lambda: "handed over together" in str(pair.here.show()["error"]))
    assert "served here again" in pair.here.ok("migrate", "g1", "--take-back")
    guest.check(pair.here.show())
    refused = pair.there.run("receive", "g1", "--accept")
    assert refused.returncode == 1 and "the disk is where it was" in refused.stderr
    assert "was not given away" in pair.here.run("migrate", "g1", "--take-back").stderr
    guest.check(pair.here.show())


@pytest.mark.long
def test_it_is_not_taken_back_from_who_has_it(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu
) -> None:
    with pair.receiving(), pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        test_migrate.kill_process(pair.there)
        qemu.reaches("completed")
        assert migrating.end()[0] == 1
    pair.there.ok("receive", "g1", "--accept")
    refused = pair.here.run("migrate", "g1", "--take-back")
    assert refused.returncode == 1 and "it is not the export of disk" in refused.stderr
    assert pair.gate(pair.here) == "handed"
    guest.check(pair.there.show())


@pytest.mark.long
def test_the_sources_daemon_dies_while_the_disk_leaves(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu
) -> None:
    """Only its operator knows where the guest runs: until they say so nothing of the disk changes."""
    report = pair.here.show()
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        test_migrate.kill_daemon(pair.here)
        assert migrating.end()[0] == 1 and receiving.end()[0] == 1
    assert test_migrate.is_held(report)
    pair.here.start()
    assert pair.gate(pair.here) == "leaving"
    pair.here.ok("migrate", "g1", "--take-back")
    guest.doubt[SIZE // PAGE - 1] = (guest.model.get(SIZE // PAGE - 1, bytes(PAGE)), b"\x7f" * PAGE)
    guest.check(pair.here.show())
    refused = pair.there.run("receive", "g1", "--accept")
    assert refused.returncode == 1 and "the disk is where it was" in refused.stderr


@pytest.mark.long
@pytest.mark.parametrize("process_too", [False, True])
def test_the_destinations_daemon_dies_when_it_has_the_store(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, remote: remotes.Remote, process_too: bool
) -> None:
    """The next one goes on where it was."""
    there = pair.there.show()
    with pair.receiving() as receiving, pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        test_migrate.kill_daemon(pair.there)
        qemu.reaches("completed")
        assert migrating.end()[0] == 1 and receiving.end()[0] == 1
    (path,) = pair.there.state_dir.rglob("g1.json")
    known = json.loads(path.read_text())
    kept = known["adoption"]
    marks.claim(kept["spill_path"], kept["marks"], there["id"], known["state_path"])
    known["adoption"]["stage"] = "claimed"
    path.write_text(json.dumps(known))
    if process_too:
        os.kill(there["pid"], signal.SIGKILL)
    pair.there.start()
    guest.check(pair.there.wait_running(not_pid=there["pid"]))
    daemons.wait_for(lambda: adoption(pair.there) is None)
    pair.here.ok("disk", "rm", "g1", "--force")
    guest.check(pair.there.show())
    assert owner(remote) == there["id"] == pair.there.show()["id"]


@pytest.mark.long
@pytest.mark.parametrize("how", ["the host restarts", "its removal is cut off"])
def test_a_source_that_has_forgotten_leaves_the_store_alone(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, remote: remotes.Remote, how: str
) -> None:
    """Its state file went, and with it what said that the store was handed over."""
    report = pair.here.show()
    with pair.receiving(), pair.migrating(OVER, *test_migrate.with_qemu(qemu)) as migrating:
        reach(pair, qemu, "device")
        before = contents_of(remote)
        test_migrate.kill_process(pair.there)
        qemu.reaches("completed")
        assert migrating.end()[0] == 1
    test_migrate.kill_daemon(pair.here)
    os.kill(report["pid"], signal.SIGKILL)
    pathlib.Path(report["state_file"]).unlink()
    if how == "its removal is cut off":
        (path,) = pair.here.state_dir.rglob("g1.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"removing": True}))
    pair.here.start()
    if how == "the host restarts":
        daemons.wait_for(lambda: "belongs to the disk" in str(pair.here.show()["error"]))
    else:
        daemons.wait_for(lambda: pair.here.ok("disk", "ls", "--json").strip() == "[]")
    assert contents_of(remote) == before
    pair.there.ok("receive", "g1", "--accept")
    guest.check(pair.there.show())


def test_a_store_that_is_not_there_or_another_ones_is_not_taken(
    pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote
) -> None:
    guest.start()
    if os.geteuid() == 0 and pair.here.show()["user"] != pair.there.show()["user"]:
        remote.socket.chmod(0o600)  # nobody connects anew but root
        with pair.receiving() as receiving:
            done = pair.here.run("migrate", "g1", "--to", pair.address, OVER)
            assert done.returncode == 1 and "the store cannot be had there" in done.stderr, done.stderr
            receiving.interrupt()  # it waits for another try
            receiving.end()
        remote.socket.chmod(0o666)
    with open(remote.path, "r+b") as file:
        mine = os.pread(file.fileno(), PAGE, 0)
        other = spillfile.SpillHeader(str(uuid.uuid4()), "/elsewhere", spillfile.boot_id())
        os.pwrite(file.fileno(), exports.pack_header(other), 0)
        with pair.receiving() as receiving:
            done = pair.here.run("migrate", "g1", "--to", pair.address, OVER)
            assert done.returncode == 1 and f"but of the disk {other.disk_id}" in done.stderr, done.stderr
            receiving.interrupt()
            receiving.end()
        os.pwrite(file.fileno(), mine, 0)
    guest.goes_on()
    guest.stop()
    assert pair.gate(pair.here) == "open"
    guest.check(pair.here.show())


def test_what_cannot_be_is_refused(pair: movers.Pair, guest: movers.Guest, remote: remotes.Remote) -> None:
    here, there = pair.here, pair.there
    here.add("g2", size=SIZE, ram=RAM)

    def refused(words: tuple[str, ...], said: str, name: str = "g1") -> None:
        test_migrate.refused(lambda: here.ok("migrate", name, "--to", pair.address, OVER, *words), said)

    refused((), "only NBD exports can be handed over", "g2")
    refused(("--bandwidth", "8M"), "nothing of it is")
    test_migrate.refused(
        lambda: here.ok("migrate", "g1", "--to", "tcp:127.0.0.1:9", "--insecure", OVER), "and not --insecure"
    )
    here.ok("disk", "freeze", "g1")
    with pair.receiving() as receiving:
        refused((), "disk g1 is frozen")
        here.ok("disk", "thaw", "g1")
        receiving.interrupt()
        receiving.end()
    there.ok("disk", "rm", "g1")
    there.add("g1", "--encrypt", "no", size=SIZE, ram=RAM)
    with pair.receiving() as receiving:
        refused((), "make it with --encrypt yes")
        receiving.interrupt()
        receiving.end()
    assert owner(remote) == here.show()["id"]
    guest.check(here.show())


@pytest.mark.parametrize("encrypt", ["yes", "no"])
def test_two_stores_over_tls(
    pair: movers.Pair, root: pathlib.Path, remote: remotes.Remote, encrypt: str
) -> None:
    authority = certificates.Authority()
    server = str(authority.fill(root / "server", "server"))
    client = str(authority.fill(root / "client", "client"))
    with remotes.serving(root / "second", SIZE, open_to_all=True) as second:
        spill = f"{remote.uri},size=24M,{second.uri}"
        pair.here.add("g1", "--spill", spill, "--encrypt", encrypt, size=SIZE, ram=RAM)
        pair.there.add("g1", "--encrypt", encrypt, size=SIZE, ram=RAM)
        guest = movers.Guest(pair.here.show())
        guest.fill(15_000)
        guest.leave()
        with pair.receiving("--tls-certificates", server, listen="tcp:127.0.0.1:0") as receiving:
            pair.here.ok("migrate", "g1", "--to", pair.address, OVER, "--tls-certificates", client)
            assert receiving.end()[0] == 0
        report = pair.there.show()
        assert owner(remote) == owner(second) == report["id"] and report["spill"] == spill
        guest.check(report)
        pair.there.ok("disk", "restart", "g1")
        guest.check(pair.there.show())
        pair.there.ok("disk", "rm", "g1")
        assert owner(remote) is owner(second) is None
