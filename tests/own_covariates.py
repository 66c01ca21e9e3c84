"""What tests of responses with covariates of their own share: drawn responses, and the single fits they equal."""

from __future__ import annotations

import numpy as np

import fastlmm_core as flc
from fastlmm_core.estimation.fit import Fit
from fastlmm_core.estimation.many.stack_fit import StackFit

EXACT = 1e-11  # relative, the criterion at one theta: sums in another order
OPTIMUM = 1e-6  # standard errors by which two searches end apart
SPREAD = 1e-5  # relative, of what follows theta itself
SLOPE = 1e-6  # of the criterion along G in units of its curvature


def drawn(Z, groups, count, sizes=(1.0, 0.6, 0.3), between=1.0, seed=2):
    """Responses, and covariates with some effect on them that vary between and within groups."""
    rng = np.random.default_rng(seed)
    m, q = groups.max() + 1, Z.shape[1]
    b = rng.standard_normal((count, m, q)) * np.array(sizes)[:q]
    C = 3.0 + rng.standard_normal((count, len(Z))) + between * rng.standard_normal((count, m))[:, groups]
    return np.sum(b[:, groups] * Z, axis=2) + rng.standard_normal(C.shape) + 0.5 * C, C


def together(batch, reml=True):
    """How many are fitted by what the responses share."""
    shared = batch.stack.lines()
    assert shared is not None
    return batch.stack.kernel.fit(0, len(batch), reml, StackFit(batch.stack, Fit, reml).results, shared)


def single(model, y, columns, reml=True):
    wide = np.column_stack([model.exog, *columns])
    return flc.LinearMixedModel(
        y, wide, model.exog_re, model.grouping.index, weights=model.weights, offset=model.offset
    ).fit(reml)


def same(batch, i, one):
    """Whether a response has the optimum of the single fit, and what follows from it."""
    np.testing.assert_allclose(batch.criterion[i], one.criterion, rtol=EXACT)
    np.testing.assert_array_equal(np.isnan(batch.params[i]), np.isnan(one.params))
    assert np.nanmax(np.abs(batch.params[i] - one.params) / one.bse) < OPTIMUM
    np.testing.assert_allclose(batch.bse[i], one.bse, rtol=SPREAD)
    np.testing.assert_allclose(batch.df[i], one.df, rtol=SPREAD)
    np.testing.assert_allclose(batch.sigma2[i], one.sigma2, rtol=SPREAD)
    assert batch.singular[i] == one.singular
    assert batch.rank[i] == np.isfinite(one.params).sum()
