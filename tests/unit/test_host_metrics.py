"""What Prometheus is told, from state files and a /proc made by hand."""

import os
import pathlib
import random
from typing import Any

import pytest
from prometheus_client import exposition as client

from swaptide.balloon import desk, rooms, stopwatch
from swaptide.cache import exposition, face, geometry, histogram, layout
from swaptide.cache import metrics as cache_metrics
from swaptide.cache.face import Limits, StateFace
from swaptide.host import metrics, scrapes, steering, supervisor
from tests.real.scraping import Scrape
from tests.unit.plugins import Plugin

MIB = 1 << 20
PAGE = geometry.PAGE_BYTES
# Words of the counters page that are nobody's business outside, or say nothing alone.
NOT_TOLD = {
    "owner_pid",
    "publish_answer",
    "target_seen_bytes",
    "reserved_bytes",  # the size of the spill file, by another rule
    "ram_slots_used",
    "ram_slots_limit",
    "second_slots_used",  # told of disks with two stores: see test_two_stores
    "usable_stores",  # for the policy; people read which one fails, and why
    "log_clock",
    "write_clock",
    "frozen_seen",
}


class Host:
    """A host with disks made by hand; `scrape` is what Prometheus would read."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.proc = root / "proc"
        (self.proc / "pressure").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {2 << 20} kB\n")
        (self.proc / "pressure/memory").write_text(
            "some avg10=12.50 avg60=0.00 avg300=0.00 total=2500000\n"
            "full avg10=1.00 avg60=0.00 avg300=0.00 total=1000000\n"
        )
        self.rooms = rooms.Rooms(rooms.Reserve(fixed_bytes=64 * MIB), proc=self.proc)
        self.disks: list[metrics.DiskNow] = []
        self.guests: list[dict[str, Any]] = []
        self.balloon: steering.Figures | None = None

    def disk(self, name: str = "g1", state: str = "running", plugin: bool = True) -> Plugin | None:
        path = self.root / f"{name}.state"
        none = cache_metrics.Distribution(("1.0",), (0, 0), 0.0)
        self.disks.append(metrics.DiskNow(name, path, state, 100, 1, 0, False, none, 0))
        if not plugin:
            return None
        made = Plugin(path)
        with StateFace(path) as opened:
            opened.set_limits(cap_bytes=64 * MIB, target_bytes=48 * MIB, floor_bytes=16 * MIB)
            opened.set_orders(compress="zstd", clean_ahead_permille=250)
        return made

    def made(self, name: str = "g1") -> Plugin:
        made = self.disk(name)
        assert made is not None
        return made

    def sheet(self) -> cache_metrics.Sheet:
        snapshot = metrics.Snapshot(tuple(self.disks), tuple(self.guests), self.balloon)
        return metrics.tell(snapshot, self.rooms, self.proc)

    def scrape(self) -> Scrape:
        return Scrape(exposition.render(self.sheet()).decode())


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Host:
    return Host(tmp_path)


def some_histogram(seed: int) -> histogram.Histogram:
    chance = random.Random(seed)
    latency = tuple(chance.randrange(50) for _ in range(histogram.LATENCY_BUCKETS))
    return histogram.Histogram(latency, 3_500_000_000, (0,) * histogram.SIZE_BUCKETS, 0)


def report(**given: Any) -> dict[str, Any]:
    """A guest's report, of which it says nothing but what is given."""
    return {"name": "vm1", "state": "running", **dict.fromkeys(metrics._GUEST_WORDS), **given}


def test_every_counter_is_told(host: Host) -> None:
    """Each word is looked for by a value that nothing else has."""
    made = host.made()
    for index, word in enumerate(layout.COUNTERS):
        made.put(word, (1 << 30) + 1 + 7919 * index)
    found = set(host.scrape().samples.values())

    def is_told(word: str) -> bool:
        value = (1 << 30) + 1 + 7919 * layout.COUNTERS.index(word)
        return not found.isdisjoint({value, value * PAGE, value * geometry.SEGMENT_BYTES})

    # Told as a difference.
    parts = {"hits", "cleaned_segments"}
    assert {word for word in layout.COUNTERS if not is_told(word)} == NOT_TOLD | parts


