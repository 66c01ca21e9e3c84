"""Null distributions of likelihood ratio statistics where parameters lie on the boundary.

A statistic that tests `free` unrestricted parameters and matrices that the null hypothesis sets to zero and that are
otherwise positive semidefinite is, in large samples, the squared length of the projection of a normal vector on the
cone of the alternatives: a mixture of chi-square distributions (Self and Liang 1987, J. Amer. Statist. Assoc. 82,
605-610; Stram and Lee 1994, Biometrics 50, 1171-1177; Shapiro 1985, Biometrika 72, 133-144).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...support.seeds import Seed, generator_of
from ...support.types import Array

if TYPE_CHECKING:
    from ...estimation.fit import Fit

__all__ = [
    "SURELY",
    "NullTest",
    "apart",
    "chi_bar_square",
    "chi_square",
    "counted",
    "one_variance",
    "orthant_weights",
    "projection_shares",
    "uncertain",
]


SURELY = 4.0
"""Monte Carlo standard errors by which a statistic may be negative."""

_ITERATIONS = 2000
_PRECISE = 1e-9  # of the share of the squared length; errors of the projection enter it squared


@dataclass(frozen=True)
class NullTest:
    """A p-value and where it comes from.

    Attributes
    ----------
    pvalue : float
    p_std_error : float
        Monte Carlo standard error, 0 where nothing was simulated.
    text : str
        The null distribution.
    """

    pvalue: float
    p_std_error: float
    text: str


def _upper_tail(x: Array | float, df: float) -> Array:
    """P(chi-square with df degrees of freedom >= x); all mass at zero for df = 0."""
    from scipy.special import chdtrc

    x = np.asarray(x, dtype=float)
    return np.asarray((x <= 0.0).astype(float) if df == 0 else chdtrc(df, np.maximum(x, 0.0)))


def chi_square(statistic: float, df: int) -> NullTest:
    """The test with a chi-square distribution."""
    return NullTest(float(_upper_tail(statistic, df)), 0.0, f"chi2({df})")


def counted(statistic: float, drawn: Array, text: str) -> NullTest:
    """The Monte Carlo test: (1 + number of draws as large) / (1 + draws) (Davison and Hinkley 1997, sec. 4.2).

    Draws that rounding puts beside the statistic count as large.
    """
    n = len(drawn)
    slack = 1e-8 * (1.0 + abs(statistic))
    p = (1.0 + np.count_nonzero(drawn >= statistic - slack)) / (n + 1.0)
    return NullTest(float(p), float(np.sqrt(p * (1.0 - p) / n)), text)


def chi_bar_square(
    statistic: float,
    free: int,
    new: Sequence[int],
    information: Array | None = None,
    n_sim: int = 10_000,
    seed: Seed = None,
) -> NullTest:
    """The test with the mixture of chi-square distributions that belongs to the cone of alternatives.

    Weights are exact for up to three variances.  Otherwise directions are drawn, and the tail is averaged over them,
    so that small p-values have small relative errors.

    Parameters
    ----------
    statistic : float
    free : int
        Unrestricted parameters.
    new : sequence of int
        Sizes of the positive semidefinite matrices.
    information : (d, d) array or None
        Information on their lower triangles by rows, all other parameters being estimated; not needed for a single
        variance.
    n_sim : int
        Directions drawn.
    seed : int, sequence of int, SeedSequence or Generator, optional

    Returns
    -------
    NullTest

    Raises
    ------
    LMMError
        If the information is needed and not given.
    """
    sizes = tuple(new)
    if not sizes:
        return chi_square(statistic, free)
    d = sum(k * (k + 1) // 2 for k in sizes)
    if d > 1 and information is None:
        raise LMMError("the weights of the mixture need the information on the variances tested; use null='bootstrap'")
    if d <= 3 and max(sizes) == 1:
        weights = np.array([0.5, 0.5]) if information is None else orthant_weights(information)
        tails = np.array([float(_upper_tail(statistic, free + j)) for j in range(d + 1)])
        terms = [f"{w:.3g} chi2({free + j})" for j, w in enumerate(weights)]
        return NullTest(float(weights @ tails), 0.0, " + ".join(terms))
    assert information is not None
    text = f"mixture of chi2({free}) to chi2({free + d}), simulated"
    if statistic <= 0.0:
        return NullTest(1.0, 0.0, text)
    rng = generator_of(seed)
    shares = projection_shares(information, sizes, n_sim, rng)
    if free:
        # the squared length divides over the unrestricted and the restricted parameters as a beta variable
        part = rng.beta(0.5 * free, 0.5 * d, size=n_sim)
        shares = part + (1.0 - part) * shares
    with np.errstate(divide="ignore"):
        tails = _upper_tail(statistic / shares, free + d)
    return NullTest(float(tails.mean()), float(tails.std(ddof=1) / np.sqrt(n_sim)), text)


def one_variance(statistic: Array, free: Any) -> tuple[Array, str]:
    """p-values of many tests of one variance beside `free` parameters without restriction, and what they are by.

    Parameters
    ----------
    statistic : (n,) array
    free : int or (n,) int array
    """
    found, several = np.empty(len(statistic)), np.broadcast_to(free, statistic.shape)
    for k in np.unique(several).tolist():
        mine = several == k
        found[mine] = 0.5 * (_upper_tail(statistic[mine], k) + _upper_tail(statistic[mine], k + 1))
    most = int(several.max(initial=0))
    return found, f"0.5 chi2({most}) + 0.5 chi2({most + 1})"


def orthant_weights(information: Array) -> Array:
    """Weights of chi-square(0), ..., chi-square(d) for d <= 3 non-negative parameters.

    Parameters
    ----------
    information : (d, d) array

    Returns
    -------
    (d + 1,) array
        From the angles between the estimates (Self and Liang 1987; Shapiro 1985), whose correlations are those of the
        inverse information.
    """
    d = len(information)
    if d == 1:
        return np.array([0.5, 0.5])
    covariance: Array = np.asarray(np.linalg.inv(information), dtype=np.float64)
    pairs = [(0, 1)] if d == 2 else [(0, 1), (0, 2), (1, 2)]
    angles = np.array([_angle(covariance, i, j) for i, j in pairs]) / np.pi
    if d == 2:
        return np.array([0.5 * angles[0], 0.5, 0.5 - 0.5 * angles[0]])
    # partial correlations of two estimates given the third come from the information, with the sign reversed
    partial = 1.0 - np.array([_angle(information, i, j) for i, j in pairs]) / np.pi
    full = 0.25 * (2.0 - angles.sum())
    two = 0.25 * (3.0 - partial.sum())
    return np.array([0.5 - two, 0.5 - full, two, full])


def _angle(matrix: Array, i: int, j: int) -> float:
    return float(np.arccos(np.clip(matrix[i, j] / np.sqrt(matrix[i, i] * matrix[j, j]), -1.0, 1.0)))


def projection_shares(information: Array, sizes: Sequence[int], n: int, rng: np.random.Generator) -> Array:
    """Squared length of the projections of random directions on the cone, in the metric of the information.

    Minimises x'Mx / 2 - g'x over the cone for g ~ N(0, M), for all draws at once, by projected gradients with
    momentum that restarts where it points uphill (Beck and Teboulle 2009, SIAM J. Imaging Sci. 2, 183-202; O'Donoghue
    and Candes 2015, Found. Comput. Math. 15, 715-732).

    Parameters
    ----------
    information : (d, d) array
        For the lower triangles by rows of matrices of these sizes.
    sizes : sequence of int
    n : int
        Directions.
    rng : Generator

    Returns
    -------
    (n,) array
        Between 0 and 1.
    """
    places, scale = _layout(information, sizes)
    metric = information / np.outer(scale, scale)
    factor = np.linalg.cholesky(metric)
    u = rng.standard_normal((n, len(metric)))
    g = u @ factor.T
    largest = np.linalg.eigvalsh(metric)[-1]
    out = np.empty(n)
    x = _project(g / largest, places)
    point = x.copy()
    momentum = np.ones(n)
    active = np.arange(n)
    for _ in range(_ITERATIONS):
        step = (g[active] - point @ metric) / largest
        moved = _project(point + step, places)
        change = moved - x
        restart = np.einsum("ij,ij->i", point - moved, change) > 0.0
        following = np.where(restart, 1.0, 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)))
        point = moved + np.where(restart, 0.0, (momentum - 1.0) / following)[:, None] * change
        x, momentum = moved, following
        # x'Mx <= projection^2 <= what the distance of the gradient to the polar cone allows
        residual = g[active] - x @ metric
        excess = np.einsum("ij,ij->i", _project(residual, places) ** 2, np.ones_like(x))
        total = np.einsum("ij,ij->i", u[active], u[active])
        along = np.einsum("ij,ij->i", g[active], x)
        length = np.einsum("ij,ij->i", x @ metric, x)
        done = (excess <= _PRECISE * largest * total) & (np.abs(along - length) <= _PRECISE * total)
        if done.any():
            # the best point on the ray through x
            best = np.where(length > 0.0, along**2 / np.where(length > 0.0, length, 1.0), 0.0)
            out[active[done]] = (best / total)[done]
            keep = ~done
            active, x, point, momentum = active[keep], x[keep], point[keep], momentum[keep]
            if not len(active):
                break
    if len(active):
        raise LMMError(
            "the projection on the cone did not converge: the variances tested are nearly confounded; "
            "use null='bootstrap'"
        )
    return np.clip(out, 0.0, 1.0)


def _layout(information: Array, sizes: Sequence[int]) -> tuple[list[tuple[int, int]], Array]:
    """Start and size of every matrix, and the weights that turn elements into coordinates of the Frobenius norm.

    Effects are scaled so that the information on each variance is one, which leaves the cone as it is.
    """
    places, scale, start = [], [], 0
    for k in sizes:
        places.append((start, k))
        rows, columns = np.tril_indices(k)
        diagonal = start + np.flatnonzero(rows == columns)
        unit = information[diagonal, diagonal] ** 0.25
        scale.append(np.where(rows == columns, 1.0, np.sqrt(2.0)) * unit[rows] * unit[columns])
        start += len(rows)
    return places, np.concatenate(scale)


def _project(x: Array, places: Sequence[tuple[int, int]]) -> Array:
    """Nearest positive semidefinite matrices, in coordinates of the Frobenius norm."""
    out = np.empty_like(x)
    for start, k in places:
        if k == 1:
            out[:, start] = np.maximum(x[:, start], 0.0)
            continue
        rows, columns = np.tril_indices(k)
        part = slice(start, start + len(rows))
        scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
        whole = np.zeros((len(x), k, k))
        whole[:, rows, columns] = x[:, part] * scale
        values, vectors = np.linalg.eigh(whole)  # reads the lower triangle
        near = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.transpose(0, 2, 1)
        out[:, part] = near[:, rows, columns] / scale
    return out


def apart(one: Fit, other: Fit) -> float:
    """Monte Carlo standard error of the difference of two criteria, 0 where both are exact."""
    drawn, others = one.optimum.monte_carlo, other.optimum.monte_carlo
    if drawn is None:
        return 0.0 if others is None else others.criterion
    return drawn.apart(others)


def uncertain(test: Callable[[float], NullTest], statistic: float, error: float) -> NullTest:
    """A test of a statistic with what its Monte Carlo standard error makes of the p-value."""
    found = test(statistic)
    if not error:
        return found
    high, low = (test(max(statistic + 2.0 * step, 0.0)).pvalue for step in (-error, error))
    said = f"the statistic has a Monte Carlo standard error of {error:.2g}, p lies in [{low:.2g}, {high:.2g}] within "
    return replace(found, text=f"{found.text}; {said}two of them")
