"""Real processes: init's children with the activation socket on fd 3, watched and ended by pidfd."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from swaptide.host import process


@contextlib.asynccontextmanager
async def spawned(directory: pathlib.Path, script: str) -> AsyncIterator[process.Process]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        live = process.spawn(["/bin/sh", "-c", script], listener, directory / "log")
        try:
            yield live
        finally:
            with contextlib.suppress(ProcessLookupError):
                if not live.exited.is_set():
                    os.kill(live.pid, signal.SIGKILL)
            live.forget()


def test_what_the_process_is_given(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        script = "test $LISTEN_PID = $$ && exec sleep 60 $LISTEN_FDS"
        async with spawned(tmp_path, script) as live:
            while process.command_line(live.pid)[:1] != ["sleep"]:
                assert not live.exited.is_set(), (tmp_path / "log").read_text()
                await asyncio.sleep(0.01)
            assert process.command_line(live.pid) == ["sleep", "60", "1"]
            about = pathlib.Path(f"/proc/{live.pid}")
            assert os.getsid(live.pid) != os.getsid(0)
            assert f"PPid:\t{os.getpid()}\n" not in (about / "status").read_text()
            assert os.readlink(about / "cwd") == "/"
            assert os.readlink(about / "fd/3").startswith("socket:")
            # Not the pipes that the start needed.
            assert not {"4", "5"} & set(os.listdir(about / "fd"))
            assert await live.end()

    asyncio.run(body())


def test_only_what_it_needs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"LANG": "C.UTF-8", "LC_ALL": "C", "PYTHONPATH": "/p", "SWAPTIDE_POINT": "x"}
    dropped = {"AWS_SECRET_ACCESS_KEY": "s", "LD_PRELOAD": "/l", "PYTHONSTARTUP": "/s", "NOTIFY_SOCKET": "n"}
    monkeypatch.setattr(os, "environ", {**kept, **dropped, "HOME": "/root", "PATH": "/usr/bin"})
    path = f"{pathlib.Path(sys.executable).parent}:/usr/bin"
    assert process.environment() == {**kept, "PATH": path}


def test_end_kills_what_ignores_sigterm(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with spawned(tmp_path, "trap '' TERM; echo up; while :; do sleep 1; done") as live:
            while (tmp_path / "log").read_text() != "up\n":
                await asyncio.sleep(0.01)
            begin = asyncio.get_running_loop().time()
            assert await live.end()
            assert asyncio.get_running_loop().time() - begin >= process.TERM_SECONDS

    asyncio.run(body())


def test_death_is_noticed(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with spawned(tmp_path, "exit 3") as live:
            await asyncio.wait_for(live.exited.wait(), 60)
            assert await live.end()

    asyncio.run(body())


def test_command_line_of_nobody() -> None:
    assert process.command_line(0) == []
    assert process.command_line(os.getpid())
