"""Tests of fixed effects in small samples: Satterthwaite's and Kenward and Roger's degrees of freedom.

Everything is taken in coordinates in which the coefficients are uncorrelated (whitened): a row l of L becomes
a = L_xx^-1 x_map'l, with var(l'beta) = sigma^2 a'a, and the derivative of X'V^-1X along the unit direction D_k of the
relative covariance G^ becomes U_k = L_xx^-1 (sum E_x'D_kE_x) L_xx^-T.  With the total scale of V profiled out, only
the directions of G^ are left.  Let

    u_k = a'U_k a / a'a - d_k,      d_k = -(1 / r^2) d r^2 / d G^_k,

the derivative of log var(l'beta) at the best scale.  Then, for the inverse B of the information in G^,

    df = 1 / (1 / nu + u'B u).

B is the inverse Hessian of the profiled criterion for Satterthwaite (Kuznetsova, Brockhoff and Christensen 2017, J. Stat.
Softw. 82(13), eq. 4: 2 (l'Phi l)^2 / g'A g), and of its expectation (Schur complement of the scale) for Kenward and
Roger (1997, Biometrics 53, 983-997).  At a singular fit the observed information exists along the covariance matrices
of the rank found only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .distributions import chi2_tail, f_tail, two_sided_p
from .errors import LMMError
from .hypotheses import parse_hypothesis
from .parameters import CovarianceStructure, vech_positions
from .wald_test import WaldTest

if TYPE_CHECKING:
    from .model import LinearMixedModel
    from .results import LMMResult

__all__ = [
    "Moments",
    "check_estimable",
    "check_options",
    "coefficient_df",
    "coefficient_table",
    "combined_df",
    "covariance",
    "estimable",
    "independent_rows",
    "moments",
    "scaled_f",
    "test",
    "wald",
]

Array = NDArray[np.float64]

DDF = ("satterthwaite", "kenward-roger", "residual", "normal")
INFORMATION = ("expected", "observed")

RANK = 1e-9
"""Singular value of the whitened rows of L, each of length 1, below which they are dependent."""

ESTIMABLE = 1e-6
"""A row of L outside the row space of X by more than this, relatively, is not estimable."""


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

    def df(self, rows: Array) -> Array:
        """Degrees of freedom of single rows, whitened (m, r)."""
        variance = (rows * rows).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            u = ((rows @ self.slopes) * rows).sum(axis=2) / variance - self.shift[:, None]
            df: Array = 1.0 / (1.0 / self.nu + ((self.inverse @ u) * u).sum(axis=0))
        return df


def moments(result: LMMResult, ddf: str, information: str = "expected") -> Moments:
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
    cache = result.__dict__.setdefault("_moments", {})
    key = (ddf, information if ddf == "kenward-roger" else "")
    found = cache.get(key)
    if found is None:
        found = cache[key] = _moments(result, ddf, information)
    return found  # type: ignore[no-any-return]


def _moments(result: LMMResult, ddf: str, information: str) -> Moments:
    if ddf == "kenward-roger" and not result.reml:
        raise LMMError("ddf='kenward-roger' needs a REML fit: fit with reml=True, or use ddf='satterthwaite'")
    problem = result.model.problem
    r = problem.rank
    criterion = problem.criterion()
    criterion.reml = result.reml
    criterion.evaluate(result.optimum.theta, 2)
    beta, r2, chol, slope = criterion.solution()
    half = np.linalg.inv(chol)
    cross = criterion.cross()
    residual = np.ones(r + 1)
    residual[:r] = -beta
    shift = (cross @ residual @ residual) / r2
    slopes = half @ cross[:, :r, :r] @ half.T
    nu = float(problem.n - r if result.reml else problem.n)
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
        lower, upper = _places(problem.structure.q)
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


@lru_cache(maxsize=64)
def _places(q: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the unit directions of G^."""
    return vech_positions(q)


def _inverse_on(structure: CovarianceStructure, information: Array) -> Array:
    """Inverse among the unit directions of G^ that are parameters, zero elsewhere."""
    if len(structure.blocks) == 1 and structure.blocks[0].structure == "full":
        return _inverse(information)
    lower, upper = _places(structure.q)
    rows, columns = structure.positions
    free = np.flatnonzero(np.isin(lower * structure.q + upper, rows * structure.q + columns))
    out = np.zeros_like(information)
    out[np.ix_(free, free)] = _inverse(information[np.ix_(free, free)])
    return out


