"""Sizes as people write them."""

import pytest

from swaptide.cache.errors import UsageError
from swaptide.host import sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        ("2TiB", 2 << 40),
        (" 3MB ", 3 << 20),
    ],
)
def test_parse(text: str, expected: int) -> None:
    assert sizes.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "G", "4X", "4 G", "0x10", "١"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match=r"write for example 512M or 4G"):
        sizes.parse(text)


@pytest.mark.parametrize("text", ["65T", "18446744073709551616", "999999999999999999T", "9" * 5000])
def test_parse_refuses_what_is_too_much(text: str) -> None:
    with pytest.raises(UsageError, match=r"write for example 512M or 4G") as caught:
        sizes.parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(0, "0"), (1000, "1000"), (4096, "4K"), (1536 << 20, "1.5G"), (4 << 30, "4G"), (19005440, "18.1M")],
)
def test_show(size_bytes: int, expected: str) -> None:
    assert sizes.show(size_bytes) == expected
