"""Every page is reached from the navigation, and every link within the site leads to what is there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow

WITHOUT_NAVIGATION = {"genindex.html", "search.html", "py-modindex.html"}


class Page(HTMLParser):
    """What a page has to be linked to, and what it links to or shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[key] or "" for key in ("id", "name") if key in values}
        key = {"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag, "")
        if values.get(key):
            self.links.append(values[key] or "")


def test_links_lead_somewhere_and_pages_are_reached(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken, reached = [], {site / "index.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, "\n".join(broken)
    waiting = [site / "index.html"]
    while waiting:
        path = waiting.pop()
        for link in pages[path].links:
            target = (path.parent / unquote(urlsplit(link).path)).resolve()
            if target in pages and target not in reached:
                reached.add(target)
                waiting.append(target)
    missed = {str(path.relative_to(site)) for path in pages if path not in reached} - WITHOUT_NAVIGATION
    assert not missed
