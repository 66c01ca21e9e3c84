"""Tests of fixed effects: coefficient by coefficient, and of linear hypotheses; the formulas are in `information`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import LMMError
from ..estimation.column_moments import exog_root
from ..estimation.information import combined_df, kenward_roger_f, moments, whitened_rows
from ..support.checks import check_level
from ..support.distributions import chi2_tail, f_tail, quantile, two_sided_p
from ..support.types import Array
from .hypotheses import parse_hypothesis
from .options import MOMENT_DDF, check_options, known_df
from .wald_test import WaldTest

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model
    from .sandwich import Sandwich

__all__ = [
    "check_estimable",
    "coefficient_df",
    "coefficient_intervals",
    "coefficient_table",
    "covariance",
    "estimable",
    "independent_rows",
    "test",
    "undetermined",
    "wald",
    "why_undetermined",
]


RANK = 1e-9
"""Singular value of the whitened rows of L, each of length 1, below which they are dependent."""

ESTIMABLE = 1e-6
"""A row of L outside the row space of X by more than this, relatively, is not estimable."""

_NAMED = 4
"""So many dropped columns are named, more are counted."""


# ---- coefficients ------------------------------------------------------------------------------


def covariance(
    result: Fit, ddf: str = "satterthwaite", information: str = "auto", robust: Sandwich | None = None
) -> Array:
    """Covariance matrix of the fixed effects that goes with `ddf`.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
        Kenward-Roger: adjusted for the uncertainty of the variance parameters, Phi + 2 Phi Lambda Phi (Kenward and
        Roger 1997, eq. 3); otherwise sigma^2 (X'V^-1X)^-1.
    information : {"auto", "expected", "observed"}
        Of the variance parameters, for Kenward-Roger: expected as in pbkrtest, observed as in SAS and mmrm; "auto":
        expected, at singular fits that of what is left when the parameters at the boundary are taken for known.
    robust : Sandwich, optional
        Instead of the covariance of the model.

    Returns
    -------
    (p, p) array
        In the caller's units; NaN for dropped columns.

    Raises
    ------
    LMMError
        For unknown options, or Kenward-Roger after a fit by ML or with a robust covariance.
    """
    check_options(ddf, information, robust)
    if robust is not None:
        rows = result.model.problem.x_map @ robust.half.T
        out = result.sigma2 * (rows @ robust.inner @ rows.T)
        out[result.model.problem.dropped] = np.nan
        out[:, result.model.problem.dropped] = np.nan
        return np.asarray(0.5 * (out + out.T))
    if not ddf.startswith("kenward-roger"):
        return result.cov.copy()
    found = moments(result, ddf, information)
    assert found.adjustment is not None
    rows = whitened_rows(result.model.problem, found)
    out = result.cov + result.sigma2 * (rows @ found.adjustment @ rows.T)
    return np.asarray(0.5 * (out + out.T))


def coefficient_df(result: Fit, ddf: str = "satterthwaite", information: str = "auto") -> Array:
    """Degrees of freedom of the t test of each fixed effect.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
    information : {"auto", "expected", "observed"}

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
    if ddf not in MOMENT_DDF:
        out = known_df(result.model, ddf, np.eye(len(result.model.exog_names)))
        out[result.model.problem.dropped] = np.nan
        return out
    return moments(result, ddf, information).coefficient_df(result.model.problem)


def coefficient_table(
    result: Fit, ddf: str = "satterthwaite", information: str = "auto", robust: Sandwich | None = None
) -> dict[str, Array]:
    """Estimates, standard errors, degrees of freedom, t statistics and p-values of the fixed effects.

    Parameters
    ----------
    result : LMMResult
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
    information : {"auto", "expected", "observed"}
    robust : Sandwich, optional
        Instead of the covariance of the model.

    Returns
    -------
    dict of (p,) arrays
        ``estimate``, ``std_error``, ``df``, ``statistic``, ``p_value``; NaN for dropped columns.

    Raises
    ------
    LMMError
        As `covariance`.
    """
    check_options(ddf, information, robust)
    estimate = result.beta.copy()
    problem = result.model.problem
    if robust is not None:
        rows = problem.x_map @ robust.half.T
        variance, df = robust.moments(rows)
        if ddf != "satterthwaite":
            df = known_df(result.model, ddf, np.eye(len(rows)))
    elif ddf in MOMENT_DDF:
        found = moments(result, ddf, information)
        variance, df = kernels.row_moments(
            problem.x_map, found.half, found.slopes, found.shift, found.inverse, float(found.nu)
        )
        if found.adjustment is not None:
            rows = whitened_rows(result.model.problem, found)
            variance += ((rows @ found.adjustment) * rows).sum(axis=1)
    else:
        df = coefficient_df(result, ddf, information)
        variance = np.diag(result.cov) / result.sigma2
    error = np.sqrt(result.sigma2 * variance)
    if problem.rank < len(error):
        dropped = np.isnan(estimate)
        error[dropped] = df[dropped] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error
    return {
        "estimate": estimate,
        "std_error": error,
        "df": df,
        "statistic": statistic,
        "p_value": two_sided_p(statistic, df),
    }


def coefficient_intervals(
    result: Fit, level: float, ddf: str, information: str, robust: Sandwich | None = None
) -> dict[str, Array]:
    """`coefficient_table` with confidence limits: conf_low, conf_high.

    Raises
    ------
    LMMError
        For a level outside (0, 1), or unknown options.
    """
    check_level(level)
    table = coefficient_table(result, ddf, information, robust)
    half = quantile(0.5 + 0.5 * level, table["df"]) * table["std_error"]
    return table | {"conf_low": table["estimate"] - half, "conf_high": table["estimate"] + half}


# ---- hypotheses --------------------------------------------------------------------------------


def estimable(model: Model, L: Array) -> NDArray[np.bool_]:
    """Whether each L beta is a function of the means of the observations: whether L lies in the row space of X.

    Parameters
    ----------
    model : LinearMixedModel
    L : (m, p) array

    Returns
    -------
    (m,) bool array
    """
    return np.asarray(~undetermined(model, L).any(axis=1))


def undetermined(model: Model, L: Array) -> NDArray[np.bool_]:
    """On which of the dropped columns each L beta depends, although the data say nothing of their coefficients.

    Parameters
    ----------
    model : LinearMixedModel
    L : (m, p) array

    Returns
    -------
    (m, p - r) bool array
        In the order of the dropped columns.
    """
    L = np.atleast_2d(np.asarray(L, dtype=float))
    null = null_space(model)
    return np.asarray(np.abs(L @ null) > ESTIMABLE * (np.abs(L) @ np.abs(null)))


def why_undetermined(model: Model, on: NDArray[np.bool_]) -> str:
    """A clause on the dropped columns that some of the rows of `on`, from `undetermined`, depend on.

    Parameters
    ----------
    model : LinearMixedModel
    on : (m, p - r) bool array
    """
    names = [model.exog_names[j] for j in np.asarray(model.problem.dropped)[on.any(axis=0)].tolist()]
    shown = ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    which = "which was dropped as a combination" if len(names) == 1 else "which were dropped as combinations"
    return f"the data do not determine what depends on {shown}, {which} of the columns before"


def null_space(model: Model) -> Array:
    """(p, p - r): for each dropped column its combination of the columns kept, as a vector N with X N = 0."""
    return model.once("null space", lambda: _null_space(model))


def _null_space(model: Model) -> Array:
    p, kept, dropped = len(model.exog_names), model.problem.kept, model.problem.dropped
    out = np.zeros((p, len(dropped)))
    if len(dropped):
        exog = exog_root(model, weighted=True)
        size = np.linalg.norm(exog, axis=0)
        size[size == 0.0] = 1.0
        scaled = exog / size
        weights = np.linalg.lstsq(scaled[:, kept], scaled[:, dropped], rcond=None)[0]
        weights[np.abs(weights) < 1e-9] = 0.0
        out[kept] = -weights / size[kept, None]
        out[dropped, np.arange(len(dropped))] = 1.0 / size[dropped]
    return out


def check_estimable(model: Model, L: Array, names: Sequence[str]) -> None:
    """Refuse rows that involve dropped columns in a way that the data do not determine.

    Rows without dropped columns are taken as in the table of coefficients, where dropped ones are zero.
    """
    kept = model.problem.kept
    if len(kept) == L.shape[1]:
        return
    involved = np.delete(L, kept, axis=1).any(axis=1)
    dropped = ", ".join(np.delete(np.array(model.exog_names), kept).tolist())
    for i in np.flatnonzero(involved).tolist():
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
    result: Fit,
    hypothesis: Any,
    rhs: Any = None,
    ddf: str = "satterthwaite",
    information: str = "auto",
    robust: Sandwich | None = None,
) -> WaldTest:
    """Test a linear hypothesis about the fixed effects.

    Parameters
    ----------
    result : LMMResult
    hypothesis : str, sequence of str, mapping or array
        See `hypotheses.parse_hypothesis`.
    rhs : float or (m,) array, optional
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
    information : {"auto", "expected", "observed"}
    robust : Sandwich, optional
        Instead of the covariance of the model.

    Returns
    -------
    WaldTest

    Raises
    ------
    LMMError
        For unknown names or options, or hypotheses that cannot be tested.
    """
    parsed = parse_hypothesis(hypothesis, result.model.exog_names, rhs)
    return wald(result, parsed.L, parsed.rhs, ddf, information, robust, names=parsed.names)


