"""Adjustment of p-values and confidence limits for several tests, with the distributions that this takes.

The studentized range is integrated by the trapezoidal rule, which for these smooth integrands converges faster than any
power of the step; the tail is summed directly, so that small p-values keep their digits.  The maximum of correlated t
statistics is integrated over a lattice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import LMMError
from ...support.distributions import two_sided_p
from ...support.words import option

__all__ = [
    "ADJUSTMENTS",
    "adjusted_p",
    "correlations",
    "critical_values",
    "max_t_sf",
    "method_name",
    "studentized_range_quantile",
    "studentized_range_sf",
]

Array = NDArray[np.float64]

ADJUSTMENTS = ("none", "bonferroni", "holm", "sidak", "fdr", "tukey", "scheffe", "mvt")
"""Names of the adjustments; "bh" stands for "fdr" and "dunnett" for "mvt"."""

_ALIASES = {"bh": "fdr", "dunnett": "mvt"}
_INNER = 0.1  # step of the trapezoidal rule over the smallest of k normals
_OUTER = 0.03  # largest step over the logarithm of the scale
_STEPS = 240  # least number of them
_NEGLIGIBLE = -46.0  # log of what is left out of an integrand, relative to its largest value
_POINTS = 131071  # of the lattice, a prime
_KOROBOV = 22279  # generator of the lattice: the best of 150 by the criterion P_2 in 12 dimensions


def method_name(adjust: str) -> str:
    """The adjustment that a name stands for.

    Raises
    ------
    LMMError
        For an unknown name.
    """
    name = _ALIASES.get(adjust, adjust) if isinstance(adjust, str) else adjust
    if name not in ADJUSTMENTS:
        known = (*ADJUSTMENTS, *_ALIASES)
        raise LMMError(f"adjust={adjust!r} is unknown: use one of {', '.join(known)}{option('adjust', adjust, known)}")
    return name


# ---- studentized range -------------------------------------------------------------------------


def _range_sf(width: Array, k: int) -> Array:
    """P(range of k standard normals > width), for an array of widths."""
    from scipy.special import log_ndtr

    # k phi(z) S(z)^(k-1) [1 - (1 - S(z+w)/S(z))^(k-1)], z the smallest: no difference of nearly equal numbers
    low = -0.5 * float(width.max(initial=0.0)) - 9.5
    z = np.arange(low, 9.5, _INNER)
    log_upper = log_ndtr(-z)
    ratio = np.exp(np.minimum(log_ndtr(-(z + width[:, None])) - log_upper, 0.0))
    with np.errstate(divide="ignore"):
        some = -np.expm1((k - 1) * np.log1p(-ratio))
    density = k * np.exp(-0.5 * z * z + (k - 1) * log_upper) / np.sqrt(2.0 * np.pi)
    return np.asarray(np.minimum(_INNER * (some @ density), 1.0))


@lru_cache(maxsize=1024)
def _studentized_sf(q: float, k: int, df: float) -> float:
    if np.isnan(q) or np.isnan(df):
        return float("nan")
    if q <= 0.0:
        return 1.0
    if k == 2:
        return float(two_sided_p(q / np.sqrt(2.0), None if np.isinf(df) else df))
    if np.isinf(df):
        return float(_range_sf(np.array([q]), k)[0])
    half = 0.5 * df
    constant = np.log(2.0) - _log_gamma_ratio(half)

    def log_density(x: Array) -> Array:  # of log s, where df s^2 is chi-squared
        return np.asarray(constant - half * (np.expm1(2.0 * x) - 2.0 * x))

    # where the product of density and tail counts: first by a bound of the tail, then summed
    spread = 10.0 / np.sqrt(df) + 46.0 / df
    x = np.linspace(-spread, min(spread, 3.0), 2001)
    s = q * np.exp(x)
    bound = np.minimum(0.0, np.log(k * (k - 1.0)) - 0.25 * s * s)  # P(range > s) <= k (k-1) P(N > s / sqrt 2)
    size = log_density(x) + bound
    counts = np.flatnonzero(size > size.max() + _NEGLIGIBLE)
    low, high = float(x[max(counts[0] - 1, 0)]), float(x[min(counts[-1] + 1, 2000)])
    x, step = np.linspace(low, high, max(_STEPS, int((high - low) / _OUTER)) + 1, retstep=True)
    total = step * float(np.exp(log_density(x)) @ _range_sf(q * np.exp(x), k))
    return float(min(total, 1.0))


def _log_gamma_ratio(a: float) -> float:
    """log Gamma(a) - a log a + a, by Stirling's series where its terms are large and nearly cancel."""
    from scipy.special import gammaln

    if a < 50.0:
        return float(gammaln(a) - a * np.log(a) + a)
    series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * a * a)) / (a * a)) / a
    return float(series + 0.5 * np.log(2.0 * np.pi / a))


