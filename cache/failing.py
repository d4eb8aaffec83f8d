"""Which of two stores fails: told to the segments and to the log."""

import logging
import os
from collections.abc import Sequence
from typing import Protocol

from swaptide.cache.segments import Segments

log = logging.getLogger(__name__)


class Store(Protocol):
    """One store of two."""

    @property
    def place(self) -> str:
        """Which one it is, for people."""

    def trouble(self) -> str:
        """Why it is known not to answer right now, and which one it is; empty where it does."""


class Stores:
    """Which of two stores fails, told to the segments and to the log: each change once."""

    def __init__(self, stores: Sequence[Store], segments: Segments) -> None:
        self._stores = stores
        self._segments = segments
        self._errors = (0,) * len(stores)
        self._down = [False] * len(stores)

    def __bool__(self) -> bool:
        return bool(self._stores)

    def look(self) -> None:
        """Tell the segments which one does not answer, or answers again."""
        for index, store in enumerate(self._stores):
            down = bool(store.trouble())
            if down != self._down[index]:
                self._down[index] = down
                self._segments.set_store_down(index, down)
                self.wrote()

    def wrote(self) -> None:
        """Tell the log which one takes no more writes, or takes them again."""
        errors = self._segments.store_errors()
        for store, before, error in zip(self._stores, self._errors, errors, strict=True):
            if error and not before:
                log.error(
                    "spill write failed spill=%s error=%r so='the other store is used'",
                    store.place,
                    os.strerror(error),
                )
            elif before and not error:
                log.warning("spill store works again spill=%s", store.place)
        self._errors = errors

    def usable(self) -> int:
        """How many take writes."""
        return sum(
            not (error or store.trouble()) for store, error in zip(self._stores, self._errors, strict=True)
        )

    def trouble(self) -> str:
        """What is wrong with which one; empty where both work.  By then the segments know it too."""
        self.look()
        return "; ".join(
            store.trouble() or f"spill={store.place}: writing fails: {os.strerror(error)}"
            for store, error in zip(self._stores, self._errors, strict=True)
            if error or store.trouble()
        )
