"""Leverage, and what the variances of residuals are made of.

With one grouping factor all of it is computed group by group in conditioned columns, O(n (p +
q)^2), with several by the elimination of `posterior_root`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..estimation.deletion.contributions import conditioned_rows, square_lines
from ..prediction.conditional import posterior_of
from ..support.blas_threads import quiet_blas
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["RowVariances", "cooks_distances", "leverage", "leverage_parts", "row_variances"]


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
    model = result.model
    with quiet_blas(model.nobs, max(model.exog.shape[1], model.exog_re.shape[1])):
        found = _rows_of_one(result) if len(model.factors) == 1 else _rows_of_several(result)
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

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.leverage import leverage
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> {name: round(float(values.sum()), 1) for name, values in leverage(fit).items()}
    {'overall': 29.0, 'fixed': 2.0, 'random': 27.0}
    """
    return result.model.design.caller_rows.table(leverage_parts(row_variances(result)))


def cooks_distances(result: Fit, rows: RowVariances) -> Array:
    """Cook's distance of each row at the variance parameters of the fit (n,), see `augment`; NaN without variance."""
    variance = rows.noise - rows.conditional - np.sum(rows.left**2, axis=1)
    known = variance > 1e-10 * rows.noise
    change = np.sum(rows.left**2, axis=1) * (result.rest / np.where(known, variance, 1.0)) ** 2
    return np.where(known, change / (max(rows.left.shape[1], 1) * result.sigma2), np.nan)


# ---- residuals ---------------------------------------------------------------------------------------
