"""Disks that move from one daemon to another, whole or not at all, whoever dies in between."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import nbd
import pytest

from tests.real import certificates, daemons, movers

PAGE, SIZE = movers.PAGE, movers.SIZE
RAM = "32M"


@pytest.fixture
def pair(root: pathlib.Path) -> Iterator[movers.Pair]:
    with movers.hosts(root) as made:
        made.here.add(size=SIZE, ram=RAM)
        made.there.add(size=SIZE, ram=RAM)
        yield made


def with_qemu(qemu: movers.Qemu) -> tuple[str, ...]:
    return ("--qmp", str(qemu.path), "--qemu-uri", "tcp:there:4444")


def wait_status(qemu: movers.Qemu, status: str) -> None:
    daemons.wait_for(lambda: qemu.status == status, lambda: qemu.status)


def is_held(report: dict[str, object]) -> bool:
    """Whether a write to that disk waits."""
    handle = nbd.NBD()
    handle.set_export_name(str(report["id"]))
    handle.connect_unix(str(report["socket"]))
    cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"\x7f" * PAGE)), SIZE - PAGE)
    for _ in range(20):
        handle.poll(10)
        if handle.aio_command_completed(cookie):
            handle.shutdown()
            return False
    return True


def test_a_disk_moves_when_its_client_leaves(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.start()
    there = pair.there.show()
    with pair.receiving() as receiving, pair.migrating() as migrating:
        daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 3000)
        guest.goes_on()
        assert not migrating.is_over() and pair.gate(pair.there) == "incoming"
        guest.leave()
        status, out, errors = migrating.end()
        assert status == 0, errors
        took = json.loads(out)
        assert receiving.end()[0] == 0
    assert guest.error is None
    assert took["rounds"] >= 2 and took["sent_pages"] > 6_000 and took["pause_seconds"] < 30
    # A third are whole, a third packed or to be packed, a third four bytes.
    assert took["sent_bytes"] < took["sent_pages"] * PAGE * 0.8
    moved, gone = pair.there.show(), pair.here.show()
    assert (moved["state"], moved["id"], moved["origin"]) == ("running", there["id"], gone["id"])
    guest.check(moved)
    guest.check(moved, export=gone["id"])  # whose contents they are
    # The source's memory is free, and it refuses whoever comes back.
    assert (gone["state"], gone["stored_pages"], gone["same_filled_pages"]) == ("gone", 0, 0)
    daemons.wait_for(lambda: pair.here.show()["ram_bytes"] < 24 << 20)
    with daemons.client(gone) as handle:
        with pytest.raises(nbd.Error, match="Input/output error"):
            handle.pread(PAGE, 0)
        with pytest.raises(nbd.Error, match="not permitted"):
            handle.pwrite(bytes(PAGE), 0)
        with pytest.raises(nbd.Error, match="not permitted"):
            handle.trim(PAGE, 0)
    # It is a disk like any other, under its successor as well, and moves on.
    pid = pair.there.show()["pid"]
    os.kill(pid, signal.SIGKILL)
    guest.check(pair.there.wait_running(not_pid=pid))
    pair.here.ok("disk", "clear", "g1")
    assert pair.here.show()["state"] == "running"
    back = movers.Pair(pair.there, pair.here, pair.root)
    with back.receiving() as receiving:
        back.there.ok("disk", "ls")
        done = json.loads(back.here.ok("migrate", "g1", "--to", back.address, "--remove", "--json"))
        assert done["removed"] and receiving.end()[0] == 0
    guest.check(pair.here.show())
    assert pair.there.ok("disk", "ls", "--json").strip() == "[]"


def test_requests_wait_while_a_disk_comes_in(pair: movers.Pair, guest: movers.Guest) -> None:
    there = pair.there.show()
    with pair.receiving() as receiving, contextlib.ExitStack() as stack:
        assert pair.gate(pair.there) == "incoming" and pair.there.show()["state"] == "incoming"
        early = stack.enter_context(daemons.client(there))
        # What QEMU reads as it starts, to guess a geometry, is an error at once; or it would not start.
        with pytest.raises(nbd.Error, match="Input/output error"):
            early.pread(512, 0)
        page, data = next((page, data) for page, data in guest.model.items() if any(data) and page > 8)
        read, written = nbd.Buffer(PAGE), bytes([0x5A]) * PAGE
        cookies = [
            early.aio_pread(read, page * PAGE),
            early.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(written)), (page - 1) * PAGE),
            early.aio_trim(PAGE, (page - 2) * PAGE),
        ]
        guest.leave()
        with pair.migrating() as migrating:
            for _ in range(20):
                early.poll(10)
            assert migrating.end()[0] == 0 and receiving.end()[0] == 0
        done = set[int]()
        daemons.wait_for(lambda: finished(early, cookies, done))
        assert read.to_bytearray() == data
    guest.model |= {page - 1: written, page - 2: bytes(PAGE)}
    guest.check(pair.there.show())


def finished(handle: nbd.NBD, cookies: list[int], done: set[int]) -> bool:
    """Whether all of these have been answered."""
    handle.poll(10)
    done |= {cookie for cookie in cookies if cookie not in done and handle.aio_command_completed(cookie)}
    return len(done) == len(cookies)


def test_qemu_is_told_to_move_the_guest(pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu) -> None:
    guest.start()
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        assert qemu.capabilities["pause-before-switchover"] and qemu.capabilities["return-path"]
        guest.goes_on()
        guest.stop()
        qemu.reaches("pre-switchover")
        wait_status(qemu, "device")  # told to go on, with the disk all there
        assert (pair.gate(pair.here), pair.gate(pair.there)) == ("open", "arrived")
        assert not migrating.is_over() and not receiving.is_over()
        qemu.reaches("completed")
        status, out, errors = migrating.end()
        assert status == 0, errors
        assert receiving.end()[0] == 0
    took = json.loads(out)
    assert took["pause_seconds"] is not None and took["delta_seconds"] < 20
    assert qemu.commands()[-1] == "migrate-set-capabilities" and not any(qemu.capabilities.values())
    assert (pair.gate(pair.here), pair.gate(pair.there)) == ("gone", "open")
    guest.check(pair.there.show())


@pytest.mark.parametrize("status", ["active", "pre-switchover", "device"])
def test_a_guest_that_does_not_move_goes_on_here(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, status: str
) -> None:
    """QEMU's migration fails, on its way, as it should go on, and after it went on."""
    guest.start()
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        if status == "device":
            guest.stop()
            qemu.reaches("pre-switchover")
            wait_status(qemu, "device")
        qemu.reason = "no room over there"
        qemu.reaches("failed")
        ended, _, errors = migrating.end()
        assert ended == 1
        assert "QEMU's migration" in errors and "failed: no room over there" in errors
        assert receiving.end()[0] == 1
    if status == "device":
        guest.start()
    guest.goes_on()
    guest.stop()
    assert not any(qemu.capabilities.values())
    assert pair.gate(pair.here) == "open" and pair.gate(pair.there) in ("incoming", "arrived")
    guest.check(pair.here.show())


