"""`make torture`: a disk that is killed, squeezed and denied its store, under a random load with a model.

One thread loads and compares; a timer thread kills.  Prints what it did; the exit status is 0 only if every
byte was right.
"""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import nbd  # noqa: E402

from swaptide.cache import geometry  # noqa: E402
from tests.real import driver, points, remotes, server  # noqa: E402

SIZE: Final = 96 << 20
FLOOR: Final = geometry.of_size(SIZE).working_minimum_bytes
# Of these the buffers of the second client take 16 MiB; the middle ones leave room to pack.
CAPS: Final = (FLOOR, FLOOR, 32 << 20, 56 << 20, 72 << 20, 160 << 20)
# Requests between two kills, at most; a kill by time comes much earlier.
LOAD: Final = 20_000
CHECK_EVERY: Final = 5
RANDOM: Final = "at a random moment"
UNLIMITED: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@dataclasses.dataclass
class Story:
    """What was done so far."""

    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    cap_changes: int = 0
    freezes: int = 0
    write_faults: int = 0
    server_deaths: int = 0
    server_stalls: int = 0
    full_checks: int = 0
    longest_pause: float = 0.0

    def told(self, load: driver.Driver, counters: dict[str, int]) -> str:
        """One paragraph."""
        by_place = sum(count for place, count in self.kills.items() if place != RANDOM)
        reached = len([place for place in self.kills if place != RANDOM])
        return (
            f"{sum(self.kills.values())} kills ({self.kills['at a random moment']} at random moments,"
            f" {by_place} at {reached} of {len(points.names())} named places),"
            f" {self.cap_changes} cap changes,"
            f" {self.freezes} freezes for which {counters['frozen_waits']} requests waited,"
            f" {self.write_faults} times no write to the store,"
            f" {self.server_deaths} deaths of its server, {self.server_stalls} stalls,"
            f" requests {load.counts}, {self.full_checks} checks of the whole disk;"
            f" spilled {counters['spill_written_bytes'] >> 20} MiB,"
            f" {counters['spill_write_errors']} writes failed,"
            f" {counters['cleaned_segments']} segments cleaned,"
            f" {counters['packed_total_pages']} pages packed,"
            f" {counters['strengthened_segments']} segments anew,"
            f" {counters['written_ahead_segments']} written ahead, {counters['dropped_segments']} dropped,"
            f" {counters['misses']} pages read back; longest time away {self.longest_pause:.2f} s"
        )


