"""Tables of text: drawn by rich on a terminal, aligned with blanks elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dnc.errors import printable

__all__ = ["Column", "Table"]

_NARROW = 24
"""What a column of text is folded to at most, where the terminal is too narrow for the table."""


@dataclass(frozen=True)
class Column:
    """The head of a column. Numbers are flush right; long text may be folded."""

    title: str
    right: bool = False
    folds: bool = False


@dataclass
class Table:
    """Rows of text."""

    columns: Sequence[Column]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    """A rich style for each row; "" for most."""

    @classmethod
    def of(cls, *titles: str, right: Collection[str] = (), folds: Collection[str] = ()) -> Table:
        """A table with these heads, of which some are flush right, and some may be folded."""
        return cls([Column(title, title in right, title in folds) for title in titles])

    def add(self, *cells: str, style: str = "") -> None:
        """Appends a row; what a terminal would obey is not shown, as cells may come from anywhere."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(map(printable, cells)))
        self.styles.append(style)

    def text(self) -> str:
        """Lines of cells that two blanks part, aligned; the first is the head."""
        lines, widths = self._lines(), self._widths()
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            ).rstrip()
            for cells in lines
        )

    def _lines(self) -> list[tuple[str, ...]]:
        return [tuple(column.title for column in self.columns), *self.rows]

    def _widths(self) -> list[int]:
        return [max(map(len, cells)) for cells in zip(*self._lines(), strict=True)]

    def show(self) -> None:
        """Prints to stdout; plainly too where the terminal is so narrow that rich would cut something off."""
        import shutil

        import click

        folded = (
            min(width, _NARROW) if column.folds else width
            for width, column in zip(self._widths(), self.columns, strict=True)
        )
        # Three blanks are between rich's columns.
        needed = sum(folded) + 3 * (len(self.columns) - 1)
        if not sys.stdout.isatty() or needed > shutil.get_terminal_size().columns:
            # click flushes, so that a closed pipe is noticed here and not when Python ends.
            click.echo(self.text())
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in self.columns:
            justify: Literal["right", "left"] = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, overflow="fold", no_wrap=not column.folds)
        for cells, style in zip(self.rows, self.styles, strict=True):
            # As Text, because a plain string's [section] would be taken for markup.
            table.add_row(*(Text(cell) for cell in cells), style=style)
        Console().print(table)
