"""A residual variance that is known beside rows that are not held: the numbers of rows in memory, and dense algebra."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.nested.problem import NestedProblem
from streamed import FORMULA, client_of, close, cut, frame_of, same_bits, simulated

DENSE = 1e-9
"""Criteria, absolute: sums of some hundred terms of order 1 to 10."""


def weighted(n=3000, m=60, shuffled=False):
    return simulated(n, m, shuffled=shuffled).assign(w=lambda d: 1.0 + np.abs(d["z"]), o=lambda d: 0.1 * d["z"])


def studies(n=240, per=4, seed=3):
    """Estimates with sampling variances v = 1 / w, some of each study."""
    rng = np.random.default_rng(seed)
    effect, v, x = np.arange(n), rng.uniform(0.2, 2.0, n), rng.normal(size=n)
    study = effect // per
    y = 0.3 + 0.2 * x + 0.7 * rng.normal(size=n)[study] + 0.4 * rng.normal(size=n) + np.sqrt(v) * rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "w": 1.0 / v, "effect": effect, "study": study, "lab": effect % 7})


def deviance(data, X, parts, reml):
    """Minus twice the log-likelihood where V = diag(v) + sum of tau2 [same level], at the coefficients of GLS."""
    y, V = data["y"].to_numpy(), np.diag(1.0 / data["w"].to_numpy())
    for tau2, levels in parts:
        V = V + tau2 * (levels[:, None] == levels)
    inverse = np.linalg.inv(V)
    information = X.T @ inverse @ X
    rest = y - X @ np.linalg.solve(information, X.T @ inverse @ y)
    value = np.linalg.slogdet(V)[1] + rest @ inverse @ rest + (len(y) - reml * X.shape[1]) * np.log(2.0 * np.pi)
    return value + reml * np.linalg.slogdet(information)[1]


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", [FORMULA, "y ~ z + (1 | g)", "y ~ x + (x || g)"])
def test_pieces_have_the_bits_of_memory(formula, weights):
    data = weighted()
    one = flc.lmm(formula, data, weights=weights, sigma=1.3)
    other = flc.lmm(formula, flc.scan(cut(data, 700)), weights=weights, sigma=1.3)
    assert other.sigma == 1.3 and other.design.passes == 1
    for reml in (True, False):
        a, b = one.fit(reml), other.fit(reml)
        same_bits(a, b)
        assert b.converged and b.sigma == 1.3 and b.n_parameters == a.n_parameters
        np.testing.assert_array_equal(np.asarray(b.conf_int()), np.asarray(a.conf_int()))


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + (1 | effect)", "y ~ x + (1 | study)", "y ~ x + (1 | study/effect)",
        "y ~ x + (x | study) + (1 | effect)", "y ~ 1 + (1 | study) + (1 | lab)",
    ],
)  # fmt: skip
def test_meta_analyses(formula, once):
    data = studies()
    source = iter(cut(data, 70)) if once else cut(data, 70)
    one = flc.lmm(formula, data, weights="w", sigma=1.0).fit()
    other = flc.lmm(formula, flc.scan(source), weights="w", sigma=1.0).fit()
    close(one, other)
    assert other.converged and (not once or other.model.design.passes == 1)


@pytest.mark.parametrize("reml", [True, False])
def test_levels_in_levels_against_dense_algebra(reml):
    data = studies()
    model = flc.lmm("y ~ x + (1 | study/effect)", flc.scan(cut(data, 70)), weights="w", sigma=1.0)
    assert isinstance(model.problem, NestedProblem)
    X = np.column_stack([np.ones(len(data)), data["x"]])
    levels = {"study": data["study"].to_numpy(), "study:effect": data["effect"].to_numpy()}
    fit = model.fit(reml)
    found = [(float(G[0, 0]), levels[name]) for name, G in fit.G.items()]
    assert fit.criterion == pytest.approx(deviance(data, X, found, reml), abs=DENSE)
    for change in (0.98, 1.02):
        for i in range(2):
            moved = [(tau2 * (change if j == i else 1.0), own) for j, (tau2, own) in enumerate(found)]
            assert deviance(data, X, moved, reml) > fit.criterion + 1e-6


@pytest.mark.parametrize("formula", ["y ~ x + (1 | effect)", "y ~ x + (1 | study)", "y ~ x + (1 | study/effect)"])
def test_a_response_that_the_fixed_effects_reproduce(formula):
    data = studies().assign(y=lambda d: 0.3 + 2.0 * d["x"])
    model = flc.lmm(formula, flc.scan(cut(data, 70)), weights="w", sigma=1.0)
    X = np.column_stack([np.ones(len(data)), data["x"]])
    for reml in (True, False):
        fit = model.fit(reml)
        assert fit.converged and fit.singular and not any(G.any() for G in fit.G.values())
        assert fit.criterion == pytest.approx(deviance(data, X, [], reml), abs=DENSE)
        np.testing.assert_allclose(fit.beta, [0.3, 2.0], rtol=1e-9)
    # so that digits of r^2 do not matter, n is added to it
    assert model.problem.alone == len(data)
    # without x it is not reproduced: the estimate is no longer at zero
    tested = model.fit(False).drop1()
    smaller = flc.lmm(formula.replace("x", "1"), data, weights="w", sigma=1.0).fit(False)
    assert not smaller.singular or "/" in formula
    assert tested.rows[1].statistic == pytest.approx(smaller.criterion - model.fit(False).criterion, abs=1e-7)
    if "/" not in formula:
        drawn = fit.bootstrap(40, statistic=lambda one: [*one.beta, one.criterion], seed=1).replicates
        # of draws with error variance v alone, coefficients have the covariance of weighted least squares
        expected = np.sqrt(np.diag(np.linalg.inv(X.T @ (X * data["w"].to_numpy()[:, None]))))
        np.testing.assert_allclose(drawn[:, :2].std(axis=0), expected, rtol=0.35)
        # and weighted squares a sum of n - 2, with a standard deviation of 22
        assert drawn[:, 2].mean() - fit.criterion == pytest.approx(len(data) - 2, abs=15.0)


@pytest.fixture(scope="module")
def fits():
    data, formula = weighted(), "y ~ arm * z + x + (x | g)"
    made = [flc.lmm(formula, source, weights="w", sigma=1.3) for source in (data, flc.scan(cut(data, 700)))]
    return data, [model.fit() for model in made], [model.fit(False) for model in made]


def test_what_is_told_without_rows(fits):
    data, (one, other), (one_ml, other_ml) = fits
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_array_equal(np.asarray(other.conf_int(ddf=ddf)), np.asarray(one.conf_int(ddf=ddf)))
    a, b = one_ml.profile().to_frame(), other_ml.profile().to_frame()
    assert list(a["term"]) == list(b["term"]) and "sigma" not in set(b["term"])
    for name in a.select_dtypes(float):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-9)
    np.testing.assert_allclose(other.variance_components().std_error, one.variance_components().std_error, rtol=1e-9)
    new = data.iloc[:9]
    np.testing.assert_allclose(
        other.predict(new, interval="prediction"), one.predict(new, interval="prediction"), rtol=1e-9
    )
    assert "known" in str(other.summary())
    same_bits(other, pickle.loads(pickle.dumps(other)))
    assert other.update(". ~ . - arm:z", flc.scan(cut(data, 700))).sigma == 1.3


def test_terms_are_left_out_beside_the_known_variance(fits):
    _, _, (one, other) = fits
    for a, b in zip(one.drop1().rows, other.drop1().rows, strict=True):
        np.testing.assert_allclose([b.deviance, b.aic], [a.deviance, a.aic], rtol=1e-10)
        if a.pvalue is not None:
            np.testing.assert_allclose([b.statistic, b.pvalue], [a.statistic, a.pvalue], rtol=1e-6)


def test_draws_keep_the_known_variance(fits):
    found = fits[1][1].bootstrap(20, seed=1)
    np.testing.assert_allclose(found.replicates[:, -1], 1.3)
    power = flc.power(fits[2][1], "arm[T.b]", n_sim=30, seed=1, method="lrt", effect=0.2)
    assert 0.0 < power.power < 1.0


def test_comparisons(fits):
    data, (one, other), _ = fits
    smaller = [
        flc.lmm("y ~ arm * z + x + (1 | g)", source, weights="w", sigma=1.3).fit()
        for source in (data, flc.scan(cut(data, 700)))
    ]
    a, b = flc.compare(smaller[0], one).rows[1], flc.compare(smaller[1], other).rows[1]
    np.testing.assert_allclose([b.statistic, b.pvalue], [a.statistic, a.pvalue], rtol=1e-9)
    free = flc.lmm("y ~ arm * z + x + (1 | g)", flc.scan(cut(data, 700)), weights="w").fit()
    with pytest.raises(flc.LMMError, match="differ in sigma"):
        flc.compare(free, other)


def test_sums_of_a_plan_serve_any_sigma():
    data = weighted(shuffled=True)
    plan = flc.plan(FORMULA, data, weights="w")
    total = flc.merge([plan.reduce(part, key=i) for i, part in enumerate(cut(data, 700))])
    for sigma in (None, 0.8, 1.3):
        found = flc.lmm(plan, total, sigma=sigma).fit()
        close(found, flc.lmm(FORMULA, data, weights="w", sigma=sigma).fit())
        assert found.model.sigma == sigma
    # estimates with sampling variances leave nothing within groups, so that the rows are needed again
    data = studies()
    plan = flc.plan("y ~ x + (1 | effect)", data, weights="w")
    total = plan.reduce(data, key=0)
    with pytest.raises(flc.LMMError, match=r"give them too, lmm\(plan, total, source=...\)"):
        flc.lmm(plan, total, sigma=1.0)
    found = flc.lmm(plan, total, source=data, sigma=1.0).fit()
    close(found, flc.lmm("y ~ x + (1 | effect)", data, weights="w", sigma=1.0).fit())


def test_data_frames_of_dask():
    dask = pytest.importorskip("dask")
    pytest.importorskip("dask.dataframe")
    data = weighted(shuffled=True)
    with dask.config.set(scheduler="synchronous"):
        found = flc.lmm(FORMULA, frame_of(cut(data, 700)), weights="w", sigma=1.3).fit()
    close(found, flc.lmm(FORMULA, data, weights="w", sigma=1.3).fit())


def test_groups_that_stay_with_workers():
    pytest.importorskip("distributed")
    data = weighted(1200, 48, shuffled=True).assign(h=lambda d: d["g"] // 12)
    with client_of() as client:
        for formula in ("y ~ z + (1 | g)", "y ~ z + (1 | h/g)"):
            frame = frame_of(cut(data, 600))
            found = flc.lmm(formula, frame, weights="w", sigma=1.3, client=client, buckets=2).fit()
            assert found.converged and found.sigma == 1.3
            close(found, flc.lmm(formula, data, weights="w", sigma=1.3).fit(), 1e-11)
        data = studies()
        with pytest.raises(flc.LMMError, match=r"nearly all of y varies between groups; .*fit without buckets="):
            flc.lmm("y ~ x + (1 | effect)", frame_of(cut(data, 120)), weights="w", sigma=1.0, client=client, buckets=2)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_standard_deviation_is_refused(sigma):
    data = weighted(300, 10)
    with pytest.raises(flc.LMMError, match=r"positive number, .*weights=1/v"):
        flc.lmm(FORMULA, flc.scan(data), sigma=sigma)


def test_what_is_refused():
    data = weighted()
    with pytest.raises(flc.LMMError, match="sigma must be a number"):
        flc.lmm(FORMULA, flc.scan(data), sigma="1")
    with pytest.raises(flc.LMMError, match="sigma is for free variances and covariances"):
        flc.lmm("y ~ x + cs(x | g)", flc.scan(data), sigma=1.0)
    data = studies().assign(other=lambda d: d["effect"])
    both = flc.lmm("y ~ x + (1 | effect) + (1 | other)", flc.scan(data), sigma=1.0)
    with pytest.raises(flc.LMMError, match="cannot be told apart"):
        both.fit()