def studentized_range_sf(q: ArrayLike, k: int, df: ArrayLike) -> Array:
    """Upper tail of the studentized range.

    Parameters
    ----------
    q : array_like
        Range divided by an independent estimate of the standard deviation.
    k : int
        Number of normal variables, at least 2.
    df : array_like
        Degrees of freedom of the estimate; inf for a known standard deviation.

    Returns
    -------
    ndarray
        Accurate to about 12 digits, for small probabilities too.

    Notes
    -----
    Tukey (1953); as an integral over the smallest value and the scale, e.g. Copenhaver and Holland (1988), J. Stat.
    Comput. Simul. 30, 1-15.
    """
    q, df = np.broadcast_arrays(np.asarray(q, dtype=float), np.asarray(df, dtype=float))
    flat = [_studentized_sf(float(a), k, float(b)) for a, b in zip(q.ravel(), df.ravel(), strict=True)]
    return np.array(flat, dtype=float).reshape(q.shape)


def studentized_range_quantile(probability: float, k: int, df: float) -> float:
    """Quantile of the studentized range.

    Parameters
    ----------
    probability : float
        Of values below the quantile.
    k : int
        Number of normal variables, at least 2.
    df : float
        Degrees of freedom; inf for a known standard deviation.

    Returns
    -------
    float
    """
    if not df > 0.0:
        return float("nan")
    # Bonferroni's limit, which is a little too large
    pairs = 0.5 * k * (k - 1)
    start = float(np.sqrt(2.0) * _t_quantile(0.5 * (1.0 - probability) / pairs, np.array(df)))
    return _solved(lambda q: _studentized_sf(q, k, df), 1.0 - probability, start)


def _solved(tail: Callable[[float], float], alpha: float, start: float) -> float:
    """Where a falling tail probability is alpha."""
    from scipy.optimize import brentq

    def excess(x: float) -> float:  # of logarithms, in which the tail is nearly straight
        return float(np.log(max(tail(x), 1e-300)) - np.log(alpha))

    low, high = 0.8 * start, start
    while excess(high) > 0.0:
        low, high = high, 1.5 * high
    while excess(low) < 0.0:
        low, high = 0.5 * low, low
    return float(brentq(excess, low, high, xtol=1e-11, rtol=1e-11))


# ---- largest of correlated t statistics --------------------------------------------------------


def _staircase(correlation: Array) -> tuple[Array, list[NDArray[np.intp]]]:
    """Rows with unit length whose products are the correlations, and for each coordinate the rows that end there.

    A Cholesky factor with pivoting; linearly dependent statistics (all pairs of some means) take no coordinate more.
    """
    remaining = np.array(correlation, dtype=float)
    k = len(remaining)
    factor = np.zeros((k, k))
    rank = 0
    for j in range(k):
        pivot = int(np.argmax(np.diag(remaining)))
        size = remaining[pivot, pivot]
        if size < 1e-10:
            break
        factor[:, j] = remaining[:, pivot] / np.sqrt(size)
        factor[np.abs(factor[:, j]) < 1e-9, j] = 0.0
        remaining = remaining - np.outer(factor[:, j], factor[:, j])
        remaining[pivot] = remaining[:, pivot] = 0.0
        rank = j + 1
    factor = factor[:, :rank]
    last = np.array([int(np.flatnonzero(row)[-1]) if row.any() else -1 for row in factor])
    return factor, [np.flatnonzero(last == j) for j in range(rank)]


@lru_cache(maxsize=8)
def _lattice(dimensions: int) -> Array:
    """Points in the unit cube, those of a Korobov lattice, shifted and folded: (dimensions, points)."""
    step = np.array([pow(_KOROBOV, j, _POINTS) for j in range(dimensions)])[:, None]
    points = (np.arange(_POINTS) * step % _POINTS + 0.5) / _POINTS + np.sqrt(0.5)
    return np.asarray(np.clip(np.abs(2.0 * (points % 1.0) - 1.0), 1e-15, 1.0 - 1e-15))


