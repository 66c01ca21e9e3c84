"""Starts that a caller gives, and those that none gave."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e160, 1e300])
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        ("pastes", "strength ~ 1 + (1 | batch/cask)"),
    ],
)
def test_a_start_that_is_much_too_large_recovers(name, formula, size):
    model = flc.lmm(formula, flc.datasets.load(name))
    expected = model.fit()
    identity = np.zeros_like(expected.theta)
    identity[[0, -1]] = 1.0
    for shape in (expected.theta, identity):
        result = model.fit(start=size * shape)
        assert result.converged
        assert result.criterion == pytest.approx(expected.criterion, abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_no_start_is_blamed_that_was_not_given(seed):
    """Columns of X and Z that span all rows, many random effects for few groups."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(12), rng.integers(0, 12, 50)])
    X = np.column_stack([np.ones(62), rng.normal(size=(62, 24))])
    Z = np.column_stack([np.ones(62), rng.normal(size=(62, 4))])
    y = rng.normal(size=62) + np.sum(Z * rng.normal(size=(12, 5))[groups], axis=1)
    try:
        assert flc.LinearMixedModel(y, X, Z, groups).fit().converged
    except flc.LMMError as error:
        assert "likelihood has no maximum" in str(error)


@pytest.mark.parametrize("rows", [7, 9])
def test_balanced_data_start_at_their_optimum(rng: np.random.Generator, rows: int) -> None:
    m = 15
    codes, t = np.repeat(np.arange(m), rows), np.tile(np.linspace(-1.0, 1.0, rows), m)
    ones, arm = np.ones(m * rows), (codes % 3 == 0).astype(float)
    line = np.column_stack([ones, t])
    y = 1.0 + (2.0 * rng.standard_normal((m, 2))[codes] * line).sum(axis=1) + rng.standard_normal(m * rows)
    # columns within groups, between them, and both
    for X, Z, reml in ((line, line, True), (line, line, False), (np.column_stack([line, arm]), ones[:, None], True)):
        result = flc.LinearMixedModel(y, X, Z, codes).fit(reml)
        assert not result.singular
        assert result.n_evaluations == 1, "the closed form of the variances is where the search starts"
    # by analysis of variance: mean squares of groups and within them, of which X explains two and one
    means = np.array([y[codes == g].mean() for g in range(m)])
    between = np.column_stack([ones, arm])[::rows]
    left = means - between @ np.linalg.lstsq(between, means, rcond=None)[0]
    rest = y - means[codes]
    rest -= t * (t @ rest) / (t @ t)
    sigma2 = rest @ rest / (m * rows - m - 1)
    assert result.sigma2 == pytest.approx(sigma2, rel=1e-9)
    assert result.covariance[0, 0] == pytest.approx(left @ left / (m - 2) - sigma2 / rows, rel=1e-9)
