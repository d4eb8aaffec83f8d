"""The console page in a real headless Chromium: a stock Prometheus serves it, of a real daemon under load."""

import dataclasses
import io
import json
from collections.abc import Iterator

import pytest
from PIL import Image

from dashboards import browser, panels
from tests import queries
from tests.real import daemons, scenes

DESK, PHONE = (1280, 900), (400, 800)
# Every graph has been asked for, and has been drawn or says why not.
DRAWN = """(n => n > 0 && document.querySelectorAll("figure[data-lines]").length === n)(
  document.querySelectorAll("figure").length)"""
FIGURES = """JSON.stringify(Array.from(document.querySelectorAll("figure"), figure => {
  const svg = figure.querySelector("svg"), place = svg.getBoundingClientRect();
  const paths = Array.from(svg.querySelectorAll("path.data"));
  return {
    title: figure.querySelector("figcaption").firstChild.textContent,
    lines: Number(figure.dataset.lines),
    paths: paths.map(path => [path.getAttribute("stroke"), path.getTotalLength()]),
    legend: figure.querySelector(".legend").textContent,
    box: [place.left, place.top + window.scrollY, place.right, place.bottom + window.scrollY],
  };
}))"""
FIRST_CELLS = "Array.from(document.querySelectorAll('tbody tr'), row => row.cells[0].textContent)"
ORDER = """["header", "#wrong", ".tiles", "table", "figure"].map(
  each => document.querySelector(each).getBoundingClientRect().top)"""
STATE = """Array.from(document.querySelectorAll("tbody tr"))
  .find(row => row.cells[0].textContent === "frozen").cells[1].textContent"""
BACKGROUNDS = """Object.fromEntries(Array.from(document.querySelectorAll("%s"),
  part => [part.className, getComputedStyle(part).backgroundColor]))"""
LINKS = "Array.from(document.querySelectorAll('#ranges a'), link => link.getAttribute('href'))"
BOX = "JSON.stringify(document.querySelector('figure svg').getBoundingClientRect())"
CURSOR = """(line => getComputedStyle(line).visibility === "visible" ?
  Number(line.getAttribute("x1")) : null)(document.querySelector("figure .cursor"))"""
# Grid, letters and paper are shades of grey, or nearly; lines and areas are not.
GREY = 45


@dataclasses.dataclass(frozen=True)
class Figure:
    """A graph as it is drawn: its lines' colours and lengths, what its legend says, where it is."""

    title: str
    lines: int
    paths: list[tuple[str, float]]
    legend: str
    box: list[float]


@pytest.fixture(scope="module")
def scene() -> Iterator[scenes.Scene]:
    if browser.program() is None:
        pytest.skip("chromium is missing (Debian package chromium-headless-shell)")
    with scenes.running() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(scene: scenes.Scene) -> Iterator[browser.Browser]:
    with daemons.directory() as root, browser.running(root) as running:
        yield running


def address(scene: scenes.Scene, parameters: str = "range=5m") -> str:
    return f"{scene.prometheus.url}/consoles/swaptide.html?{parameters}"


def figures(page: browser.Page) -> list[Figure]:
    """All graphs, once they are drawn."""
    page.wait(DRAWN)
    return [Figure(**found) for found in json.loads(page.evaluate(FIGURES))]


def open_with_data(
    scene: scenes.Scene, chromium: browser.Browser, size: tuple[int, int], *, dark: bool = False
) -> tuple[browser.Page, list[Figure]]:
    """The page, once there is something in each graph: a rate needs two scrapes."""
    page = chromium.open(address(scene), *size, dark=dark)
    found: list[Figure] = []

    def is_full() -> bool:
        nonlocal found
        found = figures(page)
        return all(figure.lines for figure in found)

    scenes.wait_for(is_full, "every graph has data")
    # Nor does one scrape that failed, on a busy host, leave the table empty for good.
    page.wait(f"JSON.stringify({FIRST_CELLS}) === JSON.stringify({json.dumps(scenes.DISKS)})")
    return page, found


def coloured(picture: Image.Image, box: list[float]) -> tuple[int, int]:
    """Pixels of a part of the picture that are no shade of grey, and how many colours there are at all."""
    part = picture.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    counts = part.getcolors(part.width * part.height) or []
    shown = [(count, max(pixel) - min(pixel)) for count, pixel in counts if isinstance(pixel, tuple)]
    return sum(count for count, difference in shown if difference > GREY), len(counts)


