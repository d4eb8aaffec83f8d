"""What every recipe works with: other programs, a cache directory, and a lock on it.

One process at a time holds the lock; what is made appears in the cache by renaming.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Final

import progress

CACHE: Final = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "vm"
# The package that brings a tool, where the names differ.
PACKAGES: Final = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "gcc": "gcc and libc6-dev",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
}
APT_SECONDS: Final = 300
TOOL_SECONDS: Final = 120


class BuildError(Exception):
    """The image cannot be built; str() is one line that says what to do."""


def run(*command: str, cwd: pathlib.Path | None = None, seconds: float = TOOL_SECONDS) -> str:
    """Run a tool to its end and return what it printed; raises BuildError with its last words."""
    progress.at(command[0])
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is missing; install {PACKAGES.get(command[0], command[0])}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {seconds:.0f} s; try again") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise BuildError(f"{' '.join(command[:3])}: {words[-1]}")
    return done.stdout


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """A directory beside the results, so that renaming out of it is atomic; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=CACHE) as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the cache's lock; the one before us may have done all the work."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "build.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in CACHE.glob(".new-*"):  # of a build that was killed outright
            shutil.rmtree(stale, ignore_errors=True)
        yield
