"""The thread of the event loop: runs movers and governor from `start` until `stop`.

The loop is this thread's alone; other threads only ask it to end.
"""

import asyncio
import contextlib
import logging
import os
import threading

from swaptide.cache import threads
from swaptide.cache.governor import Governor
from swaptide.cache.movers import Movers

log = logging.getLogger(__name__)


class Runner:
    """Runs `movers` and `governor`.  `may_die`: a successor process could carry on from the state file."""

    def __init__(self, movers: Movers, governor: Governor, *, may_die: bool) -> None:
        self._movers = movers
        self._governor = governor
        self._may_die = may_die
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._body, name=threads.LOOP, daemon=True)

    def start(self) -> None:
        """Start the thread and wait until its loop runs."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cancel both and wait for the thread; a move under way is finished first."""
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended before
                self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _body(self) -> None:
        threads.call_me(threads.LOOP)
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._give_up(error)
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._ready.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._movers.run())
            tasks.create_task(self._governor.run())

    def _give_up(self, error: BaseException) -> None:
        """The movers died of a fault of their own: end the process, if a successor can carry on."""
        log.critical("movers died", exc_info=error)
        if self._may_die:
            # No clean-up: dying is what the state file is made for.
            os._exit(os.EX_SOFTWARE)
        log.critical("reads go on, but nothing is spilled any more: writers will wait at the cap")
