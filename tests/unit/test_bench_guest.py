"""The guest row's pure parts: what is read of the host and of a guest, and the figures made of it."""

import pytest

from bench import guests, measure, rows_guest, servers
from tests.vm import accel, report

STAT = "cpu  100 10 50 9000 300 5 35 70 20 0\ncpu0 50 5 25 4500 150 3 17 35 10 0\nintr 1\n"
ROLLUP = """55d0c0000000-7ffd1f3ff000 ---p 00000000 00:00 0    [rollup]
Rss:              300000 kB
Pss:              200000 kB
Pss_Dirty:        190000 kB
Pss_Anon:          90000 kB
Pss_File:          10000 kB
Pss_Shmem:        100000 kB
"""
ZRAM = "GUEST-ZRAM algorithm=lzo-rle orig=234881024 compr=75000000 used=78643200"
CHOICE = accel.Accel("tcg", "no KVM")


def a_run(seconds: float, *, server: float | None = 1.0, notes: tuple[str, ...] = ()) -> guests.Run:
    """Half a GiB moved."""
    return guests.Run(seconds, 65536, 65536, 10.0, server, 20.0, 300 << 20, notes)


def numbers(line: str) -> report.Numbers:
    said = report.parse(line)
    assert said is not None
    return report.numbers_of(said)


def test_busy_time_leaves_idle_wait_and_steal_out() -> None:
    assert guests.busy_seconds(STAT) == pytest.approx(200 / guests._TICKS)


def test_private_memory_has_no_shared_memory_in_it() -> None:
    assert guests.private_bytes(ROLLUP) == 100_000 << 10
    assert guests.anonymous_bytes(ROLLUP) == 90_000 << 10


def test_cpu_between_two_moments() -> None:
    start, end = guests.Times(10.0, 1.0, 100.0), guests.Times(14.0, 1.5, 107.0)
    assert start.until(end) == (4.5, 0.5, 7.0)
    bare = guests.Times(10.0, None, 100.0)
    assert bare.until(guests.Times(14.0, None, 107.0)) == (4.0, None, 7.0)


def test_zram_is_told_in_words() -> None:
    assert guests.facts(["[    1.0] noise", ZRAM], None) == (
        "224 MiB in 75 MiB of the guest's memory in the end, 3.0 to 1",
    )


@pytest.mark.parametrize(
    ("line", "trouble", "words"),
    [
        ("GUEST-RESULT wrong=2 pswpin=1 pswpout=1 died=0", [], "2 wrong pages"),
        ("GUEST-RESULT wrong=0 pswpin=1 pswpout=1 died=1", [], "1 workers died"),
        ("GUEST-RESULT wrong=0 pswpin=1 pswpout=1 died=0", ["I/O error, dev vda"], "I/O error, dev vda"),
        ("GUEST-RESULT wrong=0 pswpin=0 pswpout=9 died=0", [], "did not swap"),
    ],
)
def test_a_run_that_does_not_count(line: str, trouble: list[str], words: str) -> None:
    with pytest.raises(measure.ContenderError, match=words):
        guests.judge(numbers(line), trouble)


def test_a_sound_run_counts() -> None:
    guests.judge(numbers("GUEST-RESULT wrong=0 pswpin=1 pswpout=1 died=0"), [])


def test_measurements_of_two_rounds() -> None:
    runs = {
        rows_guest.MEMORY: [a_run(4.0), a_run(5.0)],
        measure.OURS: [a_run(4.5), a_run(4.0)],
        "zram zstd (in guest)": [a_run(9.0, server=None)],
    }
    found = rows_guest.measurements(rows_guest.QUICK, runs, {"qemu file none": "no"}, ("note",))
    by_metric = {each.metric: each for each in found}
    assert len(by_metric) == len(rows_guest.METRICS)
    clock = by_metric["wall clock"]
    assert clock.values[measure.OURS] == [4.5, 4.0]
    assert (clock.row, clock.better, clock.reference) == (rows_guest.ROW, "less", (rows_guest.MEMORY,))
    assert (clock.failed, clock.notes) == ({"qemu file none": "no"}, ("note",))
    assert by_metric["CPU of QEMU and server"].values[measure.OURS] == [20.0, 20.0]
    assert by_metric["CPU of the server"].values == {
        name: [2.0, 2.0] for name in (rows_guest.MEMORY, measure.OURS)
    }
    assert by_metric["host RAM"].values["zram zstd (in guest)"] == [300.0]


def test_notes_say_the_accelerator_and_what_contenders_said_last() -> None:
    runs = {"zram lzo-rle (in guest)": [a_run(1.0, notes=("old",)), a_run(1.0, notes=("3.0 to 1",))]}
    said = rows_guest.notes(rows_guest.FULL, CHOICE, runs)
    assert "accelerator tcg" in said[0]
    assert said[-1] == "zram lzo-rle (in guest): 3.0 to 1"


@pytest.mark.parametrize("work", [rows_guest.FULL, rows_guest.QUICK])
def test_contenders_have_what_the_measurements_name(work: rows_guest.Work) -> None:
    names = [each.name for each in rows_guest.contenders(work)]
    assert len(set(names)) == len(names)
    assert {measure.OURS, rows_guest.AGAIN, rows_guest.MEMORY} <= set(names)
    assert servers.nbdkit_memory().name.startswith(rows_guest.MEMORY)
