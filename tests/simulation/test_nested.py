"""Fits of nested models to draws: by the scores of the model that draws, and by the responses themselves."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.simulation.nested import NestedResponses

AGREE = 1e-8
"""Of estimates in standard errors: fits of sums and of responses differ by rounding, amplified by the Hessian."""


def tables():
    """Balanced with arms, and with groups of different sizes, weights and an offset, both in any order."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(24), 6)
    order = rng.permutation(144)
    even = {"t": np.tile(np.arange(6.0), 24), "arm": (g % 2).astype(float), "g": g, "x": rng.normal(size=144)}
    even["y"] = rng.normal(size=24)[g] + even["t"] * rng.normal(size=24)[g] + rng.normal(size=144) + 5.0
    yield {name: column[order] for name, column in even.items()}, {}
    sizes = rng.integers(1, 8, 24)
    g = np.repeat(np.arange(24), sizes)
    n = len(g)
    uneven = {"t": rng.integers(0, 4, n) * 1.0, "arm": (g % 2).astype(float), "g": g, "x": rng.normal(size=n)}
    uneven["y"] = rng.normal(size=24)[g] + uneven["t"] * rng.normal(size=24)[g] + rng.normal(size=n) + 5.0
    yield uneven, {"weights": rng.uniform(0.5, 2.0, n), "offset": rng.normal(size=n)}


TABLES = list(tables())

MODELS = [
    ("y ~ t * arm + (t | g)", "y ~ t + arm + (t | g)"),
    ("y ~ t * arm + x + (t | g)", "y ~ t * arm + x + (1 | g)"),
    ("y ~ t * arm + x + (t | g)", "y ~ arm + (1 | g)"),
    ("y ~ t * arm + x + (t | g)", "y ~ arm + (t || g)"),
    ("y ~ t + (t | g)", "y ~ 0 + (0 + t | g)"),
    ("y ~ x + t + (1 | g)", "y ~ t + (1 | g)"),
    ("y ~ t + I(2 * t + 3) + arm + (t | g)", "y ~ arm + I(arm + t) + (1 | g)"),
]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("large", "small"), MODELS)
@pytest.mark.parametrize("which", [0, 1])
def test_fits_of_sums_are_fits_of_responses(which, large, small, reml):
    table, options = TABLES[which]
    fit = flc.lmm(large, table, **options).fit()
    model = flc.lmm(small, table, **options)
    drawn = fit.simulate_fit(60, 3, fit=model, reml=reml, first=7)
    assert isinstance(drawn.responses, NestedResponses)
    given = model.fit_many(fit.simulate(60, 3, first=7), reml=reml)
    both = drawn.converged & given.converged
    assert both.sum() >= 55
    np.testing.assert_allclose(drawn.criterion[both], given.criterion[both], rtol=1e-10, atol=1e-8)
    gap = np.abs(drawn.params - given.params)[both] / given.bse[both]
    assert np.nanmax(gap, initial=0.0) < 1e-6
    np.testing.assert_array_equal(drawn.singular[both], given.singular[both])
    # what tests take from the responses, and one of them by itself
    if drawn.params.shape[1] > 1:
        row = np.eye(drawn.params.shape[1])[[0, 1]].sum(axis=0)
        inside = both & ~given.singular
        own, wanted = (b.test(row) for b in (drawn, given))
        np.testing.assert_allclose(own.df_denom[inside], wanted.df_denom[inside], rtol=1e-5)
    i = int(np.flatnonzero(both)[4])
    assert drawn[i].criterion == pytest.approx(given[i].criterion, rel=1e-10)


def test_models_that_are_not_nested_are_fitted_to_responses():
    table, options = TABLES[1]
    fit = flc.lmm("y ~ t + (t | g)", table, **options).fit()
    others = [
        flc.lmm("y ~ x + (1 | g)", table, **options),  # other columns
        flc.lmm("y ~ t + (x | g)", table, **options),  # other effects
        flc.lmm("y ~ t + (1 | g)", table, weights=options["weights"]),  # another offset
        flc.lmm("y ~ t + (1 | arm)", table, **options),  # other groups
        flc.lmm("y ~ t + (1 | g) + (1 | arm)", table, **options),
    ]
    for model in others:
        drawn = fit.simulate_fit(20, 3, fit=model)
        assert not isinstance(drawn.responses, NestedResponses)
        given = model.fit_many(fit.simulate(20, 3))
        np.testing.assert_allclose(drawn.criterion, given.criterion, rtol=1e-9)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("formula", ["y ~ t + (1 | g)", "y ~ t + x + (t | g)", "y ~ t + x + (t || g)"])
def test_random_effects_of_draws(which, formula):
    table, options = TABLES[which]
    fit = flc.lmm(formula, table, **options).fit()
    drawn, given = fit.simulate_fit(60, 3), fit.model.fit_many(fit.simulate(60, 3))
    own, wanted = (batch.random_effect_test(null="mixture") for batch in (drawn, given))
    assert list(own) == list(wanted)
    for name, one in own.items():
        good = np.isfinite(one.pvalues) & np.isfinite(wanted[name].pvalues)
        assert good.sum() > 50
        np.testing.assert_allclose(one.statistic[good], wanted[name].statistic[good], rtol=1e-6, atol=2e-8)
        np.testing.assert_allclose(one.pvalues[good], wanted[name].pvalues[good], rtol=1e-5)


def test_power_makes_no_responses(monkeypatch):
    from fastlmm_core.simulation.scores import Scores

    table, options = TABLES[0]
    fit = flc.lmm("y ~ t * arm + (t | g)", table, **options).fit()
    asked = []
    completed = Scores.completed
    monkeypatch.setattr(
        Scores, "completed", lambda self, rng, lines, at: asked.append(len(lines)) or completed(self, rng, lines, at)
    )
    flc.power(fit, ["arm", "t:arm"], method="lrt", n_sim=200, seed=1)
    flc.power(fit, "sd_t|g", n_sim=200, seed=1)
    assert sum(asked) < 20  # single fits of those that the lanes leave
