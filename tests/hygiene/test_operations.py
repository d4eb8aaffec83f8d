"""docs/operations.md has a section for each alert, with something to do in it, and in their order."""

import re

from swaptide.balloon import plan
from tests.hygiene import tree

PAGE = (tree.ROOT / "docs/operations.md").read_text()
RULES = (tree.ROOT / "dashboards/swaptide-rules.yml").read_text()
DASHBOARD = (tree.ROOT / "docs/dashboard.md").read_text()

ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)
SECTIONS = dict(re.findall(r"^### (Swaptide\w+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))


def test_every_alert_has_its_section() -> None:
    assert len(ALERTS) >= 16
    assert list(SECTIONS) == ALERTS


def test_every_section_says_what_to_do() -> None:
    assert not [name for name, text in SECTIONS.items() if len(text.split()) < 20]


def test_the_dashboard_page_knows_the_same() -> None:
    assert re.findall(r"^\| `(Swaptide\w+)` \|", DASHBOARD, re.MULTILINE) == ALERTS


def test_plan_reckons_with_what_was_measured() -> None:
    page, results = (
        (tree.ROOT / name).read_text() for name in ("docs/performance.md", "bench/results/full.md")
    )
    assert f"takes {plan.PROCESS_BYTES >> 20} MiB with the empty disk" in page
    assert f"each byte of host RAM holds {plan.HOLDS_REAL} guest bytes" in page
    assert re.search(rf"\n{plan.SPILL_SHARE} of the disk's speed", page)
    rows = [line for line in results.splitlines() if "| guest bytes held, per byte of host RAM |" in line]
    for name, value in (("anonymous pages", plan.HOLDS_REAL), ("random bytes", plan.HOLDS_NOISE)):
        assert [f"**{value}**" in row for row in rows if row.startswith(f"| {name}")] == [True]
