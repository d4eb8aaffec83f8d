"""Spill files as the daemon handles them: always with a time limit, since their store may be dead."""

import logging
import pathlib

from swaptide.cache import spillfile
from swaptide.cache.errors import SwaptideError
from swaptide.host import detached

log = logging.getLogger(__name__)

LIMIT_SECONDS = 2.0


async def release(path: pathlib.Path, disk_id: str) -> None:
    """Give up the spill of `disk_id` at `path`; trouble is logged, and a dead store left behind."""
    try:
        await detached.call(lambda: spillfile.release(path, disk_id), LIMIT_SECONDS)
    except TimeoutError:
        log.warning("store does not answer, spill left for later spill=%s", path)
    except (OSError, SwaptideError) as error:
        log.warning("spill not released spill=%s error=%r", path, str(error))


async def collect(directory: pathlib.Path) -> None:
    """Remove the spill files of vanished disks in `directory`; missing is fine."""
    try:
        removed = await detached.call(lambda: spillfile.collect_orphans(directory), LIMIT_SECONDS)
    except TimeoutError:
        log.warning("store does not answer, orphans left for later directory=%s", directory)
    except (OSError, SwaptideError) as error:
        log.warning("orphans not collected directory=%s error=%r", directory, str(error))
    else:
        for path in removed:
            log.info("orphan spill file removed file=%s", path)
