"""Debian's archives: this machine's own, and packages of another release or architecture.

The latter are fetched with lists and settings that live only while that lasts: what apt knows on this machine
stays as it is.  apt checks them by the archive's signature, as always.
"""

import pathlib
from collections.abc import Sequence
from typing import Final

import tools

# The options of apt that decide how it reaches its archives.
APT_OPTIONS: Final = ("Acquire::Check", "Acquire::http", "Acquire::Retries", "Acquire::ForceIP")
KEYRING: Final = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def sources() -> list[str]:
    """The Debian archives that this machine's apt uses, as lines for a sources.list; raises BuildError."""
    shown = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    found = tools.run("apt-get", "indextargets", "--format", shown, "Origin: Debian", "Created-By: Packages")
    lines = list(dict.fromkeys(found.splitlines()))
    if not lines:
        raise tools.BuildError("apt knows no Debian archive; run `apt-get update`, on Debian")
    return lines


def apt_options() -> list[str]:
    """This machine's own settings for fetching (proxies, retries), as lines of an apt.conf."""
    return [line for line in tools.run("apt-config", "dump").splitlines() if line.startswith(APT_OPTIONS)]


class Apt:
    """apt on some lists: `options` are what its commands are given."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        # As root apt would drop to a user who cannot write where we download, and only warns about it.
        self._options = ("-o", "APT::Sandbox::User=root", *options)

    def newest(self, meta_package: str) -> str:
        """The kernel package that a meta package stands for today; raises BuildError without lists."""
        for line in tools.run("apt-cache", *self._options, "depends", meta_package).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith("linux-image-"):
                return name
        raise tools.BuildError(f"apt knows no {meta_package}; run `apt-get update`, on Debian for amd64")

    def download(self, package: str, directory: pathlib.Path) -> pathlib.Path:
        """Fetch the package file into `directory`; raises BuildError."""
        before = set(directory.glob("*.deb"))
        command = ("apt-get", *self._options, "download", package)
        tools.run(*command, cwd=directory, seconds=tools.APT_SECONDS)
        new = set(directory.glob("*.deb")) - before
        if len(new) != 1:
            raise tools.BuildError(f"apt-get download {package} left no package file; run `apt-get update`")
        return new.pop()


def of_release(release: str, architecture: str, work: pathlib.Path) -> Apt:
    """apt for a release of Debian (its code name) and an architecture, with lists in `work`."""
    state = work / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    where = f"[signed-by={KEYRING}] {sources()[0].split()[1]} {release} main"
    (state / "sources.list").write_text(f"deb {where}\n", encoding="utf-8")
    settings = (
        f"Dir::Etc::SourceList={state / 'sources.list'}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={state / 'lists'}",
        "Dir::State::Status=/dev/null",
        f"Dir::Cache={state / 'cache'}",
        f"APT::Architecture={architecture}",
        f"APT::Architectures={architecture}",
        "Acquire::Languages=none",
        "APT::Sandbox::User=root",
    )
    options = [word for setting in settings for word in ("-o", setting)]
    tools.run("apt-get", *options, "update", seconds=tools.APT_SECONDS)
    return Apt(options)
