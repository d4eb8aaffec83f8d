"""An RBD image as an NBD export on a Unix socket: qemu-nbd, called as docs/ceph.md says."""

import contextlib
import pathlib
from collections.abc import Iterator

import nbd

from tests.cluster import ceph, children


def command(socket: str, source: str) -> list[str]:
    """The command line that serves `source`, an image as QEMU names it; docs/ceph.md has the same."""
    options = ("--persistent", "--shared=0", "--cache=none", "--discard=unmap", "--format=raw")
    return ["qemu-nbd", *options, f"--socket={socket}", source]


class Gateway:
    """A qemu-nbd that serves one image of a cluster."""

    def __init__(self, cluster: ceph.Cluster, image: str) -> None:
        self.socket = cluster.root / f"{image}.sock"
        self._watch = cluster.watch
        source = f"rbd:{ceph.POOL}/{image}:conf={cluster.config}"
        words = command(str(self.socket), source)
        self.child = children.Child("qemu-nbd", words, cluster.root / f"{image}.out")

    @property
    def uri(self) -> str:
        """Where its clients find it."""
        return f"nbd+unix:///?socket={self.socket}"

    def start(self) -> None:
        """Start it, and wait until it serves; raises ClusterError."""
        self.socket.unlink(missing_ok=True)
        self.child.start()
        self._watch.until("qemu-nbd serves the image", self._serves, self.child)
        # Disks are served by users of their own.
        self.socket.chmod(0o666)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.child.kill()

    def _serves(self) -> bool:
        try:
            with client(self):
                return True
        except nbd.Error:
            return False

    def head(self, count: int) -> bytes:
        """The first bytes of the image."""
        with client(self) as handle:
            return bytes(handle.pread(count, 0))


@contextlib.contextmanager
def client(server: Gateway) -> Iterator["nbd.NBD"]:
    """A plain connection to the export."""
    handle = nbd.NBD()
    handle.connect_unix(str(server.socket))
    try:
        yield handle
    finally:
        handle.shutdown()


@contextlib.contextmanager
def serving(cluster: ceph.Cluster, image: str) -> Iterator[Gateway]:
    """A running one, which has let go of the image when this ends."""
    made = Gateway(cluster, image)
    try:
        made.start()
        yield made
        made.child.stop()
    finally:
        made.kill()


def path_of_driver() -> pathlib.Path | None:
    """QEMU's module for RBD, where it is installed."""
    return next(pathlib.Path("/usr/lib").glob("*/qemu/block-rbd.so"), None)
