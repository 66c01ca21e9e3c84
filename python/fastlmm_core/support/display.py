"""Results that print as paragraphs and tables, and show as HTML in notebooks, from one description."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .text_tables import html_table, text_table

__all__ = ["LINES", "Cells", "Shown", "first_lines", "text_of"]

LINES = 10
"""Lines shown of a long table."""


class Cells(NamedTuple):
    """A table: names of the columns, rows of cells, and how many columns are flush left."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1


def text_of(parts: Iterable[str | Cells]) -> str:
    """Paragraphs and tables as text."""
    return "\n\n".join(
        part if isinstance(part, str) else "\n".join(text_table(part.header, part.rows, part.left)) for part in parts
    )


class Shown:
    """What says its numbers when it is printed; `_shown` lists paragraphs and tables."""

    def _shown(self) -> Iterable[str | Cells]:
        raise NotImplementedError

    def __str__(self) -> str:
        return text_of(self._shown())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = [
            f"<p>{html.escape(part)}</p>"
            if isinstance(part, str)
            else html_table(part.header, part.rows, range(part.left))
            for part in self._shown()
        ]
        return f"<div>{''.join(parts)}</div>"


def first_lines(rows: Sequence[list[str]], most: int = LINES, count: int | None = None) -> list[list[str]]:
    """The first rows of a long table of `count` rows, and a last one that counts the others."""
    more = (len(rows) if count is None else count) - most
    if more <= 0:
        return list(rows)
    return [*rows[:most], [f"... and {more:,} more", *[""] * (len(rows[0]) - 1)]]
