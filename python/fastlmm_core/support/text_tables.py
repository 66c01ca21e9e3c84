"""Cells and lines of tables of numbers, as text and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

__all__ = [
    "GAP",
    "aligned_cells",
    "degrees_cell",
    "estimate_cells",
    "html_table",
    "p_value_cell",
    "significant_cell",
    "statistic_cell",
    "text_table",
    "variance_cells",
]

GAP = "  "
_DIGITS = 5  # of a variance; an estimate is given to the fourth digit of its standard error


def variance_cells(values: Sequence[float]) -> list[str]:
    """Cells of a column of variances or standard deviations, to so many significant digits each."""
    large = any(abs(value) >= 1e7 for value in values)
    return aligned_cells([significant_cell(value, large) for value in values])


def significant_cell(value: float, large: bool = False) -> str:
    """Powers of ten where the column holds large numbers, or where a plain number would be mostly zeros."""
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    exponent = int(f"{value:.{_DIGITS - 1}e}".partition("e")[2])
    if large or exponent < -4:
        return f"{value:.{_DIGITS - 2}e}"
    return f"{value:.{max(_DIGITS - 1 - exponent, 0)}f}"


def estimate_cells(values: Sequence[float], errors: Sequence[float], digits: int) -> list[str]:
    """Cells of a column of estimates, each to as many decimals as give its standard error so many digits."""
    large = any(abs(value) >= 1e9 for value in values)
    pairs = zip(values, errors, strict=True)
    return aligned_cells([_to_precision(value, error, digits, large) for value, error in pairs])


def _to_precision(value: float, error: float, digits: int, large: bool) -> str:
    if not (math.isfinite(value) and math.isfinite(error) and error > 0.0):
        return significant_cell(value, large)
    decimals = digits - 1 - math.floor(math.log10(error))
    size = math.floor(math.log10(max(abs(value), error)))
    # never more than nine digits in all, whatever the standard error
    if large or size < -4:
        return f"{value:.{max(min(size + decimals, 8), 2)}e}"
    shown = f"{value:.{max(min(decimals, 8 - size), 0)}f}"
    return shown.removeprefix("-") if float(shown) == 0.0 else shown


def statistic_cell(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def degrees_cell(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


def p_value_cell(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def aligned_cells(cells: Sequence[str]) -> list[str]:
    """Pad on the right so that right-justified cells have their decimal points one below the other."""
    behind = [len(cell) - cell.index(".") if "." in cell and "e" not in cell else 0 for cell in cells]
    width = max(behind, default=0)
    return [cell if "e" in cell else cell + " " * (width - after) for cell, after in zip(cells, behind, strict=True)]


def text_table(header: list[str], rows: list[list[str]], left: int) -> list[str]:
    """Lines of a table whose first `left` columns are flush left, all others flush right."""
    table = [header, *rows]
    widths = [max(len(row[j]) for row in table) for j in range(len(header))]
    lines = []
    for row in table:
        cells = [
            f"{cell:<{width}}" if j < left else f"{cell:>{width}}"
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(GAP.join(cells).rstrip())
    return lines


def html_table(header: list[str] | None, rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        styled = (
            f'<{tag} style="text-align: {"left" if j in left else "right"}">{html.escape(cell.strip())}</{tag}>'
            for j, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    head = "" if header is None else f"<thead>{line(header, 'th')}</thead>"
    return f"<table>{head}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"