@pytest.mark.parametrize("how", ["ctrl-c", "killed"])
def test_who_asked_leaves_and_the_guest_goes_on_here(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, how: str
) -> None:
    guest.start()
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        guest.goes_on()
        if how == "ctrl-c":
            migrating.interrupt()
        else:
            migrating.process.kill()
        ended, _, errors = migrating.end()
        if how == "ctrl-c":
            assert ended == 130 and "stays here and its guest goes on" in errors
        wait_status(qemu, "cancelled")
        assert receiving.end()[0] == 1
    guest.goes_on()
    guest.stop()
    daemons.wait_for(lambda: not any(qemu.capabilities.values()))
    guest.check(pair.here.show())


def test_who_asked_leaves_too_late_and_the_disk_moves(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu
) -> None:
    """From migrate-continue on it is finished, whoever leaves: the guest may run there already."""
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        qemu.reaches("pre-switchover")
        wait_status(qemu, "device")
        migrating.interrupt()
        assert migrating.end()[0] == 130
        assert pair.gate(pair.there) == "arrived"
        qemu.reaches("completed")
        assert receiving.end()[0] == 0
        daemons.wait_for(lambda: pair.gate(pair.here) == "gone")
    guest.check(pair.there.show())


def kill_process(daemon: daemons.Daemon) -> None:
    os.kill(daemon.show()["pid"], signal.SIGKILL)


def kill_daemon(daemon: daemons.Daemon) -> None:
    daemon.stop(signal.SIGKILL)


