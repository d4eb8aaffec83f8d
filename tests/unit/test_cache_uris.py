"""NBD URIs as spill places: which are taken, and what of them is shown."""

import pytest

from swaptide.cache import uris
from swaptide.cache.errors import UsageError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nbd://host/export", "nbd://host/export"),
        ("nbd://[::1]:10810/", "nbd://[::1]:10810/"),
        ("nbd+unix:///e?socket=/run/s.sock", "nbd+unix:///e?socket=/run/s.sock"),
        ("nbds://alice@host:1/e?tls-psk-file=/etc/psk", "nbds://host:1/e"),
        ("nbds://host/?tls-certificates=/etc/pki&tls-verify-peer=true", "nbds://host/"),
        ("nbds+unix://alice@/?socket=/s&tls-psk-file=/p", "nbds+unix:///?socket=/s"),
        ("nbd+vsock://2/e", "nbd+vsock://2/e"),
    ],
)
def test_taken_and_shown(text: str, shown: str) -> None:
    assert uris.is_uri(text)
    assert uris.parse(text).text == text
    assert str(uris.parse(text)) == uris.show(text) == shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nbd://user:secret@host/", "password"),
        ("nbd://host:port/", "ort"),
        ("nbd+unix:///e", "socket="),
        ("nbd://host/?socket=/s", "socket="),
        ("nbd+unix:///e?socket=relative", "absolute"),
        ("nbds://host/?tls-certificates=pki", "absolute"),
        ("nbd://host/?tls-psk-file=/p", "nbds"),
        ("nbds://host/?secret=1", "unknown parameter"),
        ("nbd://host/a b", "%xx"),
        ("nbd://host/\n", "%xx"),
        ("nbd://host/\0", "%xx"),
        ("nbd://host/ü", "%xx"),
        ("nbd://host/" + "x" * 1000, "characters"),
        ("nbd://[::1/", "IPv6"),
    ],
)
def test_refused_in_one_line_that_does_not_repeat_it(text: str, why: str) -> None:
    assert uris.is_uri(text)
    with pytest.raises(UsageError, match=why) as refused:
        uris.parse(text)
    assert "\n" not in str(refused.value) and "secret@" not in str(refused.value)


@pytest.mark.parametrize("text", ["/var/spill", "nbd", "nbd:/x", "http://host/", "", "./nbd://x"])
def test_paths_are_no_uris(text: str) -> None:
    assert not uris.is_uri(text)
    assert uris.show(text) == text
