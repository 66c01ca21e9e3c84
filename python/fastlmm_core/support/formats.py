"""Paragraphs and tables, as HTML, Markdown and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from .text_tables import html_table

__all__ = ["Cells", "Line", "Part", "html_of", "latex_of", "latex_text", "markdown_of", "markdown_text"]


class Cells(NamedTuple):
    """A table of cells.

    Attributes
    ----------
    header : list of str or None
        An empty cell behind another one belongs to it: a heading of two columns.
    rows : list of lists of str
    left : int
        Number of columns that are flush left; the others are flush right.
    rules : tuple of int
        Rows above which there is a rule.
    """

    header: list[str] | None
    rows: list[list[str]]
    left: int = 1
    rules: tuple[int, ...] = ()


class Line(NamedTuple):
    """A line that is more than a paragraph."""

    text: str
    kind: Literal["title", "caption", "code"]


Part = str | Line | Cells


_HTML = {
    "note": "<p>{}</p>",
    "title": "<p><strong>{}</strong></p>",
    "caption": "<p>{}</p>",
    "code": "<p><code>{}</code></p>",
}
_MARKDOWN = {"note": "{}", "title": "**{}**", "caption": "{}", "code": "`{}`"}
_LATEX = {
    "note": r"\par\noindent{{\footnotesize {}}}",
    "title": r"\noindent\textbf{{{}}}",
    "caption": r"\noindent {}",
    "code": r"\noindent\texttt{{{}}}",
}


def _line(part: str | Line, forms: dict[str, str], text: str) -> str:
    return forms["note" if isinstance(part, str) else part.kind].format(text)


def _text(part: str | Line) -> str:
    return part if isinstance(part, str) else part.text


def html_of(parts: Iterable[Part]) -> str:
    """Parts as HTML."""
    made = [
        html_table(part.header, part.rows, range(part.left))
        if isinstance(part, Cells)
        else _line(part, _HTML, html.escape(_text(part)))
        for part in parts
    ]
    return f"<div>{''.join(made)}</div>"


def markdown_of(parts: Iterable[Part]) -> str:
    """Parts as Markdown."""
    made = [
        _markdown_table(part) if isinstance(part, Cells) else _line(part, _MARKDOWN, _markdown_line(part))
        for part in parts
    ]
    return "\n\n".join(made) + "\n"


def latex_of(parts: Iterable[Part]) -> str:
    """Parts as LaTeX, tables by booktabs."""
    made = [
        _latex_table(part) if isinstance(part, Cells) else _line(part, _LATEX, latex_text(_text(part)))
        for part in parts
    ]
    return "\n\n\\smallskip\n".join(made) + "\n"


# ---- Markdown ------------------------------------------------------------------------------------


def markdown_text(text: str) -> str:
    """Text in which no character means anything to Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _markdown_line(part: str | Line) -> str:
    if isinstance(part, Line) and part.kind == "code":
        return " ".join(part.text.split())
    return markdown_text(_text(part))


def _markdown_table(table: Cells) -> str:
    width = len(table.rows[0]) if table.rows else len(table.header or [])
    header = table.header or [""] * width
    lines = [header, [":---" if j < table.left else "---:" for j in range(width)]]
    body = [[markdown_text(cell.strip()) for cell in row] for row in table.rows]
    head = [markdown_text(cell.strip()) for cell in lines[0]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, lines[1], *body])


# ---- LaTeX ---------------------------------------------------------------------------------------

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_NUMBER = re.compile(r"([(\[]?)(<?)(-?)(\d+(?:\.\d+)?)(?:e([+-])0*(\d+))?([)\]*]*)$")
_INTERVAL = re.compile(r"([(\[])(\S+), (\S+)([)\]])$")


def latex_text(text: str) -> str:
    """Text in which no character means anything to LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _latex_cell(cell: str) -> str:
    """A cell; numbers with the minus sign, and the powers, of mathematics."""
    cell = cell.strip()
    pair = _INTERVAL.match(cell)
    if pair is not None:
        return f"{pair[1]}{_latex_cell(pair[2])}, {_latex_cell(pair[3])}{pair[4]}"
    found = _NUMBER.match(cell)
    if found is None:
        return latex_text(cell)
    before, less, minus, digits, sign, power, after = found.groups()
    value = digits if power is None else rf"{digits} \times 10^{{{'-' if sign == '-' else ''}{power}}}"
    inner = f"{less}{minus}{value}"
    return f"{before}{inner if inner == digits else f'${inner}$'}{after}"


def _latex_header(header: Sequence[str]) -> str:
    cells: list[str] = []
    j = 0
    while j < len(header):
        span = 1
        while j > 0 and header[j] and j + span < len(header) and not header[j + span]:
            span += 1
        shown = latex_text(header[j])
        cells.append(shown if span == 1 else rf"\multicolumn{{{span}}}{{c}}{{{shown}}}")
        j += span
    return " & ".join(cells) + r" \\"


def _latex_table(table: Cells) -> str:
    width = len(table.rows[0]) if table.rows else len(table.header or [])
    lines = [rf"\noindent\begin{{tabular}}{{{'l' * table.left}{'r' * (width - table.left)}}}", r"\toprule"]
    if table.header is not None:
        lines += [_latex_header(table.header), r"\midrule"]
    for i, row in enumerate(table.rows):
        lines += [r"\midrule"] if i in table.rules else []
        lines.append(" & ".join(_latex_cell(cell) for cell in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
