"""The blocks of code of a page, and what hidden comments say of how a test runs them.

A comment stands before a block, and does not show in the site:

    <!-- test: skip REASON -->        nobody runs the block: what it takes beyond a computer and the packages
    <!-- test: setup                  commands before the block, which put what it needs into the folder
    COMMANDS -->
    <!-- test: instead                commands in its place, where nothing may be fetched
    COMMANDS -->
    <!-- test: output -->             a block of ```text: what the block before it printed, which may have failed
    <!-- test: needs THING, … -->     anywhere: packages by what is imported, programs by their names
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FILES", "RUN", "SHOWN", "Block", "Page", "read"]

RUN = ("python", "sh")
"""Languages that run; `sh` is bash, in which what one block sets holds for those after it."""
FILES = ("c", "cpp", "ini", "cmake", "make", "dockerfile", "yaml", "json", "toml")
"""Languages that become a file, if their first line is a comment that is its name: `// app.cpp`."""
SHOWN = ("text",)
_PART = re.compile(
    r"^<!-- test: (?P<kind>\w+)\s*(?P<said>.*?)\s*-->$|^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.M | re.S
)
_HIDDEN = re.compile(r"^(?:[ \t]+```|[ \t]*~~~)", re.M)
_NAME = re.compile(r"(?://|#) ([\w.-]+\.\w+)\n")


@dataclass
class Block:
    """Code of a page.

    Attributes:
        language: what follows its ``` .
        code: its lines.
        line: where its first line is in the page, from 1.
        skip: why it does not run; "" if it does.
        setup: commands to run before it.
        instead: commands to run in its place.
        output: what it has to print, if a page shows that.
    """

    language: str
    code: str
    line: int
    skip: str = ""
    setup: str = ""
    instead: str = ""
    output: str | None = None

    @property
    def file(self) -> str | None:
        """The name of the file that it is to be written to."""
        name = _NAME.match(self.code) if self.language in FILES else None
        return name[1] if name else None

    @property
    def runs(self) -> bool:
        """Whether something happens."""
        return not self.skip and (self.language in RUN or self.file is not None)


@dataclass
class Page:
    """What is run of a page."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def read(path: Path) -> Page:
    """The page's blocks in order.

    Raises:
        ValueError: a comment is none of those above, or stands before nothing; a block is indented or begins with ~~~,
            so that it would not be seen.
    """
    text = path.read_text("utf-8")
    if (hidden := _HIDDEN.search(text)) is not None:
        raise ValueError(
            f"{path.name}:{text.count(chr(10), 0, hidden.start()) + 1}: a block begins with ``` at its line"
        )
    page, said = Page(path), {}
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        kind = part["kind"]
        if kind == "needs":
            page.needs += re.split(r",\s*", part["said"])
        elif kind in ("skip", "setup", "instead", "output"):
            said[kind] = part["said"]
        elif kind:
            raise ValueError(f"{path.name}:{line}: {kind}")
        elif "output" in said:
            page.blocks[-1].output = part["code"]
            said = {}
        else:
            page.blocks.append(Block(part["language"], part["code"], line + 1, **said))
            said = {}
    if said:
        raise ValueError(f"{path.name}: a comment stands before no block: {said}")
    return page