def test_a_disk_by_its_words(host: Host) -> None:
    made = host.made()
    words = {
        "raw_bytes": 5 * MIB,
        "packed_pages": 1000,
        "packed_bytes": 2 * MIB,
        "spilled_bytes": 3 * MIB,
        "same_filled_pages": 10,
        "hits": 70,
        "packed_hits": 20,
        "misses": 5,
        "trims": 4,
        "write_bytes": 8192,
        "cleaned_segments": 9,
        "cleaned_disk_segments": 2,
        "disk_slots_used": 3,
        "spill_write_errors": 6,
    }
    for word, count in words.items():
        made.put(word, count)
    made.use(12 * MIB)
    found = host.scrape()

    def value(name: str, **labels: str) -> float:
        return found.value(f"swaptide_disk_{name}", disk="g1", **labels)

    assert [value(f"{name}_bytes") for name in ("size", "cap", "target", "floor")] == [
        1 << 30,
        64 * MIB,
        48 * MIB,
        16 * MIB,
    ]
    content = found.values("swaptide_disk_content_bytes")
    assert sum(content.values()) == (5 + 3) * MIB + 1010 * PAGE
    ram = found.values("swaptide_disk_ram_tier_bytes")
    assert sum(ram.values()) == value("ram_bytes") >= 12 * MIB
    assert (value("ram_tier_bytes", tier="raw"), value("ram_tier_bytes", tier="packed")) == (5 * MIB, 2 * MIB)
    tiers = ("raw", "packed", "spilled")
    assert [value("read_pages_total", tier=tier) for tier in tiers] == [50, 20, 5]
    assert value("requests_total", op="trim") == 4
    assert value("request_bytes_total", op="write") == 8192
    assert value("cleaned_segments_total", place="ram") == 7
    assert value("cleaned_segments_total", place="disk") == 2
    assert value("spill_errors_total", op="write") == 6
    assert value("spill_used_bytes") == 6 * MIB < value("spill_size_bytes")
    with StateFace(made.path) as state:
        labels = {"id": state.identity.disk_id, "compress": "zstd", "encrypted": "no"}
        assert value("info", **labels) == 1


def test_two_stores(host: Host) -> None:
    made = host.made()
    assert not host.scrape().values("swaptide_disk_spill_store_used_bytes")
    made = Plugin(made.path, (100, 590))
    made.put("disk_slots_used", 70)
    made.put("second_slots_used", 20)
    found, segment = host.scrape(), geometry.SEGMENT_BYTES
    for store, used, slots in (("first", 50, 100), ("second", 20, 590)):
        labels = {"disk": "g1", "store": store}
        assert found.value("swaptide_disk_spill_store_used_bytes", **labels) == used * segment
        assert found.value("swaptide_disk_spill_store_size_bytes", **labels) == slots * segment
    assert found.value("swaptide_disk_spill_size_bytes", disk="g1") == 690 * segment


def test_buckets_are_those_of_the_state_file(host: Host) -> None:
    """Every fourth of them, cumulative, so none is lost or guessed."""
    made, given = host.made(), some_histogram(1)
    made.put_histogram("miss", given)
    found = host.scrape()
    name = "swaptide_disk_request_duration_seconds"
    told = {
        dict(labels)["le"]: value
        for labels, value in found.values(f"{name}_bucket").items()
        if ("kind", "miss") in labels
    }
    for bound, value in told.items():
        below = [
            count
            for bucket, count in enumerate(given.latency)
            if histogram.latency_bound_ns(bucket) <= float(bound) * 1e9 or bound == "+Inf"
        ]
        assert value == sum(below), bound
    bounds = sorted(map(float, told))
    assert bounds[0] == 1.024e-06 and bounds[-2] == 17.179869184
    assert all(round(b / a) == 2 for a, b in zip(bounds[:-2], bounds[1:-1], strict=True))
    assert found.value(f"{name}_count", disk="g1", kind="miss") == given.count == told["+Inf"]
    assert found.value(f"{name}_sum", disk="g1", kind="miss") == 3.5
    assert found.value(f"{name}_count", disk="g1", kind="hit") == 0


@pytest.mark.parametrize(
    ("state", "frozen", "degraded", "told"),
    [
        ("running", False, 0, "running"),
        ("running", False, 1, "degraded"),
        ("running", True, 1, "frozen"),
        ("restarting", True, 1, "restarting"),
        ("unstable", False, 1, "unstable"),
    ],
)
def test_a_disk_is_in_one_state(host: Host, state: str, frozen: bool, degraded: int, told: str) -> None:
    made = host.disk(state=state)
    assert made is not None
    made.put("degraded", degraded)
    with StateFace(made.path) as opened:
        opened.set_frozen(frozen)
    found = host.scrape().values("swaptide_disk_state")
    assert {dict(labels)["state"]: value for labels, value in found.items() if value} == {told: 1}
    assert len(found) == len(metrics.DISK_STATES)


