"""Minima of regular data, beside which no other ones are looked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastlmm_core as flc
import landscapes
from fastlmm_core.estimation.fit import Fit
from fastlmm_core.estimation.many.batch_fit import BatchFit
from fastlmm_core.estimation.many.one_factor import shared_design
from fastlmm_core.kernels.records.batches import BatchCriterion, BatchLook, BatchResults
from regular import is_regular

BORDER = 1e-3  # relative distance from a limit within which dense algebra and the lanes may differ
CLOSELY = 120  # evaluations that a search from many points takes at least


def design(q: int, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Irregular groups, of times of their own or of a few times that many share."""
    rng = np.random.default_rng(q)
    m = 9 * q
    sizes = rng.integers(q, q + 6, m) if own else np.repeat([q + 1, q + 3, 9], [3, 4, m - 7])
    groups = np.repeat(np.arange(m), sizes)
    t = rng.uniform(-1.0, 1.0, len(groups)) if own else np.concatenate([np.arange(size) / 4.0 - 1.0 for size in sizes])
    return t[:, None] ** np.arange(q), groups


def covariate(Z: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a covariate has between groups, and within them."""
    rng = np.random.default_rng(7)
    between = np.sum(rng.standard_normal((groups.max() + 1, Z.shape[1]))[groups] * Z, axis=1)
    return between, 0.5 * rng.standard_normal(len(groups))


def responses(Z: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """With large and small effects, of normal and of heavy tails."""
    rng = np.random.default_rng(4)
    m, q = groups.max() + 1, Z.shape[1]
    Y = np.empty((count, len(groups)))
    for i in range(count):
        size = 10.0 ** rng.uniform(-0.5, 0.7, q)
        size[-1] *= i % 6 != 1
        b = (rng.standard_normal if i % 2 else lambda shape: rng.standard_t(1.5, shape))((m, q)) * size
        Y[i] = np.sum(b[groups] * Z, axis=1) + rng.standard_normal(len(groups))
    return Y


def told(model: flc.LinearMixedModel, Y: np.ndarray, reml: bool, values: bool) -> tuple[BatchFit, BatchLook]:
    """Fits without a search, and where the lanes would look for other minima."""
    shared = shared_design(model)
    assert shared.screen is not None
    found = BatchFit(model, Fit, reml, len(Y), None)
    of_screen = np.empty((len(Y), len(shared.screen.thetas))) if values else None
    said = BatchLook(np.full((len(Y), shared.screen.width), -9, dtype=np.intc), np.empty(len(Y)), of_screen)
    into = BatchResults(
        found.theta_o, found.params, found.bse, found.sigma2, found.criterion, found.gradient_norm, found.status,
        found.n_evaluations, found.satterthwaite,
    )  # fmt: skip
    shared.fit(Y, 0, BatchCriterion(reml, 0.0), None, into, look=said)
    return found, said


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    ("q", "own", "beside"), [(2, True, False), (2, False, False), (3, True, False), (2, True, True)]
)
def test_minima_of_regular_data(q: int, own: bool, beside: bool, reml: bool) -> None:
    Z, groups = design(q, own)
    Y, X = responses(Z, groups, 72), Z
    if beside:
        # slopes on a covariate differ within groups and between them, more and more
        between, within = covariate(Z, groups)
        Y += np.outer(np.linspace(0.0, 1.0, 72), between) - np.outer(np.linspace(0.0, 3.0, 72) ** 2, within)
        X = np.column_stack([Z, between + within])
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    screen = shared_design(model).screen
    assert screen is not None and screen.of_regular and screen.lowest > 0
    found, said = told(model, Y, reml, True)
    waited = told(model, Y, reml, False)[1]
    each = np.repeat(np.arange(len(Y)), len(groups))
    whole = np.tile(np.arange(len(groups)), len(Y))
    stack = flc.fit_each(Y.ravel(), X[whole], Z[whole], groups[whole], each, reml=reml, n_jobs=1)
    seen, on_boundary = [0, 0], 0
    for i, y in enumerate(Y):
        chosen = bool((said.chosen[i] >= 0).any())
        # responses that are screened later are screened at the same place
        assert np.array_equal(waited.chosen[i], said.chosen[i])
        if found.status[i] <= 0:
            continue
        factor = model.structure.factor(found.theta_o[i])
        factor = model.structure.natural(model.problem.z_map[None], factor[None])[0]
        regular, margin = is_regular(y, X, Z, groups, factor @ factor.T, reml)
        if margin < BORDER:
            continue
        assert chosen != regular
        # in a stack each group counts by itself, whatever its times
        if own and stack.criterion[i] > found.criterion[i] - 1e-6:
            assert (stack.n_evaluations[i] < CLOSELY) == regular
        # neither is anything looked for next to the boundary
        assert np.isinf(waited.rise[i]) == regular
        seen[regular] += 1
        on_boundary += regular and found.status[i] == 2
    assert min(seen) >= 5
    assert on_boundary >= own


def hostile_responses(problem: landscapes.Problem, rng: np.random.Generator, count: int) -> np.ndarray:
    """Residuals of other signs and sizes; effects and errors with tails like those of Cauchy, and lighter ones."""
    groups, Z, n = problem.terms[0].codes, problem.terms[0].Z, len(problem.y)
    m, q = groups.max() + 1, Z.shape[1]
    mean = problem.X @ np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    Y = np.empty((count, n))
    for i in range(count):
        kind = i % 4
        if kind == 0:
            Y[i] = mean + rng.choice([-1.0, 1.0], n) * np.exp(rng.normal(0.0, 0.3, n)) * (problem.y - mean)
            continue
        tails = rng.standard_t(1.0, (m, 1)) if kind == 1 else rng.standard_t(3.0, (m, 1)) if kind == 2 else 1.0
        b = tails * rng.standard_normal((m, q)) * 10.0 ** rng.uniform(-1.0, 1.0, q)
        e = rng.standard_t(2.0, n) if kind < 3 else rng.standard_normal(n)
        if kind == 1:
            e = e * np.where(rng.uniform(size=m) < 0.15, 10.0 ** rng.uniform(0.0, 1.5), 1.0)[groups]
        Y[i] = np.sum(b[groups] * Z, axis=1) + e
    return Y


def test_one_group_outweighs_those_that_share_its_times() -> None:
    problem = landscapes.problem("uneven_groups", 800009)
    term = problem.terms[0]
    y = hostile_responses(problem, np.random.default_rng([9, 5]), 70)[69]
    model = flc.LinearMixedModel(problem.y, problem.X, term.Z, term.codes)
    batch = model.fit_many(np.array([problem.y, y]), reml=problem.reml)
    lowest = landscapes.lowest(replace(problem, y=y))
    assert lowest == pytest.approx(693.26025, abs=1e-4)
    assert batch.criterion[1] == pytest.approx(lowest, abs=1e-6)
