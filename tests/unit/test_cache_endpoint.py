"""The HTTP server of /metrics: what it answers, and what it does not let be done to it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from swaptide.cache import endpoint
from swaptide.cache.errors import SetupError, UsageError
from tests.real import scraping

LOCAL = endpoint.Address("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (endpoint.DEFAULT, "127.0.0.1", 9819),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:65535", "::1", 65535),
        ("[::FFFF]:1", "::ffff", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert endpoint.parse("metrics", text) == endpoint.Address(host, port)


def test_an_address_is_shown_as_it_is_given() -> None:
    shown = [str(endpoint.parse("metrics", text)) for text in ("127.0.0.1:1", "[::1]:1")]
    assert shown == ["127.0.0.1:1", "[::1]:1"]
    local = [endpoint.parse("metrics", f"{host}:1") for host in ("127.9.9.9", "[::1]", "0.0.0.0", "[::]")]
    assert [found.is_local for found in local if found] == [True, True, False, False]
    assert endpoint.parse("metrics", "off") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "9819",
        ":9819",
        "localhost:9819",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:１",
        "127.0.0.1:80 ",
        "300.0.0.1:80",
        "::1:9819",
        "[::1]",
        "[127.0.0.1",
        "OFF",
        "127.0.0.1:80\n",
        "9" * 5000,
    ],
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="metrics=.*127.0.0.1:9819") as caught:
        endpoint.parse("metrics", text)
    assert len(str(caught.value)) < 200


@contextlib.contextmanager
def serving(
    answer: Callable[[str], tuple[str, bytes]] = lambda accept: ("text/x", b"one 1\n"),
) -> Iterator[int]:
    made = endpoint.Endpoint(LOCAL, answer)
    made.start()
    try:
        yield made.address.port
    finally:
        made.close()


def raw(port: int, request: bytes) -> bytes:
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                found += part
        return found


def test_a_scrape_and_a_look_at_its_head() -> None:
    with serving() as port:
        for path in ("/metrics", "/metrics?name[]=x"):
            response, body = scraping.ask(port, path)
            assert (response.status, body) == (200, b"one 1\n")
        assert response.headers["Content-Type"] == "text/x"
        assert response.headers["Cache-Control"] == "no-store"
        response, body = scraping.ask(port, method="HEAD")
        assert (response.status, response.headers["Content-Length"], body) == (200, "6", b"")


def test_who_asks_says_what_it_takes() -> None:
    heard: list[str] = []

    def answer(accept: str) -> tuple[str, bytes]:
        heard.append(accept)
        return "text/plain", b""

    with serving(answer) as port:
        raw(port, b"GET /metrics HTTP/1.1\r\naCCept: a\r\nHost: x\r\nAccept: b;q=1\r\n\r\n")
        raw(port, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert heard == ["a,b;q=1", ""]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metricsx HTTP/1.1\r\n\r\n", 404),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\xff\xfe\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 20000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_not_understood_is_refused(request_: bytes, status: int) -> None:
    with serving() as port:
        found = raw(port, request_)
        # Who sends more than is read may see no more than a reset.
        assert found.startswith(b"HTTP/1.1 %d " % status) or (status == 431 and not found)
        assert scraping.ask(port)[0].status == 200


def test_who_says_nothing_is_in_nobodys_way() -> None:
    with serving() as port, contextlib.ExitStack() as stack:
        for number in range(8):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            if number % 2:
                idle.sendall(b"GET /metrics HT")
        assert scraping.ask(port)[0].status == 200


def test_who_comes_by_the_hundred_is_hung_up_on() -> None:
    with serving() as port:
        with contextlib.ExitStack() as stack:
            crowd = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                for _ in range(endpoint._MOST_CONNECTIONS + 5)
            ]
            gone = 0
            for client in crowd[endpoint._MOST_CONNECTIONS :]:
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
                gone += 1
            assert gone == 5
        end = time.monotonic() + 60
        while time.monotonic() < end:  # until it has seen the others leave
            with contextlib.suppress(OSError):
                if scraping.ask(port)[0].status == 200:
                    return
        raise AssertionError("nobody is answered any more")


def test_who_is_slow_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_SECONDS", 0.2)
    with serving() as port:
        assert raw(port, b"GET /metrics") == b""


def test_an_answer_that_cannot_be_had(caplog: pytest.LogCaptureFixture) -> None:
    works = [False, False, True, False]

    def answer(accept: str) -> tuple[str, bytes]:
        if not works.pop(0):
            raise RuntimeError("made to fail")
        return "text/plain", b"fine"

    with serving(answer) as port:
        assert [scraping.ask(port)[0].status for _ in range(4)] == [503, 503, 200, 503]
        assert b"made to fail" not in caplog.text.encode() or caplog.text.count("made to fail") == 2
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2, "once for each time that it begins"


def test_an_address_that_is_taken() -> None:
    with (
        serving() as port,
        pytest.raises(SetupError, match=f"127.0.0.1:{port}: Address already in use; choose"),
    ):
        endpoint.Endpoint(endpoint.Address("127.0.0.1", port), lambda accept: ("", b""))


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(SetupError, match="192.0.2.1:1: Cannot assign"):
        endpoint.Endpoint(endpoint.Address("192.0.2.1", 1), lambda accept: ("", b""))


def test_it_ends_and_can_begin_again() -> None:
    before = threading.active_count()
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=60):
        scraping.ask(port)
    assert threading.active_count() == before
    again = endpoint.Endpoint(endpoint.Address("127.0.0.1", port), lambda accept: ("text/plain", b""))
    again.close()  # never started
