"""/metrics of real daemons and of a real plugin alone, while disks work, die, are damaged and go."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

import nbd
import pytest

from swaptide.cache import face, geometry, layout
from tests.real import daemons, hosts, scraping, server, sockets
from tests.real.scraping import Scrape

MIB = 1 << 20
OPS = ("read", "write", "trim", "zero", "flush")
NOISE = random.Random(11).randbytes(MIB)

daemon = daemons.shared(metrics="127.0.0.1:0")


@pytest.fixture(autouse=True)
def _no_disk_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "daemon" in request.fixturenames:
        running = request.getfixturevalue("daemon")
        for report in json.loads(running.ok("disk", "ls", "--json")):
            running.run("disk", "rm", report["name"], "--force")


def scrape(daemon: daemons.Daemon) -> Scrape:
    return scraping.scrape(scraping.port_in(daemon.log))


def until(daemon: daemons.Daemon, condition: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape for which the condition holds."""
    seen: list[Scrape] = []

    def holds() -> bool:
        seen.append(scrape(daemon))
        return condition(seen[-1])

    daemons.wait_for(holds, lambda: seen[-1].text if seen else "")
    return seen[-1]


def unlike(number: int) -> bytes:
    """A mebibyte that is like no other, and does not shrink."""
    at = number * 4099 % MIB
    return b"".join(
        number.to_bytes(4, "little") + page.to_bytes(4, "little") + (NOISE + NOISE)[at + page * 4096 :][:4088]
        for page in range(MIB // 4096)
    )


def fill(handle: nbd.NBD, mib: int) -> None:
    for number in range(mib):
        handle.pwrite(unlike(number), number * MIB)


def test_a_scrape_says_what_the_disk_did(daemon: daemons.Daemon) -> None:
    report = daemon.add(size=64 * MIB, ram="24M")
    with daemons.client(report) as handle:
        fill(handle, 40)
        handle.pwrite(bytes(8192), 50 * MIB)  # same-filled
        handle.trim(MIB, 0)
        for number in range(2, 40, 3):
            assert handle.pread(MIB, number * MIB) == unlike(number)
        handle.flush()

        def settled(found: Scrape) -> bool:
            content = found.values("swaptide_disk_content_bytes")
            return (
                sum(content.values()) == 39 * MIB + 8192
                and found.value("swaptide_disk_clients", disk="g1") == 1
            )

        found = until(daemon, settled)

    def value(name: str, **labels: str) -> float:
        return found.value(f"swaptide_disk_{name}", disk="g1", **labels)

    assert {op: value("requests_total", op=op) for op in OPS} == {
        "read": 13,
        "write": 41,
        "trim": 1,
        "zero": 0,
        "flush": 1,
    }
    assert value("request_bytes_total", op="write") == 40 * MIB + 8192
    assert value("request_bytes_total", op="read") == 13 * MIB
    tiers = {tier: value("read_pages_total", tier=tier) for tier in ("raw", "packed", "spilled")}
    assert sum(tiers.values()) == 13 * MIB // 4096 and tiers["spilled"] > 0
    assert value("content_bytes", tier="spilled") > 0
    assert value("same_filled_pages") == 2
    durations = "request_duration_seconds_count"
    assert value(durations, kind="hit") + value(durations, kind="miss") == 13
    assert value(durations, kind="write") == 41
    assert value(durations, kind="miss") > 0
    assert 0 < value("request_duration_seconds_sum", kind="miss") < 600
    assert value("spill_written_bytes_total") >= 15 * MIB
    assert 0 < value("spill_used_bytes") <= value("spill_size_bytes")
    assert value("ram_bytes") <= value("cap_bytes") == 24 * MIB
    assert value("state", state="running") == value("readable") == value("serving") == 1
    assert value("info", id=report["id"], compress="lz4", encrypted="yes") == 1
    assert value("process_private_bytes") > MIB
    assert found.value("swaptide_balloon_enabled") == 1
    assert found.value("swaptide_room_size_bytes", room="host") > found.value(
        "swaptide_room_reserve_bytes", room="host"
    )
    assert found.value("process_resident_memory_bytes") > MIB
    assert found.value("swaptide_build_info", version="0.1.0", state_format=str(layout.FORMAT_VERSION)) == 1


def test_promtool_has_nothing_to_say(daemon: daemons.Daemon) -> None:
    daemon.add()
    response, body = scraping.ask(scraping.port_in(daemon.log))
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert scraping.lint(body.decode()) == ""
    bad = "# HELP swaptide_reads Reads\n# TYPE swaptide_reads counter\nswaptide_reads 1\n"
    assert "_total" in scraping.lint(bad), "it would say something"


def test_openmetrics_for_who_takes_nothing_else(daemon: daemons.Daemon) -> None:
    daemon.add()
    port = scraping.port_in(daemon.log)
    response, body = scraping.ask(port, accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n") and b'swaptide_disk_requests_total{disk="g1",op="read"} 0' in body


def test_prometheus_itself_reads_it(daemon: daemons.Daemon, tmp_path: pathlib.Path) -> None:
    """Whatever it asks for in its headers, it takes every sample that we see."""
    daemons.require("prometheus")
    daemon.add()
    port = scraping.port_in(daemon.log)
    with _prometheus(tmp_path, port) as query:
        daemons.wait_for(lambda: query("swaptide_disk_size_bytes{disk='g1'}") == daemons.SIZE)

        def takes_all() -> bool:
            """Also of what comes while the daemon works: its last scrape is a second old."""
            seen = len(scraping.scrape(port).samples)
            return query("scrape_samples_scraped") == seen > 200

        daemons.wait_for(takes_all)


@contextlib.contextmanager
def _prometheus(root: pathlib.Path, scraped: int) -> Iterator[Callable[[str], float | None]]:
    """A Prometheus that scrapes that port; gives what asks it for one value, None for none."""
    port = sockets.free_port()
    job = {"job_name": "swaptide", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
    (root / "prometheus.yml").write_text(json.dumps(config))  # which is YAML as well
    log = root / "prometheus.log"
    options = (f"--config.file={root}/prometheus.yml", f"--storage.tsdb.path={root}/data")
    with open(log, "wb") as output:
        running = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def query(text: str) -> float | None:
        assert running.poll() is None, log.read_text()
        try:
            _, body = scraping.ask(port, f"/api/v1/query?query={urllib.parse.quote(text)}")
            found = json.loads(body)["data"]["result"]
        except (OSError, ValueError, KeyError):
            return None
        return float(found[0]["value"][1]) if found else None

    try:
        yield query
    finally:
        running.terminate()
        try:
            running.wait(daemons.WAIT_SECONDS)
        finally:
            running.kill()
            running.wait()


def test_a_scrape_asks_nothing_of_the_disk(daemon: daemons.Daemon) -> None:
    """No word of the control page changes but those that the policy sets as it likes: above all, nothing is
    asked to be published.
    """
    report = daemon.add()
    port = scraping.port_in(daemon.log)
    path = pathlib.Path(report["state_file"])
    with daemons.client(report), face.StateFace(path) as state:

        def control() -> dict[str, int]:
            with open(path, "rb") as file:
                file.seek(geometry.CONTROL_OFFSET)
                raw = file.read(len(layout.CONTROL) * layout.WORD.size)
            words = (word for (word,) in layout.WORD.iter_unpack(raw))
            found = dict(zip(layout.CONTROL, words, strict=True))
            return {name: found[name] for name in found.keys() - {"target_bytes", "deadline_ns"}}

        before, requests = control(), [state.counters()[f"{op}s"] for op in ("read", "write", "trim")]
        for _ in range(20):
            scraping.scrape(port)
        assert control() == before
        assert [state.counters()[f"{op}s"] for op in ("read", "write", "trim")] == requests


def test_scrapes_while_a_disk_works(daemon: daemons.Daemon) -> None:
    """Counters only rise, in every scrape."""
    report = daemon.add(size=64 * MIB, ram="24M")
    ended, rounds = threading.Event(), 0

    def load() -> None:
        with daemons.client(report) as handle:
            number = 0
            while not ended.is_set():
                handle.pwrite(unlike(number), number % 60 * MIB)
                handle.pread(MIB, (number * 7) % 60 * MIB)
                number += 1

    worker = threading.Thread(target=load)
    worker.start()
    try:
        last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        deadline = time.monotonic() + daemons.WAIT_SECONDS
        while rounds < 10 or last[_written()] < 100:
            assert time.monotonic() < deadline
            found = scrape(daemon)
            for key, value in found.samples.items():
                if key[0].endswith(("_total", "_count", "_bucket", "_sum")):
                    assert value >= last.get(key, 0), key
            last = found.samples
            rounds += 1
    finally:
        ended.set()
        worker.join()


def _written() -> tuple[str, frozenset[tuple[str, str]]]:
    return "swaptide_disk_requests_total", frozenset({("disk", "g1"), ("op", "write")})


def test_disks_that_die_are_damaged_or_go_break_no_scrape(daemon: daemons.Daemon) -> None:
    first, second = daemon.add("g1"), daemon.add("g2")
    os.kill(first["pid"], signal.SIGKILL)
    found = until(daemon, lambda now: now.value("swaptide_disk_process_deaths_total", disk="g1") == 1)
    assert found.value("swaptide_disk_readable", disk="g1") == 1  # its memory is there, whoever serves it
    found = until(daemon, lambda now: now.value("swaptide_disk_process_starts_total", disk="g1") == 2)
    path = pathlib.Path(second["state_file"])
    with _damaged(path):
        found = scrape(daemon)
        assert found.value("swaptide_disk_readable", disk="g2") == 0
        assert found.value("swaptide_disk_state", disk="g2", state="failed") == 1
        assert "swaptide_disk_ram_bytes" not in found.names("disk", "g2")
        assert found.value("swaptide_disk_readable", disk="g1") == 1
    assert scrape(daemon).value("swaptide_disk_state", disk="g2", state="running") == 1
    daemon.ok("disk", "rm", "g2")
    found = scrape(daemon)
    assert not found.names("disk", "g2") and found.value("swaptide_disks") == 1


@contextlib.contextmanager
def _damaged(path: pathlib.Path) -> Iterator[None]:
    with open(path, "r+b") as file:
        file.write(b"notours!")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.write(layout.MAGIC)


def test_a_process_that_hangs_holds_up_nobody(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    os.kill(report["pid"], signal.SIGSTOP)
    try:
        assert scrape(daemon).value("swaptide_disk_readable", disk="g1") == 1
    finally:
        os.kill(report["pid"], signal.SIGCONT)


def test_frozen_and_thawed(daemon: daemons.Daemon) -> None:
    daemon.add()
    daemon.ok("disk", "freeze", "g1")
    found = scrape(daemon)
    assert found.value("swaptide_disk_state", disk="g1", state="frozen") == 1
    assert found.value("swaptide_disk_frozen", disk="g1") == 1
    daemon.ok("disk", "thaw", "g1")
    assert scrape(daemon).value("swaptide_disk_state", disk="g1", state="running") == 1


def test_squeezes_are_timed(daemon: daemons.Daemon) -> None:
    report = daemon.add(size=64 * MIB, ram="48M")
    with daemons.client(report) as handle:
        fill(handle, 40)
    name = "swaptide_disk_squeeze_duration_seconds"
    assert scrape(daemon).value(f"{name}_count", disk="g1") == 0
    daemon.ok("disk", "set", "g1", "--ram", "20M")
    found = until(
        daemon,
        lambda now: (
            now.value(f"{name}_count", disk="g1") > 0 and now.value("swaptide_disk_squeezing", disk="g1") == 0
        ),
    )
    assert found.value(f"{name}_count", disk="g1") == 1
    assert 0 < found.value(f"{name}_sum", disk="g1") < 60
    assert found.value("swaptide_disk_squeezes_late_total", disk="g1") == 0
    daemon.ok("disk", "rm", "g1")
    daemon.add()
    assert scrape(daemon).value(f"{name}_count", disk="g1") == 0, "another disk of the same name"


def test_a_squeeze_that_cannot_hold_is_late(daemon: daemons.Daemon) -> None:
    report = daemon.add(size=64 * MIB, ram="48M")
    with daemons.client(report) as handle:
        fill(handle, 40)
    os.kill(report["pid"], signal.SIGSTOP)
    try:
        assert daemon.run("disk", "set", "g1", "--ram", "20M", "--deadline", "300ms").returncode == 1
        found = until(daemon, lambda now: now.value("swaptide_disk_squeezes_late_total", disk="g1") == 1)
        assert found.value("swaptide_disk_squeezing", disk="g1") == 1
    finally:
        os.kill(report["pid"], signal.SIGCONT)
    found = until(daemon, lambda now: now.value("swaptide_disk_squeezing", disk="g1") == 0)
    assert found.value("swaptide_disk_squeeze_duration_seconds_count", disk="g1") == 1
    assert found.value("swaptide_disk_squeezes_late_total", disk="g1") == 1


def test_reservations() -> None:
    """On a host of its own: elsewhere others would use up what is reserved."""
    with (
        daemons.directory() as root,
        hosts.made_up(root, 2048 * MIB) as host,
        daemons.serving(root, metrics="127.0.0.1:0", proc_dir=str(host.proc)) as daemon,
    ):
        judge_reservations(daemon)


def judge_reservations(daemon: daemons.Daemon) -> None:
    daemon.ok("reserve", "64M", "--deadline", "60s", "--hold", "10m")
    found = scrape(daemon)
    assert found.value("swaptide_reservation_answers_total", verdict="granted") == 1
    assert found.value("swaptide_reservations") == 1
    assert daemon.run("reserve", "8192G", "--deadline", "60s", "--hold", "10m").returncode == 1
    assert scrape(daemon).value("swaptide_reservation_answers_total", verdict="impossible") == 1
    [held] = re.findall(r"\b[0-9a-f]{8}\b", daemon.ok("reserve", "--list"))[:1]
    daemon.ok("reserve", "--release", held)
    assert scrape(daemon).value("swaptide_reservations") == 0


def test_a_port_that_is_taken_is_a_warning(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, daemons.directory() as root:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with daemons.serving(root, metrics=address) as daemon:
            daemon.add()
            daemons.wait_for(lambda: address in daemon.log.read_text())
            said = [line for line in daemon.log.read_text().splitlines() if "metrics" in line]
            assert len(said) == 1 and "level=WARNING" in said[0]
            assert address in said[0] and "in use" in said[0] and "--metrics" in said[0]


def test_off_and_the_command_line(tmp_path: pathlib.Path) -> None:
    with daemons.directory() as root, daemons.serving(root, metrics="off") as daemon:
        assert "metrics" not in daemon.log.read_text()
        shown = daemon.ok("serve", "--config", str(daemon.config), "--metrics", "[::1]:1", "--show-config")
        assert 'metrics = "[::1]:1"\n' in shown
        assert 'metrics = "off"\n' in daemon.ok("serve", "--config", str(daemon.config), "--show-config")
        assert 'metrics = "127.0.0.1:9819"\n' in daemon.ok("serve", "--show-config")


@pytest.mark.parametrize("text", ["nonsense", "9819", "localhost:1", "127.0.0.1:65536", "", "1.1.1.1:1\n"])
def test_an_address_that_is_none(tmp_path: pathlib.Path, text: str) -> None:
    given = [*daemons.COMMAND, "serve", "--run-dir", str(tmp_path / "run"), "--metrics", text]
    file = tmp_path / "c.toml"
    file.write_text(f"metrics = {json.dumps(text)}\n")
    written = [*daemons.COMMAND, "serve", "--run-dir", str(tmp_path / "run"), "--config", str(file)]
    for command in (given, written):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done
        assert "metrics" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", [True, False])
def test_the_plugin_alone(tmp_path: pathlib.Path, named: bool) -> None:
    with server.serving(tmp_path, named, size="64M", ram="32M", name="lone", metrics="127.0.0.1:0") as disk:
        port = scraping.port_in(disk.log)
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        fill(handle, 3)
        assert handle.pread(MIB, MIB) == unlike(1)
        found = scraping.scrape(port)
        handle.shutdown()
        assert found.value("swaptide_disk_requests_total", disk="lone", op="write") == 3
        assert found.value("swaptide_disk_request_duration_seconds_count", disk="lone", kind="hit") == 1
        assert found.value("swaptide_disk_size_bytes", disk="lone") == 64 * MIB
        assert not found.values("swaptide_disk_state"), "that is for the daemon to say"
        assert scraping.lint(found.text) == ""


def test_the_plugin_stops_while_somebody_looks(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="32M", metrics="127.0.0.1:0") as disk:
        port = scraping.port_in(disk.log)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as idle:
            idle.sendall(b"GET /metrics HTTP/1.1\r\n")
            assert disk.stop() == 0


def test_the_plugin_with_a_port_that_is_taken(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with server.serving(tmp_path, size="64M", ram="32M", metrics=address) as disk:
            handle = nbd.NBD()
            handle.connect_uri(disk.uri)
            handle.pwrite(bytes(range(256)) * 16, 0)
            handle.shutdown()
            taken = f"metrics at {address}: Address already in use"
            daemons.wait_for(lambda: taken in disk.log.read_text(), disk.log.read_text)


def test_the_plugin_with_metrics_off(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="32M", metrics="off") as disk:
        assert "metrics" not in disk.log.read_text()