@lru_cache(maxsize=8)
def _scales(df: float) -> Array:
    """Quantiles of the scale of t statistics, at the first coordinate of the lattice."""
    from scipy.special import gammaincinv

    return np.asarray(np.sqrt(2.0 / df * gammaincinv(0.5 * df, _lattice(1)[0])))


def max_t_sf(x: float, df: float, correlation: ArrayLike) -> float:
    """P(largest |T_i| > x) for t statistics with a common denominator.

    Parameters
    ----------
    x : float
    df : float
        Degrees of freedom; inf for normal statistics.
    correlation : (k, k) array_like
        Correlations of the numerators; may be singular.

    Returns
    -------
    float
        Absolute error about 1e-6, 1e-5 for linearly dependent statistics; never outside the bounds of Bonferroni.

    Notes
    -----
    Separation of variables: Genz and Bretz (2002), J. Comput. Graph. Stat. 11, 950-971.
    """
    from scipy.special import ndtr, ndtri

    if np.isnan(x) or np.isnan(df):
        return float("nan")
    corr = np.atleast_2d(np.asarray(correlation, dtype=float))
    single = float(two_sided_p(x, None if np.isinf(df) else df))
    if x <= 0.0 or len(corr) == 1:
        return single
    factor, ends = _staircase(corr)
    points = _lattice(len(ends))  # the scale takes the first coordinate, the last normal takes none
    limit = np.full(_POINTS, x) if np.isinf(df) else x * _scales(df)
    inside = np.ones_like(limit)
    values = np.empty((len(ends), len(limit)))
    for j, rows in enumerate(ends):
        lower, upper = np.full_like(limit, -np.inf), np.full_like(limit, np.inf)
        for i in rows:
            centre = -(factor[i, :j] @ values[:j]) / factor[i, j]
            half = limit / abs(factor[i, j])
            lower, upper = np.maximum(lower, centre - half), np.minimum(upper, centre + half)
        below, width = ndtr(lower), np.maximum(ndtr(upper) - ndtr(lower), 0.0)
        inside *= width
        if j + 1 < len(ends):
            values[j] = ndtri(np.clip(below + points[j + 1] * width, 1e-300, 1.0 - 1e-16))
    return float(np.clip(1.0 - inside.mean(), single, min(1.0, len(corr) * single)))


# ---- adjustment --------------------------------------------------------------------------------


def adjusted_p(
    statistic: ArrayLike,
    df: ArrayLike,
    method: str,
    *,
    n_means: int = 0,
    correlation: Array | None = None,
    rank: int = 0,
) -> Array:
    """Two-sided p-values of a family of t tests, adjusted for their number.

    Parameters
    ----------
    statistic, df : (k,) array_like
        t statistics and degrees of freedom (inf for z tests).  Tests that are NaN are not counted.
    method : str
        One of `ADJUSTMENTS`.
    n_means : int
        "tukey": number of means that are compared in pairs.
    correlation : (k, k) array, optional
        "mvt": correlations of the estimates.
    rank : int
        "scheffe": dimension of the space of contrasts.

    Returns
    -------
    (k,) array
    """
    t, nu = np.broadcast_arrays(np.abs(np.asarray(statistic, dtype=float)), np.asarray(df, dtype=float))
    raw = _raw_p(t, nu)
    valid = np.isfinite(raw)
    count = int(valid.sum())
    if method == "none" or count == 0 or (count == 1 and method != "scheffe"):
        return raw
    if method == "bonferroni":
        return np.minimum(1.0, count * raw)
    if method == "sidak":
        return np.asarray(-np.expm1(count * np.log1p(-raw)))
    if method in ("holm", "fdr"):
        out = raw.copy()
        out[valid] = _holm(raw[valid]) if method == "holm" else _fdr(raw[valid])
        return out
    if method == "tukey":
        return studentized_range_sf(np.sqrt(2.0) * t, n_means, nu)
    if method == "scheffe":
        return _f_sf(t * t / rank, rank, nu)
    assert correlation is not None
    inner = correlation[np.ix_(valid, valid)]
    out = raw.copy()
    out[valid] = [max_t_sf(float(a), float(b), inner) for a, b in zip(t[valid], nu[valid], strict=True)]
    return out


