"""A keeper whose task meets what nobody expected: the disk fails, says why, and can be let go."""

import asyncio
import pathlib

import msgspec
import pytest

from swaptide.host import config, definitions, supervisor
from tests.unit.test_host_definitions import DISK


async def _saved(definition: definitions.Definition) -> None:
    return None


def test_an_unexpected_exception_fails_the_disk_and_no_more(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise ValueError("embedded null byte")

    async def body() -> None:
        disk = msgspec.structs.replace(DISK, state_path=str(tmp_path / "g1.state"))
        keeper = supervisor.Keeper(config.load(None, tmp_path), tmp_path, disk, _saved)
        monkeypatch.setattr(keeper, "_adopt", broken)
        keeper.start()
        await asyncio.wait_for(keeper.settled.wait(), 60)
        assert (keeper.state, "embedded null byte" in keeper.error) == (supervisor.State.FAILED, True)
        await keeper.stop()
        assert keeper.state is supervisor.State.STOPPED

    asyncio.run(body())


def test_a_task_that_ended_with_an_exception_can_be_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(force: bool) -> None:
        raise ValueError("no")

    async def body() -> None:
        keeper = supervisor.Keeper(config.load(None, tmp_path), tmp_path, DISK, _saved)
        monkeypatch.setattr(keeper, "_keep", broken)
        keeper.start()
        await asyncio.sleep(0)
        await keeper.leave()
        assert keeper.state is supervisor.State.STOPPED

    asyncio.run(body())
