"""A QEMU guest as a context manager: started, listened to, spoken to, and always reaped.

The caller's thread owns the machine.  One reader thread moves console lines into a queue and ends with
QEMU's output.  Every wait has a deadline.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from qemu.qmp import QMPClient, QMPError

from tests.vm import image, report

BOOT_SECONDS: Final = 90.0
STOP_SECONDS: Final = 10.0
SWAP_DEVICE: Final = (
    "-device",
    "virtio-blk-pci,drive=swap0,werror=stop,rerror=report,logical_block_size=512,physical_block_size=4096",
)
QMP_SECONDS: Final = 10.0
# QEMU before 9.0 loses writes of a guest under TCG while it copies memory of a multiple of 256 KiB: it clears
# dirty bits by the word, and does not tell the TLB (its commit 03bfc2188f06 does).
ODD_KIB: Final = 8
_CLOSED: Final = None  # what the reader puts last into the queue


@dataclasses.dataclass(frozen=True)
class Build:
    """What QEMU is for one architecture of guests."""

    qemu: str
    board: str
    console: str
    cpu: tuple[str, ...] = ()


BUILDS: Final = {
    "amd64": Build("qemu-system-x86_64", "q35", "ttyS0"),
    # The plainest one that has pages of 16 KiB.
    "arm64": Build("qemu-system-aarch64", "virt", "ttyAMA0", ("-cpu", "cortex-a76")),
}


class GuestError(Exception):
    """The guest did not do what was waited for; str() ends with the last lines of its console."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to boot.  `work` becomes the tide.* parameters that vm-images/README.md lists.

    `guest` names one of vm-images/build.py's images; `board` is QEMU's, where it is not the usual one;
    `monitor` is where a QMP monitor for others than the test listens; a guest that `reboots` starts again
    when it is reset, where others end; one that `moves` runs on while QEMU copies its memory.
    """

    accel: str
    guest: str = image.DEFAULT
    memory_mib: int = 192
    cpus: int = 2
    board: str = ""
    disk: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    monitor: pathlib.Path | None = None
    reboots: bool = False
    moves: bool = False
    work: Mapping[str, str | int] = dataclasses.field(default_factory=dict)


def nbd_disk(socket: pathlib.Path, *, export: str = "", reconnect_seconds: int = 60) -> tuple[str, ...]:
    """QEMU arguments for a swap disk on any NBD unix socket, for servers that print no snippet."""
    return (
        "-blockdev",
        f"driver=nbd,node-name=swap0,server.type=unix,server.path={socket},export={export},"
        f"reconnect-delay={reconnect_seconds},discard=unmap",
        *SWAP_DEVICE,
    )


def file_disk(path: pathlib.Path, *, direct: bool) -> tuple[str, ...]:
    """QEMU arguments for the same disk on a raw file: QEMU's cache=none if `direct`, else cache=writeback."""
    cache = f"cache.direct={'on' if direct else 'off'},cache.no-flush=off"
    # Both nodes name the cache: QEMU does not hand it down from the one to the other.
    return (
        "-blockdev",
        f"driver=file,node-name=file0,filename={path},discard=unmap,{cache}",
        "-blockdev",
        f"driver=raw,node-name=swap0,file=file0,discard=unmap,{cache}",
        *SWAP_DEVICE,
    )


def boot_words(guest: image.Image, append: str) -> tuple[str, ...]:
    """QEMU arguments for what is booted: a kernel, a disk, or both."""
    words: tuple[str, ...] = ()
    if guest.kernel is not None:
        words += ("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", append)
    if guest.disk is not None:
        words += (
            *("-drive", f"file={guest.disk},format=raw,if=none,id=boot,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=boot" + (",bootindex=0" if guest.kernel is None else "")),
        )
    return words


def command_line(spec: Spec, guest: image.Image, qmp_socket: pathlib.Path) -> list[str]:
    """The whole QEMU command; the guest sees the disk of `spec` and a serial console, nothing else."""
    work = " ".join(f"tide.{name}={value}" for name, value in spec.work.items())
    build = BUILDS[guest.architecture]
    return [
        build.qemu,
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *(() if spec.reboots else ("-no-reboot",)),
        # QEMU's plainest CPU: all that a swapping guest needs, and what a nested KVM can offer as well.
        *("-machine", spec.board or build.board, "-accel", spec.accel, *build.cpu),
        *("-m", f"{spec.memory_mib * 1024 + (ODD_KIB if spec.moves else 0)}k", "-smp", str(spec.cpus)),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-qmp", f"unix:{qmp_socket},server=on,wait=off"),
        *boot_words(guest, f"console={build.console} loglevel=4 panic=-1 {guest.append} {work}"),
        *spec.disk,
        *spec.devices,
        *(() if spec.monitor is None else ("-qmp", f"unix:{spec.monitor},server=on,wait=off")),
    ]


