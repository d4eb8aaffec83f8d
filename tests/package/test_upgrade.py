"""The Debian package over an older one, away and back, while a guest uses its disk."""

import pathlib
import shutil
import subprocess

import pytest

import swaptide
from tests.package import chroots

OLDER = "0.0.9"

pytestmark = [pytest.mark.package, pytest.mark.timeout(2400)]


def older(package: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """What is in `package`, made in `place` as the one before it: another version and configuration file."""
    tree = place / "older"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    (tree / "DEBIAN/md5sums").unlink()
    (site,) = tree.glob("usr/lib/swaptide/lib/python3.*/site-packages")
    (described,) = site.glob("swaptide-*.dist-info")
    described = described.rename(site / f"swaptide-{OLDER}.dist-info")
    for file in (tree / "DEBIAN/control", described / "METADATA", site / "swaptide/__init__.py"):
        text = file.read_text()
        assert text.count(swaptide.__version__) == 1 + (file.name == "control"), file
        file.write_text(text.replace(swaptide.__version__, OLDER))
    with open(tree / "etc/swaptide/swaptide.toml", "a") as configuration:
        configuration.write("# As it was before the upgrade.\n")
    made = place / package.name.replace(swaptide.__version__, OLDER)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, made], check=True)
    shutil.rmtree(tree)
    return made


def test_upgrade_and_removal(package: pathlib.Path, inside: chroots.Chroot) -> None:
    place = inside.path / "opt"
    shutil.copy(package, place)
    before = older(package, place)
    inside.install("systemd", "procps", f"/opt/{before.name}")
    packages = f"OLD=/opt/{before.name} NEW=/opt/{package.name}"
    print(inside.boot(f"{packages} exec bash -eux /srv/upgrade.sh"))
