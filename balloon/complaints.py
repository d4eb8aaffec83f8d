"""Says once that something does not work, and once more when it works again.

Owned by the loop of whoever asks many times a second and must not fill the log with it.
"""

import logging


class Complaints:
    """What is complained about now, by the thing's name, in the log of who made this."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._open: set[str] = set()

    def fail(self, what: str, error: object, consequence: str) -> None:
        """`what` cannot be used because of `error`, so that `consequence`; logged the first time."""
        if what not in self._open:
            self._open.add(what)
            self._log.warning("sensor failed what=%s error=%r so=%r", what, str(error), consequence)

    def fine(self, what: str) -> None:
        """`what` works; logged if it did not."""
        if what in self._open:
            self._open.discard(what)
            self._log.info("sensor works again what=%s", what)

    def forget(self, what: str) -> None:
        """`what` is no more."""
        self._open.discard(what)
