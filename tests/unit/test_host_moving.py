"""The daemon's side of disks that move, where whoever asked leaves at the worst moment."""

import asyncio
import contextlib
import pathlib
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from swaptide.cache import face, statefile
from swaptide.cache.errors import SetupError
from swaptide.host import adoption, definitions, disks, jobs, migrate, protocol, spills, steps, supervisor

SIZE = 16 << 20
LIMITS = face.Limits(cap_bytes=64 << 20, target_bytes=32 << 20, floor_bytes=24 << 20)


class Keeper:
    """What is asked of a disk's keeper; `trouble` is why its definition cannot be saved."""

    def __init__(self, path: pathlib.Path) -> None:
        self.definition = definitions.Definition(
            "g1", SIZE, 64 << 20, 24 << 20, 100, "lz4", False, None, "/spill/g1", False, str(path)
        )
        self.process = object()
        self.trouble: str | None = None
        self.state = face.StateFace(path)

    def open_face(self) -> face.StateFace:
        return self.state

    async def update(self, definition: definitions.Definition) -> str | None:
        self.definition = definition
        await asyncio.sleep(0)
        return self.trouble

    commit = supervisor.Keeper.commit  # the real one, of what is updated here


class Job:
    """A job whose process has all of a disk; at the next step that is waited for `then` happens."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.step = {"at": "kept", "number": str(uuid.uuid4()), "spill": "nbd://far/x", "marks": ["0" * 64]}
        self.orders: list[str] = []
        self._then = then

    def order(self, word: str) -> None:
        self.orders.append(word)

    async def until(self, *wanted: str) -> Any:
        self._then()
        raise jobs.JobError("gone")


@pytest.fixture
def keeper(tmp_path: pathlib.Path) -> Iterator[Keeper]:
    made = statefile.create(tmp_path / "g1", SIZE, "g1", LIMITS, encrypted=False)
    made.publish()
    found = Keeper(tmp_path / "g1")
    yield found
    found.state.close()
    made.close()


def test_who_leaves_at_once_shuts_no_disk_that_is_in_use(keeper: Keeper) -> None:
    async def body() -> None:
        call = asyncio.create_task(migrate._expect(cast(Any, keeper), keeper.state))
        await asyncio.sleep(0)  # it has asked how much is on the disk
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(body())
    assert keeper.state.gate() == "open"


def test_what_was_ordered_to_be_kept_stays_known(keeper: Keeper) -> None:
    """Whatever the gate says when the job is lost: the order may be on its way."""
    keeper.state.set_gate("incoming")
    job = Job(lambda: None)
    with pytest.raises(jobs.JobError):
        asyncio.run(adoption.follow(cast(Any, keeper), cast(Any, job)))
    assert job.orders == ["kept"]
    keeper.state.set_gate("arrived")
    assert adoption.waits(keeper.definition)


def test_what_could_not_be_remembered_is_not_kept(keeper: Keeper) -> None:
    keeper.trouble = "the directory is full"
    job = Job(lambda: None)
    with pytest.raises(SetupError, match="the directory is full"):
        asyncio.run(adoption.follow(cast(Any, keeper), cast(Any, job)))
    assert job.orders == [] and keeper.definition.adoption is None


@pytest.mark.parametrize("said", [b"[" * 60_000, b"{}", b'{"at": 1}', b"\xff", b"x" * (128 << 10)])
def test_a_process_that_makes_no_sense_ends_its_job(said: bytes) -> None:
    ours, theirs = socket.socketpair()

    async def body() -> None:
        job = jobs.Job("g1", ours, (), lambda step: None)
        try:
            await job.start({"do": "send"})
            theirs.sendall(said + b"\n")
            async with asyncio.timeout(30):
                with pytest.raises(jobs.JobError, match="makes no sense"):
                    await job.until("done")
        finally:
            await job.close()

    theirs.settimeout(30)
    with ours, theirs:
        asyncio.run(body())


def test_the_operator_hears_what_could_not_be_undone() -> None:
    error = SetupError("QEMU is gone")
    error.add_note("QEMU does not cancel its migration: it is active")
    said = msgspec.json.encode(protocol.failure_of(error)).decode()
    assert "QEMU is gone; QEMU does not cancel its migration: it is active" in said


class Removed(Keeper):
    """A keeper whose disk is handed over with its store before its process has ended."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path)
        self.socket_path = self.calls_path = path.with_name("none")
        self.estate = self

    async def stop(self) -> None:
        self.state.set_gate("handed")

    async def erase_key(self, *given: Any) -> None:
        pass

    async def remove_state(self, definition: definitions.Definition) -> list[str]:
        pathlib.Path(definition.state_path).unlink()
        return []

    async def take_back(self, definition: definitions.Definition) -> None:
        pass


def test_a_store_that_went_while_its_disk_is_removed_is_left_alone(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []

    async def release(spill: str, disk_id: str, **more: Any) -> list[str]:
        released.append(spill)
        return []

    monkeypatch.setattr(spills, "release", release)
    removed = Removed(pathlib.Path(keeper.definition.state_path))
    with contextlib.closing(removed.state):
        asyncio.run(disks.Disks._drop_contents(cast(Any, None), cast(Any, removed), steps.Steps()))
    assert released == [] and removed.definition.store_given
