"""Definitions on disk: whole or absent, and one damaged file does not take the others along."""

import asyncio
import pathlib
import threading

import msgspec
import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import definitions

DISK = definitions.Definition(
    name="g1",
    size_bytes=1 << 30,
    cap_bytes=64 << 20,
    floor_bytes=20 << 20,
    weight=100,
    compress="lz4",
    encrypt=True,
    swap_label=None,
    spill_path="/s/g1.spill",
    spill_chosen=False,
    state_path="/m/g1.state",
)


def save(store: definitions.Store, definition: definitions.Definition) -> None:
    asyncio.run(store.save(definition))


def test_round_trip(tmp_path: pathlib.Path) -> None:
    store = definitions.Store(tmp_path / "a" / "b")
    other = msgspec.structs.replace(DISK, name="g0", disk_id="x")
    save(store, DISK)
    save(store, other)
    assert definitions.Store(tmp_path / "a" / "b").load() == [other, DISK]
    asyncio.run(store.forget("g0"))
    asyncio.run(store.forget("g0"))
    assert store.names() == ["g1"]
    asyncio.run(store.forget("g1"))
    store.close()
    assert not (tmp_path / "a" / "b").exists()


def test_damaged_file_is_left_alone(tmp_path: pathlib.Path) -> None:
    store = definitions.Store(tmp_path)
    save(store, DISK)
    (tmp_path / "bad.json").write_text("{")
    assert store.load() == [DISK]
    assert store.names() == ["bad", "g1"]


def test_failed_write_keeps_the_old_one(tmp_path: pathlib.Path) -> None:
    store = definitions.Store(tmp_path)
    save(store, DISK)
    (tmp_path / "g1.new").mkdir()
    with pytest.raises(SetupError, match="cannot be written"):
        save(store, msgspec.structs.replace(DISK, weight=1))
    assert store.load() == [DISK]


def test_a_write_that_was_held_up_does_not_undo_a_later_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = definitions.Store(tmp_path)
    held, ended = threading.Event(), threading.Event()
    write = store._write

    def slow(name: str, value: msgspec.Struct) -> None:
        held.wait(10)
        write(name, value)
        ended.set()

    async def body() -> None:
        monkeypatch.setattr(definitions, "LIMIT_SECONDS", 0.05)
        monkeypatch.setattr(store, "_write", slow)
        for weight in (1, 2, 3):
            with pytest.raises(SetupError, match="does not answer"):
                await store.save(msgspec.structs.replace(DISK, weight=weight))
        with pytest.raises(SetupError, match="does not answer"):
            await store.forget("g1")
        held.set()
        assert ended.wait(60)
        monkeypatch.setattr(definitions, "LIMIT_SECONDS", 5)
        await store.save(msgspec.structs.replace(DISK, weight=4))

    asyncio.run(body())
    assert [disk.weight for disk in store.load()] == [4]


@pytest.mark.parametrize("name", ["g1", "a", "_x", "vm-1.swap", "x" * 64])
def test_good_names(name: str) -> None:
    definitions.check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "-a", "a b", "x" * 65, "ä", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="not allowed"):
        definitions.check_name(name)


@pytest.mark.parametrize("name", ["control", "daemon", "mem"])
def test_names_of_the_daemon_itself(name: str) -> None:
    with pytest.raises(UsageError, match="the daemon uses it itself"):
        definitions.check_name(name)


def test_spill_paths() -> None:
    definitions.check_spill("/dev/vdb")
    for path in ("", "x", "/a\0b"):
        with pytest.raises(UsageError, match="absolute|must be a path|NUL"):
            definitions.check_spill(path)


def test_labels() -> None:
    definitions.check_label("tide")
    for label in ("", "x" * 16, "ü" * 8, "a\n"):
        with pytest.raises(UsageError):
            definitions.check_label(label)
