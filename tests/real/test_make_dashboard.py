"""`make dashboard` from its first line to Ctrl-C, on a real daemon."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator

import pytest

from dashboards import prometheus
from tests import queries
from tests.real import daemons, scenes, sockets

# Scraped every two seconds, a rate has its two points in it, and a squeeze of just now is.
WINDOW = "2m"


@pytest.fixture(scope="module")
def scene() -> Iterator[scenes.Scene]:
    with scenes.running() as running:
        yield running


def command(*settings: str) -> list[str]:
    """`make dashboard` as it is typed; where we do not run in the checkout's .venv, with our own Python."""
    daemons.require("make")
    ours = pathlib.Path(sys.prefix) == queries.ROOT / ".venv"
    elsewhere = () if ours else ("-o", "setup", f"PYTHON={sys.executable}")
    return ["make", "--no-print-directory", "-C", str(queries.ROOT), "dashboard", *elsewhere, *settings]


@contextlib.contextmanager
def begun(root: pathlib.Path, *settings: str) -> Iterator["subprocess.Popen[str]"]:
    """It, in a session of its own, as a terminal has one, of which nothing is left in the end."""
    running = subprocess.Popen(
        command(*settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(root)},
    )
    try:
        yield running
    finally:
        for pid in members(running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.communicate()


def members(session: int) -> list[int]:
    """Every process of a session."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session
            ):
                found.append(int(entry.name))
    return found


def programs(session: int) -> set[str]:
    """What they are called."""
    found = set()
    for pid in members(session):
        with contextlib.suppress(OSError):
            found.add(pathlib.Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def interrupt(running: "subprocess.Popen[str]") -> None:
    """Ctrl-C: to everybody in the terminal's foreground."""
    os.killpg(running.pid, signal.SIGINT)


def terminate(running: "subprocess.Popen[str]") -> None:
    """As who started it in the background ends it."""
    running.terminate()


@pytest.mark.parametrize("end", [interrupt, terminate])
def test_it_shows_everything_until_it_is_ended(
    scene: scenes.Scene, tmp_path: pathlib.Path, end: object
) -> None:
    listen = f"127.0.0.1:{sockets.free_port()}"
    with begun(tmp_path, f"METRICS={scene.instance}", f"LISTEN={listen}") as running:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        assert url == f"http://{listen}/consoles/swaptide.html"
        assert "Ctrl-C" in running.stdout.readline()
        assert {"make", "prometheus"} <= programs(running.pid)
        shown = prometheus.Answers(f"http://{listen}")
        scenes.wait_for(lambda: "g.2" in shown.get("/consoles/swaptide.html"), "the page has the disks")
        assert "rule_files" not in shown.get("/consoles/swaptide.html"), "its rules are loaded"
        if end is interrupt:
            squeezes = "swaptide_disk_squeeze_duration_seconds_count"
            scenes.wait_for(lambda: bool(shown.query(squeezes)), "the first scrape")
            scenes.squeeze_and_pack(scene.daemon)
            graphs = [queries.chosen(expr, WINDOW) for expr in queries.page_graphs()]
            assert not scenes.without_data(shown, graphs)
        assert callable(end)
        end(running)
        said, complaints = running.communicate(timeout=60)
        assert said == "" and "Traceback" not in complaints and "dashboard:" not in complaints
        daemons.wait_for(lambda: not members(running.pid))
        assert not list(tmp_path.iterdir())
        with pytest.raises(urllib.error.URLError):
            shown.get("/-/ready")


def test_it_says_what_is_missing(scene: scenes.Scene, tmp_path: pathlib.Path) -> None:
    def refused(metrics: str, listen: str) -> str:
        with begun(tmp_path, f"METRICS={metrics}", f"LISTEN={listen}") as running:
            said, complaint = running.communicate(timeout=60)
        assert running.returncode == 2 and said == ""
        ours = [line for line in complaint.splitlines() if line.startswith("dashboard: ")]
        assert len(ours) == 1 and "Traceback" not in complaint
        return ours[0]

    free = f"127.0.0.1:{sockets.free_port()}"
    theirs = scene.prometheus.url.removeprefix("http://")
    assert "start `swaptide serve`" in refused(free, f"127.0.0.1:{sockets.free_port()}")
    assert "no swaptide daemon" in refused(theirs, free)
    assert "is taken" in refused(scene.instance, theirs)
    assert not list(tmp_path.iterdir())
