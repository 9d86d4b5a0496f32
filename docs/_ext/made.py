"""The Sphinx extension that writes the pages made from code, before Sphinx looks for pages.

Each maker gives the Markdown of its pages by their names below docs/. They stand in folders of their own, which git
ignores; a page that has not changed is not written, so that Sphinx does not read it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._ext import commands, cpp, documents, extras, headers, pictures, plugins, schema, sections

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["FOLDERS", "MAKERS", "setup", "write"]

MAKERS: tuple[Callable[[], Mapping[str, str]], ...] = tuple(
    module.pages for module in (commands, cpp, documents, extras, headers, pictures, plugins, schema, sections)
)
_REFERENCE = ("cfg", "commands", "destinations", "embed", "engine", "extras", "passes", "targets")
FOLDERS = ("explanation/measured", "explanation/pictures", "project", *(f"reference/{name}" for name in _REFERENCE))
"""Where made pages stand, and nothing else; .gitignore has them as well."""


def write(docs: Path) -> None:
    """Writes what has changed of the made pages, and removes pages that are not made any more."""
    pages = {docs / name: text for maker in MAKERS for name, text in maker().items()}
    for folder in FOLDERS:
        for path in (docs / folder).rglob("*"):
            if path.is_file() and path not in pages:
                path.unlink()
    for path, text in pages.items():
        if not any(path.is_relative_to(docs / folder) for folder in FOLDERS):
            raise ValueError(f"{path} would stand among pages that are written by hand")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Indented blocks are code, as `prose` takes them; of an attribute's first line, Napoleon would take what stands
    before a colon for its type."""
    for number, line in reversed(list(enumerate(lines))):
        above = next((each for each in reversed(lines[:number]) if each), "")
        if line.startswith("    ") and number and not lines[number - 1] and above and not above.startswith(" "):
            lines[number:number] = ["::", ""]
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # A comment without text.


def _signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Aliases of types by their names alone, also within other types."""
    plain = [each and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", each) for each in (signature, returned)]
    return plain[0], plain[1]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