def test_a_process_dies_in_the_rounds(pair: movers.Pair, guest: movers.Guest) -> None:
    """Either side's: the guest goes on, and another try gets everything there."""
    for victim in (pair.here, pair.there):
        if victim is pair.there:  # else its pages may be those of the try before, and this one not begun
            pair.there.ok("disk", "clear", "g1")
        with pair.receiving() as receiving, pair.migrating() as migrating:
            daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 2000)
            kill_process(victim)
            status, _, errors = migrating.end()
            assert status == 1 and errors.startswith("swaptide: "), errors
            status, _, errors = receiving.end()
            assert status == 1 and "clients of disk g1 wait: try again" in errors, errors
        assert pair.gate(pair.here) == "open" and pair.gate(pair.there) == "incoming"
        guest = movers_again(pair, guest)
    guest.start()
    with pair.receiving() as receiving, pair.migrating() as migrating:
        daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 2000)
        guest.leave()
        assert migrating.end()[0] == 0 and receiving.end()[0] == 0
    guest.check(pair.there.show())


def movers_again(pair: movers.Pair, guest: movers.Guest) -> movers.Guest:
    """The same guest on a connection of its own: QEMU comes back by itself."""
    again = movers.Guest(pair.here.wait_running(), seed=guest.changes)
    again.model, again.doubt = guest.model, guest.doubt
    again.check(pair.here.show())
    again.fill(50)
    return again


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_a_process_dies_between_arrived_and_given(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu, victim: str
) -> None:
    """The guest is the other QEMU's: neither disk serves before the operator says so, then only that one."""
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        qemu.reaches("pre-switchover")
        wait_status(qemu, "device")
        kill_process(pair.here if victim == "source" else pair.there)
        daemons.wait_for(receiving.is_over)
        qemu.reaches("completed")
        status, _, errors = migrating.end()
        assert status == 1 and "receive DISK --accept" in errors, errors
        status, _, errors = receiving.end()
        assert status == 1 and "all of disk g1 is here" in errors, errors
    assert (pair.gate(pair.here), pair.gate(pair.there)) == ("given", "arrived")
    with daemons.client(pair.here.show()) as handle, pytest.raises(nbd.Error):
        handle.pread(PAGE, 0)
    assert "disk g1 is served" in pair.there.ok("receive", "g1", "--accept")
    guest.check(pair.there.show())
    assert "has not arrived" in pair.there.run("receive", "g1", "--accept").stderr


def test_a_disk_that_was_given_and_not_taken_is_taken_back(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu
) -> None:
    with pair.receiving(), pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        qemu.reaches("pre-switchover")
        wait_status(qemu, "device")
        kill_process(pair.there)
        qemu.reaches("completed")
        assert migrating.end()[0] == 1
    assert pair.gate(pair.here) == "given"
    assert "served here again" in pair.here.ok("migrate", "g1", "--take-back")
    guest.check(pair.here.show())
    assert "was not given away" in pair.here.run("migrate", "g1", "--take-back").stderr


