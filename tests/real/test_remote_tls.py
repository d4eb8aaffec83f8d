"""Spilling over TLS: certificates, pre-shared keys, and each way for them to be wrong."""

import pathlib
import random

import nbd
import pytest

from swaptide.cache import geometry
from tests.real import certificates, remotes, server, sockets

SIZE = 64 << 20
RAM = geometry.of_size(SIZE).working_minimum_bytes + (16 << 20)
DATA = random.Random(6).randbytes(SIZE)
SECRET = random.Random(7).randbytes(32).hex()


def goes_there_and_back(tmp_path: pathlib.Path, remote: remotes.Remote, uri: str) -> str:
    """Write, read, lose the server, read again; returns what the disk logged."""
    with server.serving(tmp_path, True, size=str(SIZE), ram=str(RAM), spill=uri, compress="none") as disk:
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        for at in range(0, SIZE, 1 << 20):
            handle.pwrite(DATA[at : at + (1 << 20)], at)
        remote.restart(0.3)
        for at in range(0, SIZE, 1 << 20):
            assert handle.pread(1 << 20, at) == DATA[at : at + (1 << 20)], at
        handle.shutdown()
        with disk.face() as face:
            assert server.fresh_counters(face)["spill_read_errors"] == 0
        return disk.log.read_text()


def refusal(tmp_path: pathlib.Path, uri: str) -> str:
    with (
        pytest.raises(server.Ended) as ended,
        server.serving(tmp_path, True, size=str(SIZE), ram=str(RAM), spill=uri),
    ):
        pass
    return [line for line in str(ended.value).splitlines() if "nbdkit: error:" in line][-1]


def test_certificates(tmp_path: pathlib.Path) -> None:
    """Both sides show one, over TCP, where the host's name is checked too."""
    authority = certificates.Authority()
    server_side = authority.fill(tmp_path / "server", "server")
    client_side = authority.fill(tmp_path / "client", "client")
    options = ["--tls=require", "--tls-verify-peer", f"--tls-certificates={server_side}"]
    with remotes.serving(tmp_path / "remote", SIZE, options=options, port=sockets.free_port()) as remote:
        uri = f"nbds://localhost:{remote.port}/?tls-certificates={client_side}"
        said = goes_there_and_back(tmp_path, remote, uri)
        assert f"nbds://localhost:{remote.port}/" in said and str(client_side) not in said


def test_certificates_that_are_wrong(tmp_path: pathlib.Path) -> None:
    authority, stranger = certificates.Authority(), certificates.Authority("a stranger")
    server_side = authority.fill(tmp_path / "server", "server", host="elsewhere.example")
    good = authority.fill(tmp_path / "good", "client")
    other = stranger.fill(tmp_path / "other", "client")
    options = ["--tls=require", "--tls-verify-peer", f"--tls-certificates={server_side}"]
    with remotes.serving(tmp_path / "remote", SIZE, options=options, port=sockets.free_port()) as remote:
        place = f"nbds://localhost:{remote.port}/"
        for query in (f"?tls-certificates={good}", f"?tls-certificates={other}", ""):
            line = refusal(tmp_path, place + query)
            assert place in line and "check its certificates" in line, line
        plain = f"nbd://localhost:{remote.port}/"
        line = refusal(tmp_path, plain)
        assert plain in line and "use nbds://" in line


def test_pre_shared_keys(tmp_path: pathlib.Path) -> None:
    ours, theirs, wrong = tmp_path / "ours", tmp_path / "theirs", tmp_path / "wrong"
    theirs.write_text(f"alice:{SECRET}\n")
    ours.write_text(f"alice:{SECRET}\n")
    wrong.write_text(f"alice:{SECRET[::-1]}\n")
    options = ["--tls=require", f"--tls-psk={theirs}"]
    with remotes.serving(tmp_path / "remote", SIZE, options=options) as remote:
        place = f"nbds+unix://alice@/?socket={remote.socket}&tls-psk-file="
        shown = f"nbds+unix:///?socket={remote.socket}"
        line = refusal(tmp_path, place + str(wrong))
        assert shown in line and "alice" not in line and SECRET not in line
        said = goes_there_and_back(tmp_path, remote, place + str(ours))
        assert shown in said and "alice" not in said and SECRET not in said
