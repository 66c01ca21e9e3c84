"""The table that compares models: information criteria, and the test of each against one that is nested in it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...support.arguments import checked
from ...support.display import Cells, Line, Part, Shown
from ...support.text_tables import aligned_cells, p_value_cell, text_table
from ...tables.columns import native_frame

__all__ = ["Comparison", "Row", "information_criteria"]

_WIDTH = 80
_COLUMNS = {
    "AIC": "aic", "AICc": "aicc", "BIC": "bic", "logLik": "llf", "Deviance": "deviance", "LRT": "statistic",
}  # fmt: skip

_Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Row:
    """One model, and its test against the model that it extends.

    Attributes
    ----------
    name : str
    n_parameters : int
        Fixed effects, covariance parameters and the residual variance.
    aic, aicc, bic, llf, deviance : float
        aicc = aic + 2k(k + 1) / (n - k - 1) for k parameters (Hurvich and Tsai 1989, Biometrika 76, 297-307); infinite
        without observations to spare.  deviance is -2 llf.
    statistic : float
        Likelihood ratio statistic, or F; NaN where there is no test.
    df : int or None
        Parameters tested.
    df_denom : float
        Denominator degrees of freedom of an F test, otherwise NaN.
    pvalue, p_std_error : float
        p-value and its Monte Carlo standard error (0 where nothing was simulated).
    null : str
        Null distribution, or why there is no test.
    statistic_std_error : float
        Monte Carlo standard error of the statistic, which fits by ``method="iterative"`` have; 0 elsewhere.
    """

    name: str
    n_parameters: int
    aic: float
    aicc: float
    bic: float
    llf: float
    deviance: float
    statistic: float = math.nan
    df: int | None = None
    df_denom: float = math.nan
    pvalue: float = math.nan
    p_std_error: float = math.nan
    null: str = ""
    statistic_std_error: float = 0.0


@checked
@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """A table of models; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    title : str
    rows : tuple of Row
    notes : tuple of str
        What was refitted, and what to beware of.
    reml : bool
        Whether the criteria are those of REML.
    by_f : bool
        Whether the tests are F tests.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    reml: bool
    _library: str = "dict"
    by_f: bool = False

    def to_frame(self) -> Any:
        """One row per model, in the caller's own frame library (a dict of arrays for models from arrays)."""
        rows = self.rows
        columns: dict[str, Any] = {"model": [row.name for row in rows]}
        columns["n_parameters"] = np.array([row.n_parameters for row in rows])
        for name in ("aic", "aicc", "bic", "llf", "deviance", "statistic"):
            columns[name] = np.array([getattr(row, name) for row in rows])
        if any(row.statistic_std_error for row in rows):
            columns["statistic_std_error"] = np.array([row.statistic_std_error for row in rows])
        columns["df"] = np.array([math.nan if row.df is None else float(row.df) for row in rows])
        if self.by_f:
            columns["df_denom"] = np.array([row.df_denom for row in rows])
        columns["p_value"] = np.array([row.pvalue for row in rows])
        columns["p_std_error"] = np.array([row.p_std_error for row in rows])
        columns["null"] = [row.null for row in rows]
        return native_frame(self._library, columns)

    def _table(self, columns: Sequence[str] = ("AIC", "AICc", "BIC", "logLik", "Deviance", "LRT")) -> _Table:
        rows = self.rows
        numbers = [aligned_cells([_decimal(getattr(row, _COLUMNS[name])) for row in rows]) for name in columns]
        cells = [
            [str(i + 1) for i in range(len(rows))],
            [str(row.n_parameters) for row in rows],
            *numbers,
            ["" if row.df is None else str(row.df) for row in rows],
            aligned_cells(["" if math.isnan(row.pvalue) else p_value_cell(row.pvalue) for row in rows]),
        ]
        header = ["", "Parameters", *columns, "df", "p"]
        if self.by_f:
            header = ["", "Parameters", *columns[:-1], "F", "NumDF", "DenDF", "p"]
            cells.insert(-1, aligned_cells([_decimal(row.df_denom) for row in rows]))
        return header, [list(line) for line in zip(*cells, strict=True)]

    def _nulls(self) -> list[tuple[str, str]]:
        return [(str(i + 1), row.null) for i, row in enumerate(self.rows) if row.null]

    def __str__(self) -> str:
        lines = [self.title, ""]
        for i, row in enumerate(self.rows):
            lines += _item(str(i + 1), row.name)
        table = text_table(*self._table(), left=1)
        if max(map(len, table)) > _WIDTH:
            table = text_table(*self._table(("AIC", "BIC", "logLik", "LRT")), left=1)
        lines += ["", *table]
        if self._nulls():
            lines += ["", "Null distributions"]
            for label, text in self._nulls():
                lines += _item(label, text)
        if self.notes:
            lines.append("")
        for note in self.notes:
            lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n".join(line.rstrip() for line in lines)

    def _shown(self) -> Iterator[Part]:
        yield Line(self.title, "title")
        yield Cells(None, [[str(i + 1), row.name] for i, row in enumerate(self.rows)], left=2)
        yield Cells(*self._table())
        if self._nulls():
            yield Line("Null distributions", "caption")
            yield Cells(None, [list(x) for x in self._nulls()], left=2)
        yield from self.notes


def _item(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=f"{label}  ", subsequent_indent="   ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _decimal(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value) < 1e7 or not math.isfinite(value) else f"{value:.1f}"


def information_criteria(name: str, n_parameters: int, criterion: float, nobs: int) -> Row:
    """The row of a model without a test."""
    k = n_parameters
    aic = criterion + 2.0 * k
    aicc = aic + 2.0 * k * (k + 1.0) / (nobs - k - 1.0) if nobs > k + 1 else math.inf
    bic = criterion + math.log(nobs) * k
    return Row(name, k, float(aic), float(aicc), float(bic), float(-0.5 * criterion), float(criterion))
