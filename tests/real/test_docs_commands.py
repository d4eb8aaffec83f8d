"""The commands of README and docs work as they stand there, one after the other, on a real daemon."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.hygiene import tree
from tests.real import daemons

PAGES = ("README.md", "docs/using.md", "docs/operations.md")
# What begins so is not run here, and where it is tried.
ELSEWHERE = {
    "serve": "tests/real/daemons.py",
    "top": "tests/real/test_top.py",
    "attach": "tests/real/test_guests.py",
    "detach": "tests/real/test_guests.py",
    "guest add": "tests/real/test_guests.py",
    "guest rm": "tests/real/test_guests.py",
    "reserve --release": "tests/real/test_reserve.py",
    "disk add g1 --size 8G": "tests/real/test_libvirt.py",
    "snippet g1 --format libvirt-args": "tests/real/test_libvirt.py",
}
# These say with status 1 what this host lacks.
MAY_REFUSE = ("plan", "doctor", "reserve")
# What the disk of README takes on disk, and some.
SPACE_BYTES = 6 << 30


def lines(page: str) -> list[str]:
    """The commands in a page's blocks that are for a shell, without comments; removals come last."""
    text = (tree.ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    ours = list(dict.fromkeys(line for line in found if line.startswith("swaptide ")))
    return [line for line in ours if not any(line.startswith(f"swaptide {each}") for each in ELSEWHERE)]


@pytest.fixture
def daemon() -> Iterator[daemons.Daemon]:
    with daemons.directory() as root:
        if shutil.disk_usage(root).free < SPACE_BYTES:
            pytest.skip(f"{root} has less than {SPACE_BYTES >> 30} GiB free")
        with daemons.serving(root) as running:
            yield running


@pytest.mark.parametrize("page", PAGES)
def test_commands_work_as_they_stand(daemon: daemons.Daemon, tmp_path: pathlib.Path, page: str) -> None:
    commands = lines(page)
    assert len(commands) >= 5
    if not any(line.startswith("swaptide disk add") for line in commands):
        daemon.ok("disk", "add", "g1", "--size", "4G", "--ram", "1G")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SWAPTIDE_RUN_DIR": str(daemon.run_dir)}
    failed = []
    for line in commands:
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * daemons.WAIT_SECONDS,
        )
        if done.returncode > (line.split()[1] in MAY_REFUSE):
            failed.append((line, done.returncode, done.stderr))
    daemon.run("disk", "rm", "g1", "--force")
    assert not failed


def test_what_is_tried_elsewhere_is_there() -> None:
    shown = {
        line.strip().removeprefix("swaptide ")
        for page in PAGES
        for line in (tree.ROOT / page).read_text().splitlines()
    }
    for words, place in ELSEWHERE.items():
        assert any(line.startswith(words) for line in shown), words
        assert (tree.ROOT / place).exists()


def test_the_table_of_attaching_is_as_it_is_tried() -> None:
    """What stands in a table and in no block: QEMU, virsh and Proxmox VE have tests of their own."""
    readme = (tree.ROOT / "README.md").read_text()
    forms = re.findall(r"swaptide snippet g1( --format \w+ --lasting)?", readme)
    assert forms == ["", " --format libvirt --lasting", " --format proxmox --lasting"]
