"""The build whose threads dawdle, and whose processes die, at named places (cache/atomics.h)."""

import functools
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
BUILT = ROOT / "build" / "points"


@functools.cache
def plugin() -> pathlib.Path:
    """The plugin of that build, compiled first if a source is newer."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-temp", "build/points-objects"]
    subprocess.run(
        [*command, "--build-lib", str(BUILT)],
        cwd=ROOT,
        env={**os.environ, "SWAPTIDE_POINTS": "1"},
        check=True,
        capture_output=True,
    )
    return BUILT / "swaptide" / "nbdkit_plugin" / "plugin.py"


def names() -> list[str]:
    """Every place where a process can be made to die."""
    found = []
    for source in sorted((ROOT / "cache").glob("*.pyx")):
        found += re.findall(r'\b(?:point|mortal)\("([^"]+)"\)', source.read_text())
    return found
