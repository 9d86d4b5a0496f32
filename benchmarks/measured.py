"""What benchmarks measured: rows in files of JSON lines, and the part of a page, between two comments, made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Row", "keep", "put", "read"]

Row = Mapping[str, Any]
_PART = re.compile(r"(<!-- measured: .*? -->\n).*(<!-- end of what was measured -->)", re.DOTALL)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def keep(path: Path, rows: Iterable[Row]) -> None:
    """Writes a file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def put(page: Path, tables: str) -> None:
    """Writes tables into a page of Markdown, in the place of those that stand between its two comments.

    Raises:
        SystemExit: the page has no such comments.
    """
    text = page.read_text(encoding="utf-8")
    part = _PART.search(text)
    if part is None:
        comments = "<!-- measured: … --> and <!-- end of what was measured -->"
        raise SystemExit(f"{page} does not say where the tables are: between {comments}")
    page.write_text(f"{text[: part.end(1)]}\n{tables}{text[part.start(2) :]}", encoding="utf-8")
