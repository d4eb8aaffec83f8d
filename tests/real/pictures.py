"""`make pictures`: draws docs/dashboard.png and docs/top.svg anew, from a real daemon with three busy disks.

Daemon and disks live in a memory cgroup of 1.75 GiB, in which another process takes memory and gives it back
after a while; a real Prometheus asks them, and a real Chromium looks at its page.  It takes six minutes.
"""

import contextlib
import io
import pathlib
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import pytest  # noqa: E402
from PIL import Image  # noqa: E402
from rich import color, terminal_theme  # noqa: E402
from rich.console import Console  # noqa: E402

from dashboards import browser, panels, prometheus  # noqa: E402
from swaptide.host import client, looks, protocol, screen  # noqa: E402
from tests.hygiene import tree  # noqa: E402
from tests.real import daemons, eater, scraping, test_cgroup  # noqa: E402

MIB: Final = 1 << 20
PAGE: Final = 4096
LIMIT_BYTES: Final = 1792 * MIB
EATEN_MIB: Final = 720
# When the neighbour comes and goes, and when the pictures are taken, after the load began.
COMES_SECONDS, GOES_SECONDS, END_SECONDS = 120, 200, 330
WIDTH, HEIGHT = 1280, 1560
TOP_CHARS: Final = 96
COLOURS: Final = 128
# Pages that are as real ones: of programs that are here anyway.
PROGRAMS: Final = ("/usr/bin", "/usr/lib")
# A picture asks nobody for its letters.
# Tiers have the colours of the page.
_INK, _PAPER, _WARN, _BAD = (222, 230, 236), (26, 34, 42), (230, 159, 0), (255, 107, 112)
_TIERS: Final = {tier: color.Color.parse(shown).get_truecolor() for tier, shown in panels.COLOURS.items()}
_EIGHT: Final = [
    *(_PAPER, _BAD, _TIERS["raw"], _WARN),
    *((58, 140, 214), _TIERS["same_filled"], _TIERS["packed"], _INK),
]
_THEME: Final = terminal_theme.TerminalTheme(_PAPER, _INK, _EIGHT, _EIGHT)
_FONTS: Final = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


class Work:
    """What a guest does with a disk: `filled` MiB are written, then `hot` of them are used.

    So many pages a second are read, a few of them most often, and a part of them written.
    """

    def __init__(
        self, name: str, size: str, ram: str, filled: int, hot: int, pages: int, writes: float
    ) -> None:
        self.name, self.size, self.ram = name, size, ram
        self.filled, self.hot, self.pages, self.writes = filled, hot, pages, writes


WORKS: Final = (
    Work("web", "512M", "448M", filled=360, hot=200, pages=3000, writes=0.03),
    Work("db", "1G", "640M", filled=760, hot=640, pages=2600, writes=0.05),
    Work("batch", "768M", "384M", filled=560, hot=400, pages=400, writes=0.05),
)


def material() -> list[bytes]:
    """Real pages, a few MiB of them; every ninth is all zeroes, as many of a guest's are."""
    found: list[bytes] = []
    for path in sorted(
        path for place in PROGRAMS for path in pathlib.Path(place).glob("*") if path.is_file()
    ):
        with contextlib.suppress(OSError):
            text = path.read_bytes()[: 2 * MIB]
            found += [text[at : at + PAGE] for at in range(0, len(text) - PAGE, PAGE)]
        if len(found) > 16384:
            break
    return [bytes(PAGE) if number % 9 == 0 else page for number, page in enumerate(found)]


