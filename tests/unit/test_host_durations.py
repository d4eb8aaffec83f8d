"""Times on the command line."""

import pytest

from swaptide.cache.errors import UsageError
from swaptide.host import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2.0), ("500ms", 0.5), (" 1.5m ", 90.0), ("24h", 86400.0), ("0.25s", 0.25), ("1ms", 0.001)],
)
def test_times(text: str, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "2", "s", "-1s", "0s", "0.0ms", "25h", "1e3s", "1,5s", "2 s", "nans", "٢s", "9" * 50 + "s", "1.s"],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write for example 500ms or 2s") as refused:
        durations.parse(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.4, "3.4 s"), (0.0512, "0.0512 s"), (2.0449, "2.04 s"), (1234.5, "1234 s")]
)
def test_shown(seconds: float, shown: str) -> None:
    assert durations.show(seconds) == shown
