"""What moves disks between two daemons in tests: hosts, a client that writes on, a QEMU that is made up."""

import asyncio
import contextlib
import pathlib
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import nbd

from tests.real import daemons
from tests.unit import monitors

PAGE = 4096
SIZE = 64 << 20
PAGES = SIZE // PAGE


def contents(page: int, version: int) -> bytes:
    """A page that is no other's; of three one shrinks, one does not, and one is one word."""
    draw = random.Random(page * 100_003 + version)
    kind = (page + version) % 3
    if kind == 0:
        return draw.randbytes(PAGE)
    if kind == 1:
        return (b"page %d, version %d; " % (page, version) * 300)[:PAGE]
    return draw.randbytes(4) * (PAGE // 4)


class Guest:
    """A client that goes on writing: `model` is what was acknowledged, `doubt` what was not answered."""

    def __init__(self, report: dict[str, Any], seed: int = 1) -> None:
        self.report = report
        self.model: dict[int, bytes] = {}
        self.doubt: dict[int, tuple[bytes, bytes]] = {}
        self.error: nbd.Error | None = None
        self.changes = 0
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.handle = nbd.NBD()
        self.handle.set_export_name(report["id"])
        self.handle.connect_unix(report["socket"])

    def fill(self, pages: int) -> None:
        """Write so many pages, here and there."""
        for page in self._draw.sample(range(PAGES), pages):
            self._write(page)

    def start(self) -> None:
        """Write and trim in a thread from now on."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        """Write no more, once what is under way is answered."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(daemons.WAIT_SECONDS)
            assert not self._thread.is_alive(), "a request is not answered"
            self._thread = None

    def leave(self) -> None:
        """As when QEMU ends."""
        self.stop()
        with contextlib.suppress(nbd.Error):
            self.handle.shutdown()

    def goes_on(self) -> None:
        """See it change something, twice."""
        wanted = self.changes + 20
        daemons.wait_for(lambda: self.changes >= wanted or self.error is not None)
        assert self.error is None

    def check(self, report: dict[str, Any], export: str | None = None) -> None:
        """Every page of that disk is what was written here."""
        with daemons.client(report, export) as handle:
            for at in range(0, PAGES, 64):
                got = bytes(handle.pread(64 * PAGE, at * PAGE))
                for page in range(at, at + 64):
                    piece = got[(page - at) * PAGE :][:PAGE]
                    allowed = self.doubt.get(page, (self.model.get(page, bytes(PAGE)),))
                    assert piece in allowed, f"page {page} is wrong"

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                page = self._draw.randrange(PAGES)
                if self._draw.random() < 0.1:
                    self._change(page, bytes(PAGE))
                else:
                    self._write(page)
        except nbd.Error as error:
            self.error = error

    def _write(self, page: int) -> None:
        self._change(page, contents(page, self._draw.randrange(1 << 20)))

    def _change(self, page: int, data: bytes) -> None:
        self.doubt[page] = (self.model.get(page, bytes(PAGE)), data)
        if any(data):
            self.handle.pwrite(data, page * PAGE)
        else:
            self.handle.trim(PAGE, page * PAGE)
        self.model[page] = data
        del self.doubt[page]
        self.changes += 1


class Pair:
    """Two daemons, each with a disk g1, and an address between them."""

    def __init__(self, here: daemons.Daemon, there: daemons.Daemon, root: pathlib.Path) -> None:
        self.here, self.there, self.root = here, there, root
        self.address = f"unix:{root}/stream.sock"

    @contextlib.contextmanager
    def receiving(self, *more: str, listen: str | None = None) -> Iterator["Command"]:
        """The destination's command, once it listens; `address` is where."""
        with Command(
            self.there, "receive", "g1", "--listen", listen or self.address, "--json", *more
        ) as made:
            line = made.line()
            assert line.startswith("listening at "), line
            self.address = line.split()[2].rstrip(";")
            yield made

    def migrating(self, *more: str) -> "Command":
        """The source's command, once it is begun."""
        return Command(self.here, "migrate", "g1", "--to", self.address, "--json", *more)

    def gate(self, daemon: daemons.Daemon) -> str:
        """Whether its disk is served."""
        return str(daemon.show()["gate"])


class Command:
    """A command under way."""

    def __init__(self, daemon: daemons.Daemon, *words: str) -> None:
        self.process = subprocess.Popen(
            [*daemons.COMMAND, *words, "--run-dir", str(daemon.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._ended = False

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self.process.kill()
            self.end()

    def line(self) -> str:
        """The next line that it says on its standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def interrupt(self) -> None:
        """As with Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: status, output, errors."""
        out, errors = self.process.communicate(timeout=60)
        self._ended = True
        return self.process.returncode, out, errors

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None


class Qemu:
    """A QEMU that is made up: it migrates as far as the test lets it, with a monitor on a real socket."""

    def __init__(self, path: pathlib.Path, disk_id: str) -> None:
        self.path = path
        self.status = "none"
        self.reason = ""
        self.capabilities = {"pause-before-switchover": False, "return-path": False, "events": False}
        self._disk_id = disk_id
        self._loop = asyncio.new_event_loop()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Qemu":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def vanish(self) -> None:
        """As when it is killed."""
        self.__exit__()

    def commands(self) -> list[str]:
        """What it was told, but for questions."""
        return [name for name, _ in self._monitor.said if not name.startswith("query-")]

    def reaches(self, status: str) -> None:
        """Be there from now on."""
        if status == "pre-switchover":
            self._loop.call_soon_threadsafe(self._monitor.event, "STOP")
        self.status = status

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._monitor = monitors.Monitor(self.path)
        self._monitor.answers |= {
            "query-block": lambda given: [
                {
                    "qdev": "/machine/peripheral-anon/device[0]/virtio-backend",
                    "inserted": {"file": f"nbd+unix:///{self._disk_id}?socket=x", "node-name": "swaptide-x"},
                }
            ],
            "query-migrate-capabilities": lambda given: [
                {"capability": name, "state": state} for name, state in self.capabilities.items()
            ],
            "migrate-set-capabilities": self._set,
            "query-migrate": lambda given: {"status": self.status, "error-desc": self.reason},
            "migrate": lambda given: self._become("active"),
            "migrate-continue": lambda given: self._become("device"),
            "migrate_cancel": lambda given: self._become("cancelled"),
        }
        async with self._monitor:
            self._ready.set()
            await self._over.wait()

    def _set(self, given: dict[str, Any]) -> Any:
        self.capabilities |= {each["capability"]: each["state"] for each in given["capabilities"]}
        return {}

    def _become(self, status: str) -> Any:
        self.status = status
        return {}


@contextlib.contextmanager
def hosts(root: pathlib.Path) -> Iterator[Pair]:
    """Two daemons without disks."""
    for name in ("here", "there"):
        (root / name).mkdir(mode=0o711)
    with daemons.serving(root / "here") as here, daemons.serving(root / "there") as there:
        yield Pair(here, there, root)


@contextlib.contextmanager
def at_work(pair: Pair) -> Iterator[Guest]:
    """A client of the source that has written more than its cap holds."""
    made = Guest(pair.here.show())
    made.fill(9_000)
    yield made
    made.leave()


def qemu_of(pair: Pair) -> Qemu:
    """A QEMU that has the source's disk."""
    return Qemu(pair.root / "qmp.sock", pair.here.show()["id"])
