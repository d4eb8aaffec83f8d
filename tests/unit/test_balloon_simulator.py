"""The plant, the tally and traces: what a replay does with a host that is known."""

import itertools
import pathlib

import msgspec
import pytest

from swaptide.balloon import samples, scenes, settings, simulator, tally, traces
from swaptide.cache.errors import UsageError
from tests.unit.hosts import GIB, MIB, SETTINGS, ages_of, disk, room, sample


def quiet(free: int, *disks: samples.Disk, steps: int = 40) -> list[samples.Sample]:
    return [sample(at / 4, free, *disks) for at in range(steps)]


def replay(trace: list[samples.Sample], speed: float = GIB) -> list[simulator.Moment]:
    return list(simulator.replay(trace, SETTINGS, speed))


def test_a_cache_gives_back_at_its_speed_and_the_room_has_it() -> None:
    found = replay(quiet(512 * MIB, disk()), speed=256 * MIB)
    rams = [moment.disks["g1"].ram_bytes for moment in found]
    assert rams[0] == GIB and rams[1] == GIB - 64 * MIB
    assert all(moment.free_bytes == 512 * MIB + GIB - ram for moment, ram in zip(found, rams, strict=True))
    assert rams[-1] <= 512 * MIB and found[-1].spare_bytes >= 0


def test_a_stuck_cache_gives_nothing_back() -> None:
    found = replay(quiet(512 * MIB, disk(stuck=True)))
    assert {moment.disks["g1"].ram_bytes for moment in found} == {GIB}


def test_a_cache_grows_by_what_was_written_and_no_more_than_lives() -> None:
    trace = [
        sample(
            float(at),
            8 * GIB,
            disk(ram=0, target=2 * GIB, live=ages_of((3, 100 * MIB)), written=at * 30 * MIB),
        )
        for at in range(10)
    ]
    rams = [moment.disks["g1"].ram_bytes for moment in replay(trace)]
    assert rams[1:4] == [30 * MIB, 60 * MIB, 90 * MIB]
    assert rams[-1] == pytest.approx(100 * MIB * 8 / 7 + 16 * MIB, abs=2)


def test_without_a_count_of_writes_what_lives_tells() -> None:
    trace = [
        sample(float(at), 8 * GIB, disk(ram=0, target=2 * GIB, live=ages_of((3, at * 50 * MIB))))
        for at in range(4)
    ]
    assert [moment.disks["g1"].ram_bytes for moment in replay(trace)] == [at * 50 * MIB for at in range(4)]


def test_hits_follow_the_ram() -> None:
    """Half of what lives fits: half of what is read evenly hits."""
    size = 2 * GIB
    trace = [
        sample(
            float(at),
            GIB,
            disk(ram=GIB, cap=GIB, live=ages_of((20, int(size * 7 / 8))), reads=ages_of((20, at * 1000))),
        )
        for at in range(3)
    ]
    moment = replay(trace)[-1]
    assert moment.disks["g1"].reads == 1000
    assert moment.disks["g1"].hits == pytest.approx(500, abs=5)


def test_running_out_is_told() -> None:
    trace = [
        sample(at / 4, 2 * GIB if at < 20 else 0, disk(target=2 * GIB, written=at * GIB)) for at in range(22)
    ]
    found = replay(trace, speed=MIB)
    assert found[-1].free_bytes < 0 and found[-1].pressed


def test_disks_and_guests_come_and_go() -> None:
    guest = samples.Guest("v", GIB, GIB, 2 * GIB)
    trace = [
        sample(0.0, 8 * GIB, disk("a"), disk("b")),
        msgspec.structs.replace(sample(1.0, 8 * GIB, disk("b")), guests=(guest,)),
        sample(2.0, 8 * GIB, disk("a", ram=5 * MIB)),
    ]
    found = replay(trace)
    assert [sorted(moment.disks) for moment in found] == [["a", "b"], ["b"], ["a"]]
    assert [dict(moment.guests) for moment in found] == [{}, {"v": GIB}, {}]
    assert found[2].disks["a"].ram_bytes == 32 * MIB or found[2].disks["a"].ram_bytes == 5 * MIB


def test_another_reserve() -> None:
    trace = quiet(2 * GIB, disk())
    found = list(simulator.replay(simulator.with_reserve(trace, 2 * GIB + 256 * MIB), SETTINGS))
    assert found[-1].spare_bytes >= 0 and found[-1].disks["g1"].ram_bytes <= GIB - 256 * MIB