def critical_values(
    level: float,
    df: ArrayLike,
    method: str,
    *,
    n_means: int = 0,
    correlation: Array | None = None,
    rank: int = 0,
) -> Array:
    """What to multiply standard errors with for simultaneous confidence limits.

    Parameters
    ----------
    level : float
    df : (k,) array_like
        Degrees of freedom of the k estimates; NaN for those that are not to be counted.
    method : str
        One of `ADJUSTMENTS`; the stepwise methods "holm" and "fdr" have no limits of their own and take Bonferroni's.
    n_means, correlation, rank
        As for `adjusted_p`.

    Returns
    -------
    (k,) array
    """
    nu = np.asarray(df, dtype=float)
    valid = ~np.isnan(nu)
    count = int(valid.sum())
    if method == "none" or count == 0 or (count == 1 and method != "scheffe"):
        return _t_quantile(0.5 * (1.0 - level), nu)
    if method == "sidak":
        return _t_quantile(-0.5 * float(np.expm1(np.log(level) / count)), nu)
    if method not in ("tukey", "scheffe", "mvt"):
        return _t_quantile(0.5 * (1.0 - level) / count, nu)
    if method == "mvt":
        assert correlation is not None
        correlation = correlation[np.ix_(valid, valid)]
    solved: dict[float, float] = {}
    for value in np.unique(nu[valid]).tolist():
        # degrees of freedom that differ by rounding are solved for once
        key = float(f"{value:.11g}")
        if key not in solved:
            solved[key] = _simultaneous(level, key, method, n_means, correlation, rank)
    return np.array([solved[float(f"{value:.11g}")] if value == value else np.nan for value in nu.tolist()])


def _simultaneous(level: float, df: float, method: str, n_means: int, correlation: Array | None, rank: int) -> float:
    if method == "tukey":
        return studentized_range_quantile(level, n_means, df) / float(np.sqrt(2.0))
    if method == "scheffe":
        return _solved(lambda c: float(_f_sf(np.array(c * c / rank), rank, np.array(df))), 1.0 - level, 2.0)
    assert correlation is not None
    # secant steps on the logarithm of the tail, between the limits of one test and of Bonferroni
    low, high = (float(_t_quantile(0.5 * (1.0 - level) / k, np.array(df))) for k in (1.0, len(correlation)))
    x, before = high, low
    gap, gap_before = (float(np.log(max_t_sf(c, df, correlation) / (1.0 - level))) for c in (x, before))
    for _ in range(20):
        if abs(gap) < 1e-7 or gap == gap_before:
            break
        x, before = min(max(x - gap * (x - before) / (gap - gap_before), low), high), x
        gap, gap_before = float(np.log(max_t_sf(x, df, correlation) / (1.0 - level))), gap
    return x


def _raw_p(t: Array, df: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(df), two_sided_p(t, None), two_sided_p(t, np.where(np.isinf(df), 1.0, df)))


def _t_quantile(tail: float, df: Array) -> Array:
    """Value that t exceeds with probability `tail`."""
    from scipy.special import ndtri, stdtrit

    return np.asarray(np.where(np.isinf(df), -ndtri(tail), -stdtrit(np.where(np.isinf(df), 1.0, df), tail)))


def _f_sf(f: Array, df_num: int, df_denom: Array) -> Array:
    from scipy.special import chdtrc, fdtrc

    finite = np.where(np.isinf(df_denom), 1.0, df_denom)
    return np.asarray(np.where(np.isinf(df_denom), chdtrc(df_num, df_num * f), fdtrc(df_num, finite, f)))


def _holm(p: Array) -> Array:
    """Holm (1979), Scand. J. Stat. 6, 65-70."""
    order = np.argsort(p)
    out = np.empty_like(p)
    out[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return out


def _fdr(p: Array) -> Array:
    """Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57, 289-300."""
    order = np.argsort(p)[::-1]
    out = np.empty_like(p)
    out[order] = np.minimum(1.0, np.minimum.accumulate(len(p) / np.arange(len(p), 0, -1) * p[order]))
    return out


def correlations(covariance: Any) -> Array:
    """Correlation matrix of a covariance matrix; rows without variance are NaN."""
    sd = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.outer(sd, sd))
