"""The finite-sample null distribution of the likelihood ratio test of one variance component.

Crainiceanu and Ruppert (2004, J. R. Statist. Soc. B 66, 165-185): with one variance component the statistic depends
on the data through as many independent normal variables as there are eigenvalues, so that it is drawn in
microseconds, without fitting anything.  With further variance components the same distribution holds to good
approximation for the component tested, the others being as good as known (Greven, Crainiceanu, Kuechenhoff and Peters
2008, J. Comput. Graph. Statist. 17, 870-891).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.seeds import Seed, generator_of
from ...support.types import Array
from .nesting import Cone, orthonormal

__all__ = ["MAX_DISTINCT", "Spectrum", "draw", "spectrum"]


MAX_DISTINCT = 3000
"""Largest eigenvalue problem that is solved; groups with equal z'z count as rank(X) rows together."""

_EQUAL = 1e-12
_NEGLIGIBLE = 1e-9  # eigenvalues, relative to the largest
_STEP = 0.05  # of log lambda: statistics are exact to some 1e-5
_CELLS = 2**21  # draws times points held at a time


@dataclass(frozen=True)
class Spectrum:
    """What the null distribution depends on.

    Attributes
    ----------
    values : (K,) array
        Distinct positive eigenvalues of Z'P_0 Z, P_0 = I - X(X'X)^-1 X', rows weighted.
    counts : (K,) int array
        Their multiplicities.
    penalty_values, penalty_counts : arrays
        The same of Z'Z.
    rest : int
        Degrees of freedom left: n - rank(X) - sum(counts).
    n : int
    rank : int
        Of X.
    """

    values: Array
    counts: NDArray[np.intp]
    penalty_values: Array
    penalty_counts: NDArray[np.intp]
    rest: int
    n: int
    rank: int


def spectrum(X: Array, cone: Cone, weights: Array | None) -> Spectrum:
    """Eigenvalues from sums per group.

    Z'P_0 Z is diagonal less a matrix of rank p.  Where m groups share a value of z'z, that value is an eigenvalue of
    multiplicity m - p at least, and only p of their directions remain.

    Parameters
    ----------
    X : (n, p) array
        Of full column rank.
    cone : Cone
        Of size 1.
    weights : (n,) array or None

    Returns
    -------
    Spectrum

    Raises
    ------
    LMMError
        Where more than `MAX_DISTINCT` rows remain.
    """
    n, p = X.shape
    Q = orthonormal(X, weights)
    z = cone.Z[:, 0] if weights is None else cone.Z[:, 0] * np.sqrt(weights)
    z = z / np.linalg.norm(z)
    m = cone.n_groups
    assert cone.index is not None
    diagonal = np.bincount(cone.index, z * z, m)
    cross = np.column_stack([np.bincount(cone.index, z * Q[:, j], m) for j in range(p)]) if p else np.zeros((m, 0))
    distinct, member = _distinct(diagonal)
    sizes = np.bincount(member)
    left = int(np.minimum(sizes, max(p, 1)).sum())
    if left > MAX_DISTINCT:
        raise LMMError(
            f"the exact null distribution needs {left} eigenvalues of groups that are all different, more than "
            f"{MAX_DISTINCT}; use null='mixture' (close to it with so many groups) or null='bootstrap'"
        )
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    many = sizes > max(p, 1)
    alone = ~many[member]
    rows, on_diagonal = [cross[alone]], [diagonal[alone]]
    values, counts = list(distinct[many]), list(sizes[many] - max(p, 1))
    for g in np.flatnonzero(many):
        inside = cross[order[starts[g] : starts[g + 1]]]
        rows.append(np.linalg.qr(inside, mode="r") if p else np.zeros((1, 0)))
        on_diagonal.append(np.full(max(p, 1), distinct[g]))
    B = np.concatenate(rows)
    small = np.diag(np.concatenate(on_diagonal)) - B @ B.T
    found = np.linalg.eigvalsh(small)
    mu, count = _merged(np.concatenate([found, values]), np.concatenate([np.ones(len(found), dtype=int), counts]))
    keep = mu > _NEGLIGIBLE * mu.max(initial=0.0)
    mu, count = mu[keep], count[keep]
    return Spectrum(mu, count, distinct, sizes, n - p - int(count.sum()), n, p)


