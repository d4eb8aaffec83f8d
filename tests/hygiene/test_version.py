"""The version is written in three places, since each has a reader of its own."""

import re
import tomllib

import swaptide
from tests.hygiene import tree


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = (tree.ROOT / "debian/changelog").read_text().splitlines()[0]
    match = re.fullmatch(r"swaptide \((.+)\) \w+; urgency=\w+", first)
    assert match is not None, first
    assert project == match[1] == swaptide.__version__
