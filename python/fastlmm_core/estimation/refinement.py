"""The criterion of crossed factors, from the rows, where sums of products lose its digits.

Block elimination takes r^2 = y'V^-1 y - ... from y'y.  Where the effects leave a share s of y'y, the rounding errors of
y'y are a share 1e-16 / s of r^2, and nu times that is lost of nu log r^2.  By rows E = V^-1 [X v], v = y - X beta, is
improved by its own residuals, E + V^-1 ([X v] - V E), and

    [X v]'V^-1 [X v] = E'V E = E'W^-1 E + sum_f (Z_f'E)'(I x G_f) (Z_f'E)

is a sum of squares, in which nothing cancels (Higham 2002, Accuracy and Stability of Numerical Algorithms, ch. 12).
log|I + Lambda'Z'Z Lambda| loses the digits of directions that the factors share, such as the intercepts of crossed
factors: it is taken from a QR decomposition of [Z Lambda; I] where that is small enough, and not certified where the
loss may be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines.protocol import Solution
from ..engines.rows import conditioned_rows
from ..kernels.records.rows import ConditionedRows
from ..support.blas_threads import quiet_product
from ..support.types import Array

if TYPE_CHECKING:
    from ..engines.crossed.engine import CrossedCriterion
    from ..engines.protocol import Engine, Problem
    from .model import Model
    from .optimum import Optimum

__all__ = ["largest", "loses_digits", "refined", "solved"]


LOST = 1e-6
"""Share of y'y in r^2 below which the criterion is taken from the rows."""

LARGE = 3e4
"""Variance of the mean of a level, relative to what errors leave of it, above which the criterion is taken from the
rows: levels that factors share are then told apart by the last digits (1e-8 units are lost there, and more beyond)."""

STEPS = 3
"""Improvements of V^-1 v."""

DENSE = 1e9
"""Operations of a QR decomposition that is still made."""

LOSS, SEEN = 1e-14, 1e-3
"""What log|V| loses at the most, times the share of y'y in r^2, and how much of it makes a criterion worthless."""


def loses_digits(engine: Engine, problem: Problem, factor: Array) -> bool:
    """Whether the criterion at the last point is to be taken from the rows.

    Parameters
    ----------
    engine : Engine
    problem : Problem
    factor : (q, q) array
        Of the relative covariance at that point, in conditioned units, in which the rows of Z have unit mean square.
    """
    if engine.remainder < LOST:
        return True
    if not engine.remainder < 1.0:
        return False
    # the sum of all variances, which is had at once, is no smaller than the largest
    if np.vdot(factor, factor) * problem.n <= LARGE * min(problem.levels.tolist(), default=1.0):
        return False
    return bool(np.max(largest(problem, factor), initial=0.0) > LARGE)


def largest(problem: Problem, factor: Array) -> Array:
    """Of factors (., q, q) of relative covariances, the largest variance of the mean of a level, as for LARGE."""
    sizes = (factor * factor).sum(axis=-1) * (problem.n / problem.levels)
    return np.asarray(sizes.max(axis=-1, initial=0.0))


def refined(engine: Engine, model: Model, optimum: Optimum, solution: Solution) -> tuple[Optimum, Solution]:
    """The optimum with its criterion, and what profiling leaves there, exact to rounding of the rows.

    Parameters
    ----------
    engine : Engine
        At the optimum.
    model : Model
    optimum : Optimum
    solution : Solution
        As profiling left it, where it `loses_digits`.
    """
    from ..engines.crossed.engine import CrossedCriterion

    # nested factors are swept in sums of squares
    if not isinstance(engine, CrossedCriterion):
        return optimum, solution
    problem, r = model.problem, model.problem.rank
    rows = conditioned_rows(
        [model.exog_re[:, f.columns] for f in model.factors],
        [f.grouping.index for f in model.factors],
        model.weights,
        problem.z_map,
    )
    base = quiet_product(model.exog, problem.beta_base) + (0.0 if model.offset is None else model.offset)
    X = problem.conditioned_x(model.exog)
    v = (model.endog - base) / problem.scale - quiet_product(X, solution.beta)
    try:
        chol = np.linalg.cholesky(_products(engine, np.column_stack([X, v]), rows, optimum.factor))
    except np.linalg.LinAlgError:
        # nothing is left to the rows either
        return optimum, solution
    exact = solution._replace(
        beta=solution.beta + np.linalg.solve(chol[:r, :r].T, chol[r, :r]),
        r2=float(chol[r, r] ** 2),
        chol=np.ascontiguousarray(chol[:r, :r]),
    )
    nu = problem.n - r if engine.reml else problem.n
    log_det = _log_det(rows, optimum.factor)
    if log_det is None:
        log_det = optimum.value - _profile(solution, nu, engine.reml)
        if LOSS / engine.remainder > SEEN:
            message = "not certified: too little residual variance is left for the digits of the criterion"
            optimum = optimum._replace(converged=False, message=message)
    return optimum._replace(value=log_det + _profile(exact, nu, engine.reml)), exact