def damage(kind: str, path: pathlib.Path) -> None:
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "foreign":
        path.write_bytes(b"x" * geometry.DIRECTORY_OFFSET)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "short":
        path.write_bytes(Plugin(path).path.read_bytes()[: geometry.HISTOGRAMS_OFFSET])


@pytest.mark.parametrize("kind", ["gone", "empty", "foreign", "fifo", "directory", "link", "short"])
def test_a_disk_that_cannot_be_read_hides_no_other(host: Host, kind: str) -> None:
    damage(kind, host.made("bad").path)
    host.made("good").put("reads", 7)
    found = host.scrape()
    assert found.value("swaptide_disk_requests_total", disk="good", op="read") == 7
    readable = found.values("swaptide_disk_readable")
    assert {dict(labels)["disk"]: value for labels, value in readable.items()} == {"bad": 0, "good": 1}
    state = "running" if kind == "gone" else "failed"
    assert found.value("swaptide_disk_state", disk="bad", state=state) == 1
    # Nothing half told.
    own = {name for name in found.names("disk", "bad") if "squeez" not in name}
    words = ("state", "readable", "weight", "process_starts_total", "process_deaths_total")
    assert own == {f"swaptide_disk_{word}" for word in words}
    assert found.value("swaptide_disks") == 2


def test_a_state_file_full_of_noise_is_told_as_it_is(host: Host) -> None:
    """Whatever is in it: every line stays one that Prometheus reads."""
    made = host.made()
    noise = random.Random(5).randbytes(geometry.DIRECTORY_OFFSET - geometry.CONTROL_OFFSET)
    with open(made.path, "r+b") as file:
        file.seek(geometry.CONTROL_OFFSET)
        file.write(noise)
    found = host.scrape()
    assert found.value("swaptide_disk_readable", disk="g1") == 1
    assert "swaptide_disk_request_duration_seconds_bucket" in found.names("disk", "g1")


def test_what_a_guest_does_not_say_is_missing(host: Host) -> None:
    host.guests = [
        report(name="quiet", state="unreachable"),
        report(actual_bytes=MIB, age_seconds=1.5, swapped_in_bytes=0),
        report(name="odd", state="io-error"),
    ]
    found = host.scrape()
    assert found.names("guest", "quiet") == {"swaptide_guest_state"}
    assert found.names("guest", "vm1") == {
        "swaptide_guest_state",
        "swaptide_guest_actual_bytes",
        "swaptide_guest_statistics_age_seconds",
        "swaptide_guest_swapped_in_bytes_total",
    }
    assert found.value("swaptide_guest_statistics_age_seconds", guest="vm1") == 1.5
    for name, state in (("quiet", "unreachable"), ("vm1", "running"), ("odd", "stopped")):
        assert found.value("swaptide_guest_state", guest=name, state=state) == 1


def test_the_host_and_its_pressure(host: Host) -> None:
    found = host.scrape()
    rooms_told = [
        found.value(f"swaptide_room_{name}_bytes", room="host") for name in ("size", "free", "reserve")
    ]
    assert rooms_told == [8 << 30, 2 << 30, 64 * MIB]
    assert found.value("swaptide_host_pressure_ratio") == 0.125
    assert found.value("swaptide_host_pressure_waiting_seconds_total") == 2.5
    assert found.value("swaptide_host_pressure_stalled_seconds_total") == 1


@pytest.mark.parametrize(
    "text", ["", "some avg10=x total=1\n", "full avg10=1 total=1\n", "some avg10=1\n", "\xff"]
)
def test_a_kernel_that_tells_no_pressure(host: Host, text: str) -> None:
    (host.proc / "pressure/memory").write_bytes(text.encode("latin-1"))
    found = host.scrape()
    assert not [name for name, _ in found.samples if name.startswith("swaptide_host_pressure")]
    assert found.value("swaptide_room_size_bytes", room="host") == 8 << 30


def test_an_old_kernel_tells_no_full_stalls(host: Host) -> None:
    (host.proc / "pressure/memory").write_text("some avg10=50.00 total=1000000\n")
    found = host.scrape()
    assert found.value("swaptide_host_pressure_ratio") == 0.5
    assert not found.values("swaptide_host_pressure_stalled_seconds_total")


