"""A guest that was reset: paused, its disks emptied if nobody can have written to them, and let go."""

import asyncio
import contextlib
import pathlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swaptide.balloon import watch
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import resets, wipe
from tests.unit import monitors
from tests.unit.monitors import wait_for

ID = "0b5e7a3c-8f0d-4c6e-9a51-1f7f6f0f2f11"
QDEV = "/machine/peripheral/swaptide-0b5e7a3c/virtio-backend"
OK = "VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready"


class Scene:
    """A guest with one disk; `done` tells in which order things happened."""

    def __init__(self, server: monitors.Monitor, guest: watch.Watch, run_dir: pathlib.Path) -> None:
        self.server, self.guest, self.run_dir = server, guest, run_dir
        self.done: list[str] = []
        self.report: dict[str, Any] = {
            "name": "g1",
            "id": ID,
            "socket": "/nowhere",
            "size_bytes": 1 << 30,
            "state": "running",
            "connections": 1,
        }
        self.statuses: list[str] = []
        self.idle_ns: int | None = None
        self.resets = resets.Resets(run_dir, self._show)
        server.answers |= {
            "query-block": lambda given: [
                {"device": "", "qdev": ""},
                {
                    "device": "",
                    "qdev": QDEV,
                    "inserted": {"file": f"nbd+unix:///{ID}?socket=x", "node-name": "n"},
                },
            ],
            "query-blockstats": lambda given: [{"qdev": QDEV, "stats": self._stats()}],
            "x-query-virtio-status": lambda given: {"status": {"statuses": self.statuses}},
            "stop": lambda given: self._note("stop", False),
            "cont": lambda given: self._note("cont", True),
        }

    @property
    def marker(self) -> pathlib.Path:
        return self.run_dir / "g.paused"

    async def reset(self, seconds_ago: float = 0.0) -> None:
        """As when QEMU tells of a reset; until all is over."""
        self.resets.note(self.guest, time.time() - seconds_ago, ["g1"])
        await wait_for(lambda: not self.resets._tasks)

    def empty(self, socket: str, disk_id: str, size: int, stop: threading.Event) -> wipe.Outcome:
        """In place of wipe.empty."""
        assert self.marker.exists() and not self.server.running
        self.done.append("empty")
        return wipe.Outcome.EMPTIED

    def _stats(self) -> dict[str, Any]:
        return {} if self.idle_ns is None else {"idle_time_ns": self.idle_ns, "rd_operations": 9}

    def _note(self, what: str, running: bool) -> Any:
        self.done.append(what)
        self.server.running = running
        return {}

    async def _show(self, name: str) -> dict[str, Any]:
        if name != "g1":
            raise UsageError(f"there is no disk {name!r}")
        return self.report


@contextlib.asynccontextmanager
async def scene(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with monitors.Monitor(tmp_path / "qmp") as server:
        guest = watch.Watch(watch.Entry("g", server.path))
        guest.start()
        await guest.tried(10)
        made = Scene(server, guest, tmp_path)
        monkeypatch.setattr(wipe, "empty", made.empty)
        try:
            yield made
        finally:
            await made.resets.leave()
            await guest.stop()


def test_paused_emptied_and_let_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            await at.reset()
            assert at.done == ["stop", "empty", "cont"] and not at.marker.exists()

    asyncio.run(body())


def test_a_disk_that_the_guest_may_have_written_to_is_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.statuses, at.idle_ns = [OK], 10_000_000  # a driver, and it did something 10 ms ago
            await at.reset(seconds_ago=1)
            assert at.done == ["stop", "cont"]
            at.idle_ns = 1_000_000_000 * 3600  # firmware's driver, which has done nothing since
            await at.reset(seconds_ago=1)
            assert at.done == ["stop", "cont", "stop", "empty", "cont"]
            # No driver, but long enough for one to have come and gone.
            at.statuses, at.idle_ns = [], 10_000_000
            await at.reset(seconds_ago=60)
            assert at.done[5:] == ["stop", "cont"]
            # Told to be in the future: the clock was set, nothing is known.
            at.idle_ns = 1_000_000_000 * 3600
            await at.reset(seconds_ago=-60)
            assert at.done[7:] == ["stop", "cont"]

    asyncio.run(body())


def test_an_old_qemu_tells_by_idle_time_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            del at.server.answers["x-query-virtio-status"]
            at.idle_ns = 10_000_000
            await at.reset(seconds_ago=0.5)
            assert "empty" not in at.done
            at.idle_ns = 1_000_000_000 * 60
            await at.reset(seconds_ago=0.5)
            assert "empty" in at.done

    asyncio.run(body())


@pytest.mark.parametrize(
    "change", [{"connections": 2}, {"connections": 0}, {"state": "failed"}, {"id": None}, {"frozen": True}]
)
def test_what_is_not_this_guests_alone_is_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.report.update(change)
            await at.reset()
            assert at.done == ["stop", "cont"]

    asyncio.run(body())


def test_a_disk_of_another_guest_is_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.server.answers["query-block"] = lambda given: []
            await at.reset()
            assert at.done == ["stop", "cont"]

    asyncio.run(body())


def test_a_guest_that_somebody_paused_stays_as_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.server.running = False
            await at.reset()
            assert at.done == []

    asyncio.run(body())


@pytest.mark.parametrize("error", [SetupError("the server fails"), RuntimeError("a fault of ours")])
def test_it_goes_on_whatever_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*rest: Any) -> wipe.Outcome:
        raise error

    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            monkeypatch.setattr(wipe, "empty", fail)
            await at.reset()
            assert at.done == ["stop", "cont"] and not at.marker.exists()

    asyncio.run(body())


