#!/usr/bin/python3 -I
"""Which Python packages that swaptide needs does this release of Debian have, and new enough?

`debian`, with what they are called there, is what the package depends on; `missing` is what it has to bring.
"""

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator

# What pyproject.toml names; the lowest version that will do is there.
DEBIAN = {
    "click": "python3-click",
    "msgspec": "python3-msgspec",
    "prometheus-client": "python3-prometheus-client",
    "qemu.qmp": "python3-qemu-qmp",
    "rich": "python3-rich",
}
_REQUIREMENT = re.compile(r"([\w.-]+)>=([\d.]+)")


def requirements() -> Iterator[tuple[str, str]]:
    """Names and lowest versions."""
    with open("pyproject.toml", "rb") as project:
        for line in tomllib.load(project)["project"]["dependencies"]:
            match = _REQUIREMENT.fullmatch(line)
            if match is None:
                sys.exit(f"pyproject.toml: {line} is not NAME>=VERSION, which is all that is known here")
            yield match[1], match[2]


def is_there(name: str, lowest: str) -> bool:
    """Whether Debian's own package, as installed here, will do."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return numbers(found) >= numbers(lowest)


def numbers(version: str) -> list[int]:
    """A version as it is compared; what follows the numbers does not count."""
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


def main(which: str) -> None:
    """Print dependencies of the Debian package, or requirements as pip takes them."""
    # -I leaves out what a user has installed; /usr/local would still be there.
    sys.path[:] = [place for place in sys.path if not place.startswith("/usr/local")]
    found = [(name, lowest, is_there(name, lowest)) for name, lowest in requirements()]
    if which == "debian":
        this, after = sys.version_info[:2], sys.version_info[1] + 1
        own = [f"{DEBIAN[name]} (>= {lowest})" for name, lowest, there in found if there]
        print(", ".join([f"python3 (>= {this[0]}.{this[1]}~)", f"python3 (<< {this[0]}.{after}~)", *own]))
    else:
        print(*(f"{name}>={lowest}" for name, lowest, there in found if not there), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
