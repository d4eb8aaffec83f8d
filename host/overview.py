"""One look at everything: the host, its disks and its guests, for a live view.  Runs on the daemon's loop."""

import os
import time
from typing import Any

import swaptide
from swaptide.host import disks, guests, steering


async def take(served: disks.Disks, watched: guests.Guests, balloon: steering.Steering) -> dict[str, Any]:
    """All of it as of now, and which daemon says so.

    `at_seconds` is of CLOCK_MONOTONIC, so that two looks give what came between.
    """
    found = await served.looks()
    return {
        "version": swaptide.__version__,
        "pid": os.getpid(),
        "at_seconds": time.monotonic(),
        "host": balloon.view(),
        "disks": found,
        "guests": await watched.all(),
    }
