"""Models and results survive pickling: everything that can be asked of them has the same answer afterwards."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastlmm_core as flc

FORMULA = "Reaction ~ Days + (Days | Subject)"


def from_formula():
    return flc.lmm(FORMULA, flc.datasets.load("sleepstudy", "dict"))


def with_transforms():
    data = flc.datasets.load("machines", "pandas")
    return flc.lmm("score ~ C(Machine) + (1 | Worker)", data)


def from_arrays():
    rng = np.random.default_rng(8)
    groups = rng.integers(5, 25, 200)
    x = rng.standard_normal(200)
    y = x + rng.standard_normal(30)[groups] + rng.standard_normal(200)
    X = np.column_stack([np.ones(200), x])
    return flc.LinearMixedModel(y, X, X, groups, weights=rng.uniform(0.5, 2.0, 200), offset=rng.standard_normal(200))


MODELS = [from_formula, with_transforms, from_arrays]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    return request.param()


def round_trips(value):
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        yield pickle.loads(pickle.dumps(value, protocol=protocol))
    yield copy.deepcopy(value)


def assert_same(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_model(model):
    theta = model.fit().theta
    for at in (theta, 0.5 * theta):
        model.evaluate(at, order=2)  # leaves compiled state behind that cannot be pickled
    for again in round_trips(model):
        assert repr(again) == repr(model)
        for order in (0, 2):
            first, second = model.evaluate(0.7 * theta, order=order), again.evaluate(0.7 * theta, order=order)
            assert first.value == second.value
        np.testing.assert_array_equal(first.gradient, second.gradient)
        np.testing.assert_array_equal(first.hessian, second.hessian)
        assert again.fit(reml=False).criterion == model.fit(reml=False).criterion


@pytest.mark.parametrize("used", [False, True])
def test_result(model, used):
    result = model.fit()
    if used:  # fills the caches
        result.summary()
        result.tidy("ran_vals")
    for again in round_trips(result):
        assert str(again.summary()) == str(result.summary())
        for name in ("params", "bse", "G", "random_effects", "fittedvalues", "theta"):
            assert_same(getattr(result, name), getattr(again, name))
        for kind in ("conditional", "prediction"):
            assert_same(result.random_effects_covariance(kind), again.random_effects_covariance(kind))
        assert_same(result.simulate(2, seed=1), again.simulate(2, seed=1))
        for name in ("criterion", "sigma2", "aic", "bic", "converged", "singular", "message", "gradient_norm"):
            assert getattr(result, name) == getattr(again, name)


def test_prediction_by_a_pickled_result():
    frame = flc.datasets.load("machines", "pandas")
    result = with_transforms().fit()
    for again in round_trips(result):
        for effects in ("population", "all"):
            assert_same(result.predict(frame[:5], effects=effects), again.predict(frame[:5], effects=effects))


def test_summary():
    summary = from_formula().fit().summary()
    assert pickle.loads(pickle.dumps(summary)) == summary
