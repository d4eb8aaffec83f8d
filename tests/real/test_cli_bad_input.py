"""Each mistake ends in one line on stderr that names the thing, and leaves nothing half made."""

import os
import pathlib
import pwd
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.real import daemons

ADD = ("disk", "add", "g2", "--size", "64M", "--ram", "32M")


def furnish(daemon: daemons.Daemon) -> None:
    (daemon.root / "precious").write_bytes(b"mine" * 1024)
    daemon.add()


daemon = daemons.shared(furnish)


def fails(done: subprocess.CompletedProcess[str], *names: str, status: int | None = None) -> None:
    assert done.returncode == status if status is not None else done.returncode in (1, 2), done
    assert done.stderr.startswith("swaptide: ") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for name in names:
        assert name in done.stderr


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("disk", "add", "g1", "--size", "64M", "--ram", "32M"), ("g1 exists",)),
        (("disk", "add", "control", "--size", "64M", "--ram", "32M"), ("'control'", "another name")),
        (("disk", "add", "a/b", "--size", "64M", "--ram", "32M"), ("'a/b'", "letters")),
        (("disk", "add", ".g", "--size", "64M", "--ram", "32M"), ("'.g'",)),
        (("disk", "add", "n" * 65, "--size", "64M", "--ram", "32M"), ("n" * 65,)),
        (("disk", "add", "g2", "--size", "much", "--ram", "32M"), ("--size", "'much'", "4G")),
        (("disk", "add", "g2", "--size", "0", "--ram", "32M"), ("--size", "zero")),
        (("disk", "add", "g2", "--size", "-1", "--ram", "32M"), ("'-1'",)),
        (("disk", "add", "g2", "--size", "5000", "--ram", "32M"), ("5000", "4096")),
        (("disk", "add", "g2", "--size", "17T", "--ram", "32M"), (str(17 << 40),)),
        (("disk", "add", "g2", "--size", "64M", "--ram", "1M"), ("ram 1M", "floor")),
        (("disk", "add", "g2", "--size", "64M"), ("--ram",)),
        ((*ADD, "--floor", "1M"), ("floor 1M", "--floor")),
        ((*ADD, "--floor", "40M"), ("32M", "40M")),
        ((*ADD, "--weight", "0"), ("--weight",)),
        ((*ADD, "--compress", "lzma"), ("--compress", "zstd")),
        ((*ADD, "--clean-ahead", "101"), ("--clean-ahead", "100")),
        ((*ADD, "--clean-ahead", "half"), ("--clean-ahead", "half")),
        ((*ADD, "--spill-timeout", "30s"), ("--spill-timeout is for NBD exports", "a file", "kernel")),
        ((*ADD, "--spill", "/dev/null", "--spill-timeout", "30s"), ("/dev/null", "--spill-timeout")),
        ((*ADD, "--spill", "nbd://h/x", "--spill-timeout", "0.5s"), ("--spill-timeout 0.5 s", "1s to 24h")),
        ((*ADD, "--spill-timeout", "30"), ("--spill-timeout", "30", "500ms")),
        (("disk", "set", "g1", "--spill-timeout", "30s"), ("--spill-timeout is for NBD exports",)),
        ((*ADD, "--swap-label", "far too long for a label"), ("far too long", "15")),
        ((*ADD, "--spill", "/no/such/place/x"), ("/no/such/place/x",)),
        ((*ADD, "--frobnicate"), ("--frobnicate",)),
        (("disk", "add", "g2", "--size", "16T", "--ram", "64G"), ("g2-", "free")),
        (("disk", "show", "nope"), ("'nope'", "g1")),
        (("disk", "rm", "nope"), ("'nope'",)),
        (("disk", "clear", "nope"), ("'nope'",)),
        (("disk", "set", "nope", "--ram", "64M"), ("'nope'",)),
        (("disk", "set", "g1"), ("--ram",)),
        (("disk", "set", "g1", "--deadline", "2s"), ("--deadline", "--ram")),
        (("disk", "set", "g1", "--weight", "2", "--deadline", "2s"), ("--deadline", "--ram")),
        (("disk", "set", "g1", "--ram", "24M", "--deadline", "2"), ("--deadline", "500ms")),
        (("disk", "set", "g1", "--ram", "24M", "--deadline", "0s"), ("--deadline", "more than 0")),
        (("disk", "set", "g1", "--compress", "rar"), ("--compress", "lz4+zstd")),
        (("snippet", "nope"), ("'nope'",)),
        (("snippet", "g1", "--format", "xen"), ("--format", "libvirt")),
        (("frobnicate",), ("'frobnicate'",)),
    ],
)
def test_one_line_and_nothing_left(
    daemon: daemons.Daemon, words: tuple[str, ...], names: tuple[str, ...]
) -> None:
    before, files = daemon.show(), daemon.files()
    fails(daemon.run(*words), *names)
    after = daemon.show()
    for field in ("pid", "id", "cap_bytes", "weight"):
        assert after[field] == before[field]
    assert daemon.files() == files


