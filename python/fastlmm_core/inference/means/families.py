"""Estimates in families, whose p-values and limits are adjusted for their number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import LMMError
from ...estimation.column_moments import offset_mean
from ...support.arguments import outside
from ...support.types import Array, Index
from .. import wald as inference
from . import multiplicity

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ..sandwich import Sandwich

__all__ = ["Adjusted", "Options", "adjusted", "adjustment", "estimated", "families_of"]

Options = tuple[str, str, "Sandwich | None"]
"""Degrees of freedom, information and robust covariance."""

DEFAULT_ADJUST = {
    "pairwise": "tukey",
    "revpairwise": "tukey",
    "reference": "mvt",
    "sequential": "mvt",
    "consecutive": "mvt",
    "effects": "fdr",
}
"""Adjustment of comparisons where none was asked for."""


def adjustment(method: Any, adjust: str | None) -> tuple[str, bool]:
    """The adjustment of comparisons that a caller asks for or gets by default, and whether they are all pairs.

    Raises
    ------
    LMMError
        For an unknown adjustment, or Tukey's for other comparisons than pairs.
    """
    if adjust is None:
        adjust = DEFAULT_ADJUST.get(method, "none") if isinstance(method, str) else "none"
    name = multiplicity.method_name(adjust)
    pairs = method in ("pairwise", "revpairwise")
    if name == "tukey" and not pairs:
        raise LMMError("adjust='tukey' is for all pairs of means: use 'sidak' or 'mvt'")
    return name, pairs


_NOTES = {
    "tukey": "Tukey's method for comparing {means} means",
    "mvt": "multivariate t for {count} tests",
    "scheffe": "Scheffe's method with rank {rank}",
    "fdr": "false discovery rate of {count} tests",
}


class Adjusted(NamedTuple):
    """p-values (n,), half the width of the intervals (n,), and what was done, in words."""

    pvalues: Array
    half: Array
    notes: tuple[str, ...]


def families_of(labels: dict[str, list[Any]], by: Sequence[str]) -> list[Index]:
    """Rows of each combination of the levels of `by`, in order of appearance."""
    n = len(next(iter(labels.values())))
    found: dict[tuple[Any, ...], list[int]] = {}
    for i in range(n):
        found.setdefault(tuple(labels[name][i] for name in by), []).append(i)
    return [np.array(rows) for rows in found.values()]


def adjusted(
    statistic: Array,
    error: Array,
    df: Array,
    families: Sequence[Index],
    adjust: str,
    level: float,
    pairs: Array | None,
    of_rows: tuple[Callable[[Index], Array], Callable[[Index], Array]],
) -> Adjusted:
    """P-values and limits of estimates, family by family; what is not estimable does not count as one of a family.

    Parameters
    ----------
    statistic, error, df : (n,) arrays
        t statistics, standard errors and degrees of freedom; NaN where there is no estimate.
    families : sequence of int arrays
    adjust : str
        One of `multiplicity.ADJUSTMENTS`.
    level : float
    pairs : (c, k) array or None
        Weights of the means in the comparisons of a family.
    of_rows : tuple of callables
        Linear functions of the coefficients, and covariance of the estimates, of some rows.
    """
    functions, covariance = of_rows
    pvalues, half = np.full(len(df), np.nan), np.full(len(df), np.nan)
    notes: list[str] = []
    for rows in families:
        live = rows[~np.isnan(df[rows])]
        n_means = 0 if pairs is None else int(pairs[~np.isnan(df[rows])].any(axis=0).sum())
        corr = multiplicity.correlations(covariance(live)) if adjust == "mvt" else None
        rank = int(np.linalg.matrix_rank(functions(live))) if adjust == "scheffe" and len(live) else 0
        pvalues[live] = multiplicity.adjusted_p(
            statistic[live], df[live], adjust, n_means=n_means, correlation=corr, rank=rank
        )
        half[live] = error[live] * multiplicity.critical_values(
            level, df[live], adjust, n_means=n_means, correlation=corr, rank=rank
        )
        if adjust != "none" and len(live) > 1:
            text = _NOTES.get(adjust, f"{adjust.capitalize()}'s method for {{count}} tests")
            notes.append(f"Adjustment: {text.format(means=n_means, count=len(live), rank=rank)}.")
            if adjust in ("holm", "fdr"):
                notes.append("Limits: Bonferroni's method.")
    return Adjusted(pvalues, half, tuple(dict.fromkeys(notes)))


def estimated(
    result: Fit,
    L: Array,
    level: float,
    adjust: str,
    families: Sequence[Index],
    options: Options,
    weights: Array,
    pairs: Array | None,
) -> dict[str, Any]:
    """Everything that `Estimates` holds, labels and scale aside.

    Parameters
    ----------
    result : LMMResult
    L : (n, p) array
        Linear functions of the coefficients.
    level, adjust, families, pairs
        As for `adjusted`.
    options : tuple
    weights : (n,) array
        With which the mean of an offset enters.
    """
    n = len(L)
    estimate, error, df = (np.full(n, np.nan) for _ in range(3))
    lost = inference.undetermined(result.model, L)
    there = np.flatnonzero(~lost.any(axis=1) & L.any(axis=1))
    if len(there):
        test = inference.wald(result, L[there], None, *options)
        estimate[there], error[there], df[there] = test.estimate, test.std_error, test.row_df
    offset = offset_mean(result.model)
    if offset is not None:
        estimate = estimate + weights * offset
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error

    def covariance(rows: Index) -> Array:
        return np.asarray(L[rows] @ np.nan_to_num(inference.covariance(result, *options)) @ L[rows].T)

    found = adjusted(statistic, error, df, families, adjust, level, pairs, (L.__getitem__, covariance))
    notes = list(found.notes)
    if lost.any():
        why = inference.why_undetermined(result.model, lost)
        notes.append(f"nan: not estimable; {why}.")
        count = int(lost.any(axis=1).sum())
        warnings.warn(f"{count} of {n} estimates cannot be estimated and are NaN: {why}", UserWarning, outside())
    if options[2] is not None:
        notes.append(f"Robust covariance {options[2].kind} over {options[2].clusters}.")
    return {
        "estimate": estimate,
        "std_error": error,
        "df": df,
        "conf_low": estimate - found.half,
        "conf_high": estimate + found.half,
        "statistic": statistic,
        "pvalues": found.pvalues,
        "L": L,
        "level": level,
        "adjust": adjust,
        "notes": tuple(dict.fromkeys(notes)),
        "result": result,
    }
