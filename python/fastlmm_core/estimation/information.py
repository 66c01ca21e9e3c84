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

from functools import partial

import numpy as np

from .. import kernels
from ..covariance.directions import face_bend, face_inverse, free_directions, unit_places
from ..engines.protocol import linear_engine
from ..errors import LMMError
from ..support.blas_threads import one_blas_thread
from ..support.types import Array
from .fit import Fit
from .moments import (
    Moments,
    adjusted,
    delta_df,
    expected_information,
    inverse_information,
    projected_traces,
    reduced_traces,
    whitened_rows,
)
from .structured_moments import joint_covariance, structured_moments

__all__ = [
    "Moments",
    "adjusted",
    "combined_df",
    "delta_df",
    "expected_information",
    "information_used",
    "kenward_roger_f",
    "moments",
    "scaled_f",
    "whitened_rows",
]


def moments(result: Fit, ddf: str, information: str = "auto") -> Moments:
    """The moments for each kind of degrees of freedom, computed once per result.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear"}
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.  "auto": expected, at singular fits along the covariance matrices of the rank found; observed
        for structured residuals.

    Returns
    -------
    Moments

    Raises
    ------
    LMMError
        For Kenward-Roger after a fit by ML, and where the adjusted covariance of the coefficients is none.
    """
    information = information_used(result, information)
    key = ("moments", ddf, information if ddf != "satterthwaite" else "")
    return result.once(key, partial(_quiet_moments, result, ddf, information))


def information_used(result: Fit, information: str) -> str:
    """What "auto" stands for: "observed" for structured residuals, as in SAS, otherwise "expected" inside."""
    if information != "auto":
        return information
    if result.model.residual is not None:
        return "observed"
    return "auto" if result.singular else "expected"


def _quiet_moments(result: Fit, ddf: str, information: str) -> Moments:
    with one_blas_thread(result.engine.serial):
        found = _moments(result, ddf, information)
        if found.adjustment is not None:
            _refuse_indefinite(found.adjustment, ddf)
        return found


def _refuse_indefinite(adjustment: Array, ddf: str) -> None:
    """Refuse an adjusted covariance of the coefficients that has variances below zero.

    What V bends by is taken off to second order in the errors of its parameters, which is too much where one of them
    is hardly determined; and the observed information may be indefinite where the expected one is not.
    """
    try:
        np.linalg.cholesky(np.eye(len(adjustment)) + adjustment)
    except np.linalg.LinAlgError:
        other = "ddf='kenward-roger-linear'" if ddf == "kenward-roger" else "information='expected'"
        raise LMMError(
            f"ddf={ddf!r}: Kenward and Roger's adjustment takes more from the covariance of the coefficients than "
            "there is, because a parameter of the covariance matrices is hardly determined (see its standard error); "
            f"use {other} or ddf='satterthwaite'"
        ) from None


def _moments(result: Fit, ddf: str, information: str) -> Moments:
    if ddf != "satterthwaite" and not result.reml:
        raise LMMError(f"ddf={ddf!r} needs a REML fit: fit with reml=True, or use ddf='satterthwaite'")
    if result.model.residual is not None:
        return structured_moments(result, ddf, information)
    problem = result.model.problem
    r = problem.rank
    criterion = linear_engine(result.engine)
    beta, r2, chol, slope = criterion.solution()
    # the chol of the blocked engine comes in the memory order of LAPACK
    half, slopes, shift = kernels.whitened_slopes(np.ascontiguousarray(chol), beta, r2, criterion.cross())
    nu = float(result.nu)
    if result.model.sigma is not None:
        # no scale is estimated
        nu, shift = np.inf, np.zeros_like(shift)
    left_out = () if information == "expected" and ddf != "satterthwaite" else result.singular_components
    if ddf == "satterthwaite" or information == "observed":
        inverse = _inverse_on(result, criterion.curvature(), slope)
    else:
        expected = reduced_traces(criterion, half)
        if result.model.sigma is None:
            # with the scale: its Schur complement
            lower, upper = unit_places(problem.structure.q)
            shift = shift + slope[lower, upper] * ((2.0 - (lower == upper)) / nu)
            expected = expected_information(expected, slopes, shift, nu)
        else:
            expected = projected_traces(expected, slopes)
        inverse = _inverse_on(result, expected, None, information == "auto")
    if result.model.sigma is not None and not result.optimum.factor.any():
        # no parameter is left: rounding errors would count as one
        inverse = np.zeros_like(inverse)
    found = Moments(half, slopes, shift, inverse, nu, None, left_out)
    if ddf == "satterthwaite":
        return found
    found = adjusted(found, lambda weight: half @ criterion.sandwich(weight)[:r, :r] @ half.T)
    if ddf == "kenward-roger" and result.optimum.restricted is not None:
        from .restricted import bend

        # V is not linear in the parameters of the structure
        along = bend(result.model, result.optimum, joint_covariance(found))
        assert found.adjustment is not None
        found = found._replace(adjustment=found.adjustment - 0.5 * np.tensordot(along, slopes, 1))
    return found


# ---- Kenward and Roger -------------------------------------------------------------------------


def kenward_roger_f(found: Moments, basis: Array) -> tuple[Array, Array]:
    """Scale and denominator degrees of freedom (...) of F for orthonormal whitened rows (..., m, r).

    Kenward and Roger (1997), section 3; A_1 and A_2 with the scale of V split off.
    """
    m = basis.shape[-2]
    wide = basis[..., None, :, :]
    turned = wide @ found.slopes @ np.swapaxes(wide, -1, -2) - found.shift[..., None, None] * np.eye(m)
    traces = np.trace(turned, axis1=-2, axis2=-1)
    weighted = (found.inverse @ turned.reshape(*turned.shape[:-2], np.prod(turned.shape[-2:]))).reshape(turned.shape)
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
    if optimum.restricted is not None:
        from .restricted import restricted_inverse

        return restricted_inverse(result.model, optimum, None if slope is not None else information)
    if optimum.singular and face:
        null = optimum.null_space @ optimum.null_space.T
        if slope is not None:
            information = information + face_bend(null, optimum.factor @ optimum.factor.T, slope)
        return face_inverse(structure, information, null, inverse_information)
    if structure.one_full:
        return inverse_information(information)
    free = free_directions(structure)
    out = np.zeros_like(information)
    out[np.ix_(free, free)] = inverse_information(information[np.ix_(free, free)])
    return out


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
        # infinite ones have no difference
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
        with np.errstate(divide="ignore"):
            return np.ones_like(a2), 2.0 / a2
    # where no parameter is estimated, the statistic is a chi square over m
    exact = (a1 == 0.0) & (a2 == 0.0)
    a2 = np.where(exact, 1.0, a2)
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
    scale, df = np.where(none, np.nan, scale), np.where(none, np.nan, df)
    return np.where(exact, 1.0, scale), np.where(exact, np.inf, df)
