"""Jobs on the whole disk: sent to another one, taken in, saved, loaded; each in a thread of its own.

A daemon that wants one bumps the control word `call`; this process connects to the socket that its parameter
`calls` names, hears what it is to do (one JSON line, with descriptors), and tells how far it is.  Whoever
hangs up takes the job back, as far as that can be.
"""

import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from swaptide.cache import engine, handing, layout, parcels, receiving, sending, stream, threads
from swaptide.cache.errors import SwaptideError
from swaptide.cache.stream import StreamError
from swaptide.nbdkit_plugin import handed, hot

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("swaptide.plugin")

_LINE_BYTES: Final = 256 << 10
_MOST_FDS: Final = 2
_ORDER_SECONDS: Final = 10.0
_BUSY_SECONDS: Final = 10.0


class Disk(handed.Handed):
    """The disk, for the jobs."""

    def __init__(self, disk: engine.Engine) -> None:
        super().__init__(disk)
        self.disk_id = disk.identity.disk_id
        self.name = disk.identity.name
        self.size_bytes = disk.identity.size_bytes

    def outgoing(self) -> parcels.Outgoing:
        """Its pages on their way out."""
        return parcels.Outgoing(self._engine.log, self._engine.segments)

    def incoming(self) -> parcels.Incoming:
        """Pages on their way into it."""
        return parcels.Incoming(self._engine.log, self._engine.segments)

    def gate(self) -> str:
        """Whether clients are served: one of layout.GATES."""
        return layout.gate(self._engine.control("gate"))

    def set_gate(self, gate: str) -> None:
        """Whether clients are served."""
        self._engine.set_control("gate", layout.GATES.index(gate))
        log.info("gate changed gate=%s", gate)

    def set_origin(self, disk_id: str | None) -> None:
        """Whose contents these are; an id that is none is none of ours."""
        number = 0
        with contextlib.suppress(ValueError):
            number = uuid.UUID(disk_id).int if disk_id is not None else 0
        self._engine.set_control("origin_high", number >> 64)
        self._engine.set_control("origin_low", number & 0xFFFFFFFFFFFFFFFF)

    def hold(self, held: bool) -> None:
        """Have clients' changes wait, or go on."""
        hot.hold(held)

    def is_still(self) -> bool:
        """Whether no change is under way."""
        return hot.is_still()


class Call:
    """The connection to whoever called."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def begin(self) -> tuple[Mapping[str, Any], list[int]]:
        """What to do, and the descriptors for it; raises StreamError."""
        self._connection.settimeout(_ORDER_SECONDS)
        fds: list[int] = []
        try:
            while b"\n" not in self._rest and len(self._rest) < _LINE_BYTES:
                data, more, _, _ = socket.recv_fds(self._connection, _LINE_BYTES, _MOST_FDS)
                fds += more
                if not data:
                    break
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            return stream.parse_line(line), fds
        except (OSError, StreamError) as error:
            for fd in fds:
                os.close(fd)
            raise StreamError(f"the call makes no sense: {error}") from error

    def tell(self, **what: Any) -> None:
        """Say something; who does not listen any more is noticed when they are asked."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(what).encode() + b"\n")

    def order(self, seconds: float) -> str | None:
        """The next order, if one comes in time; raises StreamError once they hung up."""
        if b"\n" not in self._rest:
            if not select.select([self._connection], [], [], seconds)[0]:
                return None
            try:
                data = self._connection.recv(4096)
            except OSError as error:
                raise StreamError(f"the daemon is gone: {error}") from error
            if not data:
                raise StreamError("the daemon took it back")
            self._rest += data
        line, found, rest = self._rest.partition(b"\n")
        if not found:
            return None
        self._rest = rest
        return line.decode("ascii", "replace")


