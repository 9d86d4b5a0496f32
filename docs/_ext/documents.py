"""Pages that are documents of the checkout: ARCHITECTURE.md and others, as they are; links stay within the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DOCUMENTS", "pages", "relinked"]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "cfg/README.md": "project/networks.md",
    **{f"benchmarks/{path.name}": f"explanation/measured/{path.name}" for path in (ROOT / "benchmarks").glob("*.md")},
}
"""What stands where in the site."""
_LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> Mapping[str, str]:
    """The documents by their places."""
    made = {place: relinked((ROOT / source).read_text("utf-8"), source, place) for source, place in DOCUMENTS.items()}
    # It names everything once, and explains nothing.
    made["project/changelog.md"] = f"---\nnosearch: true\n---\n\n{made['project/changelog.md']}"
    return made


def relinked(text: str, source: str, place: str) -> str:
    """The text of a document at its place in the site: links to documents lead there, to other files become names."""

    def link(found: re.Match[str]) -> str:
        title, target = found.groups()
        if target.startswith("#") or "://" in target:
            return found[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        to = DOCUMENTS.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else "")
        if not to:
            return title if "`" in title else f"`{title}`"
        return f"[{title}]({posixpath.relpath(to, posixpath.dirname(place))}{'#' * bool(anchor)}{anchor})"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + _LINK.sub(link, text[end:])