def test_the_sources_daemon_dies_while_it_holds(
    pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu
) -> None:
    with pair.receiving() as receiving, pair.migrating(*with_qemu(qemu)) as migrating:
        wait_status(qemu, "active")
        report = pair.here.show()
        qemu._monitor.answers["migrate-continue"] = lambda given: {}
        qemu.reaches("pre-switchover")
        daemons.wait_for(lambda: pair.gate(pair.there) == "arrived")
        assert is_held(report)
        kill_daemon(pair.here)
        daemons.wait_for(lambda: not is_held(report))
        guest.model[SIZE // PAGE - 1] = b"\x7f" * PAGE
        assert migrating.end()[0] == 1 and receiving.end()[0] == 1
    pair.here.start()
    guest.check(pair.here.show())


def test_the_destinations_daemon_dies_in_the_rounds(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.start()
    with pair.receiving() as receiving, pair.migrating() as migrating:
        daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 2000)
        kill_daemon(pair.there)
        guest.goes_on()
        guest.leave()
        assert migrating.end()[0] == 0
        assert receiving.end()[0] == 1
    pair.there.start()
    assert pair.gate(pair.there) == "open"
    guest.check(pair.there.show())


def test_who_receives_gives_up(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.start()
    with pair.receiving() as receiving:
        receiving.interrupt()
        status, _, errors = receiving.end()
        assert status == 130 and "wait until it is received" in errors
    assert pair.gate(pair.there) == "incoming"
    with pair.receiving() as receiving, pair.migrating() as migrating:
        daemons.wait_for(lambda: pair.there.show()["stored_pages"] > 2000)
        receiving.interrupt()
        assert receiving.end()[0] == 130
        assert migrating.end()[0] == 1
    guest.goes_on()
    guest.stop()
    guest.check(pair.here.show())
    pair.there.ok("disk", "clear", "g1")
    assert pair.gate(pair.there) == "open"


def test_strangers_end_nothing(pair: movers.Pair, guest: movers.Guest) -> None:
    with pair.receiving() as receiving:
        path = pair.address.removeprefix("unix:")
        for words in (
            b"",
            b"GET / HTTP/1.1\r\nHost: there\r\n\r\n",
            os.urandom(5000),
            b"swaptide disk stream 9\n",
        ):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(path)
                with contextlib.suppress(OSError):
                    stranger.sendall(words)
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
        guest.leave()
        done = json.loads(pair.here.ok("migrate", "g1", "--to", pair.address, "--json"))
        assert receiving.end()[0] == 0
    assert done["rounds"] == 1
    guest.check(pair.there.show())


def test_over_tcp_only_with_certificates(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.leave()
    authority, other = certificates.Authority(), certificates.Authority("somebody else's")
    server = str(authority.fill(pair.root / "server", "server"))
    client = str(authority.fill(pair.root / "client", "client"))
    forged = str(other.fill(pair.root / "forged", "client"))
    misnamed = str(authority.fill(pair.root / "misnamed", "server", host="elsewhere.example"))
    done = pair.there.run("receive", "g1", "--listen", "tcp:127.0.0.1:0")
    assert done.returncode == 2 or "in the clear; give --tls-certificates" in done.stderr
    with pair.receiving("--tls-certificates", misnamed, listen="tcp:127.0.0.1:0") as receiving:
        done = pair.here.run("migrate", "g1", "--to", pair.address, "--tls-certificates", client)
        assert done.returncode == 1 and "TLS: " in done.stderr
        receiving.interrupt()
        receiving.end()
    with pair.receiving("--tls-certificates", server, listen="tcp:127.0.0.1:0") as receiving:
        assert pair.address.startswith("tcp:127.0.0.1:")
        assert "in the clear" in pair.here.run("migrate", "g1", "--to", pair.address).stderr
        for wrong in (("--insecure",), ("--tls-certificates", forged)):
            done = pair.here.run("migrate", "g1", "--to", pair.address, *wrong)
            assert done.returncode == 1, wrong
        assert pair.gate(pair.here) == "open" and not receiving.is_over()
        pair.here.ok("migrate", "g1", "--to", pair.address, "--tls-certificates", client)
        assert receiving.end()[0] == 0
    guest.check(pair.there.show())


def refused(done: Callable[[], object], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        done()


def test_no_more_in_a_second_than_it_may(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.leave()
    with pair.receiving() as receiving, pair.migrating("--bandwidth", "8M") as migrating:
        status, out, errors = migrating.end()
        assert status == 0, errors
        took = json.loads(out)
        assert receiving.end()[0] == 0
    assert took["sent_bytes"] > 8 << 20
    assert took["elapsed_seconds"] > (took["sent_bytes"] - (1 << 20)) / (8 << 20)
    guest.check(pair.there.show())


def test_what_cannot_be_is_refused(pair: movers.Pair, guest: movers.Guest, qemu: movers.Qemu) -> None:
    here, there = pair.here, pair.there
    refused(lambda: here.ok("migrate", "g1"), "where to")
    refused(lambda: here.ok("migrate", "g1", "--to", "udp:x:1"), "write unix:/PATH or tcp:HOST:PORT")
    refused(lambda: here.ok("migrate", "g1", "--to", pair.address), "does `swaptide receive` listen there")
    refused(lambda: here.ok("migrate", "g9", "--to", pair.address), "there is no disk")
    here.ok("disk", "freeze", "g1")
    refused(lambda: here.ok("migrate", "g1", "--to", pair.address), "`swaptide disk thaw g1` first")
    here.ok("disk", "thaw", "g1")
    refused(
        lambda: here.ok("migrate", "g1", "--to", pair.address, "--qmp", str(qemu.path)), "who moves the guest"
    )
    other = here.add("g2", size=SIZE, ram=RAM)
    refused(lambda: here.ok("migrate", "g2", "--to", pair.address, *with_qemu(qemu)), "does not have disk g2")
    assert other["id"] and qemu.commands().count("migrate") == 0
    refused(lambda: there.ok("receive", "g1"), "give --listen")
    # Nothing takes the place of what a guest has.
    refused(lambda: here.ok("receive", "g1", "--listen", pair.address), "has a client")
    guest.leave()
    refused(lambda: here.ok("receive", "g1", "--listen", pair.address), "is not empty")
    assert pair.gate(here) == "open"
    there.ok("disk", "rm", "g1")
    there.add(size=SIZE * 2, ram=RAM)
    with pair.receiving() as receiving:
        refused(lambda: here.ok("migrate", "g1", "--to", pair.address), f"make it with --size {SIZE}")
        receiving.interrupt()
        receiving.end()
    guest.check(here.show())


def test_saved_and_loaded(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.leave()
    here, there, file = pair.here, pair.there, pair.root / "saved"
    first = here.show()
    saved = json.loads(here.ok("disk", "save", "g1", str(file), "--json"))
    assert saved["id"] == first["id"] and saved["sent_bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert saved["sent_bytes"] < len(guest.model) * PAGE
    assert "exists" in here.run("disk", "save", "g1", str(file)).stderr
    assert "disk g1 is in" in here.ok("disk", "save", "g1", str(file), "--force")
    guest.check(here.show())  # it goes on
    assert "is not empty" in here.run("disk", "load", "g1", str(file)).stderr
    loaded = json.loads(there.ok("disk", "load", "g1", str(file), "--json"))
    assert loaded["origin"] == first["id"] and loaded["taken_pages"] == saved["sent_pages"]
    report = there.show()
    guest.check(report)
    # A guest that is restored finds its own disk by the name that it knows, or none.
    guest.check(report, export=first["id"])
    fresh = there.add("g2", size=SIZE, ram=RAM)
    with pytest.raises(nbd.Error), daemons.client(fresh, export=first["id"]):
        pass
    pid = report["pid"]
    os.kill(pid, signal.SIGKILL)
    guest.check(there.wait_running(not_pid=pid), export=first["id"])


def test_a_file_that_is_damaged_is_never_served(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.leave()
    file, there = pair.root / "saved", pair.there
    pair.here.ok("disk", "save", "g1", str(file))
    whole = file.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "breaks off in the middle": whole[: middle + 5],
        "breaks off": whole[:-1],
        "wrong checksum": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "no stream of a swaptide disk": os.urandom(100_000),
        "version '2'": whole.replace(b"stream 1\n", b"stream 2\n", 1),
    }
    for said, data in damaged.items():
        file.write_bytes(data)
        done = there.run("disk", "load", "g1", str(file))
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert "clients of disk g1 wait: try again" in done.stderr
        assert pair.gate(there) == "incoming"
        os.kill(there.show()["pid"], 0)
    file.write_bytes(whole)
    there.ok("disk", "load", "g1", str(file))
    guest.check(there.show())


def test_a_daemon_killed_during_a_save_leaves_nothing(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.leave()
    here, place = pair.here, pair.root / "place"
    place.mkdir()
    before = here.show()
    assert here.process is not None
    open_files = pathlib.Path(f"/proc/{here.process.pid}/fd")
    os.kill(before["pid"], signal.SIGSTOP)  # whoever shall write it
    try:
        words = ("disk", "save", "g1", str(place / "saved"), "--run-dir", str(here.run_dir))
        with subprocess.Popen([*daemons.COMMAND, *words], stderr=subprocess.PIPE, text=True) as saving:
            try:
                daemons.wait_for(lambda: any(str(place) in leads_to(each) for each in open_files.iterdir()))
                here.stop(signal.SIGKILL)
                assert saving.stderr is not None and "daemon" in saving.stderr.read()
            finally:
                saving.kill()
    finally:
        os.kill(before["pid"], signal.SIGCONT)
    assert not list(place.iterdir())
    here.start()
    guest.check(here.wait_running())
    assert not list(place.iterdir())


def leads_to(link: pathlib.Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed meanwhile
        return ""


def test_a_save_that_fails_leaves_nothing(pair: movers.Pair, guest: movers.Guest) -> None:
    guest.start()
    place = pair.root / "full"
    done = pair.here.run("disk", "save", "g1", str(place / "saved"))
    assert done.returncode == 1 and "cannot be made" in done.stderr
    assert not list(pair.root.glob("**/.saved*"))
    assert "cannot be read" in pair.there.run("disk", "load", "g1", str(place / "saved")).stderr
    guest.goes_on()
    guest.stop()
    guest.check(pair.here.show())
