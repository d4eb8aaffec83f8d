"""What guests say is understood, also when one is cut off in the middle of a line."""

from tests.vm import report

PROGRESS = "GUEST-PROGRESS wrong=1 checked=25 pswpin=3 swapped_kib=4 free_kib=5 total_kib=6 died=0 phase=fill"


def test_a_line_and_its_numbers() -> None:
    found = report.parse(PROGRESS + "\r")
    assert found is not None and found.kind == "PROGRESS"
    numbers = report.numbers_of(found)
    assert (numbers.wrong, numbers.checked, numbers.phase) == (1, 25, "fill")
    assert (numbers.swapped_bytes, numbers.free_bytes, numbers.total_bytes) == (4096, 5120, 6144)
    assert report.parse("[    1.0] random: crng init done") is None


def test_what_follows_a_line_that_was_cut_counts() -> None:
    for end in range(len(PROGRESS)):
        found = report.parse(PROGRESS[:end] + "GUEST-READY kernel=6.1 uptime=2.5")
        assert found is not None and (found.kind, found.fields["uptime"]) == ("READY", "2.5")
