"""Rows of what Prometheus costs: a scrape of a daemon with 64 disks, and read hits while it is scraped.

One thread, and one that scrapes; the daemon is started by the first row, and ends with the lab's stack.
"""

import contextlib
import dataclasses
import http.client
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench import fio, load, measure, servers
from tests.vm import swaptided

MIB: Final = 1 << 20
DISKS: Final = 64
IDLE_BYTES: Final = 16 * MIB
LOADED_BYTES: Final = 256 * MIB
# So much that nothing of it is ever spilled.
LOADED_RAM_BYTES: Final = 640 * MIB
SCRAPES: Final = 20
EVERY_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 20.0
# A timed load is so many times as long as in other rows: several scrapes are to fall into it.
LONGER: Final = 4
ALONE: Final = "not scraped"
AGAIN: Final = "not scraped, again"
_KEPT: Final = "scrape"
_LOADED: Final = "loaded"
_READS: Final = fio.Pattern("randread", 4096, 16)


@dataclasses.dataclass(frozen=True)
class Host:
    """A daemon with its disks: where it answers, and the disk to be loaded; making them took that long."""

    port: int
    daemon: servers.Server
    uri: str
    making_seconds: float


@dataclasses.dataclass(frozen=True)
class Scrape:
    """Several of them: the median of how long one took, the daemon's CPU time for one, the answer's size."""

    seconds: float
    cpu_seconds: float
    answer_bytes: int


def _host(lab: measure.Lab) -> Host:
    """The daemon; the first row that asks starts it.  Raises ContenderError."""
    found = lab.kept.get(_KEPT)
    if not isinstance(found, Host):
        try:
            found = _start(lab)
        except (swaptided.DaemonError, subprocess.SubprocessError) as error:
            raise measure.ContenderError(" ".join(str(error).split())) from error
        lab.kept[_KEPT] = found
    return found


def _start(lab: measure.Lab) -> Host:
    daemon = lab.stack.enter_context(swaptided.Daemon())
    daemon.stop()
    daemon.configure(metrics="127.0.0.1:0")
    daemon.start()
    begun = time.monotonic()
    for number in range(DISKS - 1):
        lab.tell(f"making disk {number + 1} of {DISKS}")
        daemon.add(f"idle{number}", size=str(IDLE_BYTES), ram=str(IDLE_BYTES * 2))
    daemon.add(_LOADED, size=str(LOADED_BYTES), ram=str(LOADED_RAM_BYTES))
    seconds = time.monotonic() - begun
    shown = daemon.show(_LOADED)
    uri = f"nbd+unix:///{shown['id']}?socket={shown['socket']}"
    fio.nbd(uri, fio.Pattern("write", 128 << 10, 8), size_bytes=LOADED_BYTES, directory=lab.scratch)
    ports = re.findall(
        r"metrics served url=http://\S+:(\d+)/metrics", (daemon.root / "daemon.log").read_text()
    )
    if not ports:
        raise measure.ContenderError("the daemon serves no metrics")
    return Host(int(ports[-1]), servers.Server(daemon.pid, daemon.run_dir), uri, seconds)


def scrape(port: int) -> bytes:
    """What is told there, asked for as Prometheus does; raises ContenderError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise measure.ContenderError(f"no scrape: {error}") from error
    finally:
        connection.close()
    if answer.status != 200 or b"swaptide_disk_size_bytes" not in body:
        raise measure.ContenderError(f"no scrape: status {answer.status}")
    return body


# --- How long a scrape takes --------------------------------------------------------------------------------


def measure_scrape(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Scrape again and again, with nothing else to do."""
    host = _host(lab)
    found, failed = measure.take_turns(lab, (measure.OURS,), lab.plan.rounds, lambda _: _scrapes(host))
    several = found.get(measure.OURS, [])
    size = several[-1].answer_bytes / MIB if several else 0.0
    notes = (
        f"{DISKS} disks, each with a process of its own; over the socket, median of {SCRAPES} in a round;"
        f" the answer has {size:.2f} MiB; making the disks took {host.making_seconds:.0f} s",
    )
    values = {
        "scrape": [each.seconds * 1000 for each in several],
        "daemon CPU": [each.cpu_seconds * 1000 for each in several],
    }
    return [
        measure.Measurement(
            row="scrape-64",
            metric=metric,
            title=TITLES["scrape-64"],
            unit="ms",
            better="less",
            values={measure.OURS: each} if each else {},
            reference=(),
            failed=failed,
            notes=notes,
        )
        for metric, each in values.items()
    ]


def _scrapes(host: Host) -> Scrape:
    scrape(host.port)
    taken, before = [], host.daemon.cpu_seconds()
    for _ in range(SCRAPES):
        begun = time.perf_counter()
        body = scrape(host.port)
        taken.append(time.perf_counter() - begun)
    cpu = (host.daemon.cpu_seconds() - before) / SCRAPES
    return Scrape(statistics.median(taken), cpu, len(body))


# --- What it does to the disks ------------------------------------------------------------------------------


def measure_hits(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Read hits of one disk while all of them are scraped once a second, and while nobody asks."""
    host = _host(lab)

    def once(name: str) -> load.Sample:
        with _scraped(host.port) if name == measure.OURS else contextlib.nullcontext():
            seconds = lab.plan.seconds * LONGER
            result = fio.nbd(
                host.uri, _READS, size_bytes=LOADED_BYTES, seconds=seconds, directory=lab.scratch
            )
        return load.Sample(result, None)

    samples, failed = measure.take_turns(lab, (measure.OURS, ALONE, AGAIN), lab.plan.rounds, once)
    return load.measurements(
        *("hits-while-scraped", TITLES["hits-while-scraped"], (load.RATE, load.P99_US), samples, failed),
        reference=(ALONE,),
        again=(AGAIN, ALONE),
        notes=[f"one of {DISKS} disks is read, all are scraped once a second; {measure.OURS} is scraped"],
    )


@contextlib.contextmanager
def _scraped(port: int) -> Iterator[None]:
    """Scraped meanwhile; raises ContenderError at the end if a scrape failed."""
    over, failed = threading.Event(), []

    def work() -> None:
        try:
            while True:
                scrape(port)
                if over.wait(EVERY_SECONDS):
                    return
        except measure.ContenderError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


TITLES: Final = {
    "scrape-64": "a scrape of a daemon with 64 disks",
    "hits-while-scraped": "4 KiB random read hits, depth 16, while 64 disks are scraped once a second",
}
ROWS: Final = (
    measure.Row("scrape-64", "scrape", TITLES["scrape-64"], measure_scrape),
    measure.Row("hits-while-scraped", "scrape", TITLES["hits-while-scraped"], measure_hits),
)