def test_the_balloon_and_reservations(host: Host) -> None:
    assert host.scrape().value("swaptide_balloon_enabled") == 0
    assert not host.scrape().values("swaptide_balloon_decisions_total")
    host.balloon = steering.Figures({"grow": 3, "novel": 1}, 2, {"granted": 4}, 1, 5 * MIB, 6 * MIB)
    found = host.scrape()
    decisions = found.values("swaptide_balloon_decisions_total")
    told = {dict(labels)["reason"]: value for labels, value in decisions.items()}
    assert told == {**dict.fromkeys(metrics.REASONS, 0), "grow": 3, "novel": 1}
    assert found.value("swaptide_balloon_pressed_total") == 2
    assert found.value("swaptide_reservation_answers_total", verdict="granted") == 4
    assert found.value("swaptide_reservation_answers_total", verdict="late") == 0
    assert found.value("swaptide_reservations") == 1
    assert found.value("swaptide_reservations_held_bytes") == 5 * MIB
    assert found.value("swaptide_reservations_wanted_bytes") == 6 * MIB


def test_squeezes(host: Host) -> None:
    host.made()
    record = stopwatch.Record()
    for seconds in (0.004, 0.005, 0.3, 100.0):
        record.note(seconds)
    host.disks[0] = metrics.DiskNow(
        "g1", host.disks[0].state_path, "running", 100, 2, 1, True, metrics._distribution(record), 1
    )
    found = host.scrape()
    name = "swaptide_disk_squeeze_duration_seconds"
    expected = {"0.005": 2, "0.25": 2, "0.5": 3, "60.0": 3, "+Inf": 4}
    assert {le: found.value(f"{name}_bucket", disk="g1", le=le) for le in expected} == expected
    assert found.value(f"{name}_sum", disk="g1") == pytest.approx(100.309)
    assert found.value("swaptide_disk_squeezes_late_total", disk="g1") == 1
    assert found.value("swaptide_disk_squeezing", disk="g1") == 1
    assert found.value("swaptide_disk_process_deaths_total", disk="g1") == 1


def test_the_words_of_states_are_those_that_there_are() -> None:
    moved = set(layout.GATES) - {"open"}
    assert (
        set(metrics.DISK_STATES) == {each.value for each in supervisor.State} | {"degraded", "frozen"} | moved
    )
    assert set(metrics.VERDICTS) == {verdict.value for verdict in desk.Verdict} - {"waiting"}


def test_our_text_is_that_of_prometheus_client(host: Host) -> None:
    made = host.made()
    made.put_histogram("hit", some_histogram(2))
    made.put("reads", (1 << 53) - 1)
    host.guests = [report(name='a"b\\c\nd', age_seconds=0.25)]
    host.balloon = steering.Figures({}, 0, {}, 0, 0, 0)
    sheet = host.sheet()

    class Made:
        def collect(self) -> Any:
            return scrapes.families(sheet)

    ours, theirs = Scrape(exposition.render(sheet).decode()), Scrape(client.generate_latest(Made()).decode())
    assert ours.samples == theirs.samples and len(ours.samples) > 200
    assert ours.kinds == theirs.kinds
    assert ours.value("swaptide_guest_statistics_age_seconds", guest='a"b\\c\nd') == 0.25


def test_numbers_that_are_none() -> None:
    metric = cache_metrics.Metric("x", "gauge", "back\\slash\nline", ("n",))
    sheet = cache_metrics.Sheet([metric])
    for value in (float("nan"), float("inf"), float("-inf"), True, 1 << 64, 1e-9):
        sheet.put(metric, value, str(value))
    text = exposition.render(sheet).decode()
    values = [line.rpartition(" ")[2] for line in text.splitlines()[2:]]
    assert values == ["NaN", "+Inf", "-Inf", "1", str(1 << 64), "1e-09"]
    assert text.startswith("# HELP x back\\\\slash\\nline\n# TYPE x gauge\n")


def test_a_face_of_a_descriptor(host: Host) -> None:
    """The plugin alone may have a state file without a name."""
    made = host.made()
    fd = os.open(made.path, os.O_RDWR)
    try:
        made.path.unlink()
        with face.StateFace(pathlib.Path("nameless"), fd) as state:
            assert state.limits() == Limits(64 * MIB, 48 * MIB, 16 * MIB)
        os.fstat(fd)  # stays open
    finally:
        os.close(fd)