def _profile(solution: Solution, nu: int, reml: bool) -> float:
    """The criterion but for log|V|."""
    value = nu * (1.0 + float(np.log(2.0 * np.pi * solution.r2 / nu)))
    return value + 2.0 * float(np.sum(np.log(np.diag(solution.chol)))) if reml else value


def _log_det(rows: ConditionedRows, factor: Array) -> float | None:
    """log|I + Lambda'Z'WZ Lambda| from a QR decomposition, None where it is too large for that."""
    sizes = [(int(code.max()) + 1) * Z.shape[1] for Z, code in zip(rows.Z, rows.codes, strict=True)]
    n, total = len(rows.codes[0]), sum(sizes)
    if (n + total) * total**2 > DENSE:
        return None
    wide = np.zeros((n + total, total))
    root = 1.0 if rows.weights is None else np.sqrt(rows.weights)[:, None]
    first = at = 0
    for Z, code, size in zip(rows.Z, rows.codes, sizes, strict=True):
        own = slice(at, at + Z.shape[1])
        at = own.stop
        turned = root * (Z @ factor[own, own])
        for j, column in enumerate(turned.T):
            wide[np.arange(n), first + code * Z.shape[1] + j] = column
        first += size
    wide[n:] = np.eye(total)
    return 2.0 * float(np.sum(np.log(np.abs(np.diag(np.linalg.qr(wide, mode="r"))))))


def _products(engine: CrossedCriterion, columns: Array, rows: ConditionedRows, factor: Array) -> Array:
    """columns' V^-1 columns, with V^-1 columns improved by its own residuals."""
    root = 1.0 if rows.weights is None else 1.0 / rows.weights[:, None]
    E = solved(engine, columns, rows, factor)
    inner = E.T @ (root * E)
    for score in _scores(E, rows, factor):
        flat = score.reshape(-1, columns.shape[1])
        inner = inner + flat.T @ flat
    return np.asarray(inner)


def solved(engine: Engine, columns: Array, rows: ConditionedRows, factor: Array) -> Array:
    """V^-1 columns by rows, improved by its own residuals.

    Parameters
    ----------
    engine : Engine
        At the point of `factor`.
    columns : (n, k) array
    rows : ConditionedRows
    factor : (q, q) array
        Of the relative covariance, in conditioned units.
    """
    root = 1.0 if rows.weights is None else 1.0 / rows.weights[:, None]
    E = engine.solve(columns, rows)
    for _ in range(STEPS):
        means = _scores(E, rows, factor)
        explained = sum(_spread(Z @ L, code, u) for Z, code, L, u in _parts(rows, factor, means))
        E = E + engine.solve(columns - root * E - explained, rows)
    return E


def _scores(E: Array, rows: ConditionedRows, factor: Array) -> list[Array]:
    """Lambda'Z'E of each factor (m, q_f, k)."""
    out = []
    at = 0
    for Z, code in zip(rows.Z, rows.codes, strict=True):
        own = slice(at, at + Z.shape[1])
        at = own.stop
        turned = Z @ factor[own, own]
        m = int(code.max()) + 1
        sums = [[np.bincount(code, z * e, m) for e in E.T] for z in turned.T]
        out.append(np.array(sums).transpose(2, 0, 1))
    return out


def _parts(
    rows: ConditionedRows, factor: Array, scores: list[Array]
) -> list[tuple[Array, NDArray[np.intp], Array, Array]]:
    at, out = 0, []
    for Z, code, score in zip(rows.Z, rows.codes, scores, strict=True):
        own = slice(at, at + Z.shape[1])
        at = own.stop
        out.append((Z, code, factor[own, own], score))
    return out


def _spread(Z: Array, code: NDArray[np.intp], u: Array) -> Array:
    """Z u by rows (n, k)."""
    return np.asarray(np.einsum("ia,iak->ik", Z, u[code]))