def wald(
    result: Fit,
    L: Any,
    rhs: Any = None,
    ddf: str = "satterthwaite",
    information: str = "auto",
    robust: Sandwich | None = None,
    names: tuple[str, ...] | None = None,
) -> WaldTest:
    """Test L beta = rhs: each row by t, all together by F.

    Parameters
    ----------
    result : LMMResult
    L : (m, p) or (p,) array
        Rows may be dependent; the joint test has as many numerator degrees of freedom as there are independent rows.
    rhs : float or (m,) array, optional
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
        Satterthwaite: for several rows by Fai and Cornelius (1996, J. Stat. Comput. Simul. 54, 363-378), as
        lmerTest; depends on the scaling of the rows against each other.  Kenward-Roger: the adjusted covariance
        matrix, and a scaled F for several rows; Satterthwaite's F where no F distribution has the moments that it
        needs (``joint_ddf`` of the result).  Normal: z tests and chi-square.
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.
    robust : Sandwich, optional
        Instead of the covariance of the model: for several rows Hotelling's T^2 with the degrees of freedom of
        Pustejovsky and Tipton (HTZ), NaN where there are too few clusters for it.
    names : tuple of str, optional
        What each row says.

    Returns
    -------
    WaldTest

    Raises
    ------
    LMMError
        For unknown options, rows that are not estimable, or dependent rows with contradicting right-hand sides.
    """
    check_options(ddf, information, robust)
    model = result.model
    parsed = parse_hypothesis(np.asarray(L, dtype=float), model.exog_names, rhs)
    rows, right = parsed.L, parsed.rhs
    labels = parsed.names if names is None else names
    check_estimable(model, rows, labels)
    found = None
    if robust is None and ddf in MOMENT_DDF:
        found = moments(result, ddf, information)
    half = np.linalg.inv(result.solution.chol) if found is None else found.half
    whitened = rows @ model.problem.x_map @ half.T
    basis, combine = independent_rows(whitened, right, labels)
    estimate = rows @ np.nan_to_num(result.beta)
    inner = np.eye(len(half))
    if found is not None and found.adjustment is not None:
        inner = inner + found.adjustment
    known = known_df(model, ddf, rows) if found is None else np.zeros(len(rows))
    df = known if found is None else found.df(whitened)
    if robust is None:
        variance = ((whitened @ inner) * whitened).sum(axis=1)
    else:
        variance, own_df = robust.moments(whitened)
        df = own_df if ddf == "satterthwaite" else df
    error = np.sqrt(result.sigma2 * variance)
    t = (estimate - right) / error
    p_rows = two_sided_p(t, df)
    rank = len(basis)
    joint = ddf
    z = combine @ (estimate - right) / np.sqrt(result.sigma2)
    if len(rows) == 1:
        statistic, df_denom, pvalue = float(t[0]), float(df[0]), float(p_rows[0])
    elif robust is not None:
        statistic, df_denom, pvalue = _robust_joint(robust, basis, z, ddf, float(known.min()))
    else:
        chi2 = float(z @ np.linalg.solve(basis @ inner @ basis.T, z))
        statistic, df_denom = chi2 / rank, float(known.min())
        if ddf == "normal":
            statistic, pvalue = chi2, float(chi2_tail(chi2, rank))
        else:
            if found is not None and ddf == "satterthwaite":
                df_denom = float(combined_df(found.df(_eigen_contrasts(whitened, rank))))
            elif found is not None:
                factor, freedom = kenward_roger_f(found, basis)
                statistic, df_denom = statistic * float(factor), float(freedom)
                if np.isnan(freedom):  # as lmerTest where Kenward and Roger's method fails
                    joint = "satterthwaite"
                    other = wald(result, rows, right, joint)
                    statistic, df_denom = other.statistic, other.df_denom
            pvalue = float(f_tail(statistic, rank, df_denom))
    return WaldTest(
        estimate=estimate,
        std_error=error,
        row_statistic=t,
        row_df=df,
        row_pvalues=p_rows,
        statistic=statistic,
        df_num=rank,
        df_denom=df_denom,
        pvalue=pvalue,
        L=rows,
        rhs=right,
        names=labels,
        ddf=ddf,
        joint_ddf=joint,
        left_out=() if found is None else found.left_out,
        vcov="model" if robust is None else robust.kind,
        clusters="" if robust is None else robust.clusters,
        _library=model.library,
    )


def _robust_joint(robust: Sandwich, basis: Array, z: Array, ddf: str, known: float) -> tuple[float, float, float]:
    """Statistic, denominator degrees of freedom and p-value of all rows; NaN where there are too few clusters."""
    rank = len(basis)
    if ddf == "satterthwaite":
        statistic, freedom = robust.hotelling_f(basis, z)
        return statistic, freedom, float(f_tail(statistic, rank, freedom))
    squared = robust.hotelling(basis, z)
    if ddf == "normal":
        return squared, known, float(chi2_tail(squared, rank))
    return squared / rank, known, float(f_tail(squared / rank, rank, known))


def _eigen_contrasts(whitened: Array, rank: int) -> Array:
    """Whitened rows (rank, r) of the eigenvectors of L Phi L' times L (lmerTest::contestMD)."""
    return np.asarray(np.linalg.svd(whitened, full_matrices=False)[2][:rank])
