"""A random load with a model of every byte, which goes on while a test does things to what is below."""

import concurrent.futures
import threading
from types import TracebackType
from typing import Self

from tests.cluster import children
from tests.real import driver

STILL_LOOKS = 100
_BATCH = 200  # requests between two looks at whether to end


class Load:
    """The load of tests/real/driver.py in a thread of its own; any failure of it ends each wait."""

    def __init__(self, load: driver.Driver, watch: children.Watch) -> None:
        self.driver = load
        self._watch = watch
        self._over = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._work: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        self._work = self._pool.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is in flight; raises WrongByte, or what else befell the load."""
        assert self._work is not None
        self._over.set()
        # After a failure it may hang until the disk is gone.
        self._pool.shutdown(wait=kind is None)
        if kind is None:
            self._work.result()

    @property
    def requests(self) -> int:
        """How many have been issued."""
        return sum(self.driver.counts.values())

    def check(self) -> None:
        """Raises what befell the load, if it has ended."""
        assert self._work is not None
        if self._work.done():
            self._work.result()

    def go_on(self, requests: int) -> None:
        """Wait until it has issued so many more."""
        wanted = self.requests + requests
        self._watch.until(f"{requests} more requests", lambda: self._at_least(wanted))

    def stall(self) -> None:
        """Wait until it waits for answers that do not come: for five seconds, so that a pause is none."""
        seen = [-1] * STILL_LOOKS

        def stands() -> bool:
            self.check()
            seen.append(self.requests)
            return len({*seen[-STILL_LOOKS:]}) == 1

        self._watch.until("the load stands still", stands)

    def _at_least(self, wanted: int) -> bool:
        self.check()
        return self.requests >= wanted

    def _run(self) -> None:
        while not self._over.is_set():
            self.driver.run(_BATCH)