def guest(work: Work, report: dict[str, Any], pages: list[bytes], over: threading.Event) -> None:
    """Fill the disk, then use it until the end."""
    chance = random.Random(work.name)
    hot = work.hot * MIB // PAGE
    with daemons.client(report) as handle:
        for at in range(0, work.filled * MIB, 32 * PAGE):
            if over.is_set():
                return
            handle.pwrite(b"".join(chance.choices(pages, k=32)), at)
        due = time.monotonic()
        while not over.is_set():
            for _ in range(work.pages // 50):
                often = chance.random() < 0.75
                page = min(int(chance.paretovariate(0.3)), hot) if often else chance.randrange(hot)
                page = page * 7919 % hot
                if chance.random() < work.writes:
                    handle.pwrite(chance.choice(pages), page * PAGE)
                else:
                    handle.pread(PAGE, page * PAGE)
            due = max(due + 0.02, time.monotonic() - 0.5)
            over.wait(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def working(daemon: daemons.Daemon) -> Iterator[None]:
    """Every guest at work."""
    pages, over = material(), threading.Event()
    threads = []
    for work in WORKS:
        daemon.ok("disk", "add", work.name, "--size", work.size, "--ram", work.ram)
        threads.append(threading.Thread(target=guest, args=(work, daemon.show(work.name), pages, over)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def wait_until(seconds: float, what: str, begun: float) -> None:
    """Wait for that moment after `begun`."""
    print(f"{time.monotonic() - begun:4.0f} s  until {seconds} s: {what}", flush=True)
    time.sleep(max(0.0, begun + seconds - time.monotonic()))


def picture_page(chromium: browser.Browser, url: str, to: pathlib.Path) -> None:
    """The upper part of the page, in as few colours as it needs."""
    page = chromium.open(url, WIDTH, HEIGHT)
    figures = "Array.from(document.querySelectorAll('figure'))"
    page.wait(f"{figures}.length > 0 && {figures}.every(each => each.dataset.lines)")
    page.wait(f"{figures}.slice(0, 9).every(each => Number(each.dataset.lines) > 0)")
    ends = f"{figures}.map(each => each.getBoundingClientRect().bottom)"
    cut = page.evaluate(f"Math.max(...{ends}.filter(end => end < {HEIGHT})) + 14")
    drawn = Image.open(io.BytesIO(page.picture(round(cut)))).convert("RGB")
    drawn.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(to, optimize=True)


def picture_top(run_dir: pathlib.Path, to: pathlib.Path) -> None:
    """What `swaptide top` shows now."""
    before = client.call(run_dir, protocol.Look())
    time.sleep(2)
    view = looks.compare(before, client.call(run_dir, protocol.Look()))
    console = Console(
        file=io.StringIO(), record=True, width=TOP_CHARS, force_terminal=True, color_system="truecolor"
    )
    console.print(screen.draw(view, screen.Frame(TOP_CHARS)))
    to.write_text(
        _FONTS.sub("", console.export_svg(title="swaptide top", theme=_THEME, unique_id="top")) + "\n"
    )


def address(port: int) -> str:
    """The usual place, if nobody is there."""
    usual = f"127.0.0.1:{port}"
    return usual if prometheus.is_free(usual) else "127.0.0.1:0"


def run(tell: Callable[[str], None], docs: pathlib.Path) -> None:
    """Make both."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(test_cgroup.limited(LIMIT_BYTES, "guests"))
        # Who has ended is in the group for a moment longer.
        stack.callback(daemons.wait_for, lambda: not (group / "cgroup.procs").read_text())
        root = stack.enter_context(daemons.directory())
        settings = {"metrics": address(9819), "cgroup_reserve": "10%"}
        daemon = stack.enter_context(daemons.serving(root, prefix=eater.inside(group), **settings))
        instance = f"127.0.0.1:{scraping.port_in(daemon.log)}"
        own = root / "prometheus"
        own.mkdir()
        listen = address(9890) if address(9890) != "127.0.0.1:0" else "127.0.0.1:9891"
        asked = stack.enter_context(prometheus.running(own, [instance], listen, "2s"))
        chromium = stack.enter_context(browser.running(root))
        stack.enter_context(working(daemon))
        begun = time.monotonic()
        wait_until(COMES_SECONDS, "three guests fill their disks and use them", begun)
        with eater.eating(group, EATEN_MIB, 40):
            wait_until(GOES_SECONDS - 10, f"a neighbour takes {EATEN_MIB} MiB of the cgroup", begun)
            picture_top(daemon.run_dir, docs / "top.svg")
        wait_until(END_SECONDS, "it is gone, and caches grow back", begun)
        picture_page(chromium, f"{asked.url}/consoles/swaptide.html?range=5m", docs / "dashboard.png")
        tell(f"killed for want of memory: {test_cgroup.oom_kills(group)}")


def main() -> None:
    """Draw them into docs/, or into the directory that is named."""
    docs = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else tree.ROOT / "docs"
    try:
        run(print, docs)
    except (pytest.skip.Exception, browser.BrowserError, prometheus.PrometheusError) as error:
        sys.exit(f"pictures: {error}")
    for name in ("top.svg", "dashboard.png"):
        print(f"{docs / name}: {(docs / name).stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
