"""What holds for the whole test run: a run that skipped its way to success is a failure.

SWAPTIDE_MIN_TESTS (set by `make test`) is the least number of tests that have to pass.
"""

import os
import signal

import pytest


class Minimum:
    """Counts the tests that passed; fails the session when they are fewer than `wanted`."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.passed < self.wanted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.passed < self.wanted:
            terminalreporter.write_line(
                f"FAILED: {self.passed} passed, at least {self.wanted} have to", red=True
            )


def _be_in_nobodys_place() -> None:
    """What is said, and how wide, is the same whoever runs the tests from wherever."""
    os.environ["LC_ALL"] = "C.UTF-8"
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "LANGUAGE"):
        os.environ.pop(name, None)
    # Under nohup our children would ignore hang-ups as well; what is only handled here is not theirs.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has us ignore SIGINT, and so would every process we start
    # and interrupt; a signal that is caught is not ignored by them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _be_in_nobodys_place()
    wanted = int(os.environ.get("SWAPTIDE_MIN_TESTS") or 0)
    if wanted and not config.option.collectonly:
        config.pluginmanager.register(Minimum(wanted), "swaptide-minimum")
