"""Hostile data: every fit is certified, and no general optimiser finds anything better."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import hostile

BY_DEFAULT = 12
TOLERANCE = 1e-6  # above the best found: a worse optimum
ROUNDING = 1e-5  # below the best found: what the reported number may owe to rounding


def check(seed: int, starts: int) -> None:
    problem = hostile.problem(seed)
    result = flc.LinearMixedModel(problem.y, problem.X, problem.Z, problem.groups).fit(reml=problem.reml)
    assert result.converged, result.message
    (covariance,) = result.G.values()
    relative = np.asarray(covariance, dtype=float) / result.sigma2
    best = hostile.best_criterion(problem, starts, relative_covariance=relative)
    assert result.criterion <= best + TOLERANCE, "an ordinary optimiser found a better fit"
    assert result.criterion >= best - ROUNDING, "the reported criterion is lower than any that can be reached"


@pytest.mark.parametrize("seed", range(BY_DEFAULT))
def test_no_optimiser_does_better(seed: int) -> None:
    check(seed, starts=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(BY_DEFAULT, hostile.COUNT))
def test_no_optimiser_does_better_anywhere(seed: int) -> None:
    check(seed, starts=10)


@pytest.mark.parametrize("seed", range(len(hostile.KINDS)))
def test_the_two_evaluations_of_the_search_agree(seed: int) -> None:
    conditioned = hostile.Conditioned.of(hostile.problem(seed))
    theta = np.random.default_rng(seed).standard_normal(conditioned.size)
    assert conditioned.woodbury(theta) == pytest.approx(conditioned.dense(theta), rel=0, abs=1e-8)


def test_conditioning_keeps_the_criterion() -> None:
    """On a tame problem the conditioned criterion plus its shift is the textbook formula on the rows as they are."""
    problem = hostile.problem(1)
    conditioned = hostile.Conditioned.of(problem)
    theta = np.random.default_rng(0).standard_normal(conditioned.size)
    inverse = np.linalg.inv(conditioned.z_transform)
    relative = inverse @ (f := conditioned.factor(theta)) @ f.T @ inverse.T
    same = problem.groups[:, None] == problem.groups[None, :]
    v = np.eye(problem.y.size) + np.where(same, problem.Z @ relative @ problem.Z.T, 0.0)
    v_inverse = np.linalg.inv(v)
    xvx = problem.X.T @ v_inverse @ problem.X
    residual = problem.y - problem.X @ np.linalg.solve(xvx, problem.X.T @ v_inverse @ problem.y)
    nu = problem.y.size - problem.X.shape[1]
    assert problem.reml
    expected = (
        np.linalg.slogdet(v)[1]
        + np.linalg.slogdet(xvx)[1]
        + nu * (1.0 + np.log(2.0 * np.pi * (residual @ v_inverse @ residual) / nu))
    )
    assert conditioned.dense(theta) + conditioned.shift == pytest.approx(expected, rel=1e-10)
