"""A run in which too few tests passed is a failure, however green each of them is."""

import os
import subprocess
import sys

import pytest

from tests.hygiene import tree


@pytest.mark.parametrize(("wanted", "status"), [("1", 0), ("2", 1), ("", 0)])
def test_minimum_decides(wanted: str, status: int) -> None:
    one_test = "tests/hygiene/test_tree.py::test_links_lead_to_their_rooms"
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", one_test],
        cwd=tree.ROOT,
        env={**os.environ, "SWAPTIDE_MIN_TESTS": wanted},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stdout
    assert ("FAILED: 1 passed, at least 2 have to" in result.stdout) == (status == 1)
