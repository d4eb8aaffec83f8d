"""The command's side of the control socket against something that is no daemon."""

import pathlib
import socket
import threading

import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import client, protocol


@pytest.mark.parametrize("answer", [b"", b"NBDMAGIC\n"])
def test_what_is_no_daemon_is_named(tmp_path: pathlib.Path, answer: bytes) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)  # closed with the rest unread, it is reset
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SetupError, match=f"{path} does not answer as a daemon does"):
            client.call(tmp_path, protocol.Show("x" * 1000))
        thread.join()


def test_a_name_that_is_not_utf8(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        client.call(tmp_path, protocol.Show("\udcff"))
