"""What every guest scenario starts from: the accelerator, said aloud once, and a private daemon."""

from collections.abc import Iterator

import pytest

from tests.vm import accel, swaptided


@pytest.fixture(scope="session")
def accelerator(request: pytest.FixtureRequest) -> str:
    """`kvm` or `tcg`; which and why is printed past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        choice = accel.choose()
        print(choice)
    return choice.name


@pytest.fixture
def daemon() -> Iterator[swaptided.Daemon]:
    """A running daemon; the test fails if it leaves anything behind."""
    with swaptided.Daemon() as running:
        yield running
