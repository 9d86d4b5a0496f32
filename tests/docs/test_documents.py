"""Documents of the checkout as pages of the site: links."""

from __future__ import annotations

import pytest

from docs._ext.documents import DOCUMENTS, pages, relinked
from tests import ROOT


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("ARCHITECTURE.md", "[more](CONTRIBUTING.md)", "[more](contributing.md)"),
        ("benchmarks/cpu.md", "[more](int8.md#mixed-precision)", "[more](int8.md#mixed-precision)"),
        ("benchmarks/cpu.md", "[x](../docs/guides/leaving-opencv.md)", "[x](../../guides/leaving-opencv.md)"),
        ("benchmarks/cpu.md", "[cpu/measured.jsonl](cpu/measured.jsonl)", "`cpu/measured.jsonl`"),
        ("SECURITY.md", "[there](https://example.org)", "[there](https://example.org)"),
        ("SECURITY.md", "```\n[a](b)\n```\n[a](#b)", "```\n[a](b)\n```\n[a](#b)"),
    ],
)
def test_links_lead_within_the_site(source: str, link: str, expected: str) -> None:
    assert relinked(link, source, DOCUMENTS[source]) == expected


def test_every_measurement_is_a_page_of_the_navigation() -> None:
    listed = (ROOT / "docs/explanation/measured.md").read_text("utf-8").splitlines()
    made = [place for place in pages() if place.startswith("explanation/measured/")]
    assert len(made) > 5
    assert all(place.removeprefix("explanation/").removesuffix(".md") in listed for place in made)
