"""The criterion over visits against dense algebra, and its derivatives against finite differences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.covariance.residual.catalogue import position_names
from fastlmm_core.engines.residual import visits
from fastlmm_core.engines.residual.clusters import ClusterCriterion

VALUE = 1e-11  # relative, rounding of sums over a few dozen rows
GRADIENT = 2e-8  # relative to the criterion's curvature: fourth-order differences of steps of 1e-4
HESSIAN = 1e-7  # the same, of analytic gradients


def problem(rng: np.random.Generator, *, n: int = 26, m: int = 4, many: int = 1) -> pd.DataFrame:
    """Subjects with visits missing at random, two arms, a covariate; `many` copies of the designs of subjects."""
    rows = []
    for i in range(n):
        seen = np.flatnonzero(rng.random(m) < 0.75)
        x = rng.normal(size=m)
        for c in range(many):
            level = rng.normal()
            for v in seen:
                rows.append(
                    (f"s{i}.{c}", int(v), ("A", "B")[i % 2], x[v], level + 0.4 * v + rng.normal() * (1 + 0.3 * v))
                )
    frame = pd.DataFrame(rows, columns=["id", "visit", "arm", "x", "y"])
    frame["w"] = rng.uniform(0.5, 2.0, len(frame))
    return frame.sample(frac=1.0, random_state=int(rng.integers(1000))).reset_index(drop=True)


@pytest.mark.parametrize("formula", ["y ~ arm", "y ~ arm + (1 | arm)"])
def test_points_that_are_none(formula, rng):
    model = flc.lmm(formula, problem(rng), residual="ar1(visit | id)")
    theta = np.full(model.structure.n_parameters + 1, 0.5)
    assert np.isfinite(model.evaluate(theta).value)
    for wrong in (theta[:-1], np.append(theta, 0.5)):
        with pytest.raises(flc.LMMError, match=f"theta has {len(wrong)} elements"):
            model.evaluate(wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(flc.LMMError, match="theta has values that are not finite"):
            model.evaluate(np.append(theta[:-1], value))


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("by", ["", ", by=arm"])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", position_names())
def test_value_and_derivatives(name, reml, by, weights, rng):
    model = flc.lmm("y ~ arm + visit + x", problem(rng), residual=f"{name}(visit | id{by})", weights=weights)
    engine = model.problem.criterion()
    phi = model.problem.start(engine) + 0.2 * rng.normal(size=engine.n_par)
    found = model.evaluate(phi, reml=reml, order=2)
    assert found.value == pytest.approx(dense.criterion(model, phi, reml), rel=VALUE)
    slope = dense.gradient(lambda p: dense.criterion(model, p, reml), phi)
    size = np.sqrt(np.abs(np.diag(found.hessian))) + 1.0
    assert np.abs((found.gradient - slope) / size).max(initial=0.0) < GRADIENT * abs(found.value)
    for i in range(len(phi)):
        step = 1e-4 * np.eye(len(phi))[i]
        near = model.evaluate(phi + step, reml, 1).gradient - model.evaluate(phi - step, reml, 1).gradient
        far = model.evaluate(phi + 2 * step, reml, 1).gradient - model.evaluate(phi - 2 * step, reml, 1).gradient
        change = (8.0 * near - far) / 12e-4
        assert np.abs((found.hessian[i] - change) / size / size[i]).max() < HESSIAN


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("by", ["", ", by=arm"])
@pytest.mark.parametrize("reml", [True, False])
def test_derivatives_in_coordinates_of_the_root(reml, by, weights, rng, monkeypatch):
    monkeypatch.setattr(visits, "NEARLY", 1e30)
    test_value_and_derivatives("us", reml, by, weights, rng)
    model = flc.lmm("y ~ arm + visit + x", problem(rng), residual=f"us(visit | id{by})", weights=weights)
    engine = model.problem.criterion()
    phi = model.problem.start(engine) + 0.2 * rng.normal(size=engine.n_par)
    weight = rng.normal(size=(len(phi), len(phi)))
    weight += weight.T
    tables = [rng.normal(size=(4, 4)) for _ in engine.places]
    found = []
    for nearly in (1e30, 0.0):
        monkeypatch.setattr(visits, "NEARLY", nearly)
        engine = model.problem.criterion()
        engine.reml = reml
        engine.evaluate(phi, 2)
        assert bool(engine.roots) == (nearly > 0.0)
        inner = engine.within([table + table.T for table in tables])
        found.append((engine.cross_products(), engine.sandwich_along(weight), inner, engine.expected()))
    for framed, plain in zip(*found, strict=True):
        np.testing.assert_allclose(framed, plain, rtol=1e-9, atol=1e-9 * np.abs(plain).max())


def test_many_subjects_of_a_pattern_are_summed_up(rng):
    frame = problem(rng, n=6, many=700)
    model = flc.lmm("y ~ arm + visit + x", frame, residual="us(visit | id)")
    patterns = model.problem.patterns.sums
    assert (patterns.members < patterns.counts).any()
    phi = model.problem.start(model.problem.criterion())
    # the same subjects one by one: as clusters, whose rows are not summed up
    p = model.problem
    other = ClusterCriterion(p.clusters, p.xy, p.Z, p.structure, list(p.spans), p.residual)
    for one, two in zip(p.criterion().evaluate(phi, 2), other.evaluate(phi, 2), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("roots", [False, True])
def test_whitened_rows_have_the_cross_products(roots, rng):
    """Those of many subjects are summed up, with what lies outside of X in one row."""
    model = flc.lmm("y ~ arm + visit + x", problem(rng, n=6, many=700), residual="us(visit | id)")
    engine = model.problem.criterion()
    A = np.tril(rng.normal(size=(4, 4))) + 3.0 * np.eye(4)
    V = A @ A.T
    _, H = engine.sums.reduce([A if roots else V], roots)
    rows = engine.sums.whitened()
    np.testing.assert_allclose(rows.T @ rows, H, rtol=1e-10, atol=1e-10 * np.abs(H).max())
    # of all rows, subject by subject
    p, by_hand = model.problem, np.zeros_like(H)
    start, place = p.clusters.start, np.asarray(p.residual.where)[p.clusters.order]
    for begin, end in pairwise(start):
        own, at = p.xy[p.clusters.order[begin:end]], place[begin:end]
        by_hand += own.T @ np.linalg.solve(V[np.ix_(at, at)], own)
    np.testing.assert_allclose(H, by_hand, rtol=1e-9, atol=1e-9 * np.abs(H).max())


@pytest.mark.parametrize("by", ["", ", by=arm"])
def test_cross_products_of_few_and_of_many_directions(by, rng, monkeypatch):
    model = flc.lmm("y ~ arm + visit + x", problem(rng), residual=f"toeph(visit | id{by})")
    found = []
    for few in (0, 100):
        monkeypatch.setattr(visits, "FEW_DIRECTIONS", few)
        engine = model.problem.criterion()
        engine.evaluate(model.problem.start(engine), 2)
        found.append(engine.cross_products())
    np.testing.assert_allclose(*found, rtol=1e-11, atol=1e-12 * np.abs(found[0]).max())


def test_positions_without_rows_count_for_lags_only(rng):
    frame = problem(rng)
    wide = frame.assign(visit=3 * frame.visit + 2)
    one = flc.lmm("y ~ arm + x", wide, residual="ar1(visit | id)").fit()
    third = flc.lmm("y ~ arm + x", frame, residual="ar1(visit | id)").fit()
    assert one.criterion == pytest.approx(third.criterion, rel=1e-10)
    rho = [np.asarray(r.residual_parameters()["estimate"])[1] for r in (one, third)]
    assert rho[0] ** 3 == pytest.approx(rho[1], rel=1e-5)