def _inverse(information: Array) -> Array:
    """Inverse; where there is no minimum, of the part with positive curvature."""
    try:
        np.linalg.cholesky(information)
        inverse: Array = np.asarray(np.linalg.inv(information), dtype=np.float64)
    except np.linalg.LinAlgError:
        size = np.sqrt(np.abs(np.diag(information)))
        size[size == 0.0] = 1.0
        values, vectors = np.linalg.eigh(information / np.outer(size, size))
        keep = values > 1e-8 * max(float(values[-1]), 0.0)
        vectors = vectors[:, keep] / size[:, None]
        inverse = (vectors / values[keep]) @ vectors.T
    return inverse


def _observed(result: LMMResult, slope: Array, curvature: Array) -> tuple[Array, tuple[str, ...]]:
    """Inverse Hessian of the profiled criterion in vech(G^), and what had to be left out."""
    structure, optimum = result.model.structure, result.optimum
    if not optimum.singular:
        return _inverse_on(structure, curvature), ()
    tangent, bend = _tangent(result, slope)
    if not tangent.shape[1]:
        return np.zeros_like(curvature), result.singular_components
    inner = _inverse(tangent.T @ curvature @ tangent + bend)
    return tangent @ inner @ tangent.T, result.singular_components


def _tangent(result: LMMResult, slope: Array) -> tuple[Array, Array]:
    """Directions (n_a, t) in which G^ keeps its rank, and what the bend of these matrices adds to the Hessian (t, t).

    With G^ = F F' for F of full column rank, directions are dF F' + F dF', and along dF the criterion changes to second
    order by tr(slope dF dF') besides.  Rotations of the columns of F change nothing and are taken out.
    """
    structure, optimum = result.model.structure, result.optimum
    q = structure.q
    lower, upper = _places(q)
    directions: list[Array] = []
    bends: list[Array] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = optimum.factor[part, part]
        if block.structure != "full":
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


# ---- coefficients ------------------------------------------------------------------------------


def check_options(ddf: str, information: str) -> None:
    """Refuse unknown `ddf` or `information`."""
    if ddf not in DDF:
        raise LMMError(f"ddf={ddf!r} is unknown: use {', '.join(map(repr, DDF[:-1]))} or {DDF[-1]!r}")
    if information not in INFORMATION:
        raise LMMError(f"information={information!r} is unknown: use 'expected' or 'observed'")


def _known_df(model: LinearMixedModel, ddf: str) -> float:
    """Degrees of freedom that are the same for every row."""
    return float(model.df_resid) if ddf == "residual" else np.inf


def covariance(result: LMMResult, ddf: str = "satterthwaite", information: str = "expected") -> Array:
    """Covariance matrix of the fixed effects that goes with `ddf`.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Kenward-Roger: adjusted for the uncertainty of the variance parameters, Phi + 2 Phi Lambda Phi (Kenward and
        Roger 1997, eq. 3); otherwise sigma^2 (X'V^-1X)^-1.
    information : {"expected", "observed"}
        Of the variance parameters, for Kenward-Roger: expected as in pbkrtest, observed as in SAS and mmrm.

    Returns
    -------
    (p, p) array
        In the caller's units; NaN for dropped columns.

    Raises
    ------
    LMMError
        For unknown options, or Kenward-Roger after a fit by ML.
    """
    check_options(ddf, information)
    if ddf != "kenward-roger":
        return result._cov.copy()
    rows = _whitened(result, moments(result, ddf, information))
    adjustment = moments(result, ddf, information).adjustment
    assert adjustment is not None
    out = result._cov + result.sigma2 * (rows @ adjustment @ rows.T)
    return np.asarray(0.5 * (out + out.T))


def _whitened(result: LMMResult, found: Moments) -> Array:
    return np.asarray(result.model.problem.x_map @ found.half.T)


def coefficient_df(result: LMMResult, ddf: str = "satterthwaite", information: str = "expected") -> Array:
    """Degrees of freedom of the t test of each fixed effect.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"expected", "observed"}

    Returns
    -------
    (p,) array
        Infinite for "normal"; NaN for dropped columns.

    Raises
    ------
    LMMError
        As `covariance`.
    """
    check_options(ddf, information)
    kept = result.model.problem.kept
    p = result.model.exog.shape[1]
    if ddf in ("residual", "normal"):
        out = np.full(p, np.nan)
        out[kept] = _known_df(result.model, ddf)
        return out
    found = moments(result, ddf, information)
    out = found.df(_whitened(result, found))
    if len(kept) < p:
        out[np.setdiff1d(np.arange(p), kept)] = np.nan
    return out


