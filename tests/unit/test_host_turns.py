"""Turns of disks that start."""

import asyncio

import pytest

from swaptide.host import turns


def test_no_more_than_so_many_at_once_and_all_in_the_end() -> None:
    async def body() -> None:
        taken, at_work, most = turns.Turns(3, 60.0), 0, 0

        async def start() -> None:
            nonlocal at_work, most
            async with taken.take():
                at_work += 1
                most = max(most, at_work)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                at_work -= 1

        await asyncio.gather(*(start() for _ in range(20)))
        assert (most, at_work) == (3, 0)

    asyncio.run(body())


def test_who_waits_for_a_store_keeps_nobody() -> None:
    async def body() -> None:
        taken, hung = turns.Turns(1, 0.01), asyncio.Event()

        async def wait_for_store() -> None:
            async with taken.take():
                await hung.wait()

        waiting = [asyncio.create_task(wait_for_store()) for _ in range(3)]
        async with asyncio.timeout(20), taken.take():
            pass
        hung.set()
        await asyncio.gather(*waiting)
        # Each gave back what it had, once: one at a time again.
        async with taken.take():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await taken._free.acquire()

    asyncio.run(body())


def test_who_fails_gives_its_turn_back() -> None:
    async def body() -> None:
        taken = turns.Turns(1, 60.0)
        for _ in range(3):
            with pytest.raises(ValueError):
                async with asyncio.timeout(20), taken.take():
                    raise ValueError

    asyncio.run(body())
