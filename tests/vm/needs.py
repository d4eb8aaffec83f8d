"""What a scenario needs beyond the usual and may lack: then it is skipped, and says what it lacks."""

import shutil

import pytest

from tests.vm import image


def tool(name: str, package: str) -> None:
    """Skip unless the program is there; `package` is the Debian package that brings it."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is missing; install {package}")


def guest(name: str) -> str:
    """The name of one of vm-images/build.py's images; skip where it cannot be made."""
    try:
        image.ensure(name)
    except image.ImageError as error:
        pytest.skip(str(error))
    return name
