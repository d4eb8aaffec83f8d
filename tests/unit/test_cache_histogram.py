"""Histograms: the compiled core and Python put a value into the same bucket; quantiles; differences."""

import pathlib
import random
import struct
import subprocess

import pytest

from swaptide.cache import geometry, histogram, layout

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = r"""
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "histogram.h"
int main(int argc, char **argv)
{
    static uint64_t words[4 * HISTOGRAM_WORDS];
    uint64_t ns, bytes;
    int kind;
    while (scanf("%d %" SCNu64 " %" SCNu64, &kind, &ns, &bytes) == 3)
        count_request(words, kind, ns, bytes);
    fwrite(words, sizeof words, 1, stdout);
    return 0;
}
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A program that counts the requests on its standard input with the core's own code."""
    where = tmp_path_factory.mktemp("histogram")
    (where / "count.c").write_text(PROGRAM)
    command = ["gcc", "-O1", "-Wall", "-Werror", "-I", str(ROOT / "cache"), str(where / "count.c")]
    subprocess.run([*command, "-o", str(where / "count")], check=True)
    return where / "count"


def counted(counter: pathlib.Path, requests: list[tuple[int, int, int]]) -> dict[str, histogram.Histogram]:
    """What the core makes of (kind, nanoseconds, bytes)."""
    text = "".join(f"{kind} {ns} {size}\n" for kind, ns, size in requests)
    raw = subprocess.run([str(counter)], input=text.encode(), capture_output=True, check=True).stdout
    assert len(raw) == len(layout.HISTOGRAMS) * histogram.BYTES
    return {
        name: histogram.Histogram.unpack(raw[index * histogram.BYTES :])
        for index, name in enumerate(layout.HISTOGRAMS)
    }


def bucket_of(bounds: list[int], value: int, inclusive: bool) -> int:
    """The first bucket whose bound is not exceeded."""
    for bucket, bound in enumerate(bounds):
        if value < bound or (inclusive and value == bound):
            return bucket
    return len(bounds) - 1


LATENCIES = [histogram.latency_bound_ns(bucket) for bucket in range(histogram.LATENCY_BUCKETS)]
SIZES = [histogram.size_bound_bytes(bucket) for bucket in range(histogram.SIZE_BUCKETS)]


def test_bounds_rise_in_quarters_of_powers_of_two() -> None:
    assert LATENCIES[:6] == [256, 320, 384, 448, 512, 640]
    assert sorted(set(LATENCIES)) == LATENCIES
    assert LATENCIES[-1] > 500 * 10**9  # nothing that a client would wait for is beyond the last bucket
    assert SIZES[0] == 512 and SIZES[11] == 1 << 20


def test_core_and_python_agree_on_every_bucket(counter: pathlib.Path) -> None:
    draw = random.Random(7)
    edges = [bound + by for bound in LATENCIES for by in (-1, 0, 1)]
    latencies = [0, 1, 255, (1 << 63), *edges, *(int(2 ** draw.uniform(0, 41)) for _ in range(2000))]
    sizes = [0, 1, *(bound + by for bound in SIZES for by in (-1, 0, 1))]
    for kind, name in enumerate(layout.HISTOGRAMS):
        requests = [(kind, ns, sizes[i % len(sizes)]) for i, ns in enumerate(latencies)]
        found = counted(counter, requests)
        wanted_latency = [0] * histogram.LATENCY_BUCKETS
        wanted_size = [0] * histogram.SIZE_BUCKETS
        for _, ns, size in requests:
            wanted_latency[bucket_of(LATENCIES, ns, False)] += 1
            wanted_size[bucket_of(SIZES, size, True)] += 1
        assert list(found[name].latency) == wanted_latency
        assert list(found[name].size) == wanted_size
        assert found[name].latency_sum_ns == sum(ns for _, ns, _ in requests) % (1 << 64)
        assert found[name].size_sum_bytes == sum(size for _, _, size in requests)
        assert all(found[other].count == 0 for other in layout.HISTOGRAMS if other != name)


def test_quantiles_are_within_their_bucket(counter: pathlib.Path) -> None:
    draw = random.Random(8)
    latencies = sorted(int(draw.lognormvariate(10, 1.5)) + 300 for _ in range(5000))
    found = counted(counter, [(1, ns, 4096) for ns in latencies])["miss"]
    assert found.count == 5000
    for quantile in (0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = latencies[min(len(latencies) - 1, int(quantile * len(latencies)))] / 1e9
        estimate = found.quantile_seconds(quantile)
        assert estimate is not None and exact / 1.26 <= estimate <= exact * 1.26, quantile
    mean = found.mean_seconds()
    assert mean == pytest.approx(sum(latencies) / len(latencies) / 1e9)


def test_difference_is_what_came_in_between(counter: pathlib.Path) -> None:
    early = [(0, 1000, 4096), (0, 9000, 512)]
    late = [(0, 70_000, 32768), (0, 80_000, 32768)]
    between = counted(counter, early + late)["hit"] - counted(counter, early)["hit"]
    assert between == counted(counter, late)["hit"]
    assert between.count == 2 and between.size_sum_bytes == 65536


def test_no_requests_have_no_quantile() -> None:
    empty = histogram.Histogram.unpack(bytes(histogram.BYTES))
    assert empty.count == 0
    assert empty.quantile_seconds(0.5) is None and empty.mean_seconds() is None


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(struct.error):
        histogram.Histogram.unpack(bytes(histogram.BYTES - 1))


def test_the_header_has_room_for_them() -> None:
    assert len(layout.COUNTERS) * 8 <= geometry.HISTOGRAMS_OFFSET - geometry.COUNTERS_OFFSET
    end = geometry.HISTOGRAMS_OFFSET + len(layout.HISTOGRAMS) * histogram.BYTES
    assert end <= geometry.DIRECTORY_OFFSET
