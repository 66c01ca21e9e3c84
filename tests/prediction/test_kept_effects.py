"""Predictions and draws with random effects that are kept: BLUPs or given values, on old rows and new."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc

N = 20_000
SLEEP = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def fit():
    return flc.lmm(SLEEP, flc.datasets.load("sleepstudy")).fit()


@pytest.fixture(scope="module")
def crossed():
    rng = np.random.default_rng(3)
    n = 90
    data = {"a": rng.integers(0, 8, n), "b": rng.integers(0, 6, n), "x": rng.standard_normal(n)}
    data["y"] = 1.0 + rng.standard_normal(8)[data["a"]] + rng.standard_normal(6)[data["b"]] + rng.standard_normal(n)
    return flc.lmm("y ~ x + (x | a) + (1 | b)", data, weights=rng.uniform(0.5, 2.0, n)).fit()


def agree(draws: np.ndarray, mean: np.ndarray, V: np.ndarray) -> None:
    """Moments of draws, within 5.5 standard deviations of the mean and of each covariance."""
    sd = np.sqrt(np.diag(V))
    assert np.abs((draws.mean(axis=0) - mean) / sd).max() < 5.5 / np.sqrt(len(draws))
    assert np.abs((np.cov(draws.T) - V) / np.outer(sd, sd)).max() < 5.5 * np.sqrt(2.0 / len(draws))


def test_the_rows_of_the_fit(fit):
    draws = fit.simulate(N, 1, effects="all")
    agree(draws[:, :12], fit.fittedvalues.to_numpy()[:12], fit.sigma2 * np.eye(12))
    np.testing.assert_array_equal(draws[500:600], fit.simulate(100, 1, first=500, effects="all"))
    np.testing.assert_array_equal(draws, fit.simulate(N, 1, random_effects=fit.random_effects))


def test_new_rows_of_old_and_new_subjects(fit):
    data = {"Subject": ["335", "335", "x", "x", "y"], "Days": [0.0, 12.0, 0.0, 12.0, 4.0]}
    b = fit.random_effects.set_index("Subject").loc["335", ["Intercept", "Days"]].to_numpy()
    Z = np.column_stack([np.ones(5), data["Days"]])
    same = np.array(data["Subject"])[:, None] == np.array(data["Subject"])
    new = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    V = (Z @ fit.G["Subject"] @ Z.T) * same * np.outer(new, new) + fit.sigma2 * np.eye(5)
    mean = Z @ fit.beta + (1.0 - new) * (Z @ b)
    agree(fit.simulate(N, 2, data=data, effects="all"), mean, V)
    agree(fit.simulate(N, 3, data=data), Z @ fit.beta, (Z @ fit.G["Subject"] @ Z.T) * same + fit.sigma2 * np.eye(5))
    given = {"Subject": ["x", "335"], "Days": [1.0, -1.0], "Intercept": [5.0, 7.0]}
    shift = np.where(new == 0.0, Z @ [7.0, -1.0], np.where(np.array(data["Subject"]) == "x", Z @ [5.0, 1.0], 0.0))
    last = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    V = (Z @ fit.G["Subject"] @ Z.T) * np.outer(last, last) + fit.sigma2 * np.eye(5)
    agree(fit.simulate(N, 4, data=data, random_effects=given), Z @ fit.beta + shift, V)


def test_one_of_two_factors_is_kept(crossed):
    model = crossed.model
    a, b = (model.factor(name) for name in "ab")
    draws = crossed.simulate(N, 5, effects="a")[:, :15]
    Za = model.exog_re[:15, a.columns]
    effects = crossed.random_effects["a"]
    values = np.column_stack([effects["Intercept"], effects["x"]])[a.grouping.index[:15]]
    mean = model.exog[:15] @ crossed.beta + np.sum(Za * values, axis=1)
    same = b.grouping.index[:15, None] == b.grouping.index[:15]
    agree(draws, mean, crossed.G["b"][0, 0] * same + np.diag(crossed.sigma2 / model.weights[:15]))
    whole = crossed.simulate(50, 6, random_effects=crossed.random_effects)
    np.testing.assert_array_equal(whole, crossed.simulate(50, 6, effects="all"))


def test_predictions_with_given_effects(fit, crossed):
    data = {"Subject": ["335", "337"], "Days": [3.0, 11.0]}
    Z = np.column_stack([np.ones(2), data["Days"]])
    np.testing.assert_allclose(
        fit.predict(data, random_effects=fit.random_effects), fit.predict(data, effects="all"), rtol=1e-12
    )
    part = fit.random_effects.assign(Days=0.0)
    levels = fit.random_effects.set_index("Subject").loc[data["Subject"], "Intercept"].to_numpy()
    found = fit.predict(data, random_effects=part, interval="confidence")
    np.testing.assert_allclose(found["mean"], Z @ fit.beta + levels, rtol=1e-12)
    np.testing.assert_allclose(found["std_error"] ** 2, np.diag(Z @ fit.cov @ Z.T), rtol=1e-9)
    np.testing.assert_allclose(found["df"], fit.predict(data, interval="confidence")["df"])
    new = fit.predict(
        {"Subject": ["335", "new"], "Days": [3.0, 11.0]}, random_effects=part, interval="prediction",
        new_levels="population",
    )  # fmt: skip
    variance = np.diag(Z @ fit.cov @ Z.T) + fit.sigma2 + [0.0, Z[1] @ fit.G["Subject"] @ Z[1]]
    np.testing.assert_allclose(new["std_error"] ** 2, variance, rtol=1e-9)
    both = crossed.random_effects
    np.testing.assert_allclose(crossed.predict(random_effects=both), crossed.fittedvalues, rtol=1e-10)
    np.testing.assert_allclose(
        crossed.predict(random_effects={"a": both["a"]}), crossed.predict(effects="a"), rtol=1e-10
    )
    arrays = flc.LinearMixedModel(fit.model.endog, fit.model.exog, fit.model.exog_re, fit.model.grouping.index).fit()
    np.testing.assert_allclose(arrays.predict(random_effects=arrays.blups[0]), arrays.fittedvalues, rtol=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Subject": ["335"], "Days": [1.0]}, "random_effects has no column 'Intercept'"),
        ({"Subject": ["335", "335"], "Days": [1.0, 2], "Intercept": [0.0, 0]}, "has a level of 'Subject' twice"),
        ({"Subject": ["335"], "Days": [np.nan], "Intercept": [0.0]}, "of '335' are not finite"),
        (np.zeros((17, 2)), r"random_effects must have the shape \(18, 2\)"),
        ("BLUP", "random_effects must"),
    ],
)
def test_refused_effects(fit, given, message):
    with pytest.raises(flc.LMMError, match=message):
        fit.predict(random_effects=given)
    with pytest.raises(flc.LMMError, match=message):
        fit.simulate(2, 1, random_effects=given)


def test_refused(fit, crossed):
    with pytest.raises(flc.LMMError, match="levels of Subject that random_effects does not have: '337'"):
        fit.predict(
            {"Subject": ["337"], "Days": [1.0]},
            random_effects={"Subject": ["335"], "Days": [1.0], "Intercept": [0.0]},
        )
    with pytest.raises(flc.LMMError, match="not both"):
        fit.simulate(2, 1, effects="all", random_effects=fit.random_effects)
    with pytest.raises(flc.LMMError, match="without effects= and observed="):
        fit.predict(effects="all", random_effects=fit.random_effects)
    with pytest.raises(flc.LMMError, match="mapping by grouping factor, of 'a', 'b'"):
        crossed.predict(random_effects=np.zeros((8, 2)))
    with pytest.raises(flc.LMMError, match="the model has weights"):
        crossed.simulate(1, 1, data={"a": [1], "b": [2], "x": [0.0]})
    assert crossed.simulate(3, 1, data={"a": [1], "b": [2], "x": [0.0]}, weights=[2.0]).shape == (3, 1)


def test_a_part_of_the_effects_as_lme4_has_it():
    """predict(m, nd, re.form = ~ (1 | Subject)) and ~ (0 + Days | Subject) of lme4 1.1-31, to its optimum."""
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "pandas")).fit()
    new = {"Subject": ["308", "335"], "Days": [9.0, 9.0]}
    intercepts = result.predict(new, random_effects=result.random_effects.assign(Days=0.0))
    slopes = result.predict(new, random_effects=result.random_effects.assign(Intercept=0.0))
    assert np.asarray(intercepts) == pytest.approx([347.8692440, 345.2769825], abs=2e-5)
    assert np.asarray(slopes) == pytest.approx([428.4014256, 248.8412467], abs=2e-5)
