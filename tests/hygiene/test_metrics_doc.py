"""docs/metrics.md has every metric as the code has it; run as a program, this writes its table."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from prometheus_client import registry
from prometheus_client.process_collector import ProcessCollector

from swaptide.cache import metrics as cache_metrics
from swaptide.host import metrics
from tests.hygiene import tree

PAGE = tree.ROOT / "docs/metrics.md"
BEGIN, END = "<!-- the table: ", "<!-- end of the table -->"
# By name and label, the values of labels that have a few.
TIERS = ("raw", "packed", "spilled")
VALUES = {
    ("swaptide_disk_info", "compress"): ("none", "lz4", "zstd", "lz4+zstd"),
    ("swaptide_disk_info", "encrypted"): ("yes", "no"),
    ("swaptide_disk_ram_tier_bytes", "tier"): ("raw", "packed", "overhead"),
    ("swaptide_disk_content_bytes", "tier"): (*TIERS, "same_filled"),
    ("swaptide_disk_read_pages_total", "tier"): TIERS,
    ("swaptide_disk_requests_total", "op"): ("read", "write", "trim", "zero", "flush"),
    ("swaptide_disk_request_bytes_total", "op"): ("read", "write"),
    ("swaptide_disk_spill_errors_total", "op"): ("read", "write"),
    ("swaptide_disk_cleaned_segments_total", "place"): ("ram", "disk"),
    ("swaptide_disk_spill_store_used_bytes", "store"): cache_metrics.STORES,
    ("swaptide_disk_spill_store_size_bytes", "store"): cache_metrics.STORES,
    ("swaptide_disk_request_duration_seconds", "kind"): ("hit", "miss", "write"),
    ("swaptide_disk_state", "state"): metrics.DISK_STATES,
    ("swaptide_guest_state", "state"): metrics.GUEST_STATES,
    ("swaptide_balloon_decisions_total", "reason"): metrics.REASONS,
    ("swaptide_reservation_answers_total", "verdict"): metrics.VERDICTS,
}


def row(metric: cache_metrics.Metric) -> str:
    labels = []
    for label in metric.labels:
        values = VALUES.get((metric.name, label), ())
        labels.append(f"`{label}`" + (f" ({', '.join(values)})" if values else ""))
    return f"| `{metric.name}` | {metric.kind[0]} | {', '.join(labels)} | {metric.help} |"


def table() -> str:
    own = [metric for metric in metrics.CATALOGUE if metric not in cache_metrics.CATALOGUE]
    rows = [*map(row, cache_metrics.CATALOGUE), "| **by the daemon only** | | | |", *map(row, own)]
    return "\n".join(["| name | kind | labels | what it says |", "|---|---|---|---|", *rows]) + "\n"


def parts() -> tuple[str, str, str]:
    """The page up to the table, the table, and the rest."""
    text = PAGE.read_text()
    start = text.index("\n", text.index(BEGIN)) + 1
    end = text.index(END)
    return text[:start], text[start:end], text[end:]


def test_every_metric_is_documented_as_it_is() -> None:
    assert parts()[1] == table(), "write it anew: python -m tests.hygiene.test_metrics_doc"


def test_no_other_metric_is_named() -> None:
    named = set(re.findall(r"\bswaptide_[a-z_]+", PAGE.read_text()))
    known = {metric.name for metric in metrics.CATALOGUE}
    known |= {f"{metric.name}_bucket" for metric in metrics.CATALOGUE if metric.kind == "histogram"}
    assert named <= known
    own = registry.CollectorRegistry()
    ProcessCollector(registry=own)
    told = {sample.name for family in own.collect() for sample in family.samples}
    assert told and told == set(re.findall(r"`(process_[a-z_]+(?:seconds|bytes|fds|total))`", parts()[2]))


@pytest.mark.parametrize("metric", metrics.CATALOGUE, ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: cache_metrics.Metric) -> None:
    assert re.fullmatch(r"swaptide_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".") and "|" not in metric.help
    assert len({each.name for each in metrics.CATALOGUE}) == len(metrics.CATALOGUE)
    if metric.kind == "histogram":
        assert metric.name.endswith("_seconds")


def test_queries_are_ones_that_prometheus_understands(tmp_path: pathlib.Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian package prometheus)")
    queries = re.findall(r"^\| [^|]*\? \| `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(queries) >= 7
    rules = [{"record": f"doc:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.json"  # which is YAML as well
    file.write_text(json.dumps({"groups": [{"name": "doc", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0 and f"{len(queries)} rules found" in done.stdout, done


def test_listed_values_are_of_labels_that_there_are() -> None:
    labels = {(metric.name, label) for metric in metrics.CATALOGUE for label in metric.labels}
    assert labels >= VALUES.keys()


if __name__ == "__main__":
    before, _, after = parts()
    PAGE.write_text(before + table() + after)
