"""Hostile problems with structured residuals: certified, and no quasi-Newton search from other starts finds better."""

from __future__ import annotations

import numpy as np
import pytest

import oracle_residual as dense
import structured_hostile as hostile

BY_DEFAULT = 10
ABOVE = 1e-6
"""Of a criterion above the best found."""

AT_INFINITY = 1e-4
"""The same where a parameter has run into its limit, to which the search goes no nearer than the digits allow."""


def check(seed: int, starts: int) -> None:
    one = hostile.problem(seed)
    fit = one.model().fit(reml=one.reml)
    limit = bool(fit.singular_components)
    assert fit.converged or limit, fit.message
    best = hostile.best_criterion(one, starts, fit)
    assert fit.criterion <= best + (AT_INFINITY if limit else ABOVE), (one.kind, fit.message)
    if limit:
        return
    # the number is that of matrices of all rows
    G = fit.relative_covariance if fit.model.structure.q else None
    assert fit.criterion == pytest.approx(dense.criterion(fit.model, fit.phi, one.reml, G), rel=1e-6, abs=1e-6)


# besides the first: two minima, and a start from which another has no criterion
@pytest.mark.parametrize("seed", [*range(BY_DEFAULT), 103, 285])
def test_no_search_does_better(seed: int) -> None:
    check(seed, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(BY_DEFAULT, hostile.COUNT))
def test_no_search_does_better_anywhere(seed: int) -> None:
    check(seed, 2)


def test_problems_are_the_same_each_time() -> None:
    for seed in (0, 57, 299):
        one, other = hostile.problem(seed), hostile.problem(seed)
        assert one.formula == other.formula and one.options == other.options
        np.testing.assert_array_equal(one.data.to_numpy(), other.data.to_numpy())
    kinds = {hostile.problem(seed).kind for seed in range(hostile.COUNT)}
    assert kinds == set(hostile.KINDS)
