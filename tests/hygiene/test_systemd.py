"""The units: systemd understands them, they leave the daemon little to do harm with, they fit together."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from swaptide.host import config
from tests.hygiene import tree

PLACE = tree.ROOT / "systemd"
UNITS = tuple(sorted(path for path in PLACE.iterdir() if path.suffix in (".service", ".slice", ".mount")))
COMMAND = "/usr/bin/swaptide"
# As `systemd-analyze security` counts, in tenths: 0 is nothing to be done, 100 everything allowed.
EXPOSURE = 35


def words(unit: str, key: str) -> list[str]:
    """All values of a key in a unit."""
    return re.findall(rf"^{key}=(.*)$", (PLACE / unit).read_text(), re.MULTILINE)


def call(tool: str, *arguments: str | pathlib.Path) -> "subprocess.CompletedProcess[str]":
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing (Debian package systemd)")
    return subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
    )


@pytest.fixture
def units(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """The units, with a command that is installed here."""
    found = []
    for path in UNITS:
        copy = tmp_path / path.name
        copy.write_text(
            path.read_text().replace(COMMAND, str(pathlib.Path(sys.executable).with_name("swaptide")))
        )
        found.append(copy)
    return found


def test_units_make_sense(units: list[pathlib.Path]) -> None:
    assert len(units) == 3
    # Which pages of the manual are installed here says nothing of the units.
    done = call("systemd-analyze", "verify", "--man=no", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nonsense_would_be_found(units: list[pathlib.Path]) -> None:
    (service,) = [path for path in units if path.suffix == ".service"]
    service.write_text(service.read_text().replace("KillMode=process", "KillMode=gently"))
    assert "gently" in call("systemd-analyze", "verify", "--man=no", service).stderr


def test_the_service_is_confined() -> None:
    service = PLACE / "swaptide.service"
    done = call("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", service)
    assert done.returncode == 0, done.stdout


def test_the_service_is_the_daemon_with_its_configuration() -> None:
    (line,) = words("swaptide.service", "ExecStart")
    assert line == f"{COMMAND} serve --config /etc/swaptide/swaptide.toml"
    assert words("swaptide.service", "Type") == ["notify"]
    # Else the disks end with the daemon, or what they share goes while they serve.
    assert words("swaptide.service", "KillMode") == ["process"]
    assert words("swaptide.service", "RuntimeDirectoryPreserve") == ["yes"]


def test_the_configuration_names_what_the_mount_unit_makes() -> None:
    (where,) = words("run-swaptide-memory.mount", "Where")
    chosen = config.load(PLACE / "swaptide.toml", None)
    assert str(chosen.memory_dir) == where
    assert words("swaptide.service", "RequiresMountsFor") == [where]
    # The daemon makes its directories searchable for the disks' users; this one is made before it.
    assert "mode=0711" in words("run-swaptide-memory.mount", "Options")[0].split(",")


def test_what_the_configuration_suggests_is_the_default(tmp_path: pathlib.Path) -> None:
    text = (PLACE / "swaptide.toml").read_text()
    file = tmp_path / "c.toml"
    file.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    suggested, plain = config.load(file, None), config.load(None, None)
    assert suggested.metrics == plain.metrics
    assert (
        config.reserve("host_reserve", suggested.host_reserve).percent
        == config.reserve("host_reserve", None).percent
    )


def test_the_user_can_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etc").mkdir()
    done = call("systemd-sysusers", f"--root={tmp_path}", PLACE / "sysusers.conf")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^swaptide:.*:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)


def test_files_that_stay_are_understood(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "var/tmp"
    place.mkdir(parents=True)
    (place / "g1.spill").touch()
    (place / "other").touch()
    rules = tmp_path / "rules.conf"
    # Everything is too old for the second rule.
    rules.write_text((PLACE / "tmpfiles.conf").read_text() + "e /var/tmp - - - 0\n")
    done = call("systemd-tmpfiles", "--clean", f"--root={tmp_path}", rules)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.iterdir()] == ["g1.spill"]
