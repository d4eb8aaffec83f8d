"""What the benchmark reads out of fio's JSON, from recorded output, and how samples become figures."""

import json
import pathlib
from typing import Any

import pytest

from bench import fio, load, measure, ring, rows_cap, rows_nbd

RECORDED = pathlib.Path(__file__).with_name("fio-randwrite.json")


def changed(**job: Any) -> str:
    """The recorded output with some of the job's keys replaced."""
    whole = json.loads(RECORDED.read_text().partition("\n")[2])
    whole["jobs"][0].update(job)
    return json.dumps(whole)


def sample(requests: int = 1000, cpu: float | None = 0.5) -> load.Sample:
    """A second of 4 KiB requests."""
    return load.Sample(fio.Result(requests, requests * 4096, 1.0, 10, 20, 30, 40), cpu)


def test_reads_rate_bytes_and_latencies_past_what_fio_prints_first() -> None:
    found = fio.parse(RECORDED.read_text())
    assert found.requests == 34338
    assert found.rate == pytest.approx(34338 / 0.501)
    assert found.transferred_bytes == 140648448
    assert found.bytes_per_second == pytest.approx(140648448 / 0.501)
    assert (found.p50_us, found.p99_us, found.p999_us) == (171.008, 716.8, 2539.52)
    assert found.max_us == pytest.approx(4860.919)


@pytest.mark.parametrize("output", ["", "fio: connected to NBD server\n", "{", "{}", '{"jobs": []}'])
def test_output_that_is_no_result_is_an_error(output: str) -> None:
    with pytest.raises(measure.ContenderError, match="no JSON"):
        fio.parse(output)


def test_a_failed_job_is_an_error_and_not_a_figure() -> None:
    with pytest.raises(measure.ContenderError, match="error 5"):
        fio.parse(changed(error=5))


def test_a_job_without_requests_is_an_error() -> None:
    idle = {"total_ios": 0, "runtime": 0}
    with pytest.raises(measure.ContenderError, match="not a single request"):
        fio.parse(changed(read=idle, write=idle))


def test_each_metric_is_a_measurement_of_the_contenders_that_have_it() -> None:
    samples = {"ours": [sample(), sample(2000)], "no server": [sample(cpu=None)]}
    rate, cpu = load.measurements(
        *("row", "title", (load.RATE, load.CPU_US), samples),
        {"gone": "why"},
        reference=("ours",),
        notes=("twice", "twice", ""),
    )
    assert (rate.metric, rate.unit, rate.better) == ("rate", "k/s", "more")
    assert rate.values == {"ours": [1.0, 2.0], "no server": [1.0]}
    assert cpu.values == {"ours": [500.0, 250.0]}
    assert rate.failed == {"gone": "why"}
    assert rate.notes == ("twice",)


def test_cpu_per_gib() -> None:
    assert load.CPU_PER_GIB.of(sample(1 << 18, cpu=2.5)) == 2.5


def test_share_of_reads_that_missed() -> None:
    before, after = {"hits": 10, "misses": 10}, {"hits": 15, "misses": 105}
    assert ring.missed(before, after) == 0.95
    assert ring.missed(before, before) is None
    assert ring.missed({}, after) is None


def test_disks_are_larger_than_the_cap_where_the_disk_shall_count() -> None:
    for plan in (measure.Plan(2, 0.5, True), measure.Plan(5, 1.5, False)):
        size = rows_cap.scale(plan)
        assert size.written_bytes == 4 * size.cap_bytes
        assert size.mixed_bytes == 2 * size.cap_bytes
        assert 1 <= size.rounds <= plan.rounds


def test_rows_have_names_and_contenders_of_their_own() -> None:
    names = [row.name for row in (*rows_nbd.ROWS, *rows_cap.ROWS)]
    assert len(set(names)) == len(names) == 13
    contenders = [contender.name for contender in rows_nbd.contenders(1 << 20)]
    assert len(set(contenders)) == len(contenders)
    assert measure.OURS in contenders
