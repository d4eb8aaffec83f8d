"""A real Prometheus that asks a real daemon with all that the dashboards show, for their tests."""

import asyncio
import contextlib
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dashboards import prometheus
from tests.real import daemons, hosts, loads, scraping, sockets
from tests.unit import monitors

MIB = daemons.MIB
PRESSURE = (
    "some avg10=1.25 avg60=0.00 avg300=0.00 total=9000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=500\n"
)
PATIENCE_SECONDS = 90.0
DISKS = ("dying", "frozen", "g.2", "g1")


class Scene:
    """A daemon with all that there is to see, and a Prometheus that asks it."""

    def __init__(self, daemon: daemons.Daemon, asked: prometheus.Prometheus, instance: str) -> None:
        self.daemon = daemon
        self.prometheus = asked
        self.instance = instance


@contextlib.contextmanager
def running() -> Iterator[Scene]:
    """Disks under load, packed, squeezed, frozen and dying; a guest; a host of 2 GiB."""
    daemons.require("prometheus")
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(daemons.directory())
        host = stack.enter_context(hosts.made_up(root, 2048 * MIB))
        (host.proc / "pressure").mkdir()
        pressure = host.proc / "pressure/memory"
        pressure.touch()
        settings: dict[str, Any] = {
            "proc_dir": str(host.proc),
            "host_reserve": "128M",
            "metrics": "127.0.0.1:0",
        }
        daemon = stack.enter_context(daemons.serving(root, **settings))
        # Not before the daemon has tried to write its trigger into it.
        daemons.wait_for(lambda: str(pressure) in daemon.log.read_text(), daemon.log.read_text)
        pressure.write_text(PRESSURE)
        stack.enter_context(guest(root / "vm1.qmp"))
        daemon.ok("guest", "add", "vm1", "--qmp", str(root / "vm1.qmp"), "--min", "1G", "--max", "4G")
        daemon.add("g1", size=192 * MIB, ram="48M")
        with daemons.client(daemon.show("g1")) as handle:
            handle.pwrite(b"\x55" * MIB, 128 * MIB)
        daemon.add("g.2", "--clean-ahead", "0", size=192 * MIB, ram="128M")
        for name in ("frozen", "dying"):
            daemon.add(name, size=64 * MIB, ram="48M")
        daemon.ok("disk", "freeze", "frozen")
        stack.enter_context(loads.loaded(daemon.show("g1")))
        instance = f"127.0.0.1:{scraping.port_in(daemon.log)}"
        listen = f"127.0.0.1:{sockets.free_port()}"
        asked = stack.enter_context(prometheus.running(made(root / "prometheus"), [instance], listen))
        wait_for(lambda: bool(asked.query("swaptide_disk_process_deaths_total")), "the first scrape")
        squeeze_and_pack(daemon)
        for _ in range(4):
            pid = daemon.wait_running("dying")["pid"]
            os.kill(pid, signal.SIGKILL)
            daemon.wait_running("dying", not_pid=pid)
        try:
            yield Scene(daemon, asked, instance)
        finally:
            daemon.ok("disk", "thaw", "frozen")


def made(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    return path


def squeeze_and_pack(daemon: daemons.Daemon) -> None:
    """Lower a target, so that pages are packed."""
    daemon.ok("disk", "set", "g.2", "--ram", "128M")
    loads.fill(daemon.show("g.2"), 100, loads.shrinking)
    daemon.ok("disk", "set", "g.2", "--ram", "64M")
    assert daemon.show("g.2")["packed_pages"] > 0


@contextlib.contextmanager
def guest(path: pathlib.Path) -> Iterator[None]:
    """A made-up QEMU at `path`, in a thread."""
    begun, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with monitors.Monitor(path):
            begun.set()
            while not over.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert begun.wait(daemons.WAIT_SECONDS)
        yield
    finally:
        over.set()
        thread.join()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.2)


def has_data(asked: prometheus.Answers, expr: str) -> bool:
    """Whether an expression has a number now."""
    return any(math.isfinite(float(found["value"][1])) for found in asked.query(expr))


def without_data(asked: prometheus.Answers, exprs: Iterable[str]) -> list[str]:
    """Those that have no number, even after a while; a rate needs two scrapes."""
    missing, deadline = sorted(set(exprs)), time.monotonic() + PATIENCE_SECONDS
    assert missing
    while missing and time.monotonic() < deadline:
        missing = [expr for expr in missing if not has_data(asked, expr)]
        time.sleep(0.2 if missing else 0)
    return missing
