"""The dashboards on a real Prometheus that asks a real daemon: every expression has data, so has the page."""

import asyncio
import contextlib
import html.parser
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from dashboards import prometheus
from tests import queries
from tests.real import daemons, hosts, loads, scraping
from tests.unit import monitors

MIB = daemons.MIB
RUN = queries.ROOT / "dashboards/run.py"
PRESSURE = (
    "some avg10=1.25 avg60=0.00 avg300=0.00 total=9000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=500\n"
)
PATIENCE_SECONDS = 90.0
# However slow the host: what was squeezed at the beginning is in it.
WINDOW = "30m"
# One of a Grafana expression, or of a rule, with its labels.
SELECTOR = re.compile(r"\b(?:swaptide[\w:]+|up)(?:\{[^}]*\})?")


class Scene:
    """A daemon with all that there is to see, and a Prometheus that asks it."""

    def __init__(self, daemon: daemons.Daemon, asked: prometheus.Prometheus, instance: str) -> None:
        self.daemon = daemon
        self.prometheus = asked
        self.instance = instance


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Disks under load, packed, squeezed, frozen and dying; a guest; a host of 2 GiB."""
    daemons.require("prometheus")
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(daemons.directory())
        host = stack.enter_context(hosts.made_up(root, 2048 * MIB))
        (host.proc / "pressure").mkdir()
        pressure = host.proc / "pressure/memory"
        pressure.touch()
        settings: dict[str, Any] = {
            "proc_dir": str(host.proc),
            "host_reserve": "128M",
            "metrics": "127.0.0.1:0",
        }
        daemon = stack.enter_context(daemons.serving(root, **settings))
        pressure.write_text(PRESSURE)  # not before the daemon has written its trigger into it
        stack.enter_context(guest(root / "vm1.qmp"))
        daemon.ok("guest", "add", "vm1", "--qmp", str(root / "vm1.qmp"), "--min", "1G", "--max", "4G")
        daemon.add("g1", size=192 * MIB, ram="48M")
        with daemons.client(daemon.show("g1")) as handle:
            handle.pwrite(b"\x55" * MIB, 128 * MIB)
        daemon.add("g.2", "--clean-ahead", "0", size=192 * MIB, ram="128M")
        for name in ("frozen", "dying"):
            daemon.add(name, size=64 * MIB, ram="48M")
        daemon.ok("disk", "freeze", "frozen")
        stack.enter_context(loads.loaded(daemon.show("g1")))
        instance = f"127.0.0.1:{scraping.port_in(daemon.log)}"
        listen = f"127.0.0.1:{free_port()}"
        asked = stack.enter_context(prometheus.running(made(root / "prometheus"), [instance], listen))
        wait_for(lambda: bool(asked.query("swaptide_disk_process_deaths_total")), "the first scrape")
        squeeze_and_pack(daemon)
        for _ in range(4):
            pid = daemon.wait_running("dying")["pid"]
            os.kill(pid, signal.SIGKILL)
            daemon.wait_running("dying", not_pid=pid)
        try:
            yield Scene(daemon, asked, instance)
        finally:
            daemon.ok("disk", "thaw", "frozen")


@pytest.fixture
def pending(scene: Scene) -> None:
    """An alert that has just begun, and does not fire yet."""
    frozen = 'ALERTS{alertname="SwaptideDiskFrozen"%s}'
    scene.daemon.ok("disk", "thaw", "frozen")
    wait_for(lambda: not scene.prometheus.query(frozen % ""), "the alert is over")
    scene.daemon.ok("disk", "freeze", "frozen")
    wait_for(lambda: bool(scene.prometheus.query(frozen % ',alertstate="pending"')), "the alert has begun")


def made(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    return path


def squeeze_and_pack(daemon: daemons.Daemon) -> None:
    """Lower a target, so that pages are packed."""
    loads.fill(daemon.show("g.2"), 100, loads.shrinking)
    daemon.ok("disk", "set", "g.2", "--ram", "64M")
    assert daemon.show("g.2")["packed_pages"] > 0


@contextlib.contextmanager
def guest(path: pathlib.Path) -> Iterator[None]:
    """A made-up QEMU at `path`, in a thread."""
    begun, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with monitors.Monitor(path):
            begun.set()
            while not over.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert begun.wait(daemons.WAIT_SECONDS)
        yield
    finally:
        over.set()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.2)


def without_data(asked: prometheus.Prometheus, exprs: Iterable[str]) -> list[str]:
    """Those that have no number, even after a while; a rate needs two scrapes."""
    missing, deadline = sorted(set(exprs)), time.monotonic() + PATIENCE_SECONDS
    assert missing
    while missing and time.monotonic() < deadline:
        missing = [
            expr
            for expr in missing
            if not any(math.isfinite(float(found["value"][1])) for found in asked.query(expr))
        ]
        time.sleep(0.2 if missing else 0)
    return missing


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


def test_every_graph_has_data(scene: Scene, pending: None) -> None:
    graphs = {*queries.page_graphs()}
    targets = {target["expr"] for target in queries.grafana_targets()}
    assert graphs <= targets
    assert not without_data(scene.prometheus, [queries.chosen(target, WINDOW) for target in targets])


def test_every_row_of_the_page_has_data(scene: Scene, pending: None) -> None:
    assert not without_data(scene.prometheus, queries.page_rows(scene.instance, "g1"))


def test_a_range_is_what_the_graphs_ask_for(scene: Scene) -> None:
    end = int(time.time())
    for expr in queries.page_graphs():
        given = {"query": queries.chosen(expr, "60s"), "start": str(end - 60), "end": str(end), "step": "1"}
        assert scene.prometheus.ask("query_range", **given)["resultType"] == "matrix"


def test_chosen_disks_are_the_only_ones(scene: Scene) -> None:
    by_disk = [expr for expr in queries.page_graphs() if "by (instance, disk)" in expr]
    for expr in by_disk:
        one = expr.replace("$disk", r"g\\.2").replace("$instance", ".*").replace("$__rate_interval", "1m")
        assert {found["metric"]["disk"] for found in scene.prometheus.query(one)} <= {"g.2"}


def test_every_rule_works_and_asks_for_what_there_is(scene: Scene) -> None:
    groups = scene.prometheus.ask("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert found.keys() == queries.rules().keys()
    wait_for(lambda: healthy(scene.prometheus), "every rule was tried, and works")
    records = [name for name in found if name.startswith("swaptide:")]
    assert not without_data(scene.prometheus, records)
    asked = {name for expr in queries.rules().values() for name in SELECTOR.findall(expr)}
    # What is said only when it is so.
    states = {name for name in asked if name.startswith(("swaptide_disk_state", "swaptide_guest_state"))}
    assert len(asked) > 20 and len(states) >= 3
    assert not without_data(scene.prometheus, asked)


def healthy(asked: prometheus.Prometheus) -> bool:
    rules = [rule for group in asked.ask("rules")["groups"] for rule in group["rules"]]
    assert not [rule for rule in rules if rule["health"] == "err"], rules
    return all(rule["health"] == "ok" for rule in rules)


def test_grafana_finds_hosts_and_disks(scene: Scene) -> None:
    def values(label: str, metric: str) -> list[str]:
        found: list[str] = scene.prometheus.ask(f"label/{label}/values", **{"match[]": metric})
        return found

    assert values("instance", "swaptide_build_info") == [scene.instance]
    assert values("disk", 'swaptide_disk_size_bytes{instance=~".*"}') == ["dying", "frozen", "g.2", "g1"]
    definitions = {each.get("definition") for each in queries.grafana()["templating"]["list"]}
    assert "label_values(swaptide_build_info, instance)" in definitions


def test_the_page_says_what_is_wrong_and_has_a_row_for_each_disk(scene: Scene, pending: None) -> None:
    def page() -> Page:
        return Page(scene.prometheus.get("/consoles/swaptide.html"))

    wait_for(lambda: any("DiskUnstable" in each for each in page().wrong), "the alert of a dying disk")
    wait_for(lambda: "%" in page().disk("g1")[0][8 - 1], "a hit rate")
    text = scene.prometheus.get("/consoles/swaptide.html")
    seen = Page(text)
    assert not re.search(r"NaN|ZgotmplZ|no value|error", text.split('<script type="application/json"')[0])
    wrong = " ".join(seen.wrong)
    assert "dying" in wrong and re.search(r"DiskFrozen\W+frozen\W.*pending", wrong)
    assert "Nothing." not in wrong
    cells, bar = seen.disk("g1")
    assert cells[1] == "running" and cells[3:7] == ["192MiB", cells[4], "48MiB", "48MiB"]
    assert re.fullmatch(r"[0-9.]+MiB", cells[4]) and re.fullmatch(r"[0-9.]+%", cells[7])
    assert (
        re.fullmatch(r"[0-9.]+(µs|us|ms|s)", cells[8]) and cells[10].endswith("B/s") and cells[10] != "0B/s"
    )
    assert bar.keys() == {"raw", "packed", "spilled", "same_filled"}
    assert bar["raw"] > 0.05 and bar["spilled"] > 0.05 and 0 < sum(bar.values()) < 1
    assert seen.disk("frozen")[0][1] == "frozen" and seen.disk("g.2")[1]["packed"] > 0
    assert seen.disk("dying")[0][-1] not in ("", "0", "–")


def test_the_page_keeps_to_one_disk_where_it_is_told_so(scene: Scene) -> None:
    def names(parameters: str) -> list[str]:
        page = Page(scene.prometheus.get(f"/consoles/swaptide.html?{parameters}"))
        return [row[0] for row in page.rows if row]

    assert names("") == ["dying", "frozen", "g.2", "g1"]
    assert names("disk=g.2") == ["g.2"]
    assert names(f"disk=g1&instance={scene.instance}") == ["g1"]
    assert names("disk=g12")[0].startswith("No disk is known")
    assert names("disk=g1%22%7D)%20or%20up(%3Cscript%3E")[0].startswith("No disk is known")


def test_a_page_of_nothing_says_so(tmp_path: pathlib.Path) -> None:
    daemons.require("prometheus")
    with prometheus.running(tmp_path, [], f"127.0.0.1:{free_port()}") as empty:
        wait_for(lambda: bool(empty.query("swaptide:hosts_up:sum")), "the rules were tried")
        page = Page(empty.get("/consoles/swaptide.html"))
        assert page.rows[-1] == ["No disk is known to this Prometheus: does it scrape aswaptide serve?"]
        assert "have Prometheus load" not in " ".join(page.wrong)
        wait_for(lambda: "ScrapeMissing" in empty.get("/consoles/swaptide.html"), "the alert")


def test_the_page_links_to_pages_that_there_are(scene: Scene) -> None:
    text = scene.prometheus.get("/consoles/swaptide.html")
    links = set(re.findall(r'href="(/[^"]+)"', text))
    assert len(links) >= 4
    for link in links:
        assert "swaptide" in scene.prometheus.get(link.replace("&amp;", "&"))


def dashboard(root: pathlib.Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", str(RUN), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(root)},
    )


def children(pid: int) -> list[int]:
    return [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_make_dashboard_shows_it_until_it_is_ended(
    scene: Scene, tmp_path: pathlib.Path, how: signal.Signals
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    running = dashboard(tmp_path, "--metrics", scene.instance, "--listen", listen, "--interval", "1s")
    started: list[int] = []
    try:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        assert url == f"http://{listen}/consoles/swaptide.html"
        assert "Ctrl-C" in running.stdout.readline()
        started = children(running.pid)
        shown = prometheus.Prometheus(f"http://{listen}", running, tmp_path)  # type: ignore[arg-type]
        wait_for(lambda: "g.2" in shown.get("/consoles/swaptide.html"), "the page has the disks")
        running.send_signal(how)
        said, complaints = running.communicate(timeout=daemons.WAIT_SECONDS)
        assert (running.returncode, said, complaints) == (0, "", "")
        assert started and not any(map(daemons.is_alive, started))
        assert not list(tmp_path.iterdir())
        with pytest.raises(urllib.error.URLError):
            shown.get("/-/ready")
    finally:
        end(running, started)


def end(running: "subprocess.Popen[str]", started: list[int]) -> None:
    for pid in started:
        if daemons.is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    running.kill()
    running.communicate()


def test_make_dashboard_says_what_is_missing(scene: Scene, tmp_path: pathlib.Path) -> None:
    def refused(metrics: str, listen: str) -> str:
        done = dashboard(tmp_path, "--metrics", metrics, "--listen", listen)
        try:
            said, complaint = done.communicate(timeout=60)
        finally:
            end(done, [])
        assert done.returncode == 1 and said == "" and complaint.count("\n") == 1
        return complaint

    free = f"127.0.0.1:{free_port()}"
    ours = scene.prometheus.url.removeprefix("http://")
    assert "start `swaptide serve`" in refused(free, f"127.0.0.1:{free_port()}")
    assert "no swaptide daemon" in refused(ours, free)
    assert "is taken" in refused(scene.instance, ours)
    assert not list(tmp_path.iterdir())
