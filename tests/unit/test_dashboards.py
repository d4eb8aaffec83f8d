"""The dashboards' files agree with each other, with what is measured, and with what is documented."""

import itertools
import re
import shutil
import subprocess

import pytest

from dashboards import build, panels
from swaptide.cache import metrics as disk_metrics
from swaptide.host import metrics as host_metrics
from tests import queries

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


def test_grafana_takes_its_structure() -> None:
    made = queries.grafana()
    drawn = made["panels"]
    assert len({panel["id"] for panel in drawn}) == len(drawn)
    names = {variable["name"] for variable in made["templating"]["list"]}
    assert names == {"datasource", "instance", "disk"}
    for panel in drawn:
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        for used in re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])):
            assert used in {*names, "__rate_interval"}


def test_grafana_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in queries.grafana()["panels"]]
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)


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
