"""Studentised residuals: each divided by an estimate of its own standard deviation.

With V = Z G Z' + R, Phi = (X'V^-1 X)^-1 and P = V^-1 - V^-1 X Phi X'V^-1, marginal residuals y - X b have covariance
V - X Phi X' and conditional ones R P R (Haslett and Dillane 2004, Statist. Neerl. 58, 131-142; Nobre and Singer 2007,
Biom. J. 49, 863-875).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import LMMError
from ..estimation.deletion.contributions import conditioned_rows, group_pieces
from ..support.types import Array
from .influence import influence
from .leverage import RowVariances, row_variances

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["standardized", "studentized", "studentized_residuals"]


def studentized_residuals(
    result: Fit, kind: Literal["marginal", "conditional"] = "conditional", external: bool = False
) -> Any:
    """Residuals divided by their standard errors.

    Parameters
    ----------
    result : LMMResult
    kind : {"marginal", "conditional"}
        Of y - X beta, or of y - X beta - Z b.
    external : bool
        Instead divide the error of predicting each observation from all others, which are fitted anew (variance
        parameters too), by its standard error: from the coefficients ("marginal") or from the other observations of
        its groups as well ("conditional").  In a model without random effects both are the deletion residuals of
        Belsley, Kuh and Welsch (1980, eq. 2.26).

    Returns
    -------
    (n,) array
        NaN where a residual has no variance, or where nothing can be fitted without the observation.  For pandas a
        Series with the index of the rows used.

    Raises
    ------
    LMMError
        For another kind; for `external` with several grouping factors and more rows than can be refitted without each.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.studentized import studentized_residuals
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> studentized_residuals(fit)[:3].round(2)
    0   -0.18
    1   -0.63
    2   -1.76
    Name: resid_studentized, dtype: float64
    """
    return result.model.design.caller_rows.series(studentized(result, kind, external), "resid_studentized")


def studentized(result: Fit, kind: str = "conditional", external: bool = False) -> Array:
    """`studentized_residuals` as an array (n,)."""
    result.model.needs_independent_residuals("kind='studentized'")
    if kind not in ("marginal", "conditional"):
        raise LMMError(f"kind={kind!r} is unknown: use 'marginal' or 'conditional'")
    if external:
        errors = _prediction_errors if len(result.model.factors) == 1 else _errors_of_refits
        return errors(result, kind == "conditional")
    return standardized(result, row_variances(result), kind)


def standardized(result: Fit, rows: RowVariances, kind: str = "conditional") -> Array:
    """Residuals divided by their standard deviations (n,); NaN where they have none."""
    if kind == "marginal":
        whole = rows.noise + rows.random
        variance = whole - np.sum(rows.fixed**2, axis=1)
    else:
        whole = rows.noise
        variance = whole - rows.conditional - np.sum(rows.left**2, axis=1)
    known = variance > 1e-10 * whole
    sd = np.sqrt(result.sigma2 * np.where(known, variance, 1.0))
    return np.where(known, (result.rest if kind == "conditional" else result.marginal_rest) / sd, np.nan)


def _prediction_errors(result: Fit, conditional: bool) -> Array:
    """Standardised error of predicting each row from the fit to all others."""
    model: Any = result.model
    problem = model.problem
    q, r, n = model.structure.q, problem.rank, model.nobs
    deleted = influence(result, "observation")
    kept = problem.kept
    X, y, Z = conditioned_rows(model, problem)
    back = np.linalg.inv(problem.x_map[kept])
    beta = (deleted.params[:, kept] - problem.beta_base[kept]) @ back.T / problem.scale
    factor = np.linalg.inv(problem.z_map) @ deleted.relative_factor
    noise = np.ones(n) if model.weights is None else 1.0 / model.weights
    error = y - np.sum(X * beta, axis=1)
    if conditional:
        lines = group_pieces(model, problem, "observation").more
        assert lines is not None
        U = lines[:, : q * q].reshape(n, q, q) @ factor
        c = lines[:, q * q : q * q + q * (r + 1)].reshape(n, q, r + 1)
        # M Z' = F (I + U'U)^-1 U'c
        inner: Array = np.eye(q) + U.transpose(0, 2, 1) @ U
        turned = np.einsum("ia,iab->ib", Z, factor)
        fine = np.asarray(np.isfinite(factor).all(axis=(1, 2)))
        inner = np.where(fine[:, None, None], inner, np.eye(q))
        turned = np.where(fine[:, None], turned, np.nan)
        inverse = np.asarray(np.linalg.inv(inner), dtype=np.float64)
        solved = np.einsum("iab,ib->ia", inverse, turned)
        random = np.sum(turned * solved, axis=1)
        carried = np.einsum("ia,iaj->ij", np.einsum("iab,ib->ia", U, solved), c)
        error = error - (carried[:, r] - np.sum(carried[:, :r] * beta, axis=1))
        design = X - carried[:, :r]
    else:
        random = np.sum(np.einsum("ia,iab->ib", Z, factor) ** 2, axis=1)
        design = X
    spread = np.einsum("iaj,ij->ia", deleted.deletions.half[:, :, kept], design @ back)
    variance = deleted.sigma2 * (noise + random + np.sum(spread**2, axis=1))
    return np.asarray(problem.scale * error / np.sqrt(variance))


def _errors_of_refits(result: Fit, conditional: bool) -> Array:
    """The same by predictions from the refits, for several grouping factors."""
    from ..estimation.deletion.rows import refits, rows_of_units
    from ..prediction.predict import predicted

    model = result.model
    effects = "all" if conditional else "population"

    def error(i: int, fit: Fit) -> float:
        row = slice(i, i + 1)
        data: dict[str, Any] = {"X": model.exog[row], "Z": model.exog_re[row]}
        data["groups"] = {f.grouping.name: f.grouping.labels[f.grouping.index[row]] for f in model.factors}
        offset = None if model.offset is None else model.offset[row]
        weights = None if model.weights is None else model.weights[row]
        found = predicted(fit, data, effects, "population", "prediction", offset=offset, weights=weights)
        assert found.std_error is not None
        return float((model.endog[i] - found.mean[0]) / found.std_error[0])

    found = refits(result, rows_of_units(result, None), error)
    return np.array([value if isinstance(value, float) else np.nan for value in found])
