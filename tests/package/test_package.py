"""The packages on a clean Debian of each release: installed, used, and removed without a trace."""

import pathlib
import re
import shutil
import subprocess

import pytest

from tests.package import chroots

# What the command needs beside its own package, as docs/install.md has it.
NEEDED = ("nbdkit", "nbdkit-plugin-python", "python3-libnbd", "libkeyutils1", "python3-venv")
TO_COMPILE = (
    "gcc",
    "libc6-dev",
    "python3-dev",
    "libxxhash-dev",
    "liblz4-dev",
    "libzstd-dev",
    "libssl-dev",
    "libnbd-dev",
)

# As `systemd-analyze security` counts, of 10.
EXPOSURE = 3.5

pytestmark = [pytest.mark.package, pytest.mark.timeout(2400)]


def smoke(inside: chroots.Chroot, command: str) -> None:
    said = inside.run("bash", "-eux", "/srv/smoke.sh", environ={"COMMAND": command})
    assert said.count("read: 64 MiB") == 2, said


def files_of_ours(inside: chroots.Chroot) -> str:
    return inside.run(
        "find",
        "/",
        "-xdev",
        "-name",
        "*swaptide*",
        "-not",
        "-path",
        "/var/cache/*",
        "-not",
        "-path",
        "/opt/*",
    )


def test_debian_package(package: pathlib.Path, inside: chroots.Chroot) -> None:
    lintian = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", str(package)]
    assert not subprocess.run(lintian, stdout=subprocess.PIPE, text=True, check=False).stdout
    before = files_of_ours(inside)
    shutil.copy(package, inside.path / "opt")
    inside.install("systemd", "procps", "bash-completion", f"/opt/{package.name}")
    assert inside.run("swaptide", "--version").startswith("swaptide ")
    listed = inside.run("dpkg", "-L", "swaptide").splitlines()
    for file in (
        "/usr/share/man/man1/swaptide.1.gz",
        "/usr/share/man/man5/swaptide.toml.5.gz",
        "/usr/share/man/man1/nbdkit-swaptide-plugin.1.gz",
        "/usr/share/bash-completion/completions/swaptide",
        "/usr/share/zsh/vendor-completions/_swaptide",
        "/usr/share/fish/vendor_completions.d/swaptide.fish",
        "/usr/lib/sysusers.d/swaptide.conf",
        "/usr/lib/tmpfiles.d/swaptide.conf",
        "/etc/swaptide/swaptide.toml",
    ):
        assert file in listed, file
    smoke(inside, "swaptide")
    said = inside.boot("exec bash -eux /srv/boot.sh")
    print(said)
    exposures = re.findall("Overall exposure level for swaptide.service: ([0-9.]+)", said)
    assert len(exposures) == 1 and float(exposures[0]) <= EXPOSURE, exposures
    inside.run("apt-get", "purge", "-y", "-q", "swaptide")
    left = set(files_of_ours(inside).split()) - set(before.split())
    assert left <= {f"/opt/{package.name}"}, left


def test_source_distribution_and_wheel(release: chroots.Release, inside: chroots.Chroot) -> None:
    chroots.sources(inside.path / "srv/swaptide")
    inside.install(*NEEDED, *TO_COMPILE)
    inside.run("python3", "-m", "venv", "--system-site-packages", "/opt/build")
    inside.run("/opt/build/bin/pip", "install", *chroots.requirements(), environ=chroots.OFFLINE)
    hook = "from setuptools import build_meta; print(build_meta.build_sdist('/opt'))"
    inside.run("sh", "-c", f'cd /srv/swaptide && /opt/build/bin/python -c "{hook}"')
    inside.run("rm", "-r", "/srv/swaptide", "/opt/build")
    (source,) = (inside.path / "opt").glob("swaptide-*.tar.gz")
    inside.run("python3", "-m", "venv", "--system-site-packages", "/opt/made")
    # For the other Debian, which has no compiler; to install it here, pip compiles once more.
    inside.run(
        "/opt/made/bin/pip",
        "wheel",
        "--no-deps",
        "-w",
        "/opt",
        f"/opt/{source.name}",
        environ=chroots.OFFLINE,
    )
    (wheel,) = (inside.path / "opt").glob("swaptide-*.whl")
    inside.run("/opt/made/bin/pip", "install", f"/opt/{source.name}", environ=chroots.OFFLINE)
    smoke(inside, "/opt/made/bin/swaptide")
    with chroots.clean(release) as other:
        chroots.bring_scripts(other)
        shutil.copy(wheel, other.path / "opt")
        other.run("apt-get", "update", "-q")
        other.install(*NEEDED)
        other.run("/usr/bin/python3", "-m", "venv", "--system-site-packages", "/opt/made")
        other.run("/opt/made/bin/pip", "install", f"/opt/{wheel.name}", environ=chroots.OFFLINE)
        smoke(other, "/opt/made/bin/swaptide")


def test_what_fails_inside_is_told(release: chroots.Release) -> None:
    with chroots.clean(release) as made:
        with pytest.raises(subprocess.CalledProcessError) as failed:
            made.run("sh", "-c", "echo why; exit 3")
        assert (failed.value.returncode, failed.value.output) == (3, "why\n")
        place = made.path
    assert not place.exists()
    mounts = pathlib.Path("/proc/self/mountinfo").read_text()
    assert str(place) not in mounts
