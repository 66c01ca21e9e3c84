"""Streams: parts of a run are those of the whole, wherever it is cut and whatever was drawn before or after."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.simulation.draws import Drawing, draws, parametric, stream_size
from fastlmm_core.support.seeds import beside, key_of, stream

MODELS = {
    "one factor": ("Reaction ~ Days + (Days | Subject)", "sleepstudy"),
    "crossed": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin"),
    "nested": ("strength ~ 1 + (1 | batch/cask)", "pastes"),
}


@pytest.fixture(scope="module", params=MODELS)
def fit(request):
    formula, name = MODELS[request.param]
    return flc.lmm(formula, flc.datasets.load(name)).fit()


def test_a_shorter_run_is_the_beginning_of_a_longer_one(fit):
    whole = fit.simulate(1100, seed=3)
    for n in (1, 7, 511, 512, 513, 1024, 1099):
        np.testing.assert_array_equal(fit.simulate(n, seed=3), whole[:n])


@pytest.mark.parametrize("cuts", [(0, 1), (0, 300, 700), (0, 512, 1024), (0, 511, 513, 1090)])
def test_parts_are_those_of_the_whole(fit, cuts):
    whole = fit.simulate(1100, seed=3)
    parts = [fit.simulate(stop - first, 3, first) for first, stop in zip(cuts, (*cuts[1:], 1100), strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("jobs", [1, 3])
def test_fits_of_parts_are_those_of_the_whole(fit, jobs):
    cuts = ((0, 37), (37, 463), (500, 60), (560, 20))
    whole = fit.simulate_fit(580, [4, 5], n_jobs=2)
    parts = [fit.simulate_fit(n, [4, 5], first=first, n_jobs=jobs) for first, n in cuts]
    for name in ("params", "bse", "sigma2", "criterion", "status", "theta_o"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    # a fit by itself draws its response again
    drawn = fit.simulate(580, [4, 5])
    np.testing.assert_array_equal(parts[2][13].model.endog, drawn[513])
    np.testing.assert_array_equal(whole[513].model.endog, drawn[513])
    np.testing.assert_array_equal(parts[1].responses[[0, 462, 3]], drawn[[37, 499, 40]])
    np.testing.assert_array_equal(parts[1].responses[-1], drawn[499])


@pytest.mark.parametrize("kind", ["parametric", "conditional", "residual", "cases"])
def test_parts_of_a_bootstrap(kind):
    sleep = flc.lmm(*_sleep()).fit()
    whole = sleep.bootstrap(530, kind, seed=9)
    parts = [sleep.bootstrap(n, kind, seed=9, first=first) for first, n in ((0, 100), (100, 418), (518, 12))]
    joined = parts[0].join(*parts[1:])
    for name in ("replicates", "replicate_std_error", "singular", "converged"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for method in ("percentile", "studentized", "bca"):
        np.testing.assert_array_equal(joined.conf_int(0.9, method), whole.conf_int(0.9, method))


def test_parts_of_a_bootstrap_of_another_statistic():
    small = flc.lmm("Yield ~ 1 + (1 | Batch)", flc.datasets.load("dyestuff")).fit()

    def ratio(result):
        return [result.G["Batch"][0, 0] / result.sigma2]

    whole = small.bootstrap(8, statistic=ratio, seed=2)
    parts = [small.bootstrap(n, statistic=ratio, seed=2, first=first) for first, n in ((0, 3), (3, 5))]
    np.testing.assert_array_equal(parts[0].join(parts[1]).replicates, whole.replicates)
    with pytest.raises(LMMError, match=r"join\(\): argument 1 belongs to another fit, kind of bootstrap or statistic"):
        whole.join(small.bootstrap(3, seed=2))
    with pytest.raises(LMMError, match=r"join\(\): argument 2 is a float, not a BootstrapResult"):
        whole.join(whole, 1.0)


def _sleep():
    return "Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")


def test_parts_before_there_are_data():
    design = {"g": np.repeat(np.arange(10), 4), "x": np.tile(np.arange(4.0), 10)}
    assumed = flc.assume("y ~ x + (1 | g)", design, [1.0, 0.5], [[1.0]], 1.0)
    whole = assumed.simulate(20, 7)
    np.testing.assert_array_equal(assumed.simulate(5, 7, first=15), whole[15:])
    np.testing.assert_array_equal(assumed.simulate_fit(5, 7, first=15).params, assumed.simulate_fit(20, 7).params[15:])


@pytest.mark.parametrize("method", ["wald", "lrt"])
@pytest.mark.parametrize("alpha", [0.05, [0.1, 0.01]])
def test_parts_of_a_power_study(method, alpha):
    sleep = flc.lmm(*_sleep()).fit()
    options = {"effect": 4.0, "method": method, "alpha": alpha, "seed": 6}
    whole = flc.power(sleep, "Days", n_sim=530, **options)
    parts = [flc.power(sleep, "Days", n_sim=n, first=first, **options) for first, n in ((0, 200), (200, 325), (525, 5))]
    joined = parts[0].join(*parts[1:])
    np.testing.assert_array_equal(joined.pvalues, whole.pvalues)
    assert (joined.n_sim, joined.n_converged) == (whole.n_sim, whole.n_converged)
    for name in ("power", "conf_low", "conf_high", "effect"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for name in ("estimate", "bias", "singular_fraction"):  # means of means
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-10)
    with pytest.raises(LMMError, match=r"join\(\): argument 1 belongs to another test, method, level or effect"):
        whole.join(flc.power(sleep, "Days", n_sim=2, **options | {"effect": 5.0}))
    with pytest.raises(LMMError, match=r"join\(\): argument 1 is a str, not a PowerResult"):
        whole.join("it")
    with pytest.raises(LMMError, match="first=3 needs a seed"):
        flc.power(sleep, "Days", n_sim=2, first=3)


def test_blocks_cover_what_is_asked_for():
    def draw(rng, count):
        return rng.standard_normal((count, 2))

    key = key_of(1)
    for first, n, size in ((0, 10, 4), (3, 10, 4), (4, 4, 4), (7, 1, 4), (0, 3, 100)):
        blocks = list(draws(draw, n, key, size, first))
        assert all(isinstance(block, Drawing) and len(block) == len(block()) for block in blocks)
        assert sum(map(len, blocks)) == n and blocks[0].block == first // size
        whole = np.concatenate([draw(stream(key, b), size) for b in range(5)])
        np.testing.assert_array_equal(np.concatenate([block() for block in blocks]), whole[first : first + n])


def test_streams_beside_each_other_do_not_overlap():
    key = key_of(5)
    drawn = [stream(key, 0).random(4000), stream(key, 1).random(4000)]
    drawn += [beside(stream(key, 0), place).random(4000) for place in (1, 2)]
    drawn += [beside(stream(key, 1), 1).random(4000)]
    correlations = np.corrcoef(drawn)[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(4000)
    assert len(np.unique(np.concatenate(drawn))) == 20_000


def test_effects_of_the_draws_have_the_covariances_of_the_model():
    """Each kind of effect comes from a stream of its own: their covariances are still zero, their variances G."""
    formula, name = MODELS["crossed"]
    fit = flc.lmm(formula, flc.datasets.load(name)).fit()
    n = 4000
    y = parametric(fit)(stream(key_of(8), 0), n) - fit.population_mean
    plate, sample = (f.grouping.index for f in sorted(fit.model.factors, key=lambda f: f.grouping.name))
    rows = np.flatnonzero((plate < 2) & (sample < 2))
    wanted = (
        fit.G["plate"][0, 0] * (plate[rows, None] == plate[rows])
        + fit.G["sample"][0, 0] * (sample[rows, None] == sample[rows])
        + fit.sigma2 * np.eye(len(rows))
    )
    found = y[:, rows].T @ y[:, rows] / n
    # the standard error of a covariance of normal variables (Anderson 2003, Multivariate Statistical Analysis, 3.4.4)
    spread = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / n)
    assert np.abs((found - wanted) / spread).max() < 4.5


@pytest.mark.parametrize("seed", [None, np.random.default_rng(0)])
def test_a_place_in_a_stream_that_nobody_knows(seed):
    fit = flc.lmm(*_sleep()).fit()
    for call in (
        lambda: fit.simulate(2, seed, 5), lambda: fit.simulate_fit(2, seed, first=5),
        lambda: fit.bootstrap(2, seed=seed, first=5), lambda: fit.bootstrap(2, "cases", seed=seed, first=5),
    ):  # fmt: skip
        with pytest.raises(LMMError, match="first=5 needs a seed that stands for one stream"):
            call()


@pytest.mark.parametrize("first", [-1, 1.5, "2"])
def test_places_that_are_none(first):
    fit = flc.lmm(*_sleep()).fit()
    for call in (lambda: fit.simulate(2, 1, first), lambda: fit.bootstrap(2, seed=1, first=first)):
        with pytest.raises(LMMError, match="first"):
            call()


def test_parts_travel_between_processes(fit):
    part = fit.simulate_fit(10, 3, first=600)
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again.params, fit.simulate_fit(610, 3).params[600:])
    size = stream_size(parametric(fit), fit.nobs)
    whole = fit.simulate(size + 3, 3)
    np.testing.assert_array_equal(fit.simulate(5, 3, size - 2), whole[size - 2 :])
