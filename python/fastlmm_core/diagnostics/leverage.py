"""Leverage and studentised residuals.

With V = Z G Z' + R, Phi = (X'V^-1 X)^-1 and P = V^-1 - V^-1 X Phi X'V^-1, marginal residuals y - X b have covariance
V - X Phi X' and conditional ones R P R (Haslett and Dillane 2004, Statist. Neerl. 58, 131-142; Nobre and Singer 2007,
Biom. J. 49, 863-875).  With one grouping factor all of it is computed group by group in conditioned columns, O(n (p +
q)^2), with several by the elimination of posterior.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.deletion.contributions import conditioned_rows, group_pieces, square_lines
from ..prediction.conditional import posterior_of

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = [
    "cooks_distances",
    "leverage",
    "leverage_parts",
    "row_variances",
    "standardized",
    "studentized",
    "studentized_residuals",
]

Array = NDArray[np.float64]


class RowVariances(NamedTuple):
    """What the variances of residuals are made of, relative to sigma^2.

    Attributes
    ----------
    noise : (n,) array
        1 / weights.
    random : (n,) array
        z'G^z.
    conditional : (n,) array
        z'M z, M = cov(b | y) / sigma^2 at known coefficients.
    fixed : (n, r) array
        L^-1 x with L L' = X'V^^-1X: its length squared is x'Phi x / sigma^2.
    left : (n, r) array
        L^-1 (x - C_x'M z), the same of a row of R V^-1 X.
    """

    noise: Array
    random: Array
    conditional: Array
    fixed: Array
    left: Array


def row_variances(result: Fit) -> RowVariances:
    found = _rows_of_one(result) if len(result.model.factors) == 1 else _rows_of_several(result)
    # stated coefficients have no error
    return found if result.stated is None else found._replace(fixed=0.0 * found.fixed, left=0.0 * found.left)


def _rows_of_one(result: Fit) -> RowVariances:
    model: Any = result.model
    problem, factor, index = model.problem, result.optimum.factor, model.grouping.index
    q, r = model.structure.q, problem.rank
    X, _, Z = conditioned_rows(model, problem)
    noise = np.ones(model.nobs) if model.weights is None else 1.0 / model.weights
    (M,) = problem.effects_covariance(factor)
    R, c = square_lines(problem.unpatterned(), problem.m, q)
    MC = M @ (R.transpose(0, 2, 1) @ c.reshape(-1, q, r + 1)[:, :, :r])
    random = np.sum((Z @ factor) ** 2, axis=1)
    conditional = np.einsum("ia,iab,ib->i", Z, M[index], Z, optimize=True)
    fixed = np.asarray(np.linalg.solve(result.solution.chol, X.T).T, dtype=np.float64)
    own = np.einsum("ia,iaj->ij", Z, MC[index])
    left = np.asarray(np.linalg.solve(result.solution.chol, (X - own).T).T, dtype=np.float64)
    return RowVariances(noise, random, conditional, fixed, left)


def _rows_of_several(result: Fit) -> RowVariances:
    """The same for several grouping factors."""
    model: Any = result.model
    problem = model.problem
    Z = [model.exog_re[:, f.columns] @ problem.z_map[f.columns, f.columns] for f in model.factors]
    carried, conditional = posterior_of(result).at(Z, [f.grouping.index for f in model.factors])
    X = problem.conditioned_x(model.exog)
    random = np.zeros(model.nobs)
    for part, f in zip(Z, model.factors, strict=True):
        random += np.sum((part @ result.optimum.factor[f.columns, f.columns]) ** 2, axis=1)
    noise = np.ones(model.nobs) if model.weights is None else 1.0 / model.weights
    fixed = np.asarray(np.linalg.solve(result.solution.chol, X.T).T, dtype=np.float64)
    left = np.asarray(np.linalg.solve(result.solution.chol, (X - carried[:, :-1]).T).T, dtype=np.float64)
    return RowVariances(noise, random, conditional, fixed, left)


# ---- leverage ----------------------------------------------------------------------------------------


def leverage_parts(rows: RowVariances) -> dict[str, Array]:
    """`leverage` as arrays: ``overall``, ``fixed`` and ``random``, each (n,)."""
    fixed = np.sum(rows.fixed * rows.left, axis=1) / rows.noise
    random = (rows.conditional - np.sum((rows.fixed - rows.left) * rows.left, axis=1)) / rows.noise
    return {"overall": fixed + random, "fixed": fixed, "random": random}


def leverage(result: Fit) -> Any:
    """Leverage of each observation (Demidenko and Stukel 2005, Statist. Med. 24, 893-909).

    The fitted values are (H1 + H2) y with H1 = X Phi X'V^-1 and H2 = Z G Z'V^-1 (I - H1).

    Parameters
    ----------
    result : LMMResult

    Returns
    -------
    frame or dict of arrays
        ``overall``, ``fixed`` and ``random``: the diagonals of H1 + H2, H1 and H2.  The second sums to rank(X).
    """
    return result.model.design.caller_rows.table(leverage_parts(row_variances(result)))


def cooks_distances(result: Fit, rows: RowVariances) -> Array:
    """Cook's distance of each row at the variance parameters of the fit (n,), see `augment`; NaN without variance."""
    variance = rows.noise - rows.conditional - np.sum(rows.left**2, axis=1)
    known = variance > 1e-10 * rows.noise
    change = np.sum(rows.left**2, axis=1) * (result.rest / np.where(known, variance, 1.0)) ** 2
    return np.where(known, change / (max(rows.left.shape[1], 1) * result.sigma2), np.nan)


# ---- residuals ---------------------------------------------------------------------------------------


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
    """
    result.model.needs_independent_residuals("kind='studentized'")
    return result.model.design.caller_rows.series(studentized(result, kind, external), "resid_studentized")


def studentized(result: Fit, kind: str = "conditional", external: bool = False) -> Array:
    """`studentized_residuals` as an array (n,)."""
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
    from .influence import influence

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
    spread = np.einsum("iaj,ij->ia", deleted._half[:, :, kept], design @ back)
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
        found = predicted(fit, data, effects, "population", "prediction", None, offset, weights)
        assert found.std_error is not None
        return float((model.endog[i] - found.mean[0]) / found.std_error[0])

    found = refits(result, rows_of_units(result, None), error)
    return np.array([value if isinstance(value, float) else np.nan for value in found])
