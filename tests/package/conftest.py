"""What the tests of packages share: releases, clean copies of them, the package of each, built once."""

import functools
import pathlib
from collections.abc import Iterator

import pytest

from tests.package import build, chroots

deb = functools.cache(build.deb)


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    if why := chroots.missing():
        pytest.skip(", ".join(why))


@pytest.fixture(params=chroots.RELEASES, ids=lambda release: release.name)
def release(request: pytest.FixtureRequest) -> chroots.Release:
    found: chroots.Release = request.param
    return found


@pytest.fixture
def inside(release: chroots.Release) -> Iterator[chroots.Chroot]:
    """A clean release, with nothing but our scripts."""
    with chroots.clean(release) as made:
        chroots.bring_scripts(made)
        made.run("apt-get", "update", "-q")
        yield made


@pytest.fixture
def package(release: chroots.Release) -> pathlib.Path:
    """The Debian package for the release."""
    return deb(release)
