"""`make deb`: the Debian packages, one for each release, built in a clean one; they come to dist/.

With names of releases (bookworm, trixie) only for those.
"""

import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.package import chroots  # noqa: E402

SOURCE = "/build/swaptide"


def deb(release: chroots.Release) -> pathlib.Path:
    """Build the package for a release; returns its file in dist/.

    Raises CalledProcessError with all that was said.
    """
    with chroots.clean(release) as inside:
        chroots.say(f"building for Debian {release.number}")
        chroots.sources(inside.path / SOURCE.lstrip("/"))
        inside.run("apt-get", "update", "-q")
        inside.install("build-essential")
        inside.run(
            "sh",
            "-c",
            f"cd {SOURCE} && apt-get build-dep -y -q --no-install-recommends ./ && "
            "dpkg-buildpackage -b -us -uc",
            environ=chroots.OFFLINE,
        )
        (made,) = (inside.path / "build").glob("swaptide_*.deb")
        chroots.DIST.mkdir(exist_ok=True)
        target = chroots.DIST / made.name
        target.write_bytes(made.read_bytes())
    return target


def main(names: list[str]) -> int:
    """Build for the releases named, or all."""
    why = chroots.missing()
    if why:
        print(f"package: {', '.join(why)}", file=sys.stderr)
        return 1
    for release in chroots.RELEASES:
        if not names or release.name in names:
            try:
                chroots.say(f"made {deb(release).relative_to(chroots.ROOT)}")
            except subprocess.CalledProcessError as error:
                print(f"{error.output}\npackage: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
