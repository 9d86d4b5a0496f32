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


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_pages_fit_and_their_pictures_are_there(site: Path, chromium: Browser, width: int) -> None:
    resize(chromium, width)
    asked_for(chromium)
    wide, broken, pictures = [], [], 0
    for path in sorted(site.rglob("*.html")):
        chromium.get(path.as_uri())
        if not fits(chromium, width) or chromium.execute_script(_SCROLLED):
            wide.append(str(path.relative_to(site)))
        shown = (
            "return [...document.images].map(each => [each.src.slice(0, 200), each.complete && each.naturalWidth > 0])"
        )
        images = chromium.execute_script(shown)
        pictures += len(images)
        broken += [f"{path.relative_to(site)}: {source}" for source, good in images if not good]
    assert not wide
    assert not broken
    assert pictures >= 4
    assert all(url.startswith(site.as_uri()) for url in asked_for(chromium))
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_search_finds_letterbox(site: Path, chromium: Browser) -> None:
    """As typed on the first page, without a server."""
    resize(chromium, DESKTOP)
    chromium.get((site / "index.html").as_uri())
    field = chromium.find_element("css selector", ".sidebar-search")
    field.send_keys("letterbox")
    field.submit()
    until(lambda: "search.html" in chromium.current_url)
    until(lambda: bool(chromium.find_elements("css selector", "#search-results ul.search li")))
    until(lambda: "Searching" not in chromium.find_element("css selector", "#search-results h2").text)
    found = chromium.find_elements("css selector", "#search-results ul.search li a")
    assert any("compile" in each.get_attribute("href") for each in found)
    found[0].click()
    until(lambda: "search.html" not in chromium.current_url)
    assert "letterbox" in chromium.find_element("css selector", "article").text.lower()
