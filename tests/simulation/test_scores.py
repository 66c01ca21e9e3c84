"""Draws by scores: fits of them are fits of the responses, and the responses have the distribution of the model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import fastlmm_core as flc
from fastlmm_core.kernels.records.batches import BatchCriterion, BatchResults
from fastlmm_core.simulation.draws import _effects_and_errors, _scores, parametric, stream_size
from fastlmm_core.simulation.scores import Scores
from fastlmm_core.support.seeds import key_of, stream

AGREE = 1e-9
"""Fits of scores and of the responses that have them differ by rounding, amplified by the Hessian."""


def designs(rng):
    """Balanced and not, with weights and offset, columns within, between and across groups, dropped, in any order."""
    g = np.repeat(np.arange(24), 6)
    t, arm = np.tile(np.arange(6.0), 24), (g % 2).astype(float)
    order = rng.permutation(len(g))
    table = {
        "y": rng.normal(size=144) + rng.normal(size=24)[g] + t * rng.normal(size=24)[g], "t": t, "arm": arm, "g": g,
        "other": 1.0 - arm, "x": rng.normal(size=144),
    }  # fmt: skip
    table = {name: column[order] for name, column in table.items()}
    yield "arms", flc.lmm("y ~ t * arm + (t | g)", table)
    yield "within", flc.lmm("y ~ t * arm + other + x + (t | g)", table)
    yield "nothing fixed", flc.lmm("y ~ 0 + (t || g)", table)
    sizes = rng.integers(1, 8, 24)
    g = np.repeat(np.arange(24), sizes)
    x, n = rng.normal(size=len(g)), len(g)
    table = {"y": rng.normal(size=n) + x + rng.normal(size=24)[g], "x": x, "g": g, "z": rng.normal(size=24)[g]}
    weights, offset = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    yield "weights", flc.lmm("y ~ x + z + (1 | g)", table, weights=weights, offset=offset)
    yield "slopes, some groups of one row", flc.lmm("y ~ x + z + (x | g)", table, weights=weights, offset=offset)


DESIGNS = ["arms", "within", "nothing fixed", "weights", "slopes, some groups of one row"]


@pytest.fixture(params=DESIGNS)
def fit(request, rng):
    return dict(designs(rng))[request.param].fit()


def test_fits_of_scores_are_fits_of_the_responses(fit):
    from fastlmm_core.estimation.many.one_factor import shared_design

    draw = parametric(fit)
    assert isinstance(draw, Scores)
    lines = draw.lines(stream(key_of(5), 0), 40)
    Y = draw(stream(key_of(5), 0), 40)
    model = draw.model
    shared = shared_design(model)
    count, p, k = len(Y), model.exog.shape[1], model.structure.n_parameters
    # what no column of a group and none of X spans is one chi-square
    own = (model.grouping.index[:, None] == np.unique(model.grouping.index))[:, :, None] * model.exog_re[:, None, :]
    spanned = np.linalg.matrix_rank(np.column_stack([own.reshape(fit.nobs, -1), model.exog]))
    assert draw.df == fit.nobs - spanned

    def results():
        return BatchResults(
            np.empty((count, k)), np.empty((count, p)), np.empty((count, p)), np.empty(count), np.empty(count),
            np.empty(count), np.empty(count, dtype=np.intc), np.empty(count, dtype=np.intc), np.empty((count, p)),
        )  # fmt: skip

    for reml in (True, False):
        by_scores, by_rows = results(), results()
        shared.fit(lines, 0, BatchCriterion(reml, 0.0), None, by_scores, draw.meaning)
        shared.fit(Y, 0, BatchCriterion(reml, 0.0), None, by_rows)
        np.testing.assert_array_equal(by_scores.status, by_rows.status)
        good = by_rows.status > 0
        assert good.mean() > 0.8
        by_scores.params[:] += draw.coefficients
        kept = model.problem.kept
        for name in ("params", "bse", "df"):
            found, wanted = getattr(by_scores, name)[good][:, kept], getattr(by_rows, name)[good][:, kept]
            np.testing.assert_allclose(found, wanted, rtol=AGREE, atol=AGREE)
        for name in ("sigma2", "value"):
            np.testing.assert_allclose(getattr(by_scores, name)[good], getattr(by_rows, name)[good], rtol=AGREE)


def test_tests_of_scores_are_tests_of_the_responses(rng):
    fit = dict(designs(rng))["arms"].fit()
    drawn = fit.simulate_fit(60, 3, first=17)
    given = fit.model.fit_many(fit.simulate(60, 3, first=17))
    for hypothesis in ("t + t:arm", ["t", "arm"]):
        for ddf, information in (("satterthwaite", "auto"), ("kenward-roger", "observed")):
            found = drawn.test(hypothesis, ddf=ddf, information=information)
            wanted = given.test(hypothesis, ddf=ddf, information=information)
            np.testing.assert_allclose(found.df_denom, wanted.df_denom, rtol=1e-6)
            np.testing.assert_allclose(found.statistic, wanted.statistic, rtol=1e-7)
    some = drawn[10:20].test("t + t:arm")
    np.testing.assert_array_equal(some.pvalues, drawn.test("t + t:arm").pvalues[10:20])
    np.testing.assert_allclose(drawn[12].beta, drawn.params[12], rtol=1e-8)


def test_moments_of_responses(fit):
    """Means and covariances of all pairs of observations, by their standard errors under normality."""
    n = 8000
    Y = fit.simulate(n, 11)
    model = fit.model
    same = model.grouping.index[:, None] == model.grouping.index
    V = same * (model.exog_re @ fit.covariance @ model.exog_re.T)
    V = V + np.diag(fit.sigma2 / (np.ones(fit.nobs) if model.weights is None else model.weights))
    z = (Y.mean(axis=0) - fit.population_mean) / np.sqrt(np.diag(V) / n)
    assert np.abs(z).max() < 4.5
    error = np.sqrt((np.outer(np.diag(V), np.diag(V)) + V**2) / n)
    z = (np.cov(Y.T) - V) / error
    assert np.abs(z).max() < 5.5
    assert abs(z[np.triu_indices(len(z))].std() - 1.0) < 0.06
    # the fourth moments of whitened observations: normal, not merely uncorrelated
    white = np.linalg.solve(np.linalg.cholesky(V), (Y - fit.population_mean).T)
    kurtosis = (white**4).mean(axis=1)
    assert np.abs(kurtosis - 3.0).max() < 5.0 * np.sqrt(96.0 / n)
    assert stats.kstest(white[::7].ravel(), "norm").pvalue > 1e-3


def test_estimates_have_the_distribution_of_those_of_responses(rng):
    """Two samples, one by scores and one by effects and errors, of each estimate (Kolmogorov and Smirnov)."""
    fit = dict(designs(rng))["arms"].fit()
    draw = _effects_and_errors(fit)
    by_rows = fit.model.fit_many(draw(stream(key_of(1), 0), 4000))
    by_scores = fit.simulate_fit(4000, 2)
    columns = [(b.params, b.bse, b.sigma2[:, None], b.theta, b.criterion[:, None]) for b in (by_rows, by_scores)]
    for first, second in zip(*(np.column_stack(parts).T for parts in columns), strict=True):
        assert stats.ks_2samp(first, second).pvalue > 1e-4


def test_numbers_in_a_line():
    """Sleepstudy: a column for (intercept, slope), a triangle for what the drivers have beside it, a chi-square."""
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    draw = parametric(fit)
    assert draw.lines(stream(key_of(1), 0), 3).shape == (3, 2 + 3 + 1)
    assert draw.df == 180 - 2 * 18
    # a run is cut anywhere
    size = stream_size(draw, fit.nobs)
    whole = fit.simulate(size + 70, 4)
    for first, n in ((0, 63), (5, 70), (63, 66), (size - 3, 50)):
        np.testing.assert_array_equal(fit.simulate(n, 4, first), whole[first : first + n])
    batch = fit.simulate_fit(size + 70, 4)
    np.testing.assert_array_equal(batch.responses[[size + 5, 3, 70, 3]], whole[[size + 5, 3, 70, 3]])


def test_other_designs_are_drawn_by_effects_and_errors():
    pastes = flc.lmm("strength ~ 1 + (1 | batch/cask)", flc.datasets.load("pastes")).fit()
    assert _scores(pastes) is None and not isinstance(parametric(pastes), Scores)
    # two groups that determine no variance: fits are refused, draws are not
    design = {"g": ["a", "b"], "x": [0.0, 1.0]}
    assumed = flc.assume("y ~ x + (1 | g)", design, [1.0, 0.5], [[1.0]], 1.0)
    assert assumed.simulate(4, 1).shape == (4, 2)
