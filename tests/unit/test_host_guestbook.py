"""Guests that are remembered: what is written comes back, and nothing is left when the last one goes."""

import asyncio
import pathlib

import pytest

from swaptide.cache.errors import SetupError
from swaptide.host import definitions, guestbook

VM = guestbook.GuestDefinition("vm", "/run/vm.qmp", 1 << 30, 1 << 32, ("g1", "g2"), clear_on_reset=True)
BARE = guestbook.GuestDefinition("bare", "/run/bare.qmp")


def test_saved_and_forgotten(tmp_path: pathlib.Path) -> None:
    store = definitions.Store(tmp_path / "all")
    book = guestbook.Guestbook(guestbook.directory(store.directory))
    assert book.load() == [] and not book.directory.exists()
    for guest in (VM, BARE):
        asyncio.run(book.save(guest))
    assert guestbook.Guestbook(book.directory).load() == [BARE, VM]
    assert store.load() == [] and store.names() == []  # no guest passes for a disk
    store.close()
    assert book.load() == [BARE, VM]
    for name in ("vm", "bare", "vm", "never"):
        asyncio.run(book.forget(name))
    assert not book.directory.exists()
    store.close()
    assert not store.directory.exists()


def test_damaged_files_are_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "guests").mkdir()
    book = guestbook.Guestbook(tmp_path / "guests")
    asyncio.run(book.save(VM))
    for name, text in {
        "a": "{",
        "b": '{"name": "b"}',
        "c": '{"name": "c", "qmp": "/q", "min_bytes": -1}',
        "d": '{"name": "d", "qmp": "/q", "surprise": 1}',
    }.items():
        (book.directory / f"{name}.json").write_text(text)
    assert book.load() == [VM]
    assert book.names() == ["a", "b", "c", "d", "vm"]


def test_a_directory_that_refuses(tmp_path: pathlib.Path) -> None:
    (tmp_path / "guests").write_text("in the way")
    with pytest.raises(SetupError, match="vm.json cannot be written"):
        asyncio.run(guestbook.Guestbook(tmp_path / "guests").save(VM))
