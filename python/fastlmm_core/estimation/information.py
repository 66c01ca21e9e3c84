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
Biometrics 53, 983-997): the information in (G^, scale), the scale eliminated.  Then, for Kenward and Roger, with
S(W) = sum W_kl X'V^-1 D_kV D_l V^-1 X whitened, where D_kV is the derivative of V,

    C = M + M',    M = S(2B) - 2 sum B_kl U_k U_l    (their Lambda, whitened).

At a singular fit the observed information exists along the covariance matrices of the rank found only.  The expected
one exists everywhere, but what Kenward and Roger make of it, errors of either sign about an unbiased estimate, does not
hold for a variance estimated as 0; its tests hardly ever reject there.  Hence "auto": along the matrices of the rank
found for singular fits, which for a variance of 0 is the method applied to the model without it.

Formulas take stacks of fits: `Moments` may have leading axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.directions import face_bend, face_inverse, free_directions, unit_places
from ..engines.protocol import Problem
from ..errors import LMMError
from .fit import Fit

__all__ = [
    "Moments",
    "adjusted",
    "combined_df",
    "delta_df",
    "expected_information",
    "kenward_roger_f",
    "moments",
    "scaled_f",
    "whitened_rows",
]

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """What tests of the fixed effects need of a fit, or of a stack of fits, in whitened coordinates (see the module).

    Attributes
    ----------
    half : (..., r, r) array
        L_xx^-1, with L_xx L_xx' = X_o'V^-1X_o relative to sigma^2.
    slopes : (..., n_a, r, r) array
        U_k for the unit directions of G^, lower triangle by rows, or for other coordinates of G^.
    shift : (..., n_a) array
        d_k.
    inverse : (..., n_a, n_a) array
        B: zero for the elements of G^ that are not parameters.
    nu : float
        n - rank, or n by ML.
    adjustment : (..., r, r) array or None
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
    left_out: tuple[str, ...] = ()

    def coefficient_df(self, problem: Problem) -> Array:
        """Degrees of freedom of each coefficient (p,), NaN for dropped columns."""
        out = self.df(whitened_rows(problem, self))
        out[problem.dropped] = np.nan
        return out

    def df(self, rows: Array) -> Array:
        """Degrees of freedom of single rows (..., m), whitened (..., m, r)."""
        return self.df_of((rows * rows).sum(axis=-1), self.slopes_of(rows))

    def slopes_of(self, rows: Array) -> Array:
        """Derivatives of a'a along the directions of G^ (..., n_a, m), for whitened rows a (..., m, r)."""
        if rows.ndim == 2:
            return np.asarray(((rows @ self.slopes) * rows).sum(axis=-1))
        # one product per fit
        squares = (rows[..., :, None] * rows[..., None, :]).reshape(*rows.shape[:-1], rows.shape[-1] ** 2)
        flat = self.slopes.reshape(*self.slopes.shape[:-2], rows.shape[-1] ** 2)
        return np.asarray(flat @ np.swapaxes(squares, -1, -2))

    def df_of(self, variance: Array, slopes: Array) -> Array:
        """Degrees of freedom (..., m) of variances sigma^2 v by the delta method.

        Parameters
        ----------
        variance : (..., m) array
            v, a function of G^.
        slopes : (..., n_a, m) array
            Its derivatives along the directions of G^.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return delta_df(slopes / variance[..., None, :] - self.shift[..., None], self.inverse, self.nu)

    def inner(self, rows: Array) -> Array:
        """A (I + C) A' (..., m, m) for whitened rows A (..., m, r): covariances of l'beta relative to sigma^2."""
        turned = np.swapaxes(rows, -1, -2)
        plain = rows @ turned
        return np.asarray(plain if self.adjustment is None else plain + rows @ self.adjustment @ turned)


def delta_df(u: Array, inverse: Array, nu: float) -> Array:
    """1 / (1 / nu + u'B u) for the columns u (..., n_a, m)."""
    return np.asarray(1.0 / (1.0 / nu + ((inverse @ u) * u).sum(axis=-2)))


def moments(result: Fit, ddf: str, information: str = "auto") -> Moments:
    """The moments for "satterthwaite" or "kenward-roger", computed once per result.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger"}
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.  "auto": expected, at singular fits along the covariance matrices of the rank found.

    Returns
    -------
    Moments

    Raises
    ------
    LMMError
        For Kenward-Roger after a fit by ML.
    """
    if information == "auto" and not result.singular:
        information = "expected"
    key = ("moments", ddf, information if ddf == "kenward-roger" else "")
    return result.once(key, lambda: _moments(result, ddf, information))


def whitened_rows(problem: Problem, found: Moments) -> Array:
    """The unit vectors of the coefficients in whitened coordinates (..., p, r)."""
    return np.asarray(problem.x_map @ np.swapaxes(found.half, -1, -2))


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
    left_out = () if information == "expected" and ddf == "kenward-roger" else result.singular_components
    if ddf == "satterthwaite" or information == "observed":
        inverse = _inverse_on(result, criterion.curvature(), slope)
    else:
        # with the scale: traces less what beta takes, and their Schur complement
        weight = np.zeros((r + 1, r + 1))
        weight[:r, :r] = half.T
        traces = criterion.traces() - 2.0 * criterion.traces(weight)
        lower, upper = unit_places(problem.structure.q)
        shift = shift + slope[lower, upper] * ((2.0 - (lower == upper)) / nu)
        inverse = _inverse_on(result, expected_information(traces, slopes, shift, nu), None, information == "auto")
    found = Moments(half, slopes, shift, inverse, nu, None, left_out)
    if ddf == "satterthwaite":
        return found
    return adjusted(found, lambda weight: half @ criterion.sandwich(weight)[:r, :r] @ half.T)


# ---- Kenward and Roger -------------------------------------------------------------------------


def expected_information(traces: Array, slopes: Array, shift: Array, nu: float) -> Array:
    """Twice the expected information in G^ by REML (..., n_a, n_a), the scale eliminated.

    Parameters
    ----------
    traces : (..., n_a, n_a) array
        tr(V^-1 D_kV V^-1 D_lV) - 2 tr((X'V^-1X)^-1 X'V^-1 D_kV V^-1 D_lV V^-1X).
    slopes : (..., n_a, r, r) array
        U_k.
    shift : (..., n_a) array
        tr(P D_kV) / nu.
    nu : float
    """
    flat = slopes.reshape(*slopes.shape[:-2], slopes.shape[-1] ** 2)
    products = flat @ np.swapaxes(flat, -1, -2)
    return np.asarray(traces + products - nu * shift[..., :, None] * shift[..., None, :])


def adjusted(found: Moments, sandwich: Callable[[Array], Array]) -> Moments:
    """With Kenward and Roger's adjustment C (1997, eq. 3), whitened.

    Parameters
    ----------
    found : Moments
    sandwich : callable
        S(W) for W (..., n_a, n_a): sum W_kl X'V^-1 D_kV V^-1 D_lV V^-1X, whitened (..., r, r).
    """
    twice = 2.0 * found.inverse
    slopes = found.slopes
    *stack, k, r, _ = slopes.shape
    weighted = (twice @ slopes.reshape(*stack, k, r * r)).reshape(*stack, k * r, r)
    # U_k side by side times weighted U_k below each other
    middle = sandwich(twice) - np.swapaxes(slopes, -3, -2).reshape(*stack, r, k * r) @ weighted
    return found._replace(adjustment=middle + np.swapaxes(middle, -1, -2))


def kenward_roger_f(found: Moments, basis: Array) -> tuple[Array, Array]:
    """Scale and denominator degrees of freedom (...) of F for orthonormal whitened rows (..., m, r).

    Kenward and Roger (1997), section 3; A_1 and A_2 with the scale of V split off.
    """
    m = basis.shape[-2]
    wide = basis[..., None, :, :]
    turned = wide @ found.slopes @ np.swapaxes(wide, -1, -2) - found.shift[..., None, None] * np.eye(m)
    traces = np.trace(turned, axis1=-2, axis2=-1)
    weighted = (found.inverse @ turned.reshape(*turned.shape[:-2], -1)).reshape(turned.shape)
    a1 = 2.0 * ((traces * (found.inverse @ traces[..., None])[..., 0]).sum(axis=-1) + m * m / found.nu)
    # turned matrices are symmetric
    a2 = 2.0 * ((turned * weighted).sum(axis=(-3, -2, -1)) + m / found.nu)
    return scaled_f(m, a1, a2)


# ---- inverse of the information ----------------------------------------------------------------


def _inverse_on(result: Fit, information: Array, slope: Array | None, face: bool = True) -> Array:
    """Inverse among the unit directions of G^ that are parameters, zero elsewhere.

    Parameters
    ----------
    result : LMMResult
    information : (n_a, n_a) array
    slope : (q, q) array or None
        Derivative of the criterion in G^, where the bend of the matrices of the rank found counts.
    face : bool
        At singular fits, along the matrices of the rank found.
    """
    structure, optimum = result.model.structure, result.optimum
    if optimum.singular and face:
        null = optimum.null_space @ optimum.null_space.T
        if slope is not None:
            information = information + face_bend(null, optimum.factor @ optimum.factor.T, slope)
        return face_inverse(structure, information, null, _inverse)
    if structure.one_full:
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