def _distinct(values: NDArray[Any]) -> tuple[Array, NDArray[np.intp]]:
    """Values that differ by more than rounding, and the place of each of `values` among them."""
    order = np.argsort(values)
    ordered = values[order]
    new = np.diff(ordered, prepend=-np.inf) > _EQUAL * ordered[-1]
    member = np.empty(len(values), dtype=np.intp)
    member[order] = np.cumsum(new) - 1
    return ordered[new], member


def _merged(values: Array, counts: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    distinct, member = _distinct(values)
    return distinct, np.bincount(member, counts).astype(np.intp)


def draw(found: Spectrum, n_sim: int, seed: Seed, reml: bool) -> Array:
    """Draws of the statistic under the null hypothesis.

    For REML (Crainiceanu and Ruppert 2004): sup over lambda >= 0 of
    (n - p) log(1 + N / D) - sum log(1 + lambda mu_s), with N = sum lambda mu_s w_s^2 / (1 + lambda mu_s),
    D = sum w_s^2 / (1 + lambda mu_s) + chi-square(rest).  For ML n takes the place of n - p and the eigenvalues
    of Z'Z that of mu_s in the last sum.  The supremum over a grid of log lambda is refined by a parabola.

    Parameters
    ----------
    found : Spectrum
    n_sim : int
    seed : int, sequence of int, SeedSequence or Generator, optional
    reml : bool

    Returns
    -------
    (n_sim,) array
        Exactly zero where the estimate of the variance is zero.
    """
    mu, count = found.values, found.counts
    if not len(mu):
        return np.zeros(n_sim)
    rng = generator_of(seed)
    weight = mu * np.sqrt(count)
    low = np.log(1e-3 / np.linalg.norm(weight))
    # with few degrees of freedom left for the errors the maximum may lie far out
    high = np.log(1e4 / mu[0]) + 3.0 * np.log(max(1.0, count.sum() / max(found.rest, 1)))
    grid = np.exp(np.linspace(low, high, int(np.ceil((high - low) / _STEP)) + 1))
    share = grid * mu[:, None]
    share /= 1.0 + share
    nu, values, counts = (
        (found.n - found.rank, mu, count) if reml else (found.n, found.penalty_values, found.penalty_counts)
    )
    penalty = counts @ np.log1p(np.outer(values, grid))
    out = np.empty(n_sim)
    chunk = max(1, _CELLS // max(len(grid), len(mu)))
    for begin in range(0, n_sim, chunk):
        size = min(chunk, n_sim - begin)
        w = _chi_squares(rng, count, size)
        total = w.sum(axis=1)
        if found.rest:
            total = total + rng.chisquare(found.rest, size)
        w /= total[:, None]
        curve = w @ share
        np.negative(curve, out=curve)
        np.log1p(curve, out=curve)
        curve *= -nu
        curve -= penalty
        best = _peaks(curve)
        # at lambda = 0 the curve is zero; the grid starts where it is as good as straight
        out[begin : begin + size] = np.where(best > 1e-9, best, 0.0)
    return out


def _chi_squares(rng: np.random.Generator, df: NDArray[np.intp], n: int) -> Array:
    """Independent chi-square variables (n, K), those with one degree of freedom by squaring."""
    single = df == 1
    out = np.empty((n, len(df)))
    if single.all():
        return np.square(rng.standard_normal(out=out), out=out)
    out[:, single] = rng.standard_normal((n, int(single.sum()))) ** 2
    out[:, ~single] = rng.chisquare(df[~single], size=(n, int((~single).sum())))
    return out


def _peaks(curve: Array) -> Array:
    """Maxima of the rows of values on an even grid, by the parabola through the largest and its neighbours."""
    rows = np.arange(len(curve))
    top = np.clip(np.argmax(curve, axis=1), 1, curve.shape[1] - 2)
    left, middle, right = curve[rows, top - 1], curve[rows, top], curve[rows, top + 1]
    bend = left - 2.0 * middle + right
    shift = np.where(bend < 0.0, 0.5 * (left - right) / np.where(bend < 0.0, bend, -1.0), 0.0)
    inside = np.abs(shift) <= 1.0
    peak = middle - 0.25 * (left - right) * np.where(inside, shift, 0.0)
    return np.asarray(np.maximum(np.maximum(left, right), np.maximum(middle, peak)))
