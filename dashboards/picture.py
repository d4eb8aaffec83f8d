"""Draws what `swaptide top` shows now into an SVG, for docs/: `python dashboards/picture.py docs/top.svg`."""

import argparse
import io
import pathlib
import re
import time

from rich.console import Console

from swaptide.host import client, looks, paths, protocol, screen

_CHARS = 96
# A picture asks nobody for its letters.
_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def main() -> None:
    """Look twice at the daemon, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--run-dir", type=pathlib.Path, default=None)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between the two looks")
    given = parser.parse_args()
    run_dir = given.run_dir or paths.default_run_dir()
    before = client.call(run_dir, protocol.Look())
    time.sleep(given.interval)
    view = looks.compare(before, client.call(run_dir, protocol.Look()))
    given.picture.write_text(draw(view))


def draw(view: looks.View) -> str:
    """The picture."""
    console = Console(
        file=io.StringIO(), record=True, width=_CHARS, force_terminal=True, color_system="truecolor"
    )
    console.print(screen.draw(view, screen.Frame(_CHARS)))
    return _FONTS.sub("", console.export_svg(title="swaptide top", unique_id="top")) + "\n"


if __name__ == "__main__":
    main()