class Jobs:
    """Takes calls for one disk, one job at a time."""

    def __init__(self, disk: engine.Engine, path: str) -> None:
        self._disk = Disk(disk)
        self._path = path
        self._busy = threading.Lock()
        self._receiver: receiving.Receiver | None = None

    def called(self) -> None:
        """Somebody wants something; returns at once."""
        threading.Thread(target=self._answer, name=threads.JOB, daemon=True).start()

    def close(self) -> None:
        """The process ends: nobody waits for room any more."""
        receiver = self._receiver
        if receiver is not None:
            receiver.pages.cancel()

    def _answer(self) -> None:
        threads.call_me(threads.JOB)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            log.warning("caller not reached error=%r", str(error))
            return
        with connection:
            call = Call(connection)
            try:
                order, fds = call.begin()
            except StreamError as error:
                log.warning("call not understood error=%r", str(error))
                call.tell(at="error", error=str(error))
                return
            # The one before may have said its last word, and still be at its end.
            if not self._busy.acquire(timeout=_BUSY_SECONDS):
                for fd in fds:
                    os.close(fd)
                call.tell(at="error", error="another move of this disk is under way")
                return
            try:
                self._work(call, order, fds)
            except SwaptideError as error:
                log.warning("job ended early error=%r", str(error))
                call.tell(at="error", error=str(error))
            except Exception as error:
                log.exception("job failed")
                call.tell(at="error", error=f"internal error {error!r}; see the disk's log")
            finally:
                self._busy.release()

    def _work(self, call: Call, order: Mapping[str, Any], fds: list[int]) -> None:
        what = stream.text_of(order, "do")
        log.info("job begun what=%s", what)
        try:
            # Whoever called looked as well; but the job before this one may have changed it since.
            wanted = "incoming" if what in ("receive", "load") else "open"
            if (gate := self._disk.gate()) != wanted:
                raise StreamError(f"disk {self._disk.name} is {gate} by now, and not {wanted}")
            if what == "save" and fds:
                sending.Sender(self._disk, call, stream.FileWire(fds[0])).save(fds[0])
            elif what == "load" and fds:
                self._take(receiving.Receiver(self._disk, call, stream.FileWire(fds[0])), "load")
            elif what in ("send", "receive", "hand") and fds:
                with _wire(fds.pop(0), order) as connection:
                    wire = stream.SocketWire(connection)
                    self._disk.is_private = (
                        connection.family == socket.AF_UNIX or order.get("tls") is not None
                    )
                    if what == "hand":
                        handing.Handing(self._disk, call, wire, stream.text_of(order, "spill")).hand_over()
                    elif what == "send":
                        bandwidth = stream.number_of(order, "bandwidth") or None
                        sending.Sender(self._disk, call, wire, bandwidth=bandwidth).migrate()
                    else:
                        self._take(receiving.Receiver(self._disk, call, wire), "receive")
            else:
                raise StreamError(f"{what} is nothing that this disk can do")
        finally:
            for fd in fds:
                os.close(fd)
        log.info("job done what=%s", what)

    def _take(self, receiver: receiving.Receiver, how: str) -> None:
        self._receiver = receiver
        try:
            receiver.load() if how == "load" else receiver.receive()
        finally:
            self._receiver = None


def _wire(fd: int, order: Mapping[str, Any]) -> socket.socket:
    """The connection to the other host, with TLS where there are certificates; raises StreamError."""
    plain = socket.socket(fileno=fd)
    plain.settimeout(stream.SILENCE_SECONDS)
    tls = order.get("tls")
    if not isinstance(tls, dict):
        return plain
    server = order["do"] == "receive"
    try:
        context = _context(tls, server=server)
        return context.wrap_socket(
            plain, server_side=server, server_hostname=None if server else stream.text_of(tls, "host")
        )
    except (OSError, ValueError) as error:
        plain.close()
        raise StreamError(f"TLS: {getattr(error, 'verify_message', None) or error}") from error


def _context(tls: Mapping[str, Any], *, server: bool) -> "ssl.SSLContext":
    # A process that starts leaves it out: some MiB, for the few disks that ever move.
    if sys.modules.get("ssl", True) is None:
        del sys.modules["ssl"]
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # Or what the server sends by itself would look like news.
    if server:
        context.num_tickets = 0
    context.load_verify_locations(cadata=str(tls["ca"]))
    # The key is root's to read, so it came as text; the library wants a file.
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, f"{tls['cert']}\n{tls['key']}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context
