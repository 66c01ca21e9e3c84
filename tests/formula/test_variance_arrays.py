"""Variance functions from arrays: against the dense criterion, and as formulas have them."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError, Residual, Variance
from oracle_residual import criterion, gradient

N, VISITS = 40, 6

# name, by, formula in `variance=`, structure; by arms and with columns of their own
CASES = [
    ("power", False, "power(x)", None),
    ("power", True, "power(x, by=arm)", "car1(t | g)"),
    ("exp", True, "exp(x, by=arm)", "ar1(v | g)"),
    ("constpower", False, "constpower(x)", "cs(v | g)"),
    ("constprop", False, "constprop(x)", "ar1(v | g)"),
    ("log-linear", False, "~ 0 + arm + x", "us(v | g)"),
    ("log-linear", False, "~ 0 + arm + x", None),
]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    g, v = np.repeat(np.arange(N), VISITS), np.tile(np.arange(VISITS), N)
    x, arm = rng.uniform(0.5, 4.0, N * VISITS), np.where(g % 2, "b", "a")
    t = v + rng.uniform(-0.3, 0.3, len(v))
    y = 1.0 + x + rng.normal(size=N)[g] + x**0.7 * rng.normal(size=len(v))
    frame = pd.DataFrame({"y": y, "x": x, "v": v, "t": t, "g": g, "arm": arm, "w": rng.uniform(1.0, 2.0, len(v))})
    return frame[rng.random(len(v)) < 0.85].reset_index(drop=True)


def residual_of(name, by, structure, frame):
    wide = np.column_stack([frame.arm == "a", frame.arm == "b", frame.x]).astype(float)
    covariate = wide if name == "log-linear" else frame.x.to_numpy()
    variance = Variance(name, covariate, by=frame.arm.to_numpy() if by else None)
    if structure is None:
        return variance
    time = frame.t if "t |" in structure else frame.v
    return Residual(structure.partition("(")[0], frame.g.to_numpy(), time.to_numpy(), variance=variance)


def arrays_of(case, frame, random, weights=False):
    name, by, _, structure = case
    X = np.column_stack([np.ones(len(frame)), frame.x])
    effects = {"Z": np.ones(len(frame)), "groups": frame.g.to_numpy()} if random else {}
    given = {"residual": residual_of(name, by, structure, frame), **effects}
    return flc.LinearMixedModel(frame.y.to_numpy(), X, weights=frame.w.to_numpy() if weights else None, **given)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[3]}")
@pytest.mark.parametrize(("random", "weights", "reml"), [(False, True, True), (True, False, False)])
def test_the_optimum_is_that_of_the_dense_criterion(data, case, random, weights, reml):
    if random and case[3] is not None and case[3][:2] in ("us", "cs"):
        pytest.skip("contains the random effects")
    model = arrays_of(case, data, random, weights)
    fit = model.fit(reml=reml)
    assert fit.converged
    G = fit.G["group"] / fit.sigma2 if random else None
    value = criterion(fit.model, fit.phi, reml, G)
    np.testing.assert_allclose(fit.criterion, value, rtol=1e-10)
    slope = gradient(lambda phi: criterion(fit.model, phi, reml, G), fit.phi)
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[3]}")
def test_formulas_and_arrays_agree(data, case):
    fit = arrays_of(case, data, False).fit()
    written = flc.lmm("y ~ x", data, residual=case[3], variance=case[2]).fit()
    np.testing.assert_allclose(fit.criterion, written.criterion, rtol=1e-12)
    np.testing.assert_allclose(fit.phi, written.phi, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fit.df, written.df, rtol=1e-6)
    new = data.iloc[:7].assign(g=data.g.iloc[:7] + 1000)
    X = np.column_stack([np.ones(7), new.x])
    one = fit.predict({"X": X, "residual": residual_of(*case[:2], case[3], new)}, "population", interval="prediction")
    two = written.predict(new, "population", interval="prediction")
    for name in ("mean", "std_error", "df"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=lambda c: f"{c[0]}-{c[3]}")
def test_files_and_pickles(data, case, tmp_path):
    fit = arrays_of(case, data, False).fit()
    fit.save(tmp_path / "fit.lmm")
    new = data.iloc[:5]
    rows = {"X": np.column_stack([np.ones(5), new.x]), "residual": residual_of(*case[:2], case[3], new)}
    expected = fit.predict(rows, "population", interval="prediction")["std_error"]
    for other in (flc.load(tmp_path / "fit.lmm"), pickle.loads(pickle.dumps(fit))):
        assert other.criterion == fit.criterion
        found = other.predict(rows, "population", interval="prediction")["std_error"]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_names_of_columns(data):
    wide = pd.DataFrame({"base": data.x, "late": (data.v > 2).astype(float)})
    X = np.ones((len(data), 1))
    fit = flc.LinearMixedModel(data.y.to_numpy(), X, residual=Variance("log-linear", wide)).fit()
    assert list(fit.residual_parameters()["term"])[1:] == ["logsd_base", "logsd_late"]


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        (lambda x: Variance("pwr", x), "there is no function 'pwr'"),
        (lambda x: Variance("power", x - x), "is zero in all rows"),
        (lambda x: Variance("power", np.where(np.arange(len(x)) == 3, 0.0, x)), "use constpower or constprop"),
        (lambda x: Variance("power", x[:-1]), "residual.variance.covariate has 9 values but y has 10"),
        (lambda x: Variance("exp", np.column_stack([x, x])), '2 columns, and exp takes one; "log-linear" takes more'),
        (lambda x: Variance("log-linear", np.ones(len(x))), "no column that varies"),
        (lambda x: Variance("log-linear", x, by=x > 2), "give .log-linear. columns by group"),
    ],
)
def test_what_is_refused(variance, message):
    x = np.linspace(1.0, 3.0, 10)
    with pytest.raises(LMMError, match=message):
        flc.LinearMixedModel(x**2, np.ones((10, 1)), residual=variance(x))


def test_rows_of_another_variance_are_refused(data):
    fit = arrays_of(CASES[1], data, False).fit()
    X, g, t, x = np.ones((3, 2)), np.arange(3), np.arange(3.0), np.full(3, 2.0)
    for residual, message in (
        (Residual("car1", g, t), r"the model has the variance function power\(covariate, by=by\)"),
        (Residual("car1", g, t, variance=Variance("exp", x)), "is 'exp', and the variance of the model 'power"),
        (Residual("car1", g, t, variance=Variance("power", x)), "has no by"),
        (Residual("car1", g, t, variance=Variance("power", x, by=["z"] * 3)), "by z is not among those of the fit"),
        (Variance("power", x), "is of type 'Variance'; give Residual"),
    ):
        with pytest.raises(LMMError, match=message):
            fit.predict({"X": X, "residual": residual}, "population", interval="prediction")
