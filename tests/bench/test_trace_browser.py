"""The page of a trace in headless Chromium, on a phone and on a desk; run by `make test-browser`."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from trace_checkpoints import save_checkpoint, write_texts

from gatelab.bench import trace
from gatelab.bench.trace.report import write_page

pytestmark = pytest.mark.browser

HOSTILE = '<img src="http://127.0.0.1:9/x" onerror="alert(1)"><script>alert(2)</script>.txt'
LONG = "a_very_long_name_" * 8
UNFOLD = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
WIDTHS = pytest.mark.parametrize("width", [390, 1200])
PAGES = pytest.mark.parametrize("page", ["two/trace.html", "one/trace.html", "deep/trace.html"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two texts through two layers; one text through one; and many layers of many experts under names nobody chose."""
    folder = tmp_path_factory.mktemp("pages")
    texts = write_texts(folder)
    options = {"tokens": 200, "sequence_length": 32, "record": 32}
    mixtral = save_checkpoint(folder / "mixtral", "mixtral")
    two = trace.run(mixtral, texts, folder / "two", **options)
    trace.run(save_checkpoint(folder / "deepseek", "deepseek_v3"), texts[:1], folder / "one", **options)
    (folder / "deep").mkdir()
    write_page(_deep(two), folder / "deep")
    return folder


def _deep(results):
    """The same figures, many times over."""
    results = copy.deepcopy(results)
    layer = results["layers"][1]
    wide = {name: layer[name] * 20 for name in ("tokens_per_expert", "experts", "coverage")}
    wide |= {name: [row * 20 for row in layer[name]] for name in ("tokens_per_expert_by_text", "domain_specialization")}
    layer |= {**wide, "num_experts": 120, "dead_experts": 3}
    layer["experts"][0]["tokens"] = [{"token": HOSTILE, "share": 1.0, "count": 9}] * 8
    results["layers"] = [{**layer, "name": f"model.layers.{i}.{LONG}"} for i in range(40)]
    results["texts"] = [{**text, "name": name} for text, name in zip(results["texts"], (HOSTILE, LONG), strict=True)]
    results["left_out"] = {LONG: HOSTILE}
    results["model"]["name"] = LONG
    return results


@PAGES
@WIDTHS
def test_fits_the_screen_and_stays_quiet(browser, folder, page, width):
    browser.open(folder / page, width)
    browser.evaluate(UNFOLD)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.evaluate(f"{cut}.map((e) => e.outerHTML.slice(0, 80))") == []
    assert browser.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    assert browser.seen("Page.javascriptDialogOpening") == []
    fetched = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [url for url in fetched if not url.startswith("data:")] == [(folder / page).as_uri()]


@PAGES
@WIDTHS
def test_every_figure_can_be_read(browser, folder, page, width):
    browser.open(folder / page, width)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map((svg) => [svg.getBoundingClientRect().width,"
        " Math.min(...[...svg.querySelectorAll('text')].map((t) => parseFloat(getComputedStyle(t).fontSize)))"
        " * svg.getScreenCTM().a, svg.getAttribute('aria-label')])"
    )
    # one layer has no figure over layers, one text none of domains
    assert len(sizes) == (3 if page.startswith("one") else 5)
    for shown, letters, alt in sizes:
        assert 300 <= shown <= 540
        assert letters >= 7  # CSS pixels
        assert re.search(r"\d", alt)
    outside = (
        "[...document.querySelectorAll('figure svg')].flatMap((svg) => { const box = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter((t) => { const b = t.getBoundingClientRect();"
        " return b.left < box.left - 4 || b.right > box.right + 4; }).map((t) => t.textContent); })"
    )
    assert browser.evaluate(outside) == []


@pytest.mark.parametrize("width", [390, 800, 1200])
def test_tables_need_no_scrolling_of_their_own(browser, folder, width):
    browser.open(folder / "two/trace.html", width)
    browser.evaluate(UNFOLD)
    wide = "[...document.querySelectorAll('.table')].filter((table) => table.scrollWidth > table.clientWidth).length"
    assert browser.evaluate(wide) == 0


def test_layers_sort_by_number_and_by_figure(browser, folder):
    browser.open(folder / "deep/trace.html", 1200)
    names = "[...document.querySelectorAll('#balance tbody th')].map((th) => th.textContent)"
    heading = "document.querySelectorAll('#balance thead button')"
    in_order = [f"layer {i}" for i in range(40)]
    assert browser.evaluate(names) == in_order
    for wanted in (in_order, in_order[::-1]):
        browser.evaluate(f"{heading}[0].click()")
        assert browser.evaluate(names) == wanted
    browser.evaluate("document.querySelectorAll('#layers details')[0].open = true")
    figures = (
        "[...document.querySelectorAll('#layers details')[0].querySelectorAll('tbody tr')]"
        ".map((row) => parseFloat(row.cells[1].textContent))"
    )
    assert len(browser.evaluate(figures)) == 32  # of 120 experts
    browser.evaluate("document.querySelectorAll('#layers details')[0].querySelectorAll('thead button')[1].click()")
    assert browser.evaluate(figures) == sorted(browser.evaluate(figures))
