"""How pages are made: their text, their pictures, and where they are written."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dnc.runtime.options import Option, whole
from docs._ext import made, pictures
from docs._ext.text import options, prose

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * b_c, [net] and `x * y` <b>", "a \\* b_c, [net] and `x * y` \\<b\\>"),
        ("What --keep-layers and `--batch 4` say - or a--b", "What `--keep-layers` and `--batch 4` say - or a--b"),
        ("Formula:\n\n    a * b\n    c\n\nend", "Formula:\n\n    a * b\n    c\n\nend"),
        (
            "Files:\n\n    one.txt    its text,\n               goes on\n    and.others two\n\nend",
            "Files:\n\n`one.txt`\n: its text, goes on\n\n`and.others`\n: two\n\nend",
        ),
        ("See:\n\n    h = x    by it\n    y = h\n\nend", "See:\n\n    h = x    by it\n    y = h\n\nend"),
    ],
)
def test_docstrings_become_markdown(text: str, expected: str) -> None:
    assert prose(text) == expected


def test_an_option_says_what_is_allowed_once() -> None:
    text = options(
        [Option("threads", "0", "how many", whole(0, 64)), Option("spin", "on", "off: they sleep", at_load=True)]
    )
    assert text == (
        "`threads=0`\n: How many. Allowed is a whole number from 0 to 64.\n\n"
        "`spin=on`\n: off: they sleep. May be given anew when the engine is loaded."
    )


def test_pages_that_are_made_no_more_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "project/one.md"
    monkeypatch.setattr(made, "MAKERS", (lambda: {page: "text\n"},))
    (tmp_path / "project").mkdir()
    (tmp_path / "project/old.md").write_text("old")
    (tmp_path / "index.md").write_text("by hand")
    made.write(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*.md"))] == ["index.md", "one.md"]
    written = (tmp_path / page).stat().st_mtime_ns
    made.write(tmp_path)
    assert (tmp_path / page).stat().st_mtime_ns == written
    monkeypatch.setattr(made, "MAKERS", (lambda: {"index.md": "made"},))
    with pytest.raises(ValueError, match=r"index\.md would stand among pages that are written by hand"):
        made.write(tmp_path)


def test_pictures_show_what_was_recorded() -> None:
    """A mark for each number, within the picture."""
    data = {
        name: json.loads((pictures.DOCS / "_data" / f"{name}.json").read_text("utf-8"))
        for name in ("roofline", "noise", "boxes")
    }
    drawn = {place.split("/")[-1]: ET.fromstring(text) for place, text in pictures.pages().items()}
    dots = drawn["roofline.svg"].findall(f"{SVG}circle")
    assert len(dots) == sum(1 for row in data["roofline"]["rows"] if row[2]) > 50
    lines = [line.get("points", "").split() for line in drawn["noise.svg"].findall(f"{SVG}polyline")]
    assert max(map(len, lines)) == sum(1 for row in data["noise"]["rows"] if row[2] is not None)
    assert len(drawn["boxes.svg"].findall(f"{SVG}image")) == len(data["boxes"]["boxes"]) == 2
    labels = [text.text for text in drawn["boxes.svg"].findall(f"{SVG}text")]
    assert "tie 67.8%" in labels
    for name, picture in drawn.items():
        width, height = (float(side) for side in picture.get("viewBox", "").split()[2:])
        assert picture.findtext(f"{SVG}title"), name
        for dot in picture.findall(f"{SVG}circle"):
            assert 0 < float(dot.get("cx", 0)) < width
            assert 0 < float(dot.get("cy", 0)) < height
