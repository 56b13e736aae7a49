"""Tests of the page that shows a text: `python eval/test_view.py` or pytest."""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from eval.compress import Compressor
from eval.view import FIRST, RATIOS, page, shown

TEXT = (
    "The committee met in the spring, and it was of the opinion that all of the papers should be read again by the members.\r\n"
    "<script>document.title = 'broken'</script> & \"quoted\" 'words' {{ 1 + 1 }} </section> <|endoftext|> 🇩🇪 of the house, too.\n"
)
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"


@pytest.fixture(scope="module")
def compressor():
    return Compressor.from_pretrained()


@pytest.fixture(scope="module")
def html(compressor):
    return page(compressor, "a <b> & c.txt", TEXT)


class Read(HTMLParser):
    """Tags with attributes, and text by what it stands in."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.data, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are nested"

    def handle_data(self, data):
        self.data.append((self.open[-1] if self.open else None, data))


def test_nothing_comes_from_outside_and_all_text_is_escaped(html):
    read = Read(html)
    assert not read.open and [tag for tag, _ in read.tags].count("script") == 1
    assert not any({"src", "href", "action", "onclick"} & attributes.keys() for _, attributes in read.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "alert" not in "".join(data for place, data in read.data if place == "script") and "broken" not in read.data[0][1]
    assert html.count("<script") == 1 and "&lt;script&gt;" in html and "a &lt;b&gt; &amp; c.txt" in html
    titles = [data for place, data in read.data if place == "title"]
    assert titles == ["a <b> & c.txt, compressed and restored"]


def test_the_slider_can_be_seen_named_and_told(html):
    read = Read(html)
    [slider] = [attributes for tag, attributes in read.tags if tag == "input"]
    assert slider["type"] == "range" and (slider["min"], slider["max"]) == ("0", str(len(RATIOS) - 1))
    assert any(tag == "label" and attributes.get("for") == slider["id"] for tag, attributes in read.tags)
    assert ":focus-visible" in html and "prefers-color-scheme: dark" in html and slider["aria-valuetext"] == f"{RATIOS[FIRST]:g}"
    sections = [attributes for tag, attributes in read.tags if tag == "section"]
    assert [section["data-asked"] for section in sections] == [f"{ratio:g}" for ratio in RATIOS]
    assert ["hidden" in section for section in sections] == [i != FIRST for i in range(len(RATIOS))]


@pytest.mark.parametrize("ratio", RATIOS)
def test_runs_are_the_original_and_what_is_restored(compressor, ratio):
    one, found = shown(compressor, TEXT, ratio), compressor.compress(TEXT, keep_ratio=ratio)
    of = lambda *kinds: "".join(text for kind, text in one["runs"] if kind in kinds)
    assert of("kept", "restored", "lost") == TEXT and of("kept") == found.text
    assert of("kept", "restored", "wrong") == compressor.restore(found)
    assert one["kept"] == str(found.kept_tokens) and bool(of("wrong")) == (one["wrong"] != "0")


def test_markers_are_no_part_of_what_is_lost(compressor):
    marked = TEXT.replace("the spring", "<keep>the spring</keep>")
    one = shown(compressor, marked, 0.5)
    assert "".join(text for kind, text in one["runs"] if kind != "wrong") == TEXT


def test_what_passes_through_whole_is_kept(compressor):
    one = shown(compressor, "hello", 0.5)
    assert one["runs"] == [("kept", "hello")] and "passed through whole" in one["note"]


@pytest.fixture
def browser():
    """A real headless Chromium, driven by Playwright; skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield found
        found.close()


def test_in_a_browser_by_keyboard_and_in_the_dark(browser, html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    colours = {}
    for scheme in ("light", "dark"):
        tab, wrong, asked = browser.new_page(color_scheme=scheme), [], []
        tab.on("pageerror", lambda error: wrong.append(error.message))
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((tmp_path / "page.html").as_uri())
        visible = lambda: [section.get_attribute("data-asked") for section in tab.query_selector_all("section:not([hidden])")]
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "ratio" and visible() == ["0.7"]
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for _ in range(2):
            tab.keyboard.press("ArrowRight")
        assert visible() == ["0.5"] == [tab.inner_text("#asked")] and tab.get_attribute("#ratio", "aria-valuetext") == "0.5"
        tab.keyboard.press("Home")
        assert visible() == ["0.9"] and tab.is_visible("section:not([hidden]) .text")
        assert tab.title().startswith("a <b>") and not wrong and len(asked) == 1
        colours[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(set(colours.values())) == 2


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
