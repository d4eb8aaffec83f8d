"""One store or two, as people write them."""

import pathlib

import pytest

from swaptide.cache import places, uris
from swaptide.cache.errors import UsageError

FILE, URI = "/var/spill/g1", "nbd://store7/g1"
SECRET = "nbds://me@store7/g1?tls-psk-file=/etc/keys"


def test_one_store_is_what_it_was() -> None:
    assert places.parse(FILE) == pathlib.Path(FILE)
    assert places.parse(URI) == uris.Uri(URI)
    assert places.parse("spill") == pathlib.Path("spill").absolute()


def test_two_stores_with_what_is_used_of_each() -> None:
    pair = places.parse(f"{FILE},size=20G,{SECRET},size=512M")
    assert pair == places.Pair(
        places.Part(pathlib.Path(FILE), 20 << 30), places.Part(uris.Uri(SECRET), 512 << 20)
    )
    assert str(pair) == f"{FILE},nbds://store7/g1"
    assert places.parse(f"{FILE},{URI}") == places.Pair(
        places.Part(pathlib.Path(FILE)), places.Part(uris.Uri(URI))
    )


def test_a_comma_in_a_path_is_written_twice() -> None:
    assert places.parse("/a,,b") == pathlib.Path("/a,b")
    pair = places.parse("/a,,b,size=1G,/c,,size=2G")
    assert pair == places.Pair(
        places.Part(pathlib.Path("/a,b"), 1 << 30), places.Part(pathlib.Path("/c,size=2G"))
    )
    assert places.each("/a,,b,/c,,") == ["/a,b", "/c,"]
    for path in ("/a,b", "/a,,b", "/,", "/plain"):
        assert places.parse(places.quote(path)) == pathlib.Path(path)


def test_what_is_shown_and_made_absolute_parses_to_the_same() -> None:
    text = f"x,,y,size=1G,{SECRET}"
    assert places.show(text) == "x,,y,size=1G,nbds://store7/g1"
    assert places.absolute(text, lambda path: f"/w/{path}") == f"/w/x,,y,size=1G,{SECRET}"
    assert places.show("size=") == "size="  # a path, if a strange one


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be a path"),
        (",", "must be a path"),
        (f"{FILE},", "must be a path"),
        (f",{URI}", "must be a path"),
        (f"{FILE},{URI},/third", "3 stores, at most 2"),
        (f"{FILE},{URI},/third,/fourth", "4 stores, at most 2"),
        (f"{FILE},size=1G", "size= is for one of two"),
        (f"{FILE},size=1G,size=2G,{URI}", "two sizes"),
        (f"{FILE},size=,{URI}", "not a size"),
        (f"{FILE},size=lots,{URI}", "not a size"),
        (f"{FILE},size=0,{URI}", "more than zero"),
        (f"{FILE},{FILE}", "twice the same"),
        (f"{FILE},/var/../var/spill/g1", "twice the same"),
        (f"{URI},{URI}", "twice the same"),
        (f"{FILE},nbd://a:secret@b/", "password"),
        ("/a\0b", "NUL"),
    ],
)
def test_what_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        places.parse(text)
    assert "secret" not in str(caught.value)
