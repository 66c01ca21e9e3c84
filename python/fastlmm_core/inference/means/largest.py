"""The largest of correlated t statistics: its tail, for adjusted p-values and simultaneous limits.

What depends on the correlations alone is computed once.  Correlations through one common factor (Dunnett's: several
means against one) take a quadrature over this factor, which is tabulated, and one over the scale of the t statistics.
Otherwise the statistics are a point in a random direction u at a random distance: they exceed x where the distance
exceeds x / m(u), m the largest of them on the unit sphere, so that given the direction the tail is one of an F
distribution.  The distribution of m comes from a lattice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ...support.distributions import f_tail, two_sided_p
from ...support.types import Array
from .scale import over_scale

__all__ = ["max_t_sf"]

Tail = Callable[[float, float], float]

_POINTS = 65521  # of the lattice, a prime
_KOROBOV = 17364  # its generator
_WORK = 100  # statistics times dimensions below which the lattice is shifted three times more
_CHUNK = 4096  # points at a time
_BINS = 100  # of the largest statistic on the sphere; each leaves two points, with the mean and variance of the bin
_FINEST = 0.995  # largest loading of the quadrature over the common factor
_FARTHEST = 10.0  # largest limit in the table of normal tails
_STEP = 0.05  # of its limits
_ORDER = 6  # points of the interpolation in it


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
        Absolute error about 1e-8 for correlations through one common factor (always for two statistics), otherwise
        about 1e-5 in up to five dimensions and 1e-4 in more; never outside the bounds of Bonferroni.

    Notes
    -----
    One factor: Dunnett (1955), J. Am. Stat. Assoc. 50, 1096-1121.  Directions and distances: Deak (1980), Numer. Math.
    35, 369-380; Genz and Bretz (2009), Computation of Multivariate Normal and t Probabilities, section 4.1.1.
    """
    if np.isnan(x) or np.isnan(df):
        return float("nan")
    corr = np.atleast_2d(np.asarray(correlation, dtype=float))
    single = float(two_sided_p(x, df))
    if x <= 0.0 or len(corr) == 1:
        return single
    tail = _tail_of(np.round(corr, 11).tobytes(), len(corr))  # families whose correlations differ by rounding share one
    return float(np.clip(tail(float(x), float(df)), single, min(1.0, len(corr) * single)))


@lru_cache(maxsize=16)
def _tail_of(correlation: bytes, k: int) -> Tail:
    """The tail as a function of x and df."""
    corr = np.frombuffer(correlation).reshape(k, k)
    loadings = _loadings(corr)
    return _by_directions(_factor(corr)) if loadings is None else _by_common_factor(loadings)


def _loadings(corr: Array) -> Array | None:
    """Numbers whose products are the correlations of different statistics; None where there are none, or too large."""
    off = corr - np.diag(np.diag(corr))
    a, b = np.unravel_index(np.argmax(np.abs(off)), off.shape)
    between = off[a, b]
    out = np.zeros(len(off))
    if between != 0.0:
        through = off[a] * off[b]  # what the two have in common with each of the others
        c = int(np.argmax(np.abs(through)))
        square = off[a, c] * between / off[b, c] if through[c] != 0.0 else abs(between)
        if square <= 0.0:
            return None
        out = off[a] / np.sqrt(square)
        out[a] = np.sqrt(square)
    rest = np.outer(out, out) - off
    np.fill_diagonal(rest, 0.0)
    return out if np.abs(rest).max() < 1e-9 and np.abs(out).max() <= _FINEST else None


