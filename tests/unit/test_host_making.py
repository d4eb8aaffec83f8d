"""What is told while a new disk starts: how much of its spill space is reserved."""

import asyncio
import os
import pathlib
import types
from typing import Any

import pytest

from swaptide.cache import geometry
from swaptide.cache.errors import SetupError
from swaptide.host import making, steps

SIZE = 64 << 20
MIB = 1 << 20


class Keeper:
    """A disk whose first start ends when the test says so."""

    def __init__(self, spill: pathlib.Path) -> None:
        self.definition = types.SimpleNamespace(spill_path=str(spill), size_bytes=SIZE)
        self.ended = asyncio.Event()
        self.error: Exception | None = None

    async def started(self) -> None:
        await self.ended.wait()
        if self.error is not None:
            raise self.error


def play(spill: pathlib.Path, act: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is told while `act` does something with the keeper and what was told so far."""
    monkeypatch.setattr(steps, "TELL_SECONDS", 0.001)
    told: list[dict[str, Any]] = []

    async def body() -> None:
        keeper: Any = Keeper(spill)
        waiting = asyncio.ensure_future(making.until_started(keeper, steps.Steps(told.append)))
        await act(keeper, told)
        async with asyncio.timeout(60):
            await waiting

    asyncio.run(body())
    return told


async def until(told: list[dict[str, Any]], doing: str, least: int = 0) -> None:
    seen = len(told)
    async with asyncio.timeout(60):
        while not any(step["doing"] == doing and step["done_bytes"] >= least for step in told[seen:]):
            await asyncio.sleep(0.001)


def test_space_that_is_being_reserved(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = tmp_path / "g1.spill"

    async def act(keeper: Keeper, told: list[dict[str, Any]]) -> None:
        await until(told, "starting its process")
        with open(spill, "wb") as file:
            for mib in (8, 16):
                os.posix_fallocate(file.fileno(), 0, mib * MIB)
                await until(told, "reserving space on disk", mib * MIB)
            os.posix_fallocate(file.fileno(), 0, geometry.of_size(SIZE).spill_bytes)
            await until(told, "starting its process")
        keeper.ended.set()

    told = play(spill, act, monkeypatch)
    totals = {step["total_bytes"] for step in told if step["doing"] == "reserving space on disk"}
    assert totals == {geometry.of_size(SIZE).spill_bytes}


def test_a_start_that_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(keeper: Keeper, told: list[dict[str, Any]]) -> None:
        await until(told, "starting its process")
        keeper.error = SetupError("spill=/x: no")
        keeper.ended.set()

    with pytest.raises(SetupError, match="spill=/x: no"):
        play(tmp_path / "none", act, monkeypatch)
