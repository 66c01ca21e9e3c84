"""Estimates in families, whose p-values and limits are adjusted for their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import multiplicity

__all__ = ["DEFAULT_ADJUST", "Adjusted", "adjusted", "families_of"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

DEFAULT_ADJUST = {
    "pairwise": "tukey",
    "revpairwise": "tukey",
    "reference": "mvt",
    "sequential": "mvt",
    "consecutive": "mvt",
    "effects": "fdr",
}
"""Adjustment of comparisons where none was asked for."""

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
