"""How many deaths are too many, and when they are forgotten."""

from swaptide.host import deaths


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_only_deaths_within_the_window_make_a_disk_unstable() -> None:
    clock = Clock()
    found = deaths.Deaths(clock)
    for _ in range(10):
        found.note()
        clock.now += deaths.WINDOW_SECONDS / (deaths.TOO_MANY - 1) + 1
    assert (found.total, found.unstable) == (10, False)
    for _ in range(deaths.TOO_MANY):
        clock.now += 1
        found.note()
    assert found.unstable and str(found) == "nbdkit died 4 times within 60 s"


def test_time_alone_does_not_make_it_steady() -> None:
    """One that dies less often because it is restarted less often is as bad as before."""
    clock = Clock()
    found = deaths.Deaths(clock)
    for _ in range(deaths.TOO_MANY):
        found.note()
    clock.now += 2 * deaths.WINDOW_SECONDS
    found.note()
    assert found.unstable
    found.forget()
    found.note()
    assert not found.unstable and found.total == deaths.TOO_MANY + 2