def shot(page: browser.Page) -> Image.Image:
    return Image.open(io.BytesIO(page.picture())).convert("RGB")


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_shows_the_disks_and_graphs_with_data(
    scene: scenes.Scene, chromium: browser.Browser, size: tuple[int, int], dark: bool
) -> None:
    page, drawn = open_with_data(scene, chromium, size, dark=dark)
    assert [figure.title for figure in drawn] == [panel.title for panel in panels.PANELS]
    picture = shot(page)
    assert picture.width == size[0], "it is as wide as the window"
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
    if size == DESK:
        table = "(each => each.scrollWidth - each.clientWidth)(document.querySelector('.scroll'))"
        assert page.evaluate(table) == 0, "the table fits"
    paper = picture.getpixel((1, 1))
    assert isinstance(paper, tuple) and (max(paper) < 64 if dark else min(paper) > 192)
    for figure in drawn:
        assert len(figure.paths) == figure.lines and all(length > 1 for _, length in figure.paths), figure
        pixels, colours = coloured(picture, figure.box)
        assert pixels > 5 and colours > 2, f"{figure.title} is empty: {pixels} pixels, {colours} colours"
    assert page.complaints == []


def test_an_empty_graph_would_be_found(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page = chromium.open(address(scene, "disk=nothing"), *DESK)
    by_title = {figure.title: figure for figure in figures(page)}
    empty = by_title[panels.PANELS[0].title]
    assert empty.lines == 0 and empty.paths == []
    assert coloured(shot(page), empty.box)[0] == 0


def test_what_is_wrong_stands_first(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page, _ = open_with_data(scene, chromium, DESK)
    page.wait("document.querySelector('#wrong li').textContent.includes('dying')")
    order = page.evaluate(ORDER)
    assert order == sorted(order) and order[1] < 120
    page.wait("document.querySelector('#wrong li').textContent.includes('its process keeps dying')")


def test_a_tier_has_one_colour_everywhere(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page, drawn = open_with_data(scene, chromium, DESK)
    bars, keys = (page.evaluate(BACKGROUNDS % f"{where} i") for where in (".bar", ".key"))
    wanted = {
        tier: "rgb({}, {}, {})".format(*bytes.fromhex(colour[1:]))
        for tier, colour in panels.COLOURS.items()
        if tier != "overhead"
    }
    assert bars == keys == wanted
    by_title = {figure.title: [colour for colour, _ in figure.paths] for figure in drawn}
    colours = panels.COLOURS
    tiers = [colours[tier] for tier in ("raw", "packed", "spilled")]
    assert by_title["Where every byte of guest swap is"] == [*tiers, colours["same_filled"]]
    assert by_title["RAM that the disks take"] == [*tiers[:2], colours["overhead"]]
    assert by_title["Pages read, by where they were"] == tiers


def test_a_disk_has_one_colour_in_all_graphs(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page = chromium.open(address(scene, "range=5m&disk=g1"), *DESK)
    scenes.wait_for(lambda: all(figure.lines for figure in figures(page)[3:4]), "a hit rate")
    by_title = {figure.title: figure for figure in figures(page)}
    of_g1 = panels.PALETTE[scenes.DISKS.index("g1")]
    assert [colour for colour, _ in by_title["RAM and targets"].paths] == [of_g1, of_g1]
    assert [colour for colour, _ in by_title["Hit rate"].paths] == [of_g1]
    assert "g1 target" in by_title["RAM and targets"].legend


def test_it_tells_the_values_under_the_mouse(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page, _ = open_with_data(scene, chromium, DESK)
    page.evaluate("document.querySelector('figure').scrollIntoView({block: 'center'})")
    place: dict[str, float] = {}
    at = None

    def is_seen() -> bool:
        """A graph that is drawn anew in between has no mouse over it until that moves."""
        nonlocal at
        place.update(json.loads(page.evaluate(BOX)))
        x, y = place["left"] + place["width"] / 2, place["top"] + place["height"] / 2
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 1, y=y)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        at = page.evaluate(CURSOR)
        return at is not None

    scenes.wait_for(is_seen, "the cursor")
    assert at is not None and 0.4 < at / place["width"] < 0.6


def test_it_renews_itself(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page, _ = open_with_data(scene, chromium, DESK)
    page.wait(f"{STATE} === 'frozen'")
    scene.daemon.ok("disk", "thaw", "frozen")
    try:
        page.wait(f"{STATE} === 'running'")
    finally:
        scene.daemon.ok("disk", "freeze", "frozen")
    assert page.complaints == []


def test_the_ranges_lead_to_pages_of_that_range(scene: scenes.Scene, chromium: browser.Browser) -> None:
    page = chromium.open(address(scene, "range=15m&disk=g1"), *DESK)
    page.wait("document.querySelectorAll('#ranges a').length > 3")
    assert page.evaluate("document.querySelector('#ranges a.on').textContent") == "15m"
    links = page.evaluate(LINKS)
    assert "?range=5m&disk=g1" in links
    assert len(queries.page_panels()) == len(figures(page))