def coefficient_table(result: LMMResult, ddf: str = "satterthwaite", information: str = "expected") -> dict[str, Array]:
    """Estimates, standard errors, degrees of freedom, t statistics and p-values of the fixed effects.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"expected", "observed"}

    Returns
    -------
    dict of (p,) arrays
        ``estimate``, ``std_error``, ``df``, ``statistic``, ``p_value``; NaN for dropped columns.

    Raises
    ------
    LMMError
        As `covariance`.
    """
    df = coefficient_df(result, ddf, information)
    estimate = result._params.copy()
    error = np.sqrt(np.diag(result._cov if ddf != "kenward-roger" else covariance(result, ddf, information)))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error
    return {
        "estimate": estimate,
        "std_error": error,
        "df": df,
        "statistic": statistic,
        "p_value": two_sided_p(statistic, df),
    }


# ---- hypotheses --------------------------------------------------------------------------------


def estimable(model: LinearMixedModel, L: Array) -> NDArray[np.bool_]:
    """Whether each L beta is a function of the means of the observations: whether L lies in the row space of X.

    Parameters
    ----------
    model : LinearMixedModel
    L : (m, p) array

    Returns
    -------
    (m,) bool array
    """
    L = np.atleast_2d(np.asarray(L, dtype=float))
    null = _null_space(model)
    return np.asarray((np.abs(L @ null) <= ESTIMABLE * (np.abs(L) @ np.abs(null))).all(axis=1))


def _null_space(model: LinearMixedModel) -> Array:
    """(p, p - r): for each dropped column its combination of the columns kept, as a vector N with X N = 0."""
    cached: Array | None = model.__dict__.get("_x_null")
    if cached is None:
        p, kept = model.exog.shape[1], model.problem.kept
        dropped = np.setdiff1d(np.arange(p), kept)
        cached = np.zeros((p, len(dropped)))
        if len(dropped):
            size = np.linalg.norm(model.exog, axis=0)
            size[size == 0.0] = 1.0
            scaled = model.exog / size
            weights = np.linalg.lstsq(scaled[:, kept], scaled[:, dropped], rcond=None)[0]
            weights[np.abs(weights) < 1e-9] = 0.0
            cached[kept] = -weights / size[kept, None]
            cached[dropped, np.arange(len(dropped))] = 1.0 / size[dropped]
        model.__dict__["_x_null"] = cached
    return cached


def check_estimable(model: LinearMixedModel, L: Array, names: Sequence[str]) -> None:
    """Refuse rows that involve dropped columns in a way that the data do not determine.

    Rows without dropped columns are taken as in the table of coefficients, where dropped ones are zero.
    """
    kept = model.problem.kept
    if len(kept) == L.shape[1]:
        return
    involved = np.delete(L, kept, axis=1).any(axis=1)
    dropped = ", ".join(np.delete(np.array(model.exog_names), kept).tolist())
    for i in np.flatnonzero(involved):
        if not estimable(model, L[i])[0]:
            raise LMMError(
                f"hypothesis: {names[i]!r} is not estimable, because X has dependent columns (dropped: {dropped}); "
                "leave the dropped ones out, or test a combination that the data determine"
            )


