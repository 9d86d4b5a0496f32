"""Every page of the site in a headless Chromium, from its file: pictures, widths, the console, search; no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser
from tests.browser import DESKTOP, PHONE, Browser, asked_for, fits, resize
from tests.patience import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from browser.chromium(tmp_path_factory.mktemp("chromium"))


_SCROLLED = """return [...document.querySelectorAll(".content, .content *")].filter(each =>
    each.scrollWidth > each.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(each).overflowX)
    && !each.matches("pre, .highlight, .table-wrapper")).map(each => each.outerHTML.slice(0, 80))"""
"""What is scrolled sideways within a page, but for code and tables."""
_UNREADABLE = """return [...document.querySelectorAll("article pre, article .table-wrapper")].filter(each =>
    each.scrollWidth > each.clientWidth + 1 && (each.tabIndex !== 0
    || (innerWidth < 500 && each.matches(":not(:is(.highlight-text, .highlight-default) *)") && each.matches("pre")))
    ).concat([...document.querySelectorAll("td p, th p")].filter(each =>
    getComputedStyle(each).overflowWrap === "anywhere")).map(each => each.outerHTML.slice(0, 80))"""
"""What scrolls and cannot be reached by Tab; code that a phone would have to scroll; cells that break words."""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_pages_fit_and_their_pictures_are_there(site: Path, chromium: Browser, width: int) -> None:
    resize(chromium, width)
    asked_for(chromium)
    wide, unreadable, broken, pictures = [], [], [], 0
    for path in sorted(site.rglob("*.html")):
        chromium.get(path.as_uri())
        if not fits(chromium, width) or chromium.execute_script(_SCROLLED):
            wide.append(str(path.relative_to(site)))
        unreadable += [f"{path.relative_to(site)}: {each}" for each in chromium.execute_script(_UNREADABLE)]
        shown = (
            "return [...document.images].map(each => [each.src.slice(0, 200), each.complete && each.naturalWidth > 0])"
        )
        images = chromium.execute_script(shown)
        pictures += len(images)
        broken += [f"{path.relative_to(site)}: {source}" for source, good in images if not good]
    assert not wide
    assert not unreadable
    assert not broken
    assert pictures >= 4
    assert all(url.startswith(site.as_uri()) for url in asked_for(chromium))
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("letterbox", "guides/darknet"),
        ("anchors", "guides/cfg"),
        ("nms", "guides/detect"),
        ("jetson", "guides/nvidia"),
        ("raspberry", "guides/arm"),
        ("[yolo]", "reference/cfg/yolo"),
    ],
)
def test_search(site: Path, chromium: Browser, word: str, page: str) -> None:
    """As typed on the first page, without a server: the page that answers comes first."""
    resize(chromium, DESKTOP)
    chromium.get((site / "index.html").as_uri())
    field = chromium.find_element("css selector", ".sidebar-search")
    field.send_keys(word)
    field.submit()
    until(lambda: "search.html" in chromium.current_url)
    until(lambda: bool(chromium.find_elements("css selector", "#search-results ul.search li")))
    until(lambda: "Searching" not in chromium.find_element("css selector", "#search-results h2").text)
    found = chromium.find_elements("css selector", "#search-results ul.search li a")
    assert f"/{page}.html" in found[0].get_attribute("href")
    found[0].click()
    until(lambda: "search.html" not in chromium.current_url)
    assert word.strip("[]") in chromium.find_element("css selector", "article").text.lower()
