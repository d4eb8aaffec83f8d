"""Changes of disks in the daemon's log, on state files made by hand."""

import json
import logging
import pathlib
import types
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from swaptide.cache import geometry, layout, logs
from swaptide.cache.face import StateFace
from swaptide.host import health
from tests.unit.plugins import Plugin

MIB = 1 << 20


class Bench:
    """One disk, a clock that stands still until it is set, and what was told since it was last asked."""

    def __init__(self, root: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
        self.plugin = Plugin(root / "g1.state")
        self.face = StateFace(self.plugin.path)
        self.keeper: Any = types.SimpleNamespace(
            definition=types.SimpleNamespace(name="g1", spill_path="/spill/g1"),
            log_path=pathlib.Path("/run/g1.log"),
            serves=True,
            face=self.face,
        )
        self.keepers: list[Any] = [self.keeper]
        self.now = 100.0
        self.health = health.Health(lambda: self.keepers, lambda: self.now)
        self._caplog = caplog

    def look(self, after: float = 2.0, **words: int) -> list[dict[str, Any]]:
        for word, value in words.items():
            self.plugin.put(word, value)
        self.now += after
        self._caplog.clear()
        self.health.look()
        format = logs.JsonFormatter().format
        lines = [json.loads(format(record)) for record in self._caplog.records]
        assert all(line["name"] == "g1" for line in lines)
        return lines

    def cause(self, text: str) -> None:
        """What its process says is wrong."""
        with open(self.plugin.path, "r+b") as file:
            file.seek(geometry.TROUBLE_OFFSET)
            file.write(text.encode().ljust(geometry.TROUBLE_BYTES, b"\0"))

    def another_disk(self) -> None:
        """The disk was cleared: it has a new id."""
        raw = bytearray(self.plugin.path.read_bytes())
        at = layout.IDENTITY.size - 16 - 64 - 8
        raw[at : at + 16] = uuid.uuid4().bytes
        self.plugin.path.write_bytes(raw)
        self.face.close()
        self.face = self.keeper.face = StateFace(self.plugin.path)


@pytest.fixture
def bench(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.INFO, "swaptide")
    made = Bench(tmp_path, caplog)
    yield made
    made.face.close()


def test_a_disk_that_is_well_is_no_news(bench: Bench) -> None:
    assert bench.look() == bench.look(spill_read_errors=0) == []


def test_a_store_that_fails_is_told_once_and_once_more_when_it_works(bench: Bench) -> None:
    assert bench.look(spill_write_errors=1) == []
    (begun,) = bench.look(degraded=1, spill_write_errors=3)
    assert (begun["event"], begun["level"]) == ("disk degraded", "WARNING")
    assert begun["error"] == "its store /spill/g1 takes no writes"
    assert (begun["write_errors"], begun["log"]) == (3, "/run/g1.log")
    assert bench.look(spill_write_errors=9) == []
    (over,) = bench.look(5.5, degraded=0)
    assert (over["event"], over["level"], over["after_seconds"]) == ("disk works again", "INFO", 7.5)
    assert bench.look() == []
    assert [line["event"] for line in bench.look(degraded=1)] == ["disk degraded"]


def test_the_cause_is_told_in_the_words_of_its_process(bench: Bench) -> None:
    bench.cause("writing to the spill store fails: No space left on device")
    (begun,) = bench.look(degraded=1)
    assert begun["event"] == "disk degraded"
    assert begun["error"] == "its store /spill/g1: writing to the spill store fails: No space left on device"
    bench.keeper.definition.spill_path = "nbd://ann@host/x"
    bench.cause("spill=nbd://host/x: the server does not answer")
    (_, begun) = bench.look(degraded=0) + bench.look(degraded=1)
    assert begun["error"] == "spill=nbd://host/x: the server does not answer"


def test_a_uri_is_told_without_its_keys(bench: Bench) -> None:
    bench.keeper.definition.spill_path = "nbds://ann@host/x?tls-psk-file=/etc/psk"
    (begun,) = bench.look(degraded=1)
    assert begun["error"] == "its store nbds://host/x takes no writes"
    (begun,) = bench.look(degraded=0, spill_read_errors=1)[1:]
    assert begun["error"].startswith("its store nbds://host/x fails")


def test_a_disk_whose_process_died_is_as_it_was(bench: Bench) -> None:
    bench.look(degraded=1)
    bench.keeper.serves = False
    assert bench.look(degraded=0) == []
    bench.keeper.face = None
    assert bench.look() == []
    bench.keeper.serves, bench.keeper.face = True, bench.face
    assert [line["event"] for line in bench.look()] == ["disk works again"]


def test_a_disk_that_was_cleared_begins_anew(bench: Bench) -> None:
    bench.look(degraded=1, spill_read_errors=5)
    bench.another_disk()
    assert bench.look(degraded=0, spill_read_errors=7) == [], "what failed before is not its own"
    assert len(bench.look(degraded=1)) == 1


def test_a_disk_that_was_removed_is_forgotten(bench: Bench) -> None:
    bench.look(degraded=1)
    bench.keepers = []
    assert bench.look() == []
    bench.keepers = [bench.keeper]
    assert [line["event"] for line in bench.look()] == ["disk degraded"]


def test_reads_that_fail(bench: Bench) -> None:
    assert bench.look(spill_read_errors=4) == [], "of a time before this daemon"
    (begun,) = bench.look(spill_read_errors=5)
    assert (begun["event"], begun["read_errors"]) == ("disk cannot read what it spilled", 5)
    assert bench.look(30, spill_read_errors=6) == []
    assert bench.look(health.QUIET_SECONDS - 1) == []
    (over,) = bench.look()
    assert over["event"] == "disk had no more read errors"
    assert bench.look() == []


def test_ram_that_the_host_refuses(bench: Bench) -> None:
    bench.face.set_limits(cap_bytes=64 * MIB, target_bytes=48 * MIB)
    bench.plugin.use(16 * MIB)
    (begun,) = bench.look(ram_blocked=1)
    assert begun["event"].startswith("host refuses RAM") and begun["target_bytes"] == 48 * MIB
    assert 16 * MIB <= begun["ram_bytes"] <= 17 * MIB
    (over,) = bench.look(ram_blocked=0)
    assert (over["event"], over["after_seconds"]) == ("host gives RAM again", 2.0)


def test_a_freeze_counts_from_when_it_is_obeyed(bench: Bench) -> None:
    bench.face.set_frozen(True)
    assert bench.look() == []
    (begun,) = bench.look(frozen_seen=1)
    assert (begun["event"], begun["level"]) == ("disk frozen", "INFO")
    (over,) = bench.look(3, frozen_seen=2)
    assert (over["event"], over["after_seconds"]) == ("disk thawed", 3.0)


def test_a_state_file_that_cannot_be_read_ends_nothing(bench: Bench) -> None:
    bench.look(degraded=1)
    whole = bench.plugin.path.read_bytes()
    bench.plugin.path.write_bytes(b"")
    assert bench.look() == []
    bench.plugin.path.write_bytes(whole[: geometry.DIRECTORY_OFFSET])
    assert [line["event"] for line in bench.look(degraded=0)] == ["disk works again"]
