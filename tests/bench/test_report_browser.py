"""The pages in headless Chromium, on a phone and on a desk; run by `make test-browser`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from results_factory import SCORES, make_results

from gatelab.bench.report import write_comparison, write_report

pytestmark = pytest.mark.browser

HOSTILE = '<img src="http://127.0.0.1:9/x" onerror="alert(1)"><script>alert(2)</script>.py:Gate'
LONG = "/a/very/long/path/" + "without_a_break_" * 6 + ".py:Gate"
UNFOLD = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
WIDTHS = pytest.mark.parametrize("width", [390, 1200])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A full report, a half-finished one with names nobody should choose, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    full, half = make_results(steps=8), make_results(["topk-softmax", HOSTILE, LONG, "random"], steps=8, seeds=3)
    half["cells"] = half["cells"][:7]
    half["config"]["text"]["source"] = LONG
    half["routers"][HOSTILE] |= {"equation": LONG, "source": HOSTILE, "fallback": HOSTILE}
    write_report(full, folder / "full")
    write_report(half, folder / "half")
    write_comparison(full, half, folder / "pair", (HOSTILE, LONG))
    return folder


PAGES = pytest.mark.parametrize("page", ["full/report.html", "half/report.html", "pair/comparison.html"])


@PAGES
@WIDTHS
def test_fits_the_screen_and_stays_quiet(browser, folder, page, width):
    browser.open(folder / page, width)
    browser.evaluate(UNFOLD)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.evaluate(f"{cut}.map((e) => e.outerHTML.slice(0, 80))") == []
    said = browser.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert said == []
    assert browser.seen("Page.javascriptDialogOpening") == []
    fetched = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [url for url in fetched if not url.startswith("data:")] == [(folder / page).as_uri()]


@WIDTHS
def test_every_figure_can_be_read(browser, folder, width):
    browser.open(folder / "full/report.html", width)
    browser.evaluate(UNFOLD)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map((svg) => [svg.getBoundingClientRect().width,"
        " Math.min(...[...svg.querySelectorAll('text')].map((t) => parseFloat(getComputedStyle(t).fontSize)))"
        " * svg.getScreenCTM().a])"
    )
    assert len(sizes) == 7 + len(SCORES)
    for shown, letters in sizes:
        assert 300 <= shown <= 540
        assert letters >= 7  # CSS pixels


@pytest.mark.parametrize("width", [390, 800, 1200])
def test_tables_need_no_scrolling_of_their_own(browser, folder, width):
    browser.open(folder / "full/report.html", width)
    browser.evaluate(UNFOLD)
    wide = "[...document.querySelectorAll('.table')].filter((table) => table.scrollWidth > table.clientWidth).length"
    assert browser.evaluate(wide) == 0


def test_no_letters_are_cut_off(browser, folder):
    browser.open(folder / "full/report.html", 390)
    outside = (
        "[...document.querySelectorAll('figure svg')].flatMap((svg) => { const box = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter((t) => { const b = t.getBoundingClientRect();"
        " return b.left < box.left - 4 || b.right > box.right + 4; }).map((t) => t.textContent); })"
    )
    assert browser.evaluate(outside) == []


def test_tables_sort_by_a_click_and_by_the_keyboard(browser, folder):
    browser.open(folder / "half/report.html", 1200)
    names = (
        "[...document.querySelectorAll('#quality tbody th')].map((th) => th.firstElementChild.nextSibling.textContent)"
    )
    figures = "[...document.querySelectorAll('#quality tbody tr')].map((row) => row.cells[1].firstChild.textContent)"
    heading = "document.querySelectorAll('#quality thead button')"
    lowest = browser.evaluate(figures)
    assert lowest[-1] == "–"  # random has no cell yet
    browser.evaluate(f"{heading}[1].click()")
    assert browser.evaluate(figures) == lowest
    browser.evaluate(f"{heading}[1].click()")
    assert browser.evaluate(figures) == [*reversed(lowest[:-1]), "–"]
    assert (
        browser.evaluate("document.querySelector('#quality th[aria-sort]').getAttribute('aria-sort')") == "descending"
    )
    browser.evaluate(f"{heading}[0].focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert browser.evaluate(names) == sorted(browser.evaluate(names), key=str.lower)
    assert browser.evaluate("document.querySelectorAll('#quality th[aria-sort]').length") == 1


def test_paper_shows_every_gate(browser, folder, tmp_path):
    browser.open(folder / "full/report.html", 1200)
    count = "document.querySelectorAll('details[open]').length"
    browser.evaluate(f"addEventListener('beforeprint', () => {{ window.open_parts = {count}; }})")
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert browser.evaluate("window.open_parts") == len(SCORES)
    assert browser.evaluate(count) == 0


def test_dark_screens_get_dark_paper_and_light_ink(browser, folder):
    def brightness(dark: bool) -> list[int]:
        browser.open(folder / "full/report.html", 390, dark=dark)
        ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        return [browser.evaluate(f"parseInt({colour}.match(/\\d+/)[0])") for colour in (ink, paper)]

    assert brightness(dark=False) == [0x1F, 0xFF]
    assert brightness(dark=True) == [0xE6, 0x15]
