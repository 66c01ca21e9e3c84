"""Fits whose coefficients are constrained, from the problem of the fit without constraints: no row is read again."""

from __future__ import annotations

import numpy as np

from ..engines.protocol import linear_problem
from ..support.blas_threads import one_blas_thread
from ..support.types import Array
from .fit import Fit
from .known_variance import KnownVariance
from .optimize import optimize
from .optimum import Optimum

__all__ = ["constrained"]


def constrained(fit: Fit, L: Array) -> Optimum:
    """The optimum by maximum likelihood where L beta = 0, in the conditioned units of a fit by maximum likelihood.

    With X_o b the conditioned fixed effects, b = b_0 + N c satisfies the constraint, so that X_o N takes the place of
    X_o and y_o - X_o b_0 that of y_o.

    Parameters
    ----------
    fit : Fit
        Whose optimum has a value to compare with.
    L : (rows, p) array
        Of full rank, without dropped columns.
    """
    model = fit.model
    problem, structure = linear_problem(model.problem), model.structure
    A = L @ problem.x_map * problem.scale
    base = np.where(L.any(axis=0), problem.beta_base, 0.0)
    left, sizes, right = np.linalg.svd(A)
    rank = len(sizes)
    shift = right[:rank].T @ ((left.T @ (-L @ base)) / sizes)
    r = problem.rank
    columns = np.zeros((r + 1, r - rank + 1))
    columns[:r, :-1], columns[:r, -1], columns[r, -1] = right[rank:].T, -shift, 1.0
    engine = problem.criterion(columns)
    engine.reml = False
    if model.sigma is not None:
        known = KnownVariance(engine, problem, model.sigma)
        with one_blas_thread():
            return known.lowest(problem, known.starts(problem, constrained=True))
    # scouts and relaxed problems know of no constraint, and what balances the data may not
    elsewhere = problem.elsewhere().unbalanced()._replace(scout=None, relaxed=None)
    with one_blas_thread(engine.serial):
        start = problem.start(engine)
        return optimize(engine, structure, problem.levels, problem.n, start, elsewhere=elsewhere)