def test_foreign_spill_file_is_refused(daemon: daemons.Daemon) -> None:
    precious = daemon.root / "precious"
    before = precious.read_bytes()
    fails(daemon.run(*ADD, "--spill", str(precious)), str(precious), "force", status=1)
    assert precious.read_bytes() == before
    daemon.ok(*ADD, "--spill", str(precious), "--force")
    daemon.ok("disk", "rm", "g2")


def test_spill_file_of_another_disk_is_refused_even_by_force(daemon: daemons.Daemon) -> None:
    spill = daemon.show("g1")["spill"]
    fails(daemon.run(*ADD, "--spill", spill, "--force"), spill, status=1)
    assert pathlib.Path(spill).exists()
    assert daemon.show("g1")["state"] == "running"


def test_no_daemon(tmp_path: pathlib.Path) -> None:
    done = daemons.Daemon(tmp_path, "none").run("disk", "ls")
    fails(done, str(tmp_path / "none" / "control.sock"), "swaptide serve", status=1)


def test_other_users_are_told(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    nobody = pwd.getpwnam("nobody")
    os.chmod(daemon.root, 0o711)
    try:
        done = daemon.run("disk", "ls", user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
    except PermissionError:
        pytest.skip("another user may not run this environment's Python")
    finally:
        os.chmod(daemon.root, 0o700)
    if "swaptide: " not in done.stderr:
        pytest.skip("another user cannot read this environment")
    fails(done, "permission denied", str(daemon.run_dir / "control.sock"), status=1)


def test_run_directory_that_cannot_be(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    fails(daemons.Daemon(tmp_path, "file").run("serve"), str(tmp_path / "file"), status=1)


@pytest.mark.parametrize("what", ["long", "control", "mem-file", "mem-link"])
def test_serve_that_fails_leaves_nothing(tmp_path: pathlib.Path, what: str) -> None:
    daemon = daemons.Daemon(tmp_path, "x" * 100 if what == "long" else "run")
    named = daemon.run_dir / ("control.sock" if what in ("long", "control") else "mem")
    if what != "long":
        daemon.run_dir.mkdir()
    if what == "mem-link":
        named.symlink_to(tmp_path)
    elif what != "long":
        named.touch()
    before = sorted(tmp_path.rglob("*"))
    fails(daemon.run("serve", "--config", str(daemon.config)), str(named), status=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert str(tmp_path) not in pathlib.Path("/proc/self/mounts").read_text()


def test_run_directory_of_somebody_else(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    daemon = daemons.Daemon(tmp_path)
    daemon.run_dir.mkdir()
    os.chown(daemon.run_dir, 65534, 65534)
    fails(daemon.run("serve", "--config", str(daemon.config)), str(daemon.run_dir), "another user", status=1)
    assert not any(daemon.run_dir.iterdir()) and not daemon.state_dir.exists()


def test_a_refused_limit_is_not_saved(daemon: daemons.Daemon) -> None:
    before = daemon.show()
    definition = next(daemon.state_dir.rglob("g1.json"))
    saved = definition.read_bytes()
    fails(daemon.run("disk", "set", "g1", "--ram", "18446744073709551616"), "--ram", status=2)
    line = b'{"type":"disk-set","name":"g1","ram_bytes":18446744073709551616}\n'
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.run_dir / "control.sock"))
        raw.sendall(line)
        assert b'"usage"' in raw.recv(4096)
    assert definition.read_bytes() == saved
    assert daemon.show()["cap_bytes"] == before["cap_bytes"]


def test_missing_nbdkit(tmp_path: pathlib.Path) -> None:
    daemon = daemons.Daemon(tmp_path, nbdkit="/no/such/nbdkit")
    fails(daemon.run("serve", "--config", str(daemon.config)), "/no/such/nbdkit", "Debian", status=1)
    assert not daemon.run_dir.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nonsense = 1\n", "nonsense"),
        ('metrcs = "off"\n', "the keys are run_dir"),
        ("[run]\ndir = 1\n", "run"),
        ("threads = 0\n", "threads"),
        ("threads = 99\n", "threads"),
        ("threads = nan\n", "threads"),
        ('threads = "4"\n', "threads"),
        ("balloon = 1\n", "balloon"),
        ("run_dir = \n", "not TOML"),
        ("run_dir = 3\n", "run_dir"),
        ('run_dir = ""\n', "run_dir"),
        ('run_dir = "/x\\u0000y"\n', "run_dir"),
        ("run_dir = 1979-05-27\n", "run_dir"),
        ('host_reserve = "lots"\n', "host_reserve 'lots'"),
        ('host_reserve = "200%"\n', "host_reserve '200%'"),
        ('spill_timeout = "nan"\n', "spill_timeout"),
        ('uids = "5-1"\n', "uids '5-1'"),
        ('user = "root"\nuids = "5000-6000"\n', "choose one"),
        ('log_format = "xml"\n', "log_format=xml"),
        ('metrics = "127.0.0.1:99999"\n', "metrics=127.0.0.1:99999"),
        ("\ufeffthreads = 4\n", "not TOML"),
        ("\xff\n", "not TOML"),
        ("x" * 2_000_000, "longer than"),
    ],
)
def test_bad_configuration(tmp_path: pathlib.Path, text: str, name: str) -> None:
    daemon = daemons.Daemon(tmp_path)
    daemon.config.write_text(text)
    fails(daemon.run("serve", "--config", str(daemon.config)), str(daemon.config), name, status=1)
    assert not daemon.run_dir.exists() and not daemon.state_dir.exists()


@pytest.fixture
def tmpfs(tmp_path: pathlib.Path) -> Iterator[Callable[[str], pathlib.Path]]:
    """Makes a memory file system with such options."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    made: list[pathlib.Path] = []

    def make(options: str) -> pathlib.Path:
        place = tmp_path / f"tmpfs{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
        made.append(place)
        return place

    try:
        yield make
    finally:
        for place in made:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1", "nr_inodes=2", "nr_inodes=3"])
@pytest.mark.parametrize("what", ["run_dir", "state_dir", "memory_dir"])
def test_places_that_take_nothing(
    options: str, what: str, tmpfs: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    place = tmpfs(options)
    if options == "nr_inodes=3":
        (place / "full").touch()
        (place / "fuller").touch()
    elif options == "nr_inodes=2":
        (place / "full").touch()
    daemon = daemons.Daemon(tmp_path)
    with open(daemon.config, "a", encoding="utf-8") as config:
        if what == "memory_dir":
            config.write(f'memory_dir = "{place}/x"\n')
    if what == "state_dir":
        daemon.config.write_text(f'metrics = "off"\nstate_dir = "{place}/x"\n')
    if what == "run_dir":
        daemon.run_dir = place / "x"
    before = mounts(tmp_path)
    done = daemon.run("serve", "--config", str(daemon.config))
    # What the log says before belongs to it.
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("swaptide: ") and "Traceback" not in done.stderr
    assert str(place) in last and "; " in last, last
    assert not (place / "x").exists() and mounts(tmp_path) == before


def mounts(root: pathlib.Path) -> list[str]:
    """Ours, for others' daemons come and go."""
    text = pathlib.Path("/proc/self/mounts").read_text()
    return [line for line in text.splitlines() if str(root) in line]


def test_configuration_that_is_not_there(tmp_path: pathlib.Path) -> None:
    fails(daemons.Daemon(tmp_path).run("serve", "--config", "/no/such.toml"), "/no/such.toml", status=1)
