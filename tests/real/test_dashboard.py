"""The dashboards on a real Prometheus that asks a real daemon: every expression has data, so has the page."""

import html.parser
import pathlib
import re
import time
from collections.abc import Iterator

import pytest

from dashboards import prometheus
from tests import queries
from tests.real import daemons, scenes, sockets

# However slow the host: what was squeezed at the beginning is in it.
WINDOW = "30m"


@pytest.fixture(scope="module")
def scene() -> Iterator[scenes.Scene]:
    with scenes.running() as running:
        yield running


@pytest.fixture
def pending(scene: scenes.Scene) -> None:
    """An alert that has just begun, and does not fire yet."""
    frozen = 'ALERTS{alertname="SwaptideDiskFrozen"%s}'
    scene.daemon.ok("disk", "thaw", "frozen")
    scenes.wait_for(lambda: not scene.prometheus.query(frozen % ""), "the alert is over")
    scene.daemon.ok("disk", "freeze", "frozen")
    scenes.wait_for(
        lambda: bool(scene.prometheus.query(frozen % ',alertstate="pending"')), "the alert has begun"
    )


class Page(html.parser.HTMLParser):
    """The page's table, by disk: the cells' texts, the widths of the bar's parts; and what is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.bars: list[dict[str, float]] = []
        self.wrong: list[str] = []
        self._in: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
            self.bars.append({})
        elif tag == "td":
            self.rows[-1].append("")
        elif tag == "li":
            self.wrong.append("")
        elif tag == "i" and "style" in given:
            width = re.fullmatch(r"flex: 0 0 calc\(100% \* ([0-9.]+)\)", given["style"] or "")
            assert width is not None, given
            self.bars[-1][given["class"] or ""] = float(width[1])
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self._in:
            self.rows[-1][-1] += data.strip()
        if "li" in self._in:
            self.wrong[-1] += data

    def disk(self, name: str) -> tuple[list[str], dict[str, float]]:
        """Cells and bar of a disk."""
        return next(
            (row, bar) for row, bar in zip(self.rows, self.bars, strict=True) if row and row[0] == name
        )


def test_every_graph_has_data(scene: scenes.Scene, pending: None) -> None:
    graphs = {*queries.page_graphs()}
    targets = {target["expr"] for target in queries.grafana_targets()}
    assert graphs <= targets
    assert not scenes.without_data(scene.prometheus, [queries.chosen(target, WINDOW) for target in targets])


def test_every_row_of_the_page_has_data(scene: scenes.Scene, pending: None) -> None:
    assert not scenes.without_data(scene.prometheus, queries.page_rows(scene.instance, "g1"))


def test_a_range_is_what_the_graphs_ask_for(scene: scenes.Scene) -> None:
    end = int(time.time())
    for expr in queries.page_graphs():
        given = {"query": queries.chosen(expr, "60s"), "start": str(end - 60), "end": str(end), "step": "1"}
        assert scene.prometheus.ask("query_range", **given)["resultType"] == "matrix"


def test_chosen_disks_are_the_only_ones(scene: scenes.Scene) -> None:
    by_disk = [expr for expr in queries.page_graphs() if "by (instance, disk)" in expr]
    for expr in by_disk:
        one = expr.replace("$disk", r"g\\.2").replace("$instance", ".*").replace("$__rate_interval", "1m")
        assert {found["metric"]["disk"] for found in scene.prometheus.query(one)} <= {"g.2"}


def test_every_rule_works_and_asks_for_what_there_is(scene: scenes.Scene) -> None:
    groups = scene.prometheus.ask("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert found.keys() == queries.rules().keys()
    scenes.wait_for(lambda: healthy(scene.prometheus), "every rule was tried, and works")
    records = [name for name in found if name.startswith("swaptide:")]
    assert not scenes.without_data(scene.prometheus, records)


def every_expr(scene: scenes.Scene) -> set[str]:
    """All that the page, Grafana and the rules ask."""
    targets = (queries.chosen(target["expr"], WINDOW) for target in queries.grafana_targets())
    graphs = (queries.chosen(expr, WINDOW) for expr in queries.page_graphs())
    return {*targets, *graphs, *queries.page_rows(scene.instance, "g1"), *queries.rules().values()}


def test_every_selector_finds_something(scene: scenes.Scene, pending: None) -> None:
    """Also where an expression has data without it, or has none as long as all is well."""
    asked = {selector for expr in every_expr(scene) for selector in queries.selectors(expr)}
    states = {each for each in asked if each.startswith(("swaptide_disk_state", "swaptide_guest_state"))}
    assert len(asked) > 40 and len(states) >= 3
    assert not scenes.without_data(scene.prometheus, asked)


def test_a_name_that_is_misspelt_would_be_found(scene: scenes.Scene) -> None:
    """What the test above would say of each expression, with each name in it misspelt in turn."""
    found = 0
    for expr in every_expr(scene):
        assert queries.selectors(expr), expr
        for selector in queries.selectors(expr):
            name = re.match(r"[\w:]+", selector)
            assert name is not None
            wrong = selector.replace(name[0], f"{name[0]}z", 1)
            assert wrong in queries.selectors(expr.replace(selector, wrong))
            assert not scenes.has_data(scene.prometheus, wrong), wrong
            found += 1
    assert found > 100


def healthy(asked: prometheus.Prometheus) -> bool:
    rules = [rule for group in asked.ask("rules")["groups"] for rule in group["rules"]]
    assert not [rule for rule in rules if rule["health"] == "err"], rules
    return all(rule["health"] == "ok" for rule in rules)


def test_grafana_finds_hosts_and_disks(scene: scenes.Scene) -> None:
    def values(label: str, metric: str) -> list[str]:
        found: list[str] = scene.prometheus.ask(f"label/{label}/values", **{"match[]": metric})
        return found

    assert values("instance", "swaptide_build_info") == [scene.instance]
    assert values("disk", 'swaptide_disk_size_bytes{instance=~".*"}') == ["dying", "frozen", "g.2", "g1"]
    _, instance, disk = (each["query"] for each in queries.grafana()["templating"]["list"])
    assert instance["query"] == "label_values(swaptide_build_info, instance)"
    assert disk["query"] == 'label_values(swaptide_disk_size_bytes{instance=~"$instance"}, disk)'


def test_the_page_says_what_is_wrong_and_has_a_row_for_each_disk(scene: scenes.Scene, pending: None) -> None:
    text = ""

    def tells_all() -> bool:
        """A page by one good scrape: on a busy host one may fail, and tell nothing."""
        nonlocal text
        text = scene.prometheus.get("/consoles/swaptide.html")
        page = Page(text)
        if tuple(row[0] for row in page.rows if row) != scenes.DISKS:
            return False
        works = page.disk("g1")[0][10] not in ("", "–", "0 B/s")
        return works and any("DiskUnstable" in each for each in page.wrong) and "%" in page.disk("g1")[0][7]

    scenes.wait_for(tells_all, "an alert, all disks, a hit rate")
    seen = Page(text)
    assert not re.search(r"NaN|ZgotmplZ|no value|error", text.split('<script type="application/json"')[0])
    wrong = " ".join(seen.wrong)
    assert "dying" in wrong and re.search(r"DiskFrozen\W+frozen\W.*pending", wrong)
    assert "Nothing." not in wrong
    cells, bar = seen.disk("g1")
    assert cells[1] == "running" and cells[3:7] == ["192 MiB", cells[4], "48 MiB", "48 MiB"]
    assert re.fullmatch(r"[0-9.]+ MiB", cells[4]) and re.fullmatch(r"[0-9.]+ %", cells[7])
    assert (
        re.fullmatch(r"[0-9.]+ (µs|us|ms|s)", cells[8]) and cells[10].endswith("B/s") and cells[10] != "0 B/s"
    )
    assert bar.keys() == {"raw", "packed", "spilled", "same_filled"}
    assert bar["raw"] > 0.05 and bar["spilled"] > 0.05 and 0 < sum(bar.values()) < 1
    assert seen.disk("frozen")[0][1] == "frozen" and seen.disk("g.2")[1]["packed"] > 0
    assert seen.disk("dying")[0][-1] not in ("", "0", "–")


def test_the_page_keeps_to_one_disk_where_it_is_told_so(scene: scenes.Scene) -> None:
    def names(parameters: str) -> list[str]:
        page = Page(scene.prometheus.get(f"/consoles/swaptide.html?{parameters}"))
        return [row[0] for row in page.rows if row]

    # One scrape may fail on a busy host.
    scenes.wait_for(lambda: names("") == ["dying", "frozen", "g.2", "g1"], "all disks")
    scenes.wait_for(lambda: names("disk=g.2") == ["g.2"], "one")
    scenes.wait_for(lambda: names(f"disk=g1&instance={scene.instance}") == ["g1"], "one of a host")
    assert names("disk=g12")[0].startswith("No disk is known")
    assert names("disk=g1%22%7D)%20or%20up(%3Cscript%3E")[0].startswith("No disk is known")


def test_a_page_of_nothing_says_so(tmp_path: pathlib.Path) -> None:
    daemons.require("prometheus")
    with prometheus.running(tmp_path, [], f"127.0.0.1:{sockets.free_port()}") as empty:
        scenes.wait_for(lambda: bool(empty.query("swaptide:hosts_up:sum")), "the rules were tried")
        page = Page(empty.get("/consoles/swaptide.html"))
        assert page.rows[-1] == ["No disk is known to this Prometheus: does it scrape aswaptide serve?"]
        assert "have Prometheus load" not in " ".join(page.wrong)
        scenes.wait_for(lambda: "ScrapeMissing" in empty.get("/consoles/swaptide.html"), "the alert")


def test_the_page_links_to_pages_that_there_are(scene: scenes.Scene) -> None:
    text = scene.prometheus.get("/consoles/swaptide.html")
    links = set(re.findall(r'href="(/[^"]+)"', text))
    assert len(links) >= 4
    for link in links:
        assert "swaptide" in scene.prometheus.get(link.replace("&amp;", "&"))