def _by_common_factor(loadings: Array) -> Tail:
    """Quadrature over the common factor: a table of the logarithm of the tail of normal statistics."""
    from scipy.special import ndtr

    own = np.sqrt(1.0 - loadings * loadings)
    width = float(np.min(own / np.maximum(np.abs(loadings), 1e-3)))  # of the sharpest step along the factor
    z = np.arange(-9.5, 9.5, min(0.2, 0.4 * width))
    weights = np.exp(-0.5 * z * z)
    weights /= weights.sum()
    limits = np.arange(0.0, _FARTHEST + _STEP, _STEP)
    log_inside = np.zeros((len(limits), len(z)))
    with np.errstate(divide="ignore"):
        for loading, sd in zip(loadings.tolist(), own.tolist(), strict=True):
            above = (limits[:, None] - loading * z) / sd
            below = (limits[:, None] + loading * z) / sd
            log_inside += np.log1p(-np.minimum(ndtr(-above) + ndtr(-below), 1.0))
    table = np.log(np.minimum(-np.expm1(log_inside) @ weights, 1.0))

    def normal(c: Array) -> Array:
        return np.exp(_interpolated(table, np.minimum(c, _FARTHEST) / _STEP))

    log_count = np.log(2.0 * len(loadings))

    def tail(x: float, df: float) -> float:
        if np.isinf(df):
            return float(normal(np.array([x]))[0])
        return over_scale(x, df, normal, lambda c: log_count - 0.5 * c * c)

    return tail


def _interpolated(table: Array, place: Array) -> Array:
    """Values between those of a table, by Lagrange's polynomials through the nearest."""
    first = np.clip(place.astype(np.intp) - (_ORDER // 2 - 1), 0, len(table) - _ORDER)
    rest = place - first
    out = np.zeros(len(place))
    for i in range(_ORDER):
        weight = np.ones(len(place))
        for j in range(_ORDER):
            if j != i:
                weight *= (rest - j) / (i - j)
        out += weight * table[first + i]
    return out


def _factor(correlation: Array) -> Array:
    """Rows whose products are the correlations, by a Cholesky factorization with pivoting: (k, rank).

    Linearly dependent statistics (all pairs of some means) take no dimension more.
    """
    remaining = np.array(correlation)
    factor = np.zeros_like(remaining)
    rank = 0
    for j in range(len(remaining)):
        pivot = int(np.argmax(np.diag(remaining)))
        size = remaining[pivot, pivot]
        if size < 1e-10:
            break
        factor[:, j] = remaining[:, pivot] / np.sqrt(size)
        remaining = remaining - np.outer(factor[:, j], factor[:, j])
        remaining[pivot] = remaining[:, pivot] = 0.0
        rank = j + 1
    return factor[:, :rank]


def _by_directions(factor: Array) -> Tail:
    """Distribution of the largest statistic on the unit sphere, by a lattice."""
    from scipy.special import ndtri

    k, rank = factor.shape
    steps = np.array([pow(_KOROBOV, j, _POINTS) for j in range(rank)])[:, None]
    shifts = np.full((1, rank), np.sqrt(0.5))
    if k * rank <= _WORK:
        shifts = np.vstack([shifts, np.random.default_rng(1).random((3, rank))])
    largest = np.empty((len(shifts), _POINTS))
    for shift, row in zip(shifts[:, :, None], largest, strict=True):
        for at in range(0, _POINTS, _CHUNK):
            index = np.arange(at, min(at + _CHUNK, _POINTS))
            points = (index * steps % _POINTS + 0.5) / _POINTS + shift
            normals = ndtri(np.clip(np.abs(2.0 * (points % 1.0) - 1.0), 1e-15, 1.0 - 1e-15))
            row[index] = np.abs(factor @ normals).max(axis=0) / np.sqrt((normals * normals).sum(axis=0))
    values, weights = _two_points_per_bin(largest.ravel())
    squares = rank * values * values

    def tail(x: float, df: float) -> float:
        return float(weights @ f_tail(x * x / squares, rank, df))

    return tail


def _two_points_per_bin(values: Array) -> tuple[Array, Array]:
    """Fewer values and their weights, which leave the mean and the variance within each bin as they are."""
    low, high = float(values.min()), float(values.max())
    place = np.minimum(((values - low) * (_BINS / max(high - low, 1e-300))).astype(np.intp), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    mean = np.bincount(place, values, _BINS) / np.maximum(count, 1)
    spread = np.sqrt(np.bincount(place, (values - mean[place]) ** 2, _BINS) / np.maximum(count, 1))
    there = count > 0
    mean, spread, weight = mean[there], spread[there], count[there] / (2.0 * len(values))
    return np.concatenate([mean - spread, mean + spread]), np.concatenate([weight, weight])
