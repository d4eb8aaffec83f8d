"""Clean releases of Debian to build for and to install on: directories that commands see as their root.

Each command has mounts, processes and a /run of its own, and whatever it started or mounted ends with it.
Needs root, mmdebstrap and unshare.  What pip needs is fetched outside, by however pip is configured here.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache/package"
DIST: Final = ROOT / "dist"
WHEELS: Final = "/opt/wheels"  # inside
# For pip: what was fetched outside, and nothing else.
OFFLINE: Final = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
SCRIPTS: Final = ("smoke.py", "smoke.sh", "complete.py", "inside.sh", "boot.sh", "upgrade.sh")
_KEPT_SECONDS: Final = 7 * 86400
_COMMAND_SECONDS: Final = 1800.0
_MIRROR: Final = "http://deb.debian.org/debian"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOTHING: Final[Mapping[str, str]] = {}
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")

# Inside namespaces of our own: what a program expects of its surroundings.
_ENTER: Final = """
set -e
cd "$1"; shift
mount --bind . . ; cd "$PWD"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
exec chroot . "$@"
"""
# The same with systemd, which wants a control group that is its own, and devices as in a container.
_BOOT: Final = """
set -e
cd "$1"
mount --bind . . ; cd "$PWD"
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t cgroup2 cgroup2 sys/fs/cgroup
exec chroot . /lib/systemd/systemd --log-target=journal --show-status=no
"""
_UNIT: Final = """[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/srv/script >/srv/output 2>&1; systemctl exit $$?'
[Install]
WantedBy=multi-user.target
"""
_NAMESPACES: Final = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")


@dataclasses.dataclass(frozen=True)
class Release:
    """A release of Debian, the number it goes by, and its Python."""

    name: str
    number: int
    python: str


RELEASES: Final = (Release("bookworm", 12, "3.11"), Release("trixie", 13, "3.13"))


class Chroot:
    """A directory that holds a Debian."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def run(
        self, *command: str, environ: Mapping[str, str] = _NOTHING, seconds: float = _COMMAND_SECONDS
    ) -> str:
        """What `command` prints; raises CalledProcessError, with all of that, if it fails."""
        return self._call(
            [*_NAMESPACES, "sh", "-c", _ENTER, "sh", str(self.path), *command], seconds, environ
        )

    def install(self, *packages: str) -> None:
        """Install Debian packages, which may be files; no service is started."""
        self.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)

    def boot(self, script: str, seconds: float = 300.0) -> str:
        """What `script` prints, run under a systemd of its own as process 1; raises as `run` does."""
        file = self.path / "srv/script"
        file.write_text(f"#!/bin/bash\n{script}")
        file.chmod(0o755)
        unit = self.path / "etc/systemd/system/script.service"
        unit.write_text(_UNIT)
        for link, target in (
            ("multi-user.target.wants/script.service", "../script.service"),
            ("default.target", "/usr/lib/systemd/system/multi-user.target"),
        ):
            place = unit.parent / link
            place.parent.mkdir(exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(target)
        output = self.path / "srv/output"
        output.unlink(missing_ok=True)
        with _cgroup() as group:
            join = 'echo $$ >"$0/cgroup.procs"; exec unshare --cgroup sh -c "$1" sh "$2"'
            command = [*_NAMESPACES, "--net", "sh", "-c", join, str(group), _BOOT, str(self.path)]
            try:
                said = self._call(command, seconds, {"container": "other"})
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                told = output.read_text() if output.exists() else "(the script was not begun)"
                raise AssertionError(f"{told}\n{error.output}\n{error}") from error
        return output.read_text() + said

    def _call(self, command: Sequence[str], seconds: float, environ: Mapping[str, str]) -> str:
        proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        inside = {
            "PATH": _PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **proxies,
            **environ,
        }
        done = subprocess.run(
            command,
            env=inside,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command[-1], done.stdout[-8000:])
        return done.stdout


def missing() -> list[str]:
    """Why there can be no chroot here, in words; empty if there can."""
    found = [] if os.geteuid() == 0 else ["root is needed"]
    return found + [f"{tool} is missing" for tool in ("mmdebstrap", "unshare") if shutil.which(tool) is None]


@contextlib.contextmanager
def clean(release: Release, *, like: pathlib.Path | None = None) -> Iterator[Chroot]:
    """A fresh copy of the release, or of the Debian that was packed as `like`."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="swaptide-package-", dir="/var/tmp"))
    try:
        subprocess.run(["tar", "-xf", str(like or _base(release)), "-C", str(place)], check=True)
        place.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy("/etc/resolv.conf", place / "etc/resolv.conf")
        policy = place / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        # Nobody misses these files after a crash.
        (place / "etc/dpkg/dpkg.cfg.d/hasty").write_text("force-unsafe-io\n")
        wheels_of(release, place / WHEELS.lstrip("/"))
        yield Chroot(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _base(release: Release) -> pathlib.Path:
    """The smallest Debian that has apt, as a tar file; made anew once a week."""
    file = CACHE / f"{release.name}.tar"
    if file.exists() and time.time() - file.stat().st_mtime < _KEPT_SECONDS:
        return file
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new.tar")
    say(f"a minimal Debian {release.number}")
    _quietly(
        ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "--skip=cleanup/apt/lists"]
        + [release.name, str(fresh), _MIRROR]
    )
    fresh.replace(file)
    return file


def wheels_of(release: Release, place: pathlib.Path) -> None:
    """Have in `place` what pip would fetch for this release: for the build, and to run."""
    kept = CACHE / f"wheels-{release.name}"
    wanted = requirements()
    stamp = kept / "stamp"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        say(f"Python packages for Debian {release.number}")
        abi = f"cp{release.python.replace('.', '')}"
        machine = os.uname().machine
        tags = [
            f"--platform={tag}_{machine}" for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
        ]
        abis = [f"--abi={each}" for each in (abi, "abi3", "none")]
        _quietly(
            [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(kept)]
            + ["--only-binary=:all:", f"--python-version={release.python}", "--implementation=cp"]
            + [*abis, *tags, *wanted]
        )
        stamp.write_text("\n".join(wanted))
    shutil.copytree(kept, place, dirs_exist_ok=True)


def requirements() -> list[str]:
    """What pyproject.toml names, to build and to run."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    return [*project["build-system"]["requires"], *project["project"]["dependencies"]]


def sources(place: pathlib.Path) -> None:
    """Copy the tree, as git sees it, into `place`."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    for name in os.fsdecode(listed).split("\0"):
        source, target = ROOT / name, place / name
        if name and os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def bring_scripts(chroot: Chroot) -> None:
    """Copy what is run inside to /srv."""
    for name in SCRIPTS:
        shutil.copy(ROOT / "tests/package" / name, chroot.path / "srv")


def say(line: str) -> None:
    """One line for who waits."""
    print(f"package: {line}", file=sys.stderr, flush=True)


def _quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"package: {command[0]} failed:\n{done.stdout[-4000:]}")


@contextlib.contextmanager
def _cgroup() -> Iterator[pathlib.Path]:
    """A control group (v2) below our own that goes with all that is in it."""
    hierarchy = next(place for place in _cgroup_places() if (place / "cgroup.procs").exists())
    group = pathlib.Path(tempfile.mkdtemp(prefix="swaptide-package-", dir=hierarchy))
    try:
        yield group
    finally:
        for directory, _, _ in sorted(os.walk(group), reverse=True):
            _remove(pathlib.Path(directory))


def _cgroup_places() -> Iterator[pathlib.Path]:
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup2":
            yield pathlib.Path(left.split()[4])


def _remove(group: pathlib.Path) -> None:
    for _ in range(100):  # its last process is on its way out
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    group.rmdir()