def independent_rows(rows: Array, right: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """Orthonormal rows spanning those of a hypothesis, and how L beta - rhs is to be combined for them.

    Parameters
    ----------
    rows : (m, r) array
        In coordinates in which the coefficients are about equally well known.
    right : (m,) array
        Right-hand sides.
    names : sequence of str
        For messages.

    Returns
    -------
    basis : (k, r) array
    combine : (k, m) array
        basis = combine @ rows.

    Raises
    ------
    LMMError
        For a row of zeros, or dependent rows whose right-hand sides contradict each other.
    """
    length = np.linalg.norm(rows, axis=1)
    if not length.all():
        raise LMMError(f"hypothesis: {names[int(np.argmin(length))]!r} involves dropped columns of X only; remove it")
    # rows of length 1, so that units do not decide which are dependent
    left, sizes, basis = np.linalg.svd(rows / length[:, None], full_matrices=False)
    rank = int((sizes > RANK * sizes[0]).sum())
    span = left[:, :rank]
    wanted = right / length
    if np.linalg.norm(wanted - span @ (span.T @ wanted)) > 1e-6 * np.linalg.norm(wanted):
        raise LMMError(
            "hypothesis: rows that depend on each other have contradicting right-hand sides; remove one of them"
        )
    return basis[:rank], (span / sizes[:rank]).T / length


def test(
    result: LMMResult,
    hypothesis: Any,
    rhs: Any = None,
    ddf: str = "satterthwaite",
    information: str = "expected",
) -> WaldTest:
    """Test a linear hypothesis about the fixed effects.

    Parameters
    ----------
    result : LMMResult
    hypothesis : str, sequence of str, mapping or array
        See `hypotheses.parse_hypothesis`.
    rhs : float or (m,) array, optional
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"expected", "observed"}

    Returns
    -------
    WaldTest

    Raises
    ------
    LMMError
        For unknown names or options, or hypotheses that cannot be tested.
    """
    parsed = parse_hypothesis(hypothesis, result.model.exog_names, rhs)
    return wald(result, parsed.L, parsed.rhs, ddf, information, parsed.names)


def wald(
    result: LMMResult,
    L: Any,
    rhs: Any = None,
    ddf: str = "satterthwaite",
    information: str = "expected",
    names: tuple[str, ...] | None = None,
) -> WaldTest:
    """Test L beta = rhs: each row by t, all together by F.

    Parameters
    ----------
    result : LMMResult
    L : (m, p) or (p,) array
        Rows may be dependent; the joint test has as many numerator degrees of freedom as there are independent rows.
    rhs : float or (m,) array, optional
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Satterthwaite: for several rows by Fai and Cornelius (1996, J. Stat. Comput. Simul. 54, 363-378), as
        lmerTest; depends on the scaling of the rows against each other.  Kenward-Roger: the adjusted covariance
        matrix, and a scaled F for several rows.  Normal: z tests and chi-square.
    information : {"expected", "observed"}
        For Kenward-Roger.
    names : tuple of str, optional
        What each row says.

    Returns
    -------
    WaldTest

    Raises
    ------
    LMMError
        For unknown options, rows that are not estimable, or dependent rows whose right-hand sides contradict each other.
    """
    check_options(ddf, information)
    model = result.model
    parsed = parse_hypothesis(np.asarray(L, dtype=float), model.exog_names, rhs)
    rows, right = parsed.L, parsed.rhs
    labels = parsed.names if names is None else names
    check_estimable(model, rows, labels)
    found = moments(result, ddf, information) if ddf in ("satterthwaite", "kenward-roger") else None
    half = np.linalg.inv(result._chol) if found is None else found.half
    whitened = rows @ model.problem.x_map @ half.T
    basis, combine = independent_rows(whitened, right, labels)
    estimate = rows @ np.nan_to_num(result._params)
    inner = np.eye(len(half))
    if found is not None and found.adjustment is not None:
        inner = inner + found.adjustment
    error = np.sqrt(result.sigma2 * ((whitened @ inner) * whitened).sum(axis=1))
    df = np.full(len(rows), _known_df(model, ddf)) if found is None else found.df(whitened)
    t = (estimate - right) / error
    p_rows = two_sided_p(t, df)
    rank = len(basis)
    if len(rows) == 1:
        statistic, df_denom, p_value = float(t[0]), float(df[0]), float(p_rows[0])
    else:
        z = combine @ (estimate - right) / np.sqrt(result.sigma2)
        chi2 = float(z @ np.linalg.solve(basis @ inner @ basis.T, z))
        statistic, df_denom = chi2 / rank, _known_df(model, ddf)
        if ddf == "normal":
            statistic, p_value = chi2, float(chi2_tail(chi2, rank))
        else:
            if found is not None and ddf == "satterthwaite":
                df_denom = float(combined_df(found.df(_eigen_contrasts(whitened, rank))))
            elif found is not None:
                factor, freedom = _kenward_roger(found, basis)
                statistic, df_denom = statistic * factor, freedom
            p_value = float(f_tail(statistic, rank, df_denom))
    spec = model.spec
    return WaldTest(
        estimate=estimate,
        std_error=error,
        row_statistic=t,
        row_df=df,
        row_p_value=p_rows,
        statistic=statistic,
        df_num=rank,
        df_denom=df_denom,
        pvalue=p_value,
        L=rows,
        rhs=right,
        names=labels,
        ddf=ddf,
        left_out=() if found is None else found.left_out,
        frame=None if spec is None else spec.frame,
    )


def _eigen_contrasts(whitened: Array, rank: int) -> Array:
    """Whitened rows (rank, r) of the eigenvectors of L Phi L' times L (lmerTest::contestMD)."""
    return np.asarray(np.linalg.svd(whitened, full_matrices=False)[2][:rank])


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


def _kenward_roger(found: Moments, basis: Array) -> tuple[float, float]:
    """Scale and denominator degrees of freedom of F for orthonormal whitened rows (m, r).

    Kenward and Roger (1997), section 3; A_1 and A_2 with the scale of V split off.
    """
    m = len(basis)
    turned = basis @ found.slopes @ basis.T - found.shift[:, None, None] * np.eye(m)
    traces = np.trace(turned, axis1=1, axis2=2)
    a1 = 2.0 * (traces @ found.inverse @ traces + m * m / found.nu)
    a2 = 2.0 * ((found.inverse * _products(turned)).sum() + m / found.nu)
    scale, df = scaled_f(m, a1, a2)
    return float(scale), float(df)


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
        1 and 2 / a2 for one row, where the statistic is a squared t.
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
    return np.where(np.abs(df - 2.0) < 1e-2, 1.0, scale), df
