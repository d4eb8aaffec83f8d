"""Logging of the daemon: on stderr, as text or JSON, and what it says last where nobody reads that."""

import logging
import sys

from swaptide.cache import logs

log = logging.getLogger(__name__)


def to_stderr(form: logs.Form) -> None:
    """Send the log to stderr from now on."""
    logs.to_stderr(form)
    # It complains of each attempt to reach a guest; we say once what is wrong with one.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


def is_for_programs(form: logs.Form) -> bool:
    """Whether an error that ends the daemon belongs in the log, and is not for somebody at a prompt."""
    return form is logs.Form.JSON or logs.is_journal(sys.stderr)


def ended_by(error: str) -> None:
    """Say why the daemon ended."""
    log.critical("daemon ended error=%r", error)