class Torture:
    """One disk and its load; `remote` is the server that it spills to, None for a file."""

    def __init__(self, disk: server.Server, seed: int, remote: remotes.Remote | None = None) -> None:
        self.disk = disk
        self.remote = remote
        # A successor writes nothing to a server before what its predecessor sent there has had time to come.
        self.longest_life = 1.5 if remote is None else 5.0
        self.random = random.Random(seed)
        # Of a pair one store may fail while the other works, and both at a time.
        self.files = 0.5 if "," in disk.parameters["spill"] else 0.0
        self.story = Story()
        self.load = driver.Driver(disk.uri, SIZE, seed=seed, connections=2)
        self._thaw: threading.Timer | None = None

    def cycle(self, number: int) -> None:
        """Load until the next death, and go on with the successor.  Raises WrongByte."""
        place = self._place()
        timer = threading.Timer(self.random.uniform(0.05, self.longest_life), self._kill)
        if place is None:
            timer.start()
        try:
            died = self.load.run_until_dead(LOAD, self._trouble)
        finally:
            timer.cancel()
        if died:
            self._count_death(place)
        else:
            self.load.close()
        self._restart()
        if number % CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Compare the whole disk, however often the process dies of it."""
        while True:
            try:
                self.load.check_all()
                break
            except nbd.Error:
                self._count_death(self._place())
                self._restart()
        self.story.full_checks += 1

    def _count_death(self, place: str | None) -> None:
        self.story.kills[place or RANDOM] += 1

    def _place(self) -> str | None:
        """Where the process is to die, if that is known."""
        wanted = self.disk.environment.get("SWAPTIDE_DIE_AT")
        return wanted.rpartition(":")[0] if wanted else None

    def _kill(self) -> None:
        process = self.disk.process
        if process is not None:
            process.send_signal(signal.SIGKILL)

    def _restart(self) -> None:
        while not self._started():
            self._count_death(self._place())

    def _started(self) -> bool:
        """Start a successor; False if it died before all that was in flight was looked at."""
        self.disk.stop(signal.SIGKILL)
        if self.remote is not None and self.remote.has_died():
            # nbdkit 1.32 ends with a failed assertion where two threads answer a client that was killed.
            self.remote.restart()
            self.story.server_deaths += 1
        self.disk.environment = {"SWAPTIDE_DAWDLE": self.random.choice(("no", "no", "yes"))}
        if self.random.random() < 0.6:
            place, count = self.random.choice(points.names()), int(10 ** self.random.uniform(0, 3.5))
            self.disk.environment["SWAPTIDE_DIE_AT"] = f"{place}:{count}"
        begun = time.monotonic()
        try:
            self.disk.start()
            self.load.resume(self.disk.uri)
        except (server.Ended, nbd.Error):
            return False
        self.story.longest_pause = max(self.story.longest_pause, time.monotonic() - begun)
        return True

    def _trouble(self, number: int) -> None:
        if number % 400 == 399:
            cap = self.random.choice(CAPS)
            with self.disk.face() as face:
                face.set_limits(cap_bytes=cap, target_bytes=cap)
            self.story.cap_changes += 1
        if number % 1500 == 1499 and (self.remote is None or self.random.random() < self.files):
            self._deny_writes()
        if number % 1500 == 1499 and self.remote is not None:
            self._hurt_server(self.remote)
        if number % 700 == 699:
            self._freeze()

    def _freeze(self) -> None:
        """Have the disk stand still, for a moment, whichever process serves it by then."""
        self.thaw()
        self._set_frozen(True)
        self._thaw = threading.Timer(self.random.uniform(0.0, 0.4), self._set_frozen, (False,))
        self._thaw.start()
        self.story.freezes += 1

    def thaw(self) -> None:
        """Wait until the disk goes on."""
        if self._thaw is not None:
            self._thaw.join()

    def _set_frozen(self, frozen: bool) -> None:
        with self.disk.face() as face:
            face.set_frozen(frozen)

    def _deny_writes(self) -> None:
        """For a moment every write to the spill file fails (EFBIG), reads work."""
        process = self.disk.process
        if process is None or process.poll() is not None:
            return
        try:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            time.sleep(self.random.uniform(0.01, 0.2))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, UNLIMITED)
        except ProcessLookupError:
            return
        self.story.write_faults += 1

    def _hurt_server(self, remote: remotes.Remote) -> None:
        """Have it die, and be away for a moment, or stall."""
        if self.random.random() < 0.5:
            remote.restart(self.random.choice((0.0, 0.2)))
            self.story.server_deaths += 1
        else:
            with remote.stalled():
                time.sleep(self.random.uniform(0.01, 0.5))
            self.story.server_stalls += 1


def run(kills: int, seed: int, disk: server.Server, remote: remotes.Remote | None = None) -> str:
    """Torture `disk` until it was killed `kills` times; returns the story.  Raises WrongByte."""
    tortured = Torture(disk, seed, remote)
    shows = sys.stderr.isatty()
    number = 0
    while sum(tortured.story.kills.values()) < kills:
        number += 1
        tortured.cycle(number)
        if shows or number % 20 == 0:
            done = sum(tortured.story.kills.values())
            print(f"{done} of {kills} kills", end="\r" if shows else "\n", file=sys.stderr, flush=True)
    tortured.thaw()
    tortured.check()
    tortured.load.close()
    with disk.face() as face:
        return tortured.story.told(tortured.load, server.fresh_counters(face))


def main() -> int:
    """The command; exit status 1 with the first wrong byte."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="how often the process dies")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="what decides everything but timing"
    )
    parser.add_argument("--store", choices=("file", "nbd", "pair"), default="file", help="what it spills to")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="swaptide-torture-", dir="/var/tmp") as name:
        directory = pathlib.Path(name)
        with contextlib.ExitStack() as ends:
            remote = None
            if options.store != "file":
                remote = ends.enter_context(remotes.serving(directory / "remote", SIZE))
            spill = str(directory / "spill") if remote is None else remote.uri
            if options.store == "pair" and remote is not None:
                spill = remotes.pair(directory / "spill", SIZE, remote)
            parameters = {
                "size": str(SIZE),
                "ram": "64M",
                "spill": spill,
                "compress": "lz4+zstd",
            }
            disk = ends.enter_context(
                server.serving(directory, True, points.plugin(), eager=True, **parameters)
            )
            try:
                print(f"verdict: ok, wrong bytes 0; {run(options.kills, options.seed, disk, remote)}")
            except driver.WrongByte as error:
                print(f"verdict: FAILED, {error}; again with --store {options.store} --seed {options.seed}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
