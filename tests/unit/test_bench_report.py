"""What a run is told as, from a small made-up run; and the plot of it."""

import io
import pathlib
import xml.etree.ElementTree as xml

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from bench import figures, host, measure, report

MACHINE = host.Host(
    cpu="A Processor",
    cores=2,
    memory_bytes=24 << 30,
    architecture="x86_64",
    kernel="6.1",
    clocksource="tsc",
    governor=None,
    is_virtual=True,
    scratch_filesystem="ext4",
    scratch_device="virtio disk, not rotational",
    load=(0.5, 0.25, 1.0),
    versions={"swaptide": "abc1234", "nbdkit": "1.32.5"},
)
RATE = measure.Measurement(
    row="reads",
    metric="rate",
    title="4 KiB random reads",
    unit="k/s",
    better="more",
    values={"t1": [50.0, 60.0], "t4": [100.0, 120.0], "t4 again": [110.0, 120.0], "swaptide": [150.0, 150.0]},
    reference=("t1", "t4"),
    again=("t4 again", "t4"),
    failed={"qemu-nbd": "no | file"},
    notes=("t4 has no cap",),
)
GOLDEN_GROUP = """\
| work | metric | t1 | t4 | t4 again | swaptide | qemu-nbd | swaptide / reference | noise floor | verdict |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| 4 KiB random reads | rate, k/s | 55.0 | 110 | 115 | **150** | failed | 1.38 (1.25 to 1.50) of t4 \
| 1.05 (1.00 to 1.10) | ahead |

- t4 has no cap
"""
GOLDEN_DETAILS = """\
### 4 KiB random reads: rate, k/s

Row `reads`, more is better, against t4, noise floor 1.05 (1.00 to 1.10).

| contender | median | least | quartiles | greatest | rounds | ratio |
|---|---:|---:|---:|---:|---:|---:|
| t1 | 55.0 | 50.0 | – | 60.0 | 2 | 0.50 (0.50 to 0.50) |
| t4 | 110 | 100 | – | 120 | 2 | 1.00 (1.00 to 1.00) |
| t4 again | 115 | 110 | – | 120 | 2 | 1.05 (1.00 to 1.10) |
| swaptide | 150 | 150 | – | 150 | 2 | 1.38 (1.25 to 1.50) |
| qemu-nbd | failed: no \\| file |  |  |  |  |  |
"""


def made_up(*rows: report.RowResult) -> report.Report:
    plan = measure.Plan(rounds=2, seconds=0.5, quick=True)
    return report.Report("2026-01-02 03:04 UTC", "bench/run.py --quick", plan, MACHINE, 125.0, rows)


READS = report.RowResult("reads", "nbd", "Reads", 60.0, (figures.evaluate(RATE),))
BROKEN = report.RowResult("boom", "guest", "It breaks", 1.0, error="RuntimeError: it\nbroke | badly")


def test_markdown_has_the_tables() -> None:
    text = report.markdown(made_up(READS))
    assert f"## nbd\n\n{GOLDEN_GROUP}" in text
    assert GOLDEN_DETAILS in text
    assert "failed:**" not in text


def test_markdown_names_settings_and_machine() -> None:
    text = report.markdown(made_up(READS))
    for fact in (
        "`bench/run.py --quick`, 2026-01-02 03:04 UTC, took 2:05 minutes",
        "quick, 2 rounds, 0.500 s for each measurement",
        "A Processor, 2 cores, 24 GiB, x86_64, virtual machine",
        "Linux 6.1, clock tsc\n",
        "ext4, virtio disk, not rotational",
        "swaptide abc1234, nbdkit 1.32.5",
    ):
        assert fact in text


def test_markdown_tells_what_failed() -> None:
    text = report.markdown(made_up(READS, BROKEN))
    assert "**This run failed:**\n\n- boom: RuntimeError: it broke \\| badly" in text
    assert "## guest\n\n- boom failed: RuntimeError: it broke \\| badly" in text


def test_only_rows_and_swaptide_fail_a_run() -> None:
    assert report.failures(made_up(READS)) == []
    ours = figures.evaluate(measurement_without_us())
    row = report.RowResult("reads", "nbd", "Reads", 1.0, (ours, ours))
    assert report.failures(made_up(row, BROKEN)) == ["reads: swaptide: no memory", f"boom: {BROKEN.error}"]


def measurement_without_us() -> measure.Measurement:
    values = {"t1": [1.0]}
    return measure.Measurement(
        "reads", "rate", "Reads", "k/s", "more", values, ("t1",), None, {"swaptide": "no memory"}
    )


def test_json_is_read_back_as_it_was() -> None:
    results = made_up(READS, BROKEN)
    back = report.from_json(report.to_json(results))
    # Tuples of values come back as lists: compared as JSON, and where it counts as objects.
    assert report.to_json(back) == report.to_json(results)
    assert back.rows[0].comparisons[0].figures == READS.comparisons[0].figures
    assert back.rows[0].comparisons[0].measurement == RATE
    assert back.host == MACHINE and back.rows[1].error == BROKEN.error


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        report.from_json('{"date": 1}')


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_table_fits(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    shown = report.terminal(made_up(READS, BROKEN))
    for each in shown:
        if isinstance(each, Table):
            console.print(each)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    for cell in ("reads", "k/s", "t4", "110", "150", "1.38", "ahead", "boom", "failed"):
        assert cell in text
    assert "FAILED boom: RuntimeError: it broke | badly" in shown
    assert "reads: qemu-nbd failed: no | file" in shown


def test_minutes() -> None:
    assert [report.minutes(each) for each in (0.4, 59.6, 125, 3730)] == ["0:00", "1:00", "2:05", "62:10"]


def drawn(path: pathlib.Path, *rows: report.RowResult) -> str:
    plot = pytest.importorskip("bench.plot", reason="matplotlib is missing (make bench installs it)")
    plot.draw(made_up(*rows), path)
    return path.read_text()


def test_plot_names_every_contender(tmp_path: pathlib.Path) -> None:
    text = drawn(tmp_path / "a.svg", READS, BROKEN)
    assert xml.fromstring(text).tag.endswith("svg")
    words = {(element.text or "").strip() for element in xml.fromstring(text).iter() if element.text}
    assert {*RATE.values, *RATE.failed, "4 KiB random reads: rate"} <= words
    assert {"failed", "1.38× · 150 k/s"} <= words


def test_plot_is_the_same_twice(tmp_path: pathlib.Path) -> None:
    assert drawn(tmp_path / "a.svg", READS, READS, READS) == drawn(tmp_path / "b.svg", READS, READS, READS)


def test_plot_of_nothing(tmp_path: pathlib.Path) -> None:
    assert "svg" in drawn(tmp_path / "a.svg", BROKEN)
