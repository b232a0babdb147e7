"""The page in Chromium: nothing is fetched, nothing overflows, and it can be read in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, missing
from report_records import both, mismatch, recompile, red
from test_html import HOSTILE, hostile_run

from vlm_ci.report.html import page
from vlm_ci.report.records import Records

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs a browser: {missing()}")

LEAST = 4.5  # contrast of text with its ground, as WCAG 2 asks for at level AA

# Returns [text, colour, ground] of every text that is shown; a ground is opaque or there is none.
TEXTS = """
const seen = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  let one = walker.currentNode.parentElement;
  if (!text || one.closest('title, desc, script') || !one.getClientRects().length) continue;
  const drawn = one.closest('svg');
  const colour = getComputedStyle(one)[drawn ? 'fill' : 'color'];
  let ground = null;
  for (; one && !ground; one = one.parentElement) {
    const found = getComputedStyle(one).backgroundColor;
    if (!found.endsWith(', 0)')) ground = found;
  }
  seen.push([text.slice(0, 40), colour, ground]);
}
return seen;
"""
SIZES = """
const root = document.scrollingElement;
return [root.scrollWidth, root.clientWidth, document.documentElement.scrollHeight];
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a red and a green run, every part of it unfolded."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(both()).replace("<details>", "<details open>"), encoding="utf-8")
    return path


def contrast(one: str, other: str) -> float:
    """Return the contrast of two CSS colours, as WCAG 2 defines it: 1 to 21."""
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_measured_as_defined():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)


def test_it_loads_without_an_error_and_without_the_network(tab: Browser, file: Path):
    tab.show(file, width=1280)
    console, asked = tab.log()
    assert console == []
    assert asked == [file.as_uri()]
    assert tab.run("return getComputedStyle(document.body).maxWidth") == "1248px"  # its own style


def test_the_browser_tells_of_errors_and_requests(tab: Browser, file: Path):
    spoilt = file.with_name("spoilt.html")
    image = '<img src="other.png" alt=""><script>alert(1)</script><p style="color:red">'
    spoilt.write_text(file.read_text().replace("<main", image + "<main"))
    tab.show(spoilt, width=1280)
    console, _ = tab.log()
    assert sum("Content Security Policy" in message for message in console) == 3, console


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_window(tab: Browser, file: Path, width: int):
    tab.show(file, width=width)
    wide, room, _ = tab.run(SIZES)
    assert room == width
    assert wide <= room


def test_a_long_word_does_not_widen_the_page(tab: Browser, tmp_path: Path):
    long = "w" * 400
    run = red(
        recompile(cause=long, advice=long, frame=long, guards=(long,), line=long, note=long),
        mismatch(cause=long, location={"request": 0, "token": 1, "modality": long}),
        test=long,
        target=long,
    )
    path = tmp_path / "long.html"
    text = page(Records(runs=(run,), problems=(long,)))
    path.write_text(text.replace("<details>", "<details open>"))
    tab.show(path, width=360)
    wide, room, _ = tab.run(SIZES)
    assert wide <= room


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read(tab: Browser, file: Path, dark: bool):
    tab.show(file, width=1280, dark=dark)
    ground = tab.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.05) == dark
    texts = tab.run(TEXTS)
    assert len(texts) > 200
    assert {one[0] for one in texts} >= {"Overview", "request 0", "warm-up", "1: the limit"}
    faint = [one for one in texts if contrast(one[1], one[2]) < LEAST]
    assert faint == []


def test_drawings_follow_the_dark(tab: Browser, file: Path):
    colours = []
    for dark in (False, True):
        tab.show(file, width=1280, dark=dark)
        parts = "svg.drawing .item, .strip svg > rect[fill='#ffffff'], .strip svg text"
        script = "return [...document.querySelectorAll(arguments[0])]"
        colours.append(tab.run(f"{script}.map(one => getComputedStyle(one).fill)", parts))
    assert len(colours[0]) > 20
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_labels_on_phases_can_be_read(tab: Browser, file: Path):
    for dark in (False, True):
        tab.show(file, width=1280, dark=dark)
        pairs = tab.run(
            "return [...document.querySelectorAll('rect.phase')].map(one => ["
            "getComputedStyle(one).fill,"
            "getComputedStyle(one.ownerSVGElement.querySelector('text.on')).fill])"
        )
        assert len(pairs) >= 3
        assert all(contrast(*pair) >= LEAST for pair in pairs)


def test_drawings_and_boxes_have_names_for_a_screen_reader(tab: Browser, file: Path):
    tab.show(file, width=1280)
    nodes = tab.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = {"image": [], "region": [], "main": [], "navigation": []}
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        if role in names and not node["ignored"]:
            names[role].append(node.get("name", {}).get("value", ""))
    assert len(names["image"]) == 6
    assert all(names["image"] + names["region"] + names["navigation"])
    assert len(names["main"]) == 1


def test_no_label_of_a_drawing_is_cut_off(tab: Browser, file: Path):
    tab.show(file, width=1280)
    cut = tab.run(
        """
        return [...document.querySelectorAll('svg text')].filter(one => {
          const inner = one.getBoundingClientRect();
          const outer = one.ownerSVGElement.getBoundingClientRect();
          return inner.left < outer.left - 1 || inner.right > outer.right + 1
            || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
        }).map(one => one.textContent);
        """
    )
    assert cut == []


def test_hostile_records_do_nothing(tab: Browser, tmp_path: Path):
    runs = tuple(hostile_run(text) for text in HOSTILE)
    path = tmp_path / "hostile.html"
    path.write_text(page(Records(runs=runs)), encoding="utf-8", errors="replace")
    tab.show(path, width=1280)
    console, asked = tab.log()
    assert console == []
    assert asked == [path.as_uri()]
    assert tab.run("return document.querySelectorAll('script, img, svg svg, b').length") == 0


def test_in_print_everything_is_unfolded_and_light(tab: Browser, file: Path):
    closed = file.with_name("closed.html")
    closed.write_text(page(both()), encoding="utf-8")
    tab.show(closed, width=1280, dark=True)
    shown = "return document.querySelector('details pre').checkVisibility()"
    assert not tab.run(shown)
    tab.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert tab.run(shown)
    ground = tab.run("return getComputedStyle(document.body).backgroundColor")
    assert luminance(ground) > 0.9
