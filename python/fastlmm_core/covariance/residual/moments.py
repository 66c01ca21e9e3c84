"""Moments of residuals within subjects, from which structures start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...kernels import positive_inverse
from .structure import Array, Rows

__all__ = [
    "at_distance",
    "bounded",
    "consecutive",
    "correlation_at_lag",
    "lag_one",
    "positive_definite",
    "visit_covariance",
]

_SMALLEST_EIGENVALUE = 0.05
"""Of the correlation matrix from which a search starts, where pairs of rows make it."""

_SMALLEST_IN_FLOATS = 1e-13
"""Of that which subjects with all positions make."""


def visit_covariance(rows: Rows, m: int) -> Array:
    """Covariance over m positions from the pairs of rows that are there, shrunk to be positive definite.

    Where most subjects have all positions, theirs as it is: it may be nearly singular because the truth is.
    Pairs of positions that no subject has get the mean correlation of their lag, or of all pairs.
    """
    from ...kernels.residuals import pair_moments

    counts, products, squares, whole, n, n_whole = pair_moments(rows.residuals, rows.where, rows.subjects, m)
    if n_whole >= max(2 * m + 5, n // 2):
        covariance = whole / n_whole
        if _well_inside(covariance):
            return covariance
    own, total = counts.diagonal(), squares.diagonal()
    pooled = float(total.sum()) / max(float(own.sum()), 1.0) or 1.0
    deviations = np.sqrt((total + 0.25 * pooled) / (own + 0.25))
    # correlations over the rows that both have, each with its own mean squares: they lie within -1 and 1
    lengths = np.sqrt(squares * squares.T)
    known = lengths > 0.0
    correlation = products / np.where(known, lengths, 1.0) * (counts / (counts + 2.0))
    if not known.all():
        correlation = _filled(correlation, known)
    np.fill_diagonal(correlation, 1.0)
    out: Array = deviations[:, None] * deviations * positive_definite(correlation)
    return out


def _well_inside(covariance: Array) -> bool:
    """Whether a covariance matrix has a factor in floats with digits to spare."""
    s = np.sqrt(np.diag(covariance))
    return bool(s.all()) and bool(np.linalg.eigvalsh(covariance / s / s[:, None])[0] > _SMALLEST_IN_FLOATS)


def _filled(correlation: Array, known: NDArray[np.bool_]) -> Array:
    """Unknown correlations by the mean of their lag."""
    m = len(correlation)
    lags = np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    off = known & (lags > 0)
    overall = float(correlation[off].mean()) if off.any() else 0.0
    counts = np.bincount(lags[off], minlength=m)
    sums = np.bincount(lags[off], correlation[off], minlength=m)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return np.where(known, correlation, means[lags])


def positive_definite(correlation: Array) -> Array:
    """The correlation matrix drawn to one of equal correlations as far as its smallest eigenvalue needs."""
    m = len(correlation)
    if m == 1:
        return np.ones((1, 1))
    if positive_inverse(correlation - _SMALLEST_EIGENVALUE * np.eye(m)) is not None:
        return correlation
    smallest = np.linalg.eigvalsh(correlation)[0]
    mean = (correlation.sum() - m) / (m * (m - 1))
    rho = min(max(mean, 0.0), 0.8)
    target = np.full((m, m), rho)
    np.fill_diagonal(target, 1.0)
    # the smallest eigenvalue is concave, and that of the target is 1 - rho
    share = (_SMALLEST_EIGENVALUE - smallest) / (1.0 - rho - smallest)
    out: Array = (1.0 - share) * correlation + share * target
    return out


def bounded(rho: Array | float, low: float = -0.9, smallest: float = 0.05) -> Array:
    """Correlations within (low, 0.9) and away from zero, where derivatives of some structures vanish."""
    inside = np.clip(np.atleast_1d(np.asarray(rho, dtype=float)), low, 0.9)
    inside = np.where(np.isfinite(inside), inside, smallest)
    least = min(smallest, 0.5 * abs(low))
    return np.where(np.abs(inside) >= least, inside, np.where(inside < 0.0, -least, least))


def consecutive(rows: Rows) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of a subject that follow each other in their first coordinate: indices of the earlier and the later."""
    first = rows.where if rows.where.ndim == 1 else rows.where[:, 0]
    order = np.lexsort((first, rows.subjects))
    same = rows.subjects[order[1:]] == rows.subjects[order[:-1]]
    return order[:-1][same], order[1:][same]


def lag_one(rows: Rows) -> float:
    """Correlation at lag one, from consecutive rows; from the root of the shortest lag where there is no lag one."""
    earlier, later = consecutive(rows)
    if not len(earlier):
        return 0.3
    lags = rows.where[later] - rows.where[earlier]
    shortest = lags.min()
    if shortest <= 0:
        raise LMMError("Two rows of a subject have the same position.")
    pairs = lags == shortest
    rho = _correlation(rows.residuals[earlier[pairs]], rows.residuals[later[pairs]])
    return float(np.sign(rho) * np.abs(rho) ** (1.0 / shortest)) if np.isfinite(rho) else 0.3


def _correlation(a: Array, b: Array) -> float:
    """Of pairs with mean zero, drawn to zero where there are few; NaN without any."""
    size = np.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size * len(a) / (len(a) + 2.0) if size > 0.0 else float("nan")


def correlation_at_lag(rows: Rows, lag: int) -> float:
    """Correlation of the pairs of rows at a lag; NaN without any."""
    span = int(rows.where.max()) + lag + 1
    keys = rows.subjects * span + rows.where
    order = np.argsort(keys)
    place = np.searchsorted(keys, keys + lag, sorter=order)
    found = place < len(keys)
    found[found] = keys[order[place[found]]] == keys[found] + lag
    return _correlation(rows.residuals[found], rows.residuals[order[place[found]]])


def at_distance(rows: Rows) -> tuple[float, float]:
    """A typical distance of consecutive rows and the correlation there, within (0.05, 0.9)."""
    earlier, later = consecutive(rows)
    lengths = np.linalg.norm(rows.where[later] - rows.where[earlier], axis=1)
    apart = lengths > 0.0
    if not apart.any():
        return 1.0, 0.5
    typical = float(np.median(lengths[apart]))
    near = apart & (lengths <= 1.5 * typical) & (lengths >= 0.5 * typical)
    rho = _correlation(rows.residuals[earlier[near]], rows.residuals[later[near]])
    return float(lengths[near].mean()), float(np.clip(rho, 0.05, 0.9)) if np.isfinite(rho) else 0.5