def test_windows_add_up_and_stay_few() -> None:
    found = replay(quiet(512 * MIB, disk(), steps=400))
    whole, few = tally.Windows(10, 1000), tally.Windows(0.1, 16)
    for moment in found:
        whole.add(moment)
        few.add(moment)
    assert [row.at_seconds for row in whole.all] == [10.0 * number for number in range(10)]
    assert len(few.all) <= 16
    for windows in (whole, few):
        assert sum(sum(row.reasons.values()) for row in windows.all) == len(found)
        assert min(row.free_bytes for row in windows.all) == min(moment.free_bytes for moment in found)
        assert windows.all[-1].disks["g1"].ram_bytes == found[-1].disks["g1"].ram_bytes


def test_the_summary_tells_how_long_the_reserve_was_short() -> None:
    counted = tally.Tally()
    for moment in replay(quiet(768 * MIB, disk()), speed=256 * MIB):
        counted.add(moment)
    assert counted.summary.longest_short_seconds == pytest.approx(1.0)
    assert counted.summary.short_seconds == pytest.approx(1.0)
    assert counted.summary.samples == 40 and counted.summary.turns == 0


@pytest.mark.parametrize("name", sorted(scenes.SCENES))
def test_scenes_are_sound_and_the_same_again(name: str) -> None:

    def make(seed: int) -> list[samples.Sample]:
        return list(itertools.islice(scenes.SCENES[name](seed), 300))

    trace = make(3)
    assert trace == make(3) and trace != make(4)
    assert all(traces.fault(each) is None for each in trace)


def test_hot_and_cold_hits_more_than_an_equal_division() -> None:
    """What the curves bring, in the scene that docs/design.md shows."""

    trace = list(scenes.hot_and_cold(1))

    def hits(chosen: settings.Settings) -> float:
        counted = tally.Tally()
        for moment in simulator.replay(trace, chosen):
            counted.add(moment)
        both = tally.total(counted.summary.disks.values())
        return both.hit_ratio or 0

    blind = settings.of({"fairness": 1e9})
    assert hits(SETTINGS) > hits(blind) + 0.15


def test_a_trace_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    trace = quiet(GIB, disk(), disk("b"), steps=3)
    assert traces.write(tmp_path / "t", trace) == 3
    assert list(traces.read(tmp_path / "t")) == trace


GOOD = msgspec.json.encode(sample(5.0, GIB, disk())).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("hello\n", "line 1 is no sample"),
        (f"{GOOD}\n\n", "line 2 is no sample"),
        (f"{GOOD}\n{GOOD.replace('5.0', '4.0', 1)}\n", "line 2: its time 4 is before the last one's 5"),
        (GOOD.replace("rooms", "room"), "missing required field `rooms`"),
        (GOOD.replace('"weight":100', '"weight":"x"'), "Expected `int`, got `str`"),
        (GOOD.replace('"weight":100', '"weight":-1'), "g1: weight is -1"),
        (GOOD.replace('"weight":100', '"weight":2' + "0" * 18), "g1: weight is 2"),
        (GOOD.replace('"weight":100', '"weight":1' + "0" * 30), "line 1"),
        (GOOD.replace("5.0", "1e300", 1), "out of range"),
        (GOOD.replace('"reads_by_age":[', '"reads_by_age":[' + "0," * 10), "74 buckets"),
        (GOOD.replace('"reads_by_age":[', '"reads_by_age":[-5,'), "line 1"),
        ("[" * 100_000, "line 1"),
        ('{"a":' * 100_000, "line 1"),
        ("\x00\x01\x02", "line 1"),
        (msgspec.json.encode(samples.Sample(0, (), ())).decode(), "no room"),
        (msgspec.json.encode(sample(0, GIB, disk(), disk())).decode(), "'g1' comes twice"),
        ("x" * (traces.LINE_BYTES + 2), "longer than 8 MiB"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(tmp_path: pathlib.Path, text: str, said: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        list(traces.read(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_trace_that_is_there_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        traces.write(tmp_path / "t", [sample(0, GIB)])
    assert (tmp_path / "t").read_text() == "mine"


def test_memory_of_rooms_is_by_name() -> None:
    """A room that appears later has no past."""
    trace = [
        samples.Sample(float(at), (room(8 * GIB), *((room(GIB, name="c"),) if at > 3 else ())), (disk(),))
        for at in range(6)
    ]
    assert all(moment.reason != "floors" for moment in replay(trace))
