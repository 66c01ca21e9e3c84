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


def test_no_start_is_blamed_that_was_not_given():
    """Columns of X and Z that span all rows, many random effects for few groups."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        groups = np.concatenate([np.arange(12), rng.integers(0, 12, 50)])
        X = np.column_stack([np.ones(62), rng.normal(size=(62, 24))])
        Z = np.column_stack([np.ones(62), rng.normal(size=(62, 4))])
        y = rng.normal(size=62) + np.sum(Z * rng.normal(size=(12, 5))[groups], axis=1)
        try:
            assert flc.LinearMixedModel(y, X, Z, groups).fit().converged
        except flc.LMMError as error:
            assert "likelihood has no maximum" in str(error)
