"""The random effects of a model with several factors, given its data and given more."""

from __future__ import annotations

import numpy as np

from ..engines.crossed.posterior_root import Posterior
from ..estimation.fit import Fit
from ..support.types import Array, Index

__all__ = ["posterior_of"]


def posterior_of(result: Fit, more: tuple[Array, Array, list[Index], Array, Array] | None = None) -> Posterior:
    """The random effects of a model with several factors given its data, at the estimates.

    The columns carried are [X_o, (y - X beta) / scale] in the conditioned coordinates of the problem.

    Parameters
    ----------
    result : LMMResult
    more : tuple, optional
        Rows observed later: X_o, Z in natural units, the level in each factor (new levels are numbered from the number
        of levels in the fit), residuals y - X beta, weights.
    """
    model = result.model
    problem = model.problem
    w = np.ones(model.nobs) if model.weights is None else model.weights
    known = slice(None) if model.has_response else slice(0)
    X, Z, w = problem.conditioned_x(model.exog)[known], model.exog_re[known], w[known]
    rest = result.marginal_rest if model.has_response else np.zeros(0)
    codes = [np.asarray(f.grouping.index[known], dtype=np.intp) for f in model.factors]
    sizes = [len(f.grouping.labels) for f in model.factors]
    if more is not None:
        X, Z = np.vstack([X, more[0]]), np.vstack([Z, more[1]])
        codes = [np.concatenate(pair) for pair in zip(codes, more[2], strict=True)]
        sizes = [max(size, int(code.max()) + 1) for size, code in zip(sizes, codes, strict=True)]
        rest, w = np.concatenate([rest, more[3]]), np.concatenate([w, more[4]])
    root = np.sqrt(w)[:, None]
    parts = [f.columns for f in model.factors]
    return Posterior(
        [root * (Z[:, part] @ problem.z_map[part, part]) for part in parts],
        codes,
        sizes,
        [result.optimum.factor[part, part] for part in parts],
        root * np.column_stack([X, rest / problem.scale]),
    )
