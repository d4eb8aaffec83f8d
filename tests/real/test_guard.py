"""What a process that holds a guest's memory does for itself, seen from outside."""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from swaptide.cache import guard, keys
from tests.real import server

MIB = 1 << 20
CORE_PATTERN = pathlib.Path("/proc/sys/kernel/core_pattern")
# The kernel's PF_MEMALLOC_NOIO, which PR_SET_IO_FLUSHER sets; field 9 of /proc/PID/stat.
NO_IO = 0x00080000


def status(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise KeyError(field)


def cores(directory: pathlib.Path) -> list[pathlib.Path]:
    """Core dumps that appeared in a directory."""
    return sorted(directory.glob("core*"))


def test_no_core_dump_is_made(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = CORE_PATTERN.read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core dumps do not go to the working directory here (core_pattern is {pattern!r})")
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (limit[1], limit[1]))
        monkeypatch.chdir(tmp_path)
        # So that the test can fail: a process that protects nothing does leave a core here.
        other = subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False)
        assert other.returncode == -signal.SIGABRT
        if not cores(tmp_path):
            pytest.skip("no process leaves a core dump here (RLIMIT_CORE)")
        for path in cores(tmp_path):
            path.unlink()
        with server.serving(tmp_path, size="64M", ram="64M") as disk:
            assert disk.stop(signal.SIGABRT) == -signal.SIGABRT
            assert cores(tmp_path) == []
            disk.start()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limit)


def test_what_the_host_could_swap_is_locked_and_stays_sparse(tmp_path: pathlib.Path) -> None:
    # Server puts its state file on /dev/shm, which a host with swap would swap.
    options = next(
        line.split(" - ")[1]
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == "/dev/shm"
    )
    if "noswap" in options:
        pytest.skip("/dev/shm is mounted with noswap here")
    with server.serving(tmp_path, size="8G", ram="256M") as disk, disk.face() as face:
        if resource.prlimit(disk.pid, resource.RLIMIT_MEMLOCK)[0] < 16 << 30 and os.geteuid() != 0:
            pytest.skip("RLIMIT_MEMLOCK does not allow it")
        locked_kib = int(status(disk.pid, "VmLck").split()[0])
        assert locked_kib * 1024 > 8 << 30  # the pool's whole address range, of which next to nothing exists
        assert face.ram_bytes() < 64 * MIB


def mappings(pid: int) -> Iterator[tuple[str, int, int, list[str]]]:
    """Every mapping of a process: its first line, where it begins and ends, and the kernel's flags."""
    head = ""
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            start, end = (int(part, 16) for part in head.split()[0].split("-"))
            yield head, start, end, line.split()[1:]
        elif not line.split()[0].endswith(":"):
            head = line


def test_the_key_lies_in_locked_memory_only(tmp_path: pathlib.Path) -> None:
    """Also where the state file cannot be swapped: the key is not in it."""
    if os.geteuid() != 0:
        pytest.skip("only root looks into the memory of a process that is not dumpable")
    with server.serving(tmp_path, size="64M", ram="64M") as disk:
        key = bytes(keys.find(disk.face().identity.disk_id))
        found = 0
        with open(f"/proc/{disk.pid}/mem", "rb", buffering=0) as memory:
            for head, start, end, flags in mappings(disk.pid):
                if "wr" not in flags or " rw-s " in head:
                    continue
                memory.seek(start)
                with contextlib.suppress(OSError):
                    if memory.read(end - start).count(key):
                        found += 1
                        assert "lo" in flags, head
        assert found


def test_the_killer_is_asked_to_choose_another(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="64M") as disk:
        score = int(pathlib.Path(f"/proc/{disk.pid}/oom_score_adj").read_text())
        if score != -500:
            assert "oom_score_adj cannot be lowered" in disk.log.read_text()


def test_allocating_does_not_wait_for_our_own_disk(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="64M") as disk:
        if "not marked as an I/O flusher" in disk.log.read_text():
            pytest.skip("PR_SET_IO_FLUSHER is refused here (CAP_SYS_RESOURCE)")
        for stat in pathlib.Path(f"/proc/{disk.pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                flags = int(stat.read_text().rpartition(")")[2].split()[6])
                assert flags & NO_IO, stat


@pytest.mark.parametrize(
    ("lines", "swaps"), [(["Filename Type Size Used Priority"], False), (["h", "/x"], True)]
)
def test_swap_of_the_host_is_seen(tmp_path: pathlib.Path, lines: list[str], swaps: bool) -> None:
    (tmp_path / "swaps").write_text("\n".join(lines) + "\n")
    assert guard.host_has_swap(tmp_path) is swaps