def test_it_does_not_go_on_while_its_disk_is_being_emptied(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: what it wrote meanwhile would go with the rest."""
    monkeypatch.setattr(resets, "_PATIENCE_SECONDS", 0.1)
    let_go = threading.Event()

    def slow(socket: str, disk_id: str, size: int, stop: threading.Event) -> wipe.Outcome:
        assert stop.wait(60)  # asked to stop, in the middle of a request
        let_go.wait(60)
        return wipe.Outcome.STOPPED

    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            monkeypatch.setattr(wipe, "empty", slow)
            at.resets.note(at.guest, time.time(), ["g1"])
            await wait_for(lambda: at.done == ["stop"])
            await asyncio.sleep(0.5)
            assert at.done == ["stop"] and at.marker.exists()
            let_go.set()
            await wait_for(lambda: at.done == ["stop", "cont"])

    asyncio.run(body())


def test_a_daemon_that_ends_lets_it_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(socket: str, disk_id: str, size: int, stop: threading.Event) -> wipe.Outcome:
        stop.wait(60)
        return wipe.Outcome.STOPPED

    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            monkeypatch.setattr(wipe, "empty", slow)
            at.resets.note(at.guest, time.time(), ["g1"])
            await wait_for(lambda: at.done == ["stop"])
            await asyncio.sleep(0.1)
            await at.resets.leave()
            assert at.done == ["stop", "cont"] and not at.marker.exists()

    asyncio.run(body())


def test_a_daemon_that_ends_over_a_dead_disk_leaves_it_to_the_next_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resets, "_LEAVE_SECONDS", 0.1)
    let_go = threading.Event()

    def dead(*rest: Any) -> wipe.Outcome:
        let_go.wait(60)
        return wipe.Outcome.STOPPED

    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            monkeypatch.setattr(wipe, "empty", dead)
            at.resets.note(at.guest, time.time(), ["g1"])
            await wait_for(lambda: at.done == ["stop"])
            await asyncio.sleep(0.1)
            await at.resets.leave()
            assert at.done == ["stop"] and at.marker.exists()
            let_go.set()
            await resets.Resets(tmp_path, at._show).resume_left(at.guest)
            assert at.done == ["stop", "cont"] and not at.marker.exists()

    asyncio.run(body())


def test_only_a_guest_that_a_daemon_paused_is_let_go(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.server.running = False
            await at.resets.resume_left(at.guest)
            assert at.done == []
            at.marker.touch()
            at.server.answers["query-status"] = lambda given: {"running": False, "status": "prelaunch"}
            await at.resets.resume_left(at.guest)  # another QEMU, by now
            assert at.done == [] and not at.marker.exists()

    asyncio.run(body())


def test_resets_in_a_row_are_one_after_the_other(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            for _ in range(200):
                at.resets.note(at.guest, time.time(), ["g1"])
                await asyncio.sleep(0)
            await wait_for(lambda: not at.resets._tasks)
            assert at.done == ["stop", "empty", "cont"] * (len(at.done) // 3)
            assert 3 <= len(at.done) < 300  # those that came meanwhile are one

    asyncio.run(body())


def test_a_guest_that_dies_meanwhile(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with scene(tmp_path, monkeypatch) as at:
            at.server.answers["cont"] = lambda given: monitors.HANG_UP
            await at.reset()
            assert at.marker.exists()  # for when it is met again

    asyncio.run(body())
