"""Results that print as paragraphs and tables, and show as HTML in notebooks, from one description."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .formats import Cells, Line, Part, html_of, latex_of, markdown_of
from .text_tables import text_table

__all__ = ["LINES", "Cells", "Line", "Part", "Shown", "first_lines", "text_of"]

LINES = 10
"""Lines shown of a long table."""


def text_of(parts: Iterable[Part]) -> str:
    """Paragraphs and tables as text."""
    return "\n\n".join(
        "\n".join(text_table(part.header or [""] * len(part.rows[0]), part.rows, part.left))
        if isinstance(part, Cells)
        else (part if isinstance(part, str) else part.text)
        for part in parts
    )


class Shown:
    """What says its numbers when it is printed, in several forms; `_shown` lists paragraphs and tables."""

    def _shown(self) -> Iterable[Part]:
        raise NotImplementedError

    def __str__(self) -> str:
        return text_of(self._shown())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.as_html()

    def as_text(self) -> str:
        """The text that print shows."""
        return str(self)

    def as_html(self) -> str:
        """HTML: what notebooks show."""
        return html_of(self._shown())

    def as_markdown(self) -> str:
        """Markdown, with tables in pipes."""
        return markdown_of(self._shown())

    def as_latex(self) -> str:
        r"""LaTeX, with tables by the package booktabs: put ``\usepackage{booktabs}`` in the preamble.

        The tables are ``tabular`` environments; where they float, and under which caption, is for the document to say.
        """
        return latex_of(self._shown())


def first_lines(rows: Sequence[list[str]], most: int = LINES, count: int | None = None) -> list[list[str]]:
    """The first rows of a long table of `count` rows, and a last one that counts the others."""
    more = (len(rows) if count is None else count) - most
    if more <= 0:
        return list(rows)
    return [*rows[:most], [f"... and {more:,} more", *[""] * (len(rows[0]) - 1)]]
