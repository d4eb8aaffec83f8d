"""Logging of the daemon: key=value lines on stderr."""

import logging
import sys

_FORMAT = "time=%(asctime)s.%(msecs)03d level=%(levelname)s part=%(name)s %(message)s"


def to_stderr() -> None:
    """Send this package's log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger("swaptide")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # It complains of each attempt to reach a guest; we say once what is wrong with one.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
