"""A real Ceph cluster of one monitor and one OSD on 127.0.0.1, all its files in one directory.

It has no manager, no authentication, and one copy of everything: enough for RBD images, and for what happens
to their users when an OSD dies.  Nothing of the host's own /etc/ceph is read.
"""

import contextlib
import json
import pathlib
import random
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.cluster import children
from tests.cluster.children import ClusterError

TOOLS: Final = ("ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool", "setpriv")
POOL: Final = "swap"
# As docs/ceph.md says, where the reasons are.
FEATURES: Final = "layering,exclusive-lock"
STORE_BYTES: Final = 4 << 30  # of a sparse file
# How long the lock of a killed client outlives it; 30 where nobody says otherwise.
WATCH_SECONDS: Final = 10
_PGS: Final = 8
# Below the ports that Linux gives to clients, so that nobody takes one between our look and the monitor's.
_PORTS: Final = range(20000, 32000)
_COMMAND_SECONDS: Final = 60
_TRIES: Final = 3

_CONFIG: Final = """\
[global]
fsid = {fsid}
mon host = {addresses}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {root}/run
crash dir = {root}/run
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
paxos propose interval = 0.1

[mon]
mon data = {root}/mon
mon data avail warn = 0
mon data avail crit = 0
mon cluster log file = {root}/log/cluster.log
log file = {root}/log/$name.log
pid file = {root}/run/$name.pid
admin socket = {root}/run/$name.asok

[osd]
osd data = {root}/osd
osd objectstore = bluestore
bluestore block create = true
bluestore block size = {store_bytes}
bluestore cache autotune = false
bluestore cache size = 67108864
osd client watch timeout = {watch_seconds}
log file = {root}/log/$name.log
pid file = {root}/run/$name.pid
admin socket = {root}/run/$name.asok
"""


