"""Keeps the connections of a spill store on an NBD server: the thread of its event loop.

Connects, and again with growing pauses, has the store served, gives up what waits too long, and tells the log
when the server goes and comes back.  The loop is this thread's alone.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from swaptide.cache import detached, link, remote, threads, uris
from swaptide.cache.errors import SwaptideError

log = logging.getLogger(__name__)

# One handshake, certificates and names of hosts included.
CONNECT_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
# A connection that lived so long is replaced at once.
STEADY_SECONDS: Final = 5.0
# How often it is looked what has waited too long, and where nobody waits.
SWEEP_SECONDS: Final = 0.2
IDLE_SECONDS: Final = 1.0
# What had waited for a server that was gone is answered by then, if it works again.
GRACE_SECONDS: Final = 3.0
# How often an owner shows that it lives.
BEAT_SECONDS: Final = 5.0
# When the process ends, how long it waits for the answers to what it has sent.
LEAVE_SECONDS: Final = 2.0


class Lanes:
    """The connections of `store` to `uri`.

    `verify` looks whether a connection leads to the right export, and raises if not; `beat` is called with
    one number after the other, in a thread of its own.  `down` while there is no connection.
    """

    def __init__(
        self,
        store: remote.RemoteStore,
        uri: uris.Uri,
        verify: Callable[[link.Link], None],
        beat: Callable[[int], None],
    ) -> None:
        self.down = True
        self._store = store
        self._uri = uri
        self._verify = verify
        self._beat = beat
        self._may_die = False
        self._tried = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._lost: list[asyncio.Future[str] | None] = [None] * remote.CONNECTIONS
        self._multi: asyncio.Event
        self._beat_wanted: asyncio.Event
        self._down_since = 0.0
        self.trouble = "not connected yet"  # why it is down; empty where it is not
        self.overdue = False  # a write has waited for too long, whatever else is answered
        self._told_overdue = False
        self._up_since = 0.0
        self._told = ""
        self._leaving = False
        self._cut = False

    def start(self, patience_seconds: float, *, may_die: bool) -> None:
        """Start the thread, and wait a while for the first attempt to connect.

        `may_die`: if the thread ever fails, the process ends, since a successor can carry on.
        """
        self._may_die = may_die
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()
        self._tried.wait(patience_seconds)

    def stop(self) -> bool:
        """Wait a moment for what is under way, and end.  Whether a write was cut off by it, now or before."""
        thread, self._thread = self._thread, None
        if thread is not None:
            if self._loop is not None and self._main is not None:
                with contextlib.suppress(RuntimeError):  # the loop ended before
                    self._loop.call_soon_threadsafe(self._leave)
            thread.join()
        else:
            self._cut = (
                self._store.end() or self._cut
            )  # never started, or ended before: nobody waits for ever
        return self._cut

    def _leave(self) -> None:
        self._leaving = True
        assert self._main is not None
        self._main.cancel()

    def _body(self) -> None:
        threads.call_me(threads.STORE)
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            log.critical("spill store died", exc_info=error)
            if self._may_die:
                # No clean-up: dying is what the state file is made for.
                os._exit(os.EX_SOFTWARE)
        finally:
            self._cut = self._store.end() or self._cut
            self.down = True
            self._tried.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._multi = asyncio.Event()
        self._beat_wanted = asyncio.Event()
        self._down_since = time.monotonic()
        self._loop.add_reader(self._store.fileno(), self._serve)
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(remote.CONNECTIONS):
                    tasks.create_task(self._keep(index))
                tasks.create_task(self._sweep())
                tasks.create_task(self._show_life())
        except asyncio.CancelledError:
            await self._finish()
            raise
        finally:
            self._loop.remove_reader(self._store.fileno())

    async def _finish(self) -> None:
        """Let what is under way come to its end, if that is soon."""
        until = time.monotonic() + LEAVE_SECONDS
        while self._store.unanswered and not self.down and time.monotonic() < until:
            self._note(self._store.sweep())
            await asyncio.sleep(0.01)

    def _serve(self) -> None:
        self._note(self._store.serve())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS if self._store.unanswered else IDLE_SECONDS)
            self._note(self._store.sweep())
            self._look_at_writes()

    def _look_at_writes(self) -> None:
        """Tell of a server that answers reads, perhaps, and no writes.  One that is gone is told of anyway,
        and one that came back has a moment for what waited."""
        self.overdue = self._store.overdue
        steady = not self.down and time.monotonic() - self._up_since > GRACE_SECONDS
        if self.overdue and steady and not self._told_overdue:
            self._told_overdue = True
            log.error("spill server answers no writes uri=%s", self._uri)
        elif not self.overdue and self._told_overdue:
            self._told_overdue = False
            log.warning("spill server answers writes again uri=%s", self._uri)

    async def _show_life(self) -> None:
        count = 0
        while True:
            count += 1
            if not self.down:
                with contextlib.suppress(OSError):  # the next one may work
                    await detached.call(lambda number=count: self._beat(number), None)  # type: ignore[misc]
            # Whoever connects says so soon: a copy of its disk may be about that thinks it is gone.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS if self.down else BEAT_SECONDS):
                    await self._beat_wanted.wait()
            self._beat_wanted.clear()

    def beat_now(self) -> None:
        """Show life soon, whenever that was done last.  Any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended before
                self._loop.call_soon_threadsafe(self._beat_wanted.set)

    def _note(self, lost: list[tuple[int, str]]) -> None:
        for index, reason in lost:
            future = self._lost[index]
            if future is not None and not future.done():
                future.set_result(reason)
        if lost and not self._store.connections:
            self._fell(lost[-1][1])

    async def _keep(self, index: int) -> None:
        """Keep one connection; all but the first only where the server serves several as one."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            if index:
                await self._multi.wait()
            try:
                connection = await detached.call(self._connect, None)
            except (OSError, SwaptideError) as error:
                if not self._store.connections:
                    self._fell(getattr(error, "strerror", None) or str(error))
                self._tried.set()
            else:
                if index and not connection.traits.multi:
                    self._multi.clear()
                    connection.close()
                    continue
                since = time.monotonic()
                await self._use(index, connection)
                if time.monotonic() - since >= STEADY_SECONDS:
                    pause = FIRST_PAUSE_SECONDS
                    continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _connect(self) -> link.Link:
        connection = link.Link(self._uri.text, CONNECT_SECONDS)
        try:
            self._verify(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _use(self, index: int, connection: link.Link) -> None:
        """Have the store use a connection until it is lost."""
        lost = self._lost[index] = asyncio.get_running_loop().create_future()
        if connection.traits.multi:
            self._multi.set()
        else:
            self._multi.clear()
        try:
            self._store.attach(index, connection)
        except OSError as error:  # no descriptor to be had, for example
            if not self._store.connections:
                self._fell(str(error.strerror))
            return
        self._rose()
        self._tried.set()
        self._serve()
        reason = await lost
        log.info("spill connection lost uri=%s connection=%d error=%r", self._uri, index, reason)

    def _fell(self, reason: str) -> None:
        if not self.down:
            self._down_since = time.monotonic()
            self.down = True
        self.trouble = reason
        if reason != self._told:
            self._told = reason
            log.error("spill server lost uri=%s error=%r", self._uri, reason)

    def _rose(self) -> None:
        if self.down and self._told:
            after = time.monotonic() - self._down_since
            log.warning("spill server works again uri=%s after_seconds=%.1f", self._uri, after)
        if self.down:
            self._up_since = time.monotonic()
        self.down, self.trouble, self._told = False, "", ""
        self._beat_wanted.set()
