"""The dashboards' files agree with each other, with what is measured, and with what is documented."""

import itertools
import math
import re
import shutil
import subprocess

import pytest

from dashboards import build, panels
from swaptide.cache import metrics as disk_metrics
from swaptide.host import metrics as host_metrics
from tests import queries
from tests.hygiene import test_metrics_doc

DOCUMENT = (queries.ROOT / "docs/dashboard.md").read_text()


def every_expr() -> list[str]:
    found = [*queries.page_graphs(), *queries.page_rows(), *queries.rules().values()]
    return [*found, *(target["expr"] for target in queries.grafana_targets())]


def test_built_files_are_up_to_date() -> None:
    stale = [path.name for path, text in build.files().items() if path.read_text() != text]
    assert not stale, "run `python dashboards/build.py`, which makes them"


def test_page_and_grafana_show_the_same_graphs() -> None:
    drawn = [panel for panel in queries.grafana()["panels"] if panel["type"] == "timeseries"]
    shown = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in drawn}
    assert shown == {
        panel["title"]: [query["expr"] for query in panel["queries"]] for panel in queries.page_panels()
    }
    assert len(shown) == len(panels.PANELS) > 10


def test_only_metrics_that_there_are() -> None:
    known = {metric.name for metric in (*disk_metrics.CATALOGUE, *host_metrics.CATALOGUE)}
    used = {name for expr in every_expr() for name in queries.METRIC.findall(expr)}
    ends = ("", "_bucket", "_sum", "_count")
    assert not {name for name in used if not any(name.removesuffix(end) in known for end in ends)}
    assert len(used) > 30


def test_only_labels_and_values_that_there_are() -> None:
    """`tier!="spiled"` has data, and more than it should."""
    labels = {metric.name: metric.labels for metric in (*disk_metrics.CATALOGUE, *host_metrics.CATALOGUE)}
    labels["ALERTS"] = ("alertname", "alertstate")
    compared = 0
    for selector in {each for expr in every_expr() for each in queries.selectors(expr)}:
        name = re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", selector)
        for label, values in queries.matchers(selector):
            assert label in (*labels.get(name, ()), "instance", "job"), selector
            known = test_metrics_doc.VALUES.get((name, label))
            if known is not None:
                assert set(values) <= set(known), selector
                compared += 1
    assert compared > 10


# What people see who lack one of the three kinds of cones (Machado, Oliveira and Fernandes, 2009).
BLINDNESS = {
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protan": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritan": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
# Twice what is seen as another colour where two areas touch, in CIE's Lab.
APART = 15.0


def lab(colour: str, kind: str) -> tuple[float, float, float]:
    """A colour as such a person sees it."""
    linear = [(each / 255) ** 2.2 for each in bytes.fromhex(colour.removeprefix("#"))]
    red, green, blue = (
        min(1.0, max(0.0, sum(factor * each for factor, each in zip(row, linear, strict=True))))
        for row in BLINDNESS[kind]
    )
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (each ** (1 / 3) if each > 0.008856 else 7.787 * each + 16 / 116 for each in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_told_apart_by_everybody(kind: str) -> None:
    for several in (tuple(panels.COLOURS.values()), panels.PALETTE):
        for one, other in itertools.combinations(several, 2):
            assert math.dist(lab(one, kind), lab(other, kind)) > APART, (one, other)
    assert not set(panels.PALETTE) & set(panels.COLOURS.values())


def test_every_alert_is_tried_and_documented() -> None:
    tried = queries.RULES_TEST.read_text()
    for alert in queries.alerts():
        parts = tried.split(f"alertname: {alert}\n")[1:]
        assert any("exp_alerts" in part.split("alertname:")[0] for part in parts), f"{alert} is not tried"
        assert f"`{alert}`" in DOCUMENT, f"{alert} is not in docs/dashboard.md"
    asked_for = ("Degraded", "CapMissed", "RefaultStorm", "SpillNearlyFull", "StaleGuest", "ScrapeMissing")
    assert all(any(words in alert for alert in queries.alerts()) for words in asked_for)


def test_every_panel_is_documented() -> None:
    assert not [panel.title for panel in panels.PANELS if panel.title not in DOCUMENT]


@pytest.mark.parametrize(
    "words", [("check", "rules", str(queries.RULES)), ("test", "rules", str(queries.RULES_TEST))]
)
def test_promtool_takes_the_rules(words: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
