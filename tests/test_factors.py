"""Several grouping factors through the public face: dense matrices, invariances, edges, and what errors say."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
import oracle_factors
from fastlmm_core.errors import LMMError

KINDS = ("nested", "nested3", "crossed", "partial", "three", "mixed", "slopes", "split", "mixed_slopes")
CASES = [(kind, weights) for kind in KINDS for weights in (False, True)]
RESIDUALS = ("conditional", "marginal", "pearson", "whitened", "studentized")


def close(found, expected, tolerance, scale=None) -> None:
    """|found - expected| <= tolerance * scale, the scale being the largest of the expected by default."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0) if scale is None else scale
    assert np.abs(found - expected).max(initial=0.0) <= tolerance * max(scale, 1e-300)


def relative(result) -> list[np.ndarray]:
    return [G / result.sigma2 for G in result.G.values()]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_every_estimate_against_dense_matrices(kind, weights, reml):
    design = oracle_factors.make(kind, 1, weights=weights)
    result = design.model.fit(reml=reml)
    assert result.converged
    names = list(design.factors)
    assert list(result.n_groups) == names
    assert list(result.n_groups.values()) == [len(design.terms[p[0]].levels) for p in design.factors.values()]
    Ghat = relative(result)
    for Lam, G in zip(design.lambdas(result.theta), Ghat, strict=True):
        close(Lam @ Lam.T, G, 1e-13)
    at = design.at(Ghat, reml)
    assert result.criterion == pytest.approx(at.value, rel=1e-12)
    assert result.llf == pytest.approx(-0.5 * at.value, rel=1e-12)
    assert result.sigma2 == pytest.approx(at.sigma2, rel=1e-11)
    se = np.sqrt(at.sigma2 * np.diag(at.unscaled))
    assert np.abs((result.params - at.beta) / se).max() < 1e-10
    close(result.bse / se, np.ones(len(se)), 1e-11)
    close(result.cov_params(), at.sigma2 * at.unscaled, 1e-11)
    # a minimum: no slope, and no other start does better
    scaled, turns = design.scaled()
    slope = scaled.gradient(design.turned(result.theta, turns), reml)
    assert np.abs(slope).max() < 1e-6
    least = design.least(reml, [result.theta, 3.0 * result.theta])
    assert result.criterion <= least + 1e-8
    # random effects
    sigma = np.sqrt(at.sigma2)
    for name, b in design.blups(Ghat, reml).items():
        close(result.random_effects[name], b, 1e-10, sigma)
        assert list(result.group_labels[name]) == list(design.terms[design.factors[name][0]].levels)
    for name, C in design.blup_covariances(Ghat, reml).items():
        close(result.random_effects_covariance[name], C, 1e-10)
    close(result.fittedvalues, design.fitted(Ghat, reml), 1e-10, sigma)
    for kind_ in RESIDUALS:
        close(result.residuals(kind_), design.residuals(Ghat, reml, kind_), 1e-9, sigma if kind_ != "pearson" else 1.0)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_criterion_and_derivatives_at_any_theta(kind, weights, reml, rng):
    design = oracle_factors.make(kind, 2, weights=weights)
    model = design.model
    theta = rng.normal(size=model.structure.n_parameters)
    found = model.evaluate(theta, reml=reml, order=2)
    assert found.value == pytest.approx(design.criterion(theta, reml), rel=1e-12)
    close(found.gradient, design.gradient(theta, reml), 1e-9)
    step = 1e-5
    columns = [
        (design.gradient(theta + step * e, reml) - design.gradient(theta - step * e, reml)) / (2.0 * step)
        for e in np.eye(len(theta))
    ]
    close(found.hessian, np.array(columns), 1e-6)
    assert model.evaluate(0.0 * theta, reml=reml).value == pytest.approx(design.criterion(0.0 * theta, reml), rel=1e-12)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_degrees_of_freedom_against_dense_matrices(kind, weights, reml):
    design = oracle_factors.make(kind, 3, weights=weights, spread=1.5)
    result = design.model.fit(reml=reml)
    assert result.converged
    dense = oracle_factors.Inference(design, result)
    p = design.X.shape[1]
    if not result.singular:
        table = result.tidy()
        expected = [dense.satterthwaite(row) for row in np.eye(p)]
        np.testing.assert_allclose(table["df"], expected, rtol=1e-7)
    hypotheses = [np.eye(p)[1:], np.array([[1.0, 2.0, 0.0]])]
    for L in hypotheses:
        found = result.test(L, ddf="kenward-roger")
        F, df = dense.kenward_roger(L, np.zeros(len(L)), "expected")
        assert float(found.statistic) == pytest.approx(F, rel=1e-7)
        assert float(found.df_denom) == pytest.approx(df, rel=1e-7)
