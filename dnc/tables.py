"""Tables of text: drawn by rich on a terminal, aligned with blanks elsewhere.

A terminal that is too narrow for a table gets it with text folded at blanks, never within a word, so that the names of
files and commands can be copied; then without the columns that are dispensable; and where that does not do either, row
by row with a line for each cell. A pipe gets every row in one line, with all of its columns.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dnc.errors import printable

__all__ = ["Column", "Table", "show_line", "wrapped"]

_GAP = 2
"""Blanks between columns."""
_FEW = 4
"""Columns of which each cell may have a line of its own; of more, that is no table any more."""


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
    spare: Sequence[str] = ()
    """Heads of columns that a narrow terminal may go without, the most dispensable first."""

    @classmethod
    def of(
        cls, *titles: str, right: Collection[str] = (), folds: Collection[str] = (), spare: Sequence[str] = ()
    ) -> Table:
        """A table with these heads, of which some are flush right, some may be folded, and some may be left out."""
        return cls([Column(title, title in right, title in folds) for title in titles], spare=spare)

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
        """Prints to stdout: for the width of the terminal, or whole where there is none."""
        import shutil

        import click

        if not self.rows:
            return
        if not sys.stdout.isatty():
            # click flushes, so that a closed pipe is noticed here and not when Python ends.
            click.echo(self.text())
            return
        width = shutil.get_terminal_size().columns
        table, left = self, list(self.spare)
        while left and table._least() > width:
            table = table._without(left.pop(0))
        if table._least() <= width:
            table._draw()
            gone = [column.title for column in self.columns if column not in table.columns]
            if gone:
                click.echo(f"not shown at this width: {', '.join(gone)}")
        elif len(self.columns) <= _FEW:
            self._list(width)
        else:
            click.echo(self.text())

    def _least(self) -> int:
        """The width below which something would be cut, or folded within a word."""
        return sum(self._narrowest()) + _GAP * (len(self.columns) - 1)

    def _narrowest(self) -> list[int]:
        """Of each column: its longest word if it is folded, else its longest cell."""
        return [
            max(len(word) for cell in cells for word in cell.split() or [""]) if column.folds else width
            for cells, width, column in zip(zip(*self._lines(), strict=True), self._widths(), self.columns, strict=True)
        ]

    def _without(self, title: str) -> Table:
        kept = [number for number, column in enumerate(self.columns) if column.title != title]
        rows = [tuple(cells[number] for number in kept) for cells in self.rows]
        return Table([self.columns[number] for number in kept], rows, self.styles)

    def _draw(self) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        # One blank is the box's own.
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
        for column, least in zip(self.columns, self._narrowest(), strict=True):
            justify: Literal["right", "left"] = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, min_width=least, no_wrap=not column.folds)
        for cells, style in zip(self.rows, self.styles, strict=True):
            # As Text, because a plain string's [section] would be taken for markup.
            table.add_row(*(Text(cell) for cell in cells), style=style)
        Console().print(table)

    def _list(self, width: int) -> None:
        """The first cell of each row, and the others below it."""
        import click

        _, *titles = (column.title for column in self.columns)
        longest = max(map(len, titles), default=0)
        for first, *cells in self.rows:
            click.echo(first)
            for title, cell in zip(titles, cells, strict=True):
                if cell:
                    click.echo(wrapped(cell, width, f"  {title:<{longest}}  "))


def show_line(text: str, head: str = "") -> None:
    """Prints a line of text below its head: folded between words on a terminal, whole elsewhere."""
    import shutil

    import click

    width = shutil.get_terminal_size().columns
    click.echo(wrapped(text, width, head) if sys.stdout.isatty() else head + text)


def wrapped(text: str, width: int, head: str = "") -> str:
    """Text in lines of at most `width`, where no word is longer: the first begins with `head`, the others below it."""
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)
