"""A real daemon in a directory of its own, driven through the installed command.

Every process is ended by its pid, and what a daemon was to remove is checked to be gone.
"""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nbd
import pytest

from swaptide.host import config, paths

COMMAND = [sys.executable, "-P", "-m", "swaptide.host.cli"]
SIZE = 64 << 20
# However busy the host: only what hangs takes longer.
WAIT_SECONDS = 60.0
MIB = 1 << 20


class Daemon:
    """`swaptide serve` below `root`; the disks' processes are looked after as well."""

    def __init__(
        self, root: pathlib.Path, run: str = "run", prefix: Sequence[str] = (), **settings: Any
    ) -> None:
        """`prefix` is what starts the daemon, in a cgroup for example; `settings` are its configuration."""
        self.root = root
        self.run_dir = root / run
        self.state_dir = root / "state"
        self.log = root / f"{run}.log"
        self.config = root / f"{run}.toml"
        self.prefix = prefix
        chosen = {"state_dir": str(self.state_dir), "metrics": "off", **settings}
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items()))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *COMMAND,
                    "serve",
                    "--config",
                    str(self.config),
                    "--run-dir",
                    str(self.run_dir),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, self.log.read_text)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        return self.run("disk", "ls").returncode == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon; its disks go on serving."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(WAIT_SECONDS)
            finally:
                process.kill()
                process.wait()

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run the command with these words and our run directory."""
        return subprocess.run(
            [*COMMAND, *words, "--run-dir", str(self.run_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
            **more,
        )

    def ok(self, *words: str) -> str:
        """The same, which has to work; returns what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def add(self, name: str = "g1", *more: str, size: int = SIZE, ram: str = "32M") -> dict[str, Any]:
        """Add a disk; returns its report."""
        self.ok("disk", "add", name, "--size", str(size), "--ram", ram, *more)
        return self.show(name)

    def show(self, name: str = "g1") -> dict[str, Any]:
        """A disk's report."""
        report: dict[str, Any] = json.loads(self.ok("disk", "show", name, "--json"))
        return report

    def wait_running(self, name: str = "g1", not_pid: int | None = None) -> dict[str, Any]:
        """The report of a disk once another process than `not_pid` serves it."""
        wait_for(
            lambda: (
                (shown := self.show(name))["state"] in ("running", "unstable")
                and shown["pid"] not in (None, not_pid)
            ),
            self.log.read_text,
        )
        return self.show(name)

    def files(self) -> list[str]:
        """Everything that lies in the run directory and the state directory."""
        found = [*self.run_dir.rglob("*"), *self.state_dir.rglob("*")]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def tear_down(self) -> None:
        """End everything that was started below our root."""
        if self.process is None and self.run_dir.exists():
            with contextlib.suppress(Exception):
                self.start()
        with contextlib.suppress(Exception):
            for report in json.loads(self.run("disk", "ls", "--json").stdout):
                self.run("disk", "rm", report["name"], "--force")
        self.stop()
        end_processes_of(self.run_dir)
        unmount(self.run_dir / "mem")


@contextlib.contextmanager
def directory() -> Iterator[pathlib.Path]:
    """A short path on a real file system, for sockets and for direct I/O."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="swaptide-test-", dir="/var/tmp"))
    root.chmod(0o711)  # so that nbdkit finds its way as another user
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def config_of(root: pathlib.Path) -> config.Config:
    """The configuration of a daemon below `root` with the defaults of a host."""
    file = root / "defaults.toml"
    file.write_text(f"state_dir = {json.dumps(str(root / 'state'))}\nspill_dir = {json.dumps(str(root))}\n")
    return config.load(file, root / "run")


@contextlib.contextmanager
def serving(
    root: pathlib.Path, run: str = "run", prefix: Sequence[str] = (), **settings: Any
) -> Iterator[Daemon]:
    """A running daemon below `root`."""
    require("nbdkit")
    daemon = Daemon(root, run, prefix, **settings)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.tear_down()


def shared(prepare: Callable[[Daemon], object] = lambda daemon: None, **settings: Any) -> Any:
    """A fixture: one daemon for all tests of a file, which `prepare` gave what they all need."""

    @pytest.fixture(scope="module")
    def daemon() -> Iterator[Daemon]:
        with directory() as root, serving(root, **settings) as running:
            prepare(running)
            yield running

    return daemon


def eager_nbdkit(root: pathlib.Path) -> str:
    """An nbdkit for `serving` whose disks take their host for idle, however busy it is; see eager.py."""
    path = root / "eager-nbdkit"
    eager = pathlib.Path(__file__).with_name("eager.py")
    plugin = paths.plugin()
    path.write_text(
        f"""#!/bin/sh
export SWAPTIDE_PLUGIN={shlex.quote(str(plugin))}
for word do
  shift
  [ "$word" != "$SWAPTIDE_PLUGIN" ] || word={shlex.quote(str(eager))}
  set -- "$@" "$word"
done
exec nbdkit "$@"
"""
    )
    path.chmod(0o755)
    return str(path)


@contextlib.contextmanager
def client(report: dict[str, Any], export: str | None = None) -> Iterator[nbd.NBD]:
    """A connection to a disk, by its id unless another export is given."""
    handle = nbd.NBD()
    handle.set_export_name(report["id"] if export is None else export)
    handle.connect_unix(report["socket"])
    try:
        yield handle
    finally:
        handle.shutdown()


def uid_of(pid: int) -> int:
    """The user that a process runs as."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[2])


def as_user(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, or as ourselves."""
    prefix = [] if uid == os.geteuid() else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return subprocess.run(
        [*prefix, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        cwd="/",
    )


def has_key(disk_id: str, uid: int) -> bool:
    """Whether a disk's key is in that user's keyring."""
    done = as_user(
        uid, sys.executable, "-P", "-c", f"from swaptide.cache import keys; keys.find({disk_id!r})"
    )
    assert done.returncode == 0 or "is not in the keyring of user" in done.stderr, done.stderr
    return done.returncode == 0


def wait_for(condition: Callable[[], bool], why: Callable[[], str] = str) -> None:
    """Wait until `condition` holds; fails with what `why` tells."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:.0f} s: {why()}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than a zombie that init has yet to reap."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def require(tool: str) -> None:
    """Skip the test if a tool is missing."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing")


def end_processes_of(run_dir: pathlib.Path) -> None:
    """Kill the nbdkit processes that serve state files of this run directory."""
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"state={run_dir}/".encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def unmount(path: pathlib.Path) -> None:
    """Undo a mount that a killed daemon left."""
    if path.is_mount():
        subprocess.run(["umount", "--lazy", str(path)], check=False)
