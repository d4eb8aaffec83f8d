"""What the dashboards ask Prometheus, taken from the files that an operator gets."""

import html
import json
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "dashboards/consoles/swaptide.html"
GRAFANA = ROOT / "dashboards/swaptide-grafana.json"
RULES = ROOT / "dashboards/swaptide-rules.yml"
RULES_TEST = ROOT / "dashboards/swaptide-rules-test.yml"

_QUERY = re.compile(r"(?:query|printf) `([^`]+)`")
_PANELS = re.compile(r'<script type="application/json" id="panels">(.*?)</script>', re.DOTALL)
_RULE = re.compile(
    r"^ {6}- (alert|record): (\S+)\n(?: {8}#.*\n)*? {8}expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)", re.MULTILINE
)
METRIC = re.compile(r"\bswaptide_\w+")
_SELECTOR = re.compile(r"\b(?:swaptide[\w:]+\b|\w+(?=\{))(?:\{[^}]*\})?")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')


def page_panels() -> list[dict[str, Any]]:
    """The graphs of the page."""
    match = _PANELS.search(PAGE.read_text())
    assert match is not None
    found: list[dict[str, Any]] = json.loads(match[1])["panels"]
    return found


def page_graphs() -> list[str]:
    """What the page's graphs ask."""
    return [query["expr"] for panel in page_panels() for query in panel["queries"]]


def page_rows(instance: str = "", disk: str = "") -> list[str]:
    """What its template asks, of one host and disk where that is about one."""
    found = [html.unescape(text) for text in _QUERY.findall(PAGE.read_text())]
    return [expr.replace("%[1]q", json.dumps(instance)).replace("%[2]q", json.dumps(disk)) for expr in found]


def grafana() -> dict[str, Any]:
    """Grafana's dashboard."""
    found: dict[str, Any] = json.loads(GRAFANA.read_text())
    return found


def grafana_targets() -> list[dict[str, Any]]:
    """Every query of it."""
    return [target for panel in grafana()["panels"] for target in panel["targets"]]


def selectors(expr: str) -> list[str]:
    """The series that it asks for: names with their labels."""
    return _SELECTOR.findall(expr)


def matchers(selector: str) -> list[tuple[str, list[str]]]:
    """The labels of a selector, and the values that each is compared with."""
    return [(label, values.split("|")) for label, values in _MATCHER.findall(selector)]


def chosen(expr: str, window: str = "1m") -> str:
    """A graph's expression as it is asked where nothing is chosen."""
    return expr.replace("$__rate_interval", window).replace("$instance", ".*").replace("$disk", ".*")


def rules() -> dict[str, str]:
    """What is recorded, and what alerts are about, by name."""
    found = {name: (block or line).strip() for _, name, block, line in _RULE.findall(RULES.read_text())}
    assert len(found) == len(re.findall(r"^ {6}- (?:alert|record): ", RULES.read_text(), re.MULTILINE))
    return found


def alerts() -> list[str]:
    """The names of all alerts."""
    return [name for name in rules() if name.startswith("Swaptide")]