class Machine:
    """A running guest.

    `console` holds every line so far, `numbers` the latest figures of its work, `kernel` the version that
    it runs.
    """

    def __init__(self, spec: Spec, on_line: Callable[[str], None] | None = None) -> None:
        """Prepare; nothing runs before the `with`.  `on_line` is called by the thread that waits."""
        self.spec = spec
        self.console: list[str] = []
        self.trouble: list[str] = []
        self.wrong: list[str] = []
        self.numbers = report.Numbers()
        self.kernel = ""
        self.result: report.Numbers | None = None
        self._on_line = on_line
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swaptide-qemu-")))
            self._qmp_socket = work / "qmp.sock"
            self._stderr = stack.enter_context(open(work / "stderr", "w+", encoding="utf-8"))
            command = command_line(self.spec, image.ensure(self.spec.guest), self._qmp_socket)
            self._process = subprocess.Popen(
                # Should we be killed outright, QEMU must not stay behind.
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
            )
            stack.callback(self._reap)
            self._reader = threading.Thread(target=self._read, name="guest console", daemon=True)
            self._reader.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def say(self, words: str) -> None:
        """Send a line to the guest's console; the work understands `stop`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(words.encode() + b"\n")
            self._process.stdin.flush()

    def reports(self, seconds: float) -> Iterator[report.Report]:
        """The guest's reports as they come, for at most `seconds` or until it ends."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            if line is _CLOSED:
                self._lines.put(_CLOSED)  # for whoever asks again
                return
            if (found := self._take(line)) is not None:
                yield found

    def wait_for(self, wanted: Callable[[report.Report], bool], what: str, seconds: float) -> report.Report:
        """The first report that `wanted` accepts; raises GuestError naming `what` if it does not come."""
        for found in self.reports(seconds):
            if found.kind == "ERROR":
                raise GuestError(self.account(f"the guest gave up: {found.text}"))
            if wanted(found):
                return found
        raise GuestError(self.account(f"no {what} within {seconds:.0f} s, or the guest ended"))

    def wait_ready(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait for the guest's init; raises GuestError."""
        self.wait_for(lambda r: r.kind == "READY", "sign of the guest's init", seconds)

    def wait_numbers(
        self, wanted: Callable[[report.Numbers], bool], what: str, seconds: float
    ) -> report.Numbers:
        """Wait until the figures of the work satisfy `wanted`; raises GuestError."""
        self.wait_for(lambda r: r.kind == "PROGRESS" and wanted(self.numbers), what, seconds)
        return self.numbers

    def finish(self, seconds: float) -> report.Numbers:
        """Wait for the verdict and for the guest to power off; raises GuestError."""
        if self.result is None:
            self.wait_for(lambda r: r.kind == "RESULT", "result", seconds)
        assert self.result is not None
        self.wait_off(STOP_SECONDS)
        return self.result

    def wait_off(self, seconds: float) -> None:
        """Wait until the guest has switched itself off; raises GuestError."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise GuestError(self.account("the guest does not power off")) from None

    def wait_status(self, status: str, seconds: float = BOOT_SECONDS) -> None:
        """Wait until QEMU says that the guest is in that state; raises GuestError."""
        deadline = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < deadline:
            with contextlib.suppress(OSError, EOFError, QMPError):  # its monitor is not there yet
                if self.qmp("query-status")["status"] == status:
                    return
            time.sleep(0.1)
        raise GuestError(self.account(f"the guest is not {status} within {seconds:.0f} s"))

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command over a connection of its own; raises TimeoutError or qemu.qmp's errors."""
        return asyncio.run(self._qmp(command, arguments))

    def is_running(self) -> bool:
        """Whether QEMU lives."""
        return self._process.poll() is None

    def complaint(self) -> str:
        """The last line that QEMU itself wrote on standard error, or nothing."""
        self._stderr.seek(0)
        return (self._stderr.read().strip().splitlines() or [""])[-1]

    def account(self, headline: str) -> str:
        """`headline`, QEMU's state and complaint, and the end of the console, for an error message."""
        return "\n  ".join([headline, self._state(), *filter(None, [self.complaint()]), *self.console[-25:]])

    def _state(self) -> str:
        """A guest that QEMU paused after an I/O error (`io-error`) looks like one that is slow."""
        if not self.is_running():
            return f"QEMU ended with status {self._process.returncode}"
        try:
            return f"QEMU runs, the guest's state is {self.qmp('query-status')['status']}"
        except (OSError, EOFError, QMPError) as error:
            return f"QEMU runs but does not answer: {error!r}"

    def _take(self, line: str) -> report.Report | None:
        self.console.append(line)
        if self._on_line is not None:
            self._on_line(line)
        if report.is_trouble(line):
            self.trouble.append(line)
        found = report.parse(line)
        if found is not None and found.kind == "READY":
            self.kernel = found.fields.get("kernel", "")
        if found is not None and found.kind in ("PROGRESS", "RESULT"):
            self.numbers = report.numbers_of(found)
        if found is not None and found.kind == "RESULT":
            self.result = self.numbers
        if found is not None and found.kind == "WRONG":
            self.wrong.append(found.text)
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            self._lines.put(raw.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(_CLOSED)

    async def _qmp(self, command: str, arguments: dict[str, Any]) -> Any:
        async with asyncio.timeout(QMP_SECONDS):
            client = QMPClient("swaptide-tests")
            await client.connect(str(self._qmp_socket))
            try:
                return await client.execute(command, arguments or None)
            finally:
                with contextlib.suppress(EOFError, ConnectionError):  # what `quit` leaves behind
                    await client.disconnect()

    def _reap(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