class Cluster:
    """A monitor and an OSD below `root`; what they do is told to `watch`."""

    def __init__(self, root: pathlib.Path, watch: children.Watch) -> None:
        self.root = root
        self.watch = watch
        self.config = root / "ceph.conf"
        self._fsid = str(uuid.uuid4())
        self._osd_uuid = str(uuid.uuid4())
        self.monitor = self._child("ceph-mon", "a")
        self.osd = self._child("ceph-osd", "0")

    # Its life.

    def start(self) -> None:
        """Make it and wait until it serves; raises ClusterError."""
        for name in ("mon", "osd", "run", "log"):
            (self.root / name).mkdir()
        self._start_monitor()
        self._make_osd()
        self.start_osd()
        self.ceph("osd", "pool", "create", POOL, str(_PGS), str(_PGS))
        self.ceph("osd", "pool", "application", "enable", POOL, "rbd")

    def start_osd(self) -> None:
        """Start the OSD, for the first time or after its death, and wait until the monitor knows."""
        before = self._up_from()
        self.osd.start()
        self.watch.until("the OSD is up", lambda: self._up_from() > before, self.osd, self.monitor)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """There is space for nothing more meanwhile, as the monitor sees it."""
        self._set_ratios(nearfull="0.001", backfillfull="0.002", full="0.003")
        self.watch.until("the pool is full", self._is_full, self.osd, self.monitor)
        yield
        self._set_ratios(full="0.95", backfillfull="0.9", nearfull="0.85")

    def kill(self) -> None:
        """End all of it."""
        self.osd.kill()
        self.monitor.kill()

    # Its images.

    def create_image(self, name: str, size_bytes: int) -> None:
        """Make an image."""
        self.rbd("create", f"{POOL}/{name}", "--size", f"{size_bytes}B", "--image-feature", FEATURES)

    def resize_image(self, name: str, size_bytes: int) -> None:
        """Make an image longer."""
        self.rbd("resize", f"{POOL}/{name}", "--size", f"{size_bytes}B", "--no-progress")

    def remove_image(self, name: str) -> None:
        """Remove an image that nobody has open."""
        self.rbd("rm", f"{POOL}/{name}", "--no-progress")

    def used_bytes(self, name: str) -> int:
        """What an image takes of the pool, in whole objects of 4 MiB."""
        found = json.loads(self.rbd("disk-usage", f"{POOL}/{name}", "--format", "json"))["images"]
        return int(found[0]["used_size"])

    # Its commands.

    def ceph(self, *words: str) -> Any:
        """What a command of `ceph` answers; raises ClusterError with its own words."""
        answer = self._run("ceph", "--connect-timeout", "10", *words, "--format", "json")
        return json.loads(answer) if answer.strip() else None

    def rbd(self, *words: str) -> str:
        """What a command of `rbd` prints; raises ClusterError with its own words."""
        return self._run("rbd", *words)

    def _run(self, program: str, *words: str) -> str:
        try:
            done = subprocess.run(
                [program, "--conf", str(self.config), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_COMMAND_SECONDS,
                env=children.environment(),
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{program} {' '.join(words)}: no answer in {_COMMAND_SECONDS} s") from None
        if done.returncode:
            raise ClusterError(f"{program} {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    # How it is made.

    def _child(self, program: str, number: str) -> children.Child:
        command = [program, "--foreground", "--id", number, "--conf", str(self.config)]
        return children.Child(program, command, self.root / f"{program}.out")

    def _start_monitor(self) -> None:
        for left in reversed(range(_TRIES)):
            self._make_monitor(*_free_ports(2))
            self.monitor.start()
            try:
                self.watch.until("the monitor answers", self._answers, self.monitor)
                return
            except ClusterError:
                # Somebody else may have taken a port since we looked.
                self.monitor.kill()
                if not left:
                    raise
                shutil.rmtree(self.root / "mon")

    def _make_monitor(self, port2: int, port1: int) -> None:
        addresses = f"[v2:127.0.0.1:{port2},v1:127.0.0.1:{port1}]"
        self.config.write_text(
            _CONFIG.format(
                root=self.root,
                fsid=self._fsid,
                addresses=addresses,
                store_bytes=STORE_BYTES,
                watch_seconds=WATCH_SECONDS,
            )
        )
        monmap = str(self.root / "monmap")
        self._run(
            *("monmaptool", "--create", "--clobber", "--fsid", self._fsid),
            *("--addv", "a", addresses, monmap),
        )
        self._run("ceph-mon", "--mkfs", "--id", "a", "--monmap", monmap)

    def _answers(self) -> bool:
        try:
            return self.ceph("mon", "stat") is not None
        except ClusterError:
            return False

    def _make_osd(self) -> None:
        self.ceph("osd", "new", self._osd_uuid)
        self._run("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", self._osd_uuid)

    def _set_ratios(self, **ratios: str) -> None:
        for name, ratio in ratios.items():
            self.ceph("osd", f"set-{name}-ratio", ratio)

    def _is_full(self) -> bool:
        return "full" in self.ceph("osd", "dump")["pools"][0]["flags_names"].split(",")

    def _up_from(self) -> int:
        """The epoch since which the OSD has been up: a new one after each of its starts.

        Whether it is up tells nothing: the monitor goes on taking a killed one for alive.
        """
        osds = self.ceph("osd", "dump")["osds"]
        return int(osds[0]["up_from"]) if osds else 0


@contextlib.contextmanager
def running(root: pathlib.Path, say: Callable[[str], None]) -> Iterator[Cluster]:
    """A cluster with all its files in `root`, which is to be on a real file system; raises ClusterError.

    `say` is told what is waited for.
    """
    made = Cluster(root, children.Watch(say))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@contextlib.contextmanager
def image(cluster: Cluster, name: str, size_bytes: int) -> Iterator[str]:
    """An image of the pool, removed at the end; yields its name."""
    cluster.create_image(name, size_bytes)
    yield name
    # Not after a failure: the cluster may be in no state to do it, and goes as a whole.
    cluster.remove_image(name)


def missing() -> list[str]:
    """Programs that a cluster needs and that are not there."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")
