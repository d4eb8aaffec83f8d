"""What docs name is there: files, keys of the configuration, metrics, figures of the benchmark."""

import pathlib
import re

import msgspec
import pytest

from swaptide.host import config, metrics
from tests.hygiene import tree

PAGES = [path for path in tree.named(".md") if "results" not in path.parts]
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FOLDERS = (
    "bench",
    "cache",
    "dashboards",
    "debian",
    "docs",
    "host",
    "nbdkit_plugin",
    "balloon",
    "stubs",
    "systemd",
)
PLACE = re.compile(rf"(?:{'|'.join((*FOLDERS, 'src', 'tests', 'vm-images'))})/[\w./-]*\w")
KEYS = {field.name for field in msgspec.structs.fields(config._File)}
RULES = (tree.ROOT / "dashboards/swaptide-rules.yml").read_text()


def spans(page: pathlib.Path) -> list[str]:
    """What stands in backquotes within a line."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return SPAN.findall(text)


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_files_are_there(page: pathlib.Path) -> None:
    named = {span for span in spans(page) if PLACE.fullmatch(span) and "NAME" not in span}
    assert not [name for name in sorted(named) if not (tree.ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_keys_of_the_configuration_are_there(page: pathlib.Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [*spans(page), *"".join(blocks).splitlines()]
    named = {match[1] for line in lines if (match := re.match(r"([a-z_]+) =( |$)", line))}
    assert named <= KEYS


@pytest.mark.parametrize("page", PAGES, ids=tree.label)
def test_metrics_are_there(page: pathlib.Path) -> None:
    known = {metric.name for metric in metrics.CATALOGUE}
    known |= {f"{metric.name}_{end}" for metric in metrics.CATALOGUE for end in ("bucket", "sum", "count")}
    assert set(re.findall(r"\bswaptide_(?!max\b)[a-z]\w+", page.read_text())) <= known
    recorded = set(re.findall(r"record: (\S+)", RULES))
    assert set(re.findall(r"(?<![=\w])swaptide:[\w:]+", page.read_text())) <= recorded


def test_the_guide_names_what_is_there() -> None:
    """Each name of CONTRIBUTING that has a file behind it, in parentheses, is in that file."""
    guide = " ".join((tree.ROOT / "CONTRIBUTING.md").read_text().split())
    groups = re.findall(r"((?:`[\w. ]+`(?:, | and | in )?)+) ?\(`([\w./-]+)`\)", guide)
    named = [
        (name.split(".")[-1].split()[-1], place) for names, place in groups for name in SPAN.findall(names)
    ]
    assert len(named) > 15
    assert not [
        (name, place)
        for name, place in named
        if not re.search(rf"\b{name}\b", (tree.ROOT / place).read_text())
    ]


def test_targets_are_those_of_the_run() -> None:
    pages = [(tree.ROOT / name).read_text() for name in ("docs/performance.md", "bench/results/full.md")]
    told, run = (re.findall(r"^\|.*\| (?:yes|\*\*no\*\*) \|$", page, re.MULTILINE) for page in pages)
    assert len(told) == 28 and told == run
