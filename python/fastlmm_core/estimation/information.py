"""Small-sample information about the variance parameters: Satterthwaite, Kenward and Roger.

Everything is taken in coordinates in which the coefficients are uncorrelated (whitened): a row l of L becomes
a = L_xx^-1 x_map'l, with var(l'beta) = sigma^2 a'a, and the derivative of X'V^-1X along the unit direction D_k of the
relative covariance G^ becomes, up to its sign, U_k = L_xx^-1 (sum E_x'D_kE_x) L_xx^-T.  With the total scale of V
profiled out, only the directions of G^ are left.  Let

    u_k = a'U_k a / a'a - d_k,      d_k = -(1 / r^2) d r^2 / d G^_k,

the derivative of log var(l'beta) at the best scale.  Then, for the inverse B of the information in G^,

    df = 1 / (1 / nu + u'B u).

B is the inverse Hessian of the profiled criterion for Satterthwaite (Kuznetsova, Brockhoff and Christensen 2017, J.
Stat. Softw. 82(13), sec. 2.2: 2 (l'Phi l)^2 / g'A g), and that of its expectation for Kenward and Roger (1997,
Biometrics 53, 983-997): the information in (G^, scale), the scale eliminated.  At a singular fit the observed
information exists along the covariance matrices of the rank found only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.directions import free_directions, unit_places
from ..covariance.parameters import CovarianceStructure
from ..engines.protocol import Problem
from ..errors import LMMError
from .fit import Fit

__all__ = ["Moments", "combined_df", "moments", "scaled_f", "whitened_rows"]

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """What tests of the fixed effects need of a fit, in whitened coordinates (see the module).

    Attributes
    ----------
    half : (r, r) array
        L_xx^-1, with L_xx L_xx' = X_o'V^-1X_o relative to sigma^2.
    slopes : (n_a, r, r) array
        U_k for the unit directions of G^, lower triangle by rows.
    shift : (n_a,) array
        d_k.
    inverse : (n_a, n_a) array
        B: zero for the elements of G^ that are not parameters.
    nu : float
        n - rank, or n by ML.
    adjustment : (r, r) array or None
        C with Phi_A = sigma^2 x_map L_xx^-T (I + C) L_xx^-1 x_map', for Kenward-Roger.
    left_out : tuple of str
        Parameters at the boundary that were taken for known, in words.
    """

    half: Array
    slopes: Array
    shift: Array
    inverse: Array
    nu: float
    adjustment: Array | None
    left_out: tuple[str, ...]

    def coefficient_df(self, problem: Problem) -> Array:
        """Degrees of freedom of each coefficient (p,), NaN for dropped columns."""
        out = self.df(whitened_rows(problem, self))
        out[problem.dropped] = np.nan
        return out

    def df(self, rows: Array) -> Array:
        """Degrees of freedom of single rows, whitened (m, r)."""
        return self.df_of((rows * rows).sum(axis=1), self.slopes_of(rows))

    def slopes_of(self, rows: Array) -> Array:
        """Derivatives of a'a along the unit directions of G^ (n_a, m), for whitened rows a (m, r)."""
        return np.asarray(((rows @ self.slopes) * rows).sum(axis=2))

    def df_of(self, variance: Array, slopes: Array) -> Array:
        """Degrees of freedom of variances sigma^2 v by the delta method.

        Parameters
        ----------
        variance : (m,) array
            v, a function of G^.
        slopes : (n_a, m) array
            Its derivatives along the unit directions of G^.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            u = slopes / variance - self.shift[:, None]
            df: Array = 1.0 / (1.0 / self.nu + ((self.inverse @ u) * u).sum(axis=0))
        return df


def moments(result: Fit, ddf: str, information: str = "expected") -> Moments:
    """The moments for "satterthwaite" or "kenward-roger", computed once per result.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger"}
    information : {"expected", "observed"}
        For Kenward-Roger.

    Returns
    -------
    Moments

    Raises
    ------
    LMMError
        For Kenward-Roger after a fit by ML.
    """
    key = ("moments", ddf, information if ddf == "kenward-roger" else "")
    return result.once(key, lambda: _moments(result, ddf, information))


def whitened_rows(problem: Problem, found: Moments) -> Array:
    """The unit vectors of the coefficients in whitened coordinates (p, r)."""
    return np.asarray(problem.x_map @ found.half.T)


def _moments(result: Fit, ddf: str, information: str) -> Moments:
    if ddf == "kenward-roger" and not result.reml:
        raise LMMError("ddf='kenward-roger' needs a REML fit: fit with reml=True, or use ddf='satterthwaite'")
    problem = result.model.problem
    r = problem.rank
    criterion = result.engine
    beta, r2, chol, slope = criterion.solution()
    # the chol of the blocked engine comes in the memory order of LAPACK
    half, slopes, shift = kernels.whitened_slopes(np.ascontiguousarray(chol), beta, r2, criterion.cross())
    nu = float(result.nu)
    if ddf == "satterthwaite":
        inverse, left_out = _observed(result, slope, criterion.curvature())
        return Moments(half, slopes, shift, inverse, nu, None, left_out)
    if information == "observed":
        inverse, left_out = _observed(result, slope, criterion.curvature())
    else:
        # with the scale: traces less what beta takes, and their Schur complement
        weight = np.zeros((r + 1, r + 1))
        weight[:r, :r] = half.T
        full = criterion.traces() - 2.0 * criterion.traces(weight) + _products(slopes)
        lower, upper = unit_places(problem.structure.q)
        shift = shift + slope[lower, upper] * ((2.0 - (lower == upper)) / nu)
        inverse, left_out = _inverse_on(problem.structure, full - nu * np.outer(shift, shift)), ()
    twice = 2.0 * inverse
    middle = half @ criterion.sandwich(twice)[:r, :r] @ half.T
    weighted = (twice @ slopes.reshape(len(twice), -1)).reshape(slopes.shape)
    middle -= (slopes @ weighted).sum(axis=0)
    return Moments(half, slopes, shift, inverse, nu, middle + middle.T, left_out)


def _products(slopes: Array) -> Array:
    """tr(U_k U_l)."""
    flat = slopes.reshape(len(slopes), -1)
    return np.asarray(flat @ flat.T)


def _inverse_on(structure: CovarianceStructure, information: Array) -> Array:
    """Inverse among the unit directions of G^ that are parameters, zero elsewhere."""
    if len(structure.blocks) == 1 and structure.blocks[0].correlated:
        return _inverse(information)
    free = free_directions(structure)
    out = np.zeros_like(information)
    out[np.ix_(free, free)] = _inverse(information[np.ix_(free, free)])
    return out


def _inverse(information: Array) -> Array:
    """Inverse; where there is no minimum, of the part with positive curvature."""
    inverse = kernels.positive_inverse(np.ascontiguousarray(information))
    if inverse is None:
        size = np.sqrt(np.abs(np.diag(information)))
        size[size == 0.0] = 1.0
        values, vectors = np.linalg.eigh(information / np.outer(size, size))
        keep = values > 1e-8 * max(float(values[-1]), 0.0)
        vectors = vectors[:, keep] / size[:, None]
        inverse = (vectors / values[keep]) @ vectors.T
    return inverse


def _observed(result: Fit, slope: Array, curvature: Array) -> tuple[Array, tuple[str, ...]]:
    """Inverse Hessian of the profiled criterion in vech(G^), and what had to be left out."""
    structure, optimum = result.model.structure, result.optimum
    if not optimum.singular:
        return _inverse_on(structure, curvature), ()
    tangent, bend = _tangent(result, slope)
    if not tangent.shape[1]:
        return np.zeros_like(curvature), result.singular_components
    inner = _inverse(tangent.T @ curvature @ tangent + bend)
    return tangent @ inner @ tangent.T, result.singular_components


def _tangent(result: Fit, slope: Array) -> tuple[Array, Array]:
    """Directions (n_a, t) in which G^ keeps its rank, and what the bend of these matrices adds to the Hessian (t, t).

    With G^ = F F' for F of full column rank, directions are dF F' + F dF', and along dF the criterion changes to second
    order by tr(slope dF dF') besides.  Rotations of the columns of F change nothing and are taken out.
    """
    structure, optimum = result.model.structure, result.optimum
    q = structure.q
    lower, upper = unit_places(q)
    directions: list[Array] = []
    bends: list[Array] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = optimum.factor[part, part]
        if not block.correlated:
            live = block.start + np.flatnonzero(np.abs(inner).sum(axis=1) > 0.0)
            directions.append(((lower == live[:, None]) & (upper == live[:, None])).T.astype(float))
            bends.append(np.zeros((len(live), len(live))))
            continue
        left, sizes, _ = np.linalg.svd(inner)
        rank = int((sizes > 1e-10 * max(float(sizes[0]), 1e-300)).sum())
        F = left[:, :rank] * sizes[:rank]
        size = len(inner)
        raw = np.zeros((size * rank, q, q))
        for i in range(size):
            for j in range(rank):
                raw[i * rank + j, block.start + i, part] += F[:, j]
                raw[i * rank + j, part, block.start + i] += F[:, j]
        flat = raw[:, lower, upper].T
        keep = np.linalg.svd(flat, full_matrices=False)[2][: size * rank - rank * (rank - 1) // 2]
        directions.append(flat @ keep.T)
        bends.append(keep @ np.kron(2.0 * slope[part, part], np.eye(rank)) @ keep.T)
    sizes_of = [d.shape[1] for d in directions]
    bend = np.zeros((sum(sizes_of), sum(sizes_of)))
    at = 0
    for piece, count in zip(bends, sizes_of, strict=True):
        bend[at : at + count, at : at + count] = piece
        at += count
    return np.column_stack(directions), bend


# ---- F statistics ------------------------------------------------------------------------------


def combined_df(df: Array) -> Array:
    """Denominator of an F made of independent squared t statistics (Fai and Cornelius 1996).

    The expectation of F, the mean of df / (df - 2), is equated to that of an F distribution.

    Parameters
    ----------
    df : (..., m) array

    Returns
    -------
    (...) array
        2 where a t statistic has 2 degrees of freedom or less: its square has no mean.
    """
    m = df.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # sum of df / (df - 2) less m, without cancellation for large df
        excess = (2.0 / (df - 2.0)).sum(axis=-1)
        out = np.where((df <= 2.0).any(axis=-1), 2.0, 2.0 * (m + excess) / excess)
    equal = (np.abs(np.diff(df, axis=-1)) < 1e-8).all(axis=-1)
    return np.where(equal, df.mean(axis=-1), out)


def scaled_f(m: int, a1: Array, a2: Array) -> tuple[Array, Array]:
    """Scale and denominator degrees of freedom that match mean and variance of the F statistic.

    Kenward and Roger (1997), section 3; as pbkrtest where the formulas have no value (Halekoh and Hojsgaard 2014, J.
    Stat. Softw. 59(9)).

    Parameters
    ----------
    m : int
        Rows.
    a1, a2 : arrays
        A_1 and A_2.

    Returns
    -------
    scale, df : arrays
        1 and 2 / a2 for one row, where the statistic is a squared t.  NaN where no F distribution has such moments:
        the solution has a scale or degrees of freedom below zero.
    """
    a1, a2 = np.asarray(a1, dtype=float), np.asarray(a2, dtype=float)
    if m == 1:
        return np.ones_like(a2), 2.0 / a2
    b = (a1 + 6.0 * a2) / (2.0 * m)
    g = ((m + 1) * a1 - (m + 4) * a2) / ((m + 2) * a2)
    below = 3.0 * m + 2.0 * (1.0 - g)
    v0 = 1.0 + g / below * b
    v1 = 1.0 - (m - g) / below * b
    v2 = 1.0 - (m + 2.0 - g) / below * b
    mean = 1.0 - a2 / m
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((np.abs(mean) < 1e-14) & (np.abs(v1) < 1e-14), 1.0, mean / v1)
        # m rho = ratio^2 v0 / v2, without a division by what may vanish
        rho = ratio * ratio * np.where(np.abs(v0) < 1e-10, 0.0, v0)
        df = 4.0 + (m + 2) * v2 / (rho - v2)
        scale = np.where(np.isinf(df), mean, df * mean / (df - 2.0))
        scale = np.where(np.abs(df - 2.0) < 1e-2, 1.0, scale)
        none = ~((scale > 0.0) & (df > 0.0))
    return np.where(none, np.nan, scale), np.where(none, np.nan, df)
