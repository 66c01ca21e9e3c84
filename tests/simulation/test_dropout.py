"""Who leaves a simulated study: distributions, streams, and the fits of what is observed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

import fastlmm_core as flc
from fastlmm_core import Dropout

# Monte Carlo: standard errors that a correct program exceeds in one of 15,000 tests.
FAR = 4.0


@pytest.fixture(scope="module")
def trial():
    """Forty patients at five months, rows in no order, two arms."""
    rows = np.random.default_rng(5).permutation(200)
    design = {
        "patient": np.repeat(np.arange(40), 5)[rows],
        "month": np.tile([0.0, 3.0, 6.0, 9.0, 12.0], 40)[rows],
        "visit": np.tile(["a", "b", "c", "d", "e"], 40)[rows],
        "drug": np.repeat(np.arange(40) % 2, 5)[rows].astype(float),
    }
    return flc.assume("y ~ month * drug + (1 | patient)", design, [50.0, -0.5, 0.0, 0.3], 64.0, 36.0), design


def by_patient(design, Y):
    """(draws, patients, visits)."""
    return Y[:, np.lexsort((design["month"], design["patient"]))].reshape(len(Y), 40, 5)


@pytest.mark.parametrize("rate", [0.2, [0.1, 0.3, 0.0, 0.5]])
def test_missing_completely_at_random(trial, rate):
    source, design = trial
    Y = source.simulate(500, seed=1, dropout=Dropout(rate, visit="month"))
    seen = ~np.isnan(by_patient(design, Y))
    assert (np.diff(seen.astype(int), axis=2) <= 0).all()
    expected = np.cumprod(1.0 - np.append(0.0, np.broadcast_to(rate, 4)))
    share = seen.mean(axis=(0, 1))
    assert (np.abs(share - expected) <= FAR * np.sqrt(expected * (1.0 - expected) / 20_000)).all()
    whole = source.simulate(500, seed=1)
    np.testing.assert_array_equal(Y[~np.isnan(Y)], whole[~np.isnan(Y)])


@pytest.mark.parametrize("monotone", [True, False])
def test_missing_at_random(trial, monotone):
    """Leaving follows the logistic model of the last response that was observed, and of nothing else."""
    source, design = trial
    model = Dropout(0.15, slope=-0.15, centre=48.0, visit="visit", monotone=monotone)
    observed = by_patient(design, source.simulate(800, seed=2, dropout=model))
    whole = by_patient(design, source.simulate(800, seed=2))
    last = whole[:, :, 0].copy()
    away = np.zeros(last.shape, dtype=bool)
    score = []
    for j in range(1, 5):
        at_risk = ~away if monotone else np.ones_like(away)
        left = np.isnan(observed[:, :, j])
        assert left[~at_risk].all()
        hazard = 1.0 / (1.0 + np.exp(-(np.log(0.15 / 0.85) - 0.15 * (last - 48.0))))
        gap = (left - hazard)[at_risk]
        variance = (hazard * (1.0 - hazard))[at_risk]
        for weight in (np.ones_like(gap), last[at_risk] - 48.0, (last[at_risk] - 48.0) ** 2, whole[:, :, j][at_risk]):
            # the response that is missed tells nothing more: its weight has mean zero too
            score.append((weight * gap).sum() / np.sqrt((weight**2 * variance).sum()))
        away = left
        last = np.where(left, last, whole[:, :, j])
    assert np.abs(score).max() < FAR


def test_several_rows_of_a_visit_go_together():
    patient, visit = np.repeat(np.arange(30), 6), np.tile([0, 0, 1, 1, 2, 2], 30)
    model = flc.LinearMixedModel(None, np.column_stack([np.ones(180), visit]), None, patient)
    source = flc.assume(model, params=[1.0, 0.5], G=1.0, sigma2=1.0)
    dropout = Dropout(0.3, slope=5.0, centre=0.0, visit=visit)
    Y = source.simulate(200, seed=4, dropout=dropout).reshape(200, 30, 3, 2)
    assert (np.isnan(Y[..., 0]) == np.isnan(Y[..., 1])).all()
    whole = source.simulate(200, seed=4).reshape(200, 30, 3, 2)
    left = np.isnan(Y[:, :, 1, 0])
    mean = whole[:, :, 0].mean(axis=2)
    assert left[mean > 2.0].mean() > 0.99
    assert left[mean < -2.0].mean() < 0.01


def test_streams_do_not_depend_on_parts_or_threads(trial):
    source, _ = trial
    dropout = Dropout(0.2, slope=0.05, visit="month")
    Y = source.simulate(150, seed=6, dropout=dropout)
    parts = [source.simulate(70, seed=6, dropout=dropout), source.simulate(80, seed=6, first=70, dropout=dropout)]
    np.testing.assert_array_equal(Y, np.concatenate(parts))
    one, two = (source.simulate_fit(150, seed=6, dropout=dropout, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.params, two.params)
    np.testing.assert_array_equal(one.criterion, two.criterion)
    for i in (0, 77, 149):
        kept = ~np.isnan(Y[i])
        single = flc.LinearMixedModel.of(source.model.design.rows(np.flatnonzero(kept)), Y[i, kept]).fit()
        assert one.criterion[i] == pytest.approx(single.criterion, abs=1e-7)
        np.testing.assert_allclose(one.params[i], single.beta, atol=1e-6)


def test_estimates_are_without_bias_at_random(trial):
    """Likelihood ignores how data are lost at random; means of what is observed do not."""
    source, design = trial
    dropout = Dropout(0.25, slope=-0.2, visit="month")
    batch = source.simulate_fit(1500, seed=7, dropout=dropout)
    study = batch.summarise(source)
    assert (np.abs(study.bias[:4]) < FAR * study.mcse["bias"][:4]).all()
    assert abs(study.cover[3] - 0.95) < FAR * study.mcse["cover"][3]
    means = np.nanmean(by_patient(design, source.simulate(300, seed=7, dropout=dropout)), axis=(0, 1))
    expected = 50.0 - 0.5 * 12.0 + 0.5 * 0.3 * 12.0
    assert means[4] > expected + 1.0


def test_power_is_that_of_the_fits(trial):
    source, _ = trial
    dropout = Dropout(0.2, slope=0.05, visit="month")
    for method in ("wald", "lrt"):
        found = flc.power(source, "month:drug", n_sim=60, seed=8, method=method, dropout=dropout)
        Y = source.simulate(60, seed=8, dropout=dropout)
        for i in (0, 31):
            kept = np.flatnonzero(~np.isnan(Y[i]))
            design = source.model.design.rows(kept)
            model = flc.LinearMixedModel.of(design, Y[i, kept])
            if method == "wald":
                expected = model.fit().test("month:drug").pvalue
            else:
                null = flc.LinearMixedModel.of(design.columns([0, 1, 2]), Y[i, kept])
                gap = null.fit(reml=False).criterion - model.fit(reml=False).criterion
                expected = float(chi2.sf(gap, 1))
            assert found.pvalues[i] == pytest.approx(expected, rel=1e-4)


def test_curves(trial):
    source, _ = trial
    curve = flc.power_curve(source, "month:drug", along="dropout", values=[0.0, 0.5], n_sim=400, seed=9)
    assert curve.power[0] > curve.power[1] + 0.1
    model = Dropout(0.0, slope=0.05, visit="month")
    grid = flc.power_curve(
        source, "month:drug", along=["subjects", "dropout"], values=[[20, 60], [0.1, 0.4]], n_sim=200, seed=9,
        dropout=model,
    )  # fmt: skip
    assert grid.power.shape == (2, 2)
    assert (grid.power[1] > grid.power[0]).all()
    assert set(grid.to_frame()) >= {"subjects", "dropout", "power"}


def test_structured_residuals():
    rng = np.random.default_rng(10)
    design = {
        "patient": np.repeat(np.arange(40), 4), "visit": np.tile(["a", "b", "c", "d"], 40),
        "drug": np.repeat(np.arange(40) % 2, 4).astype(float), "y": rng.standard_normal(160),
    }  # fmt: skip
    fit = flc.mmrm("y ~ drug * visit + us(visit | patient)", design).fit()
    dropout = Dropout(0.2, slope=0.5, visit="visit")
    found = flc.power(fit, "drug", n_sim=5, seed=11, dropout=dropout)
    assert found.n_converged == 5
    Y = fit.simulate(5, seed=11, dropout=dropout)
    assert np.isnan(Y).any()
    kept = np.flatnonzero(~np.isnan(Y[2]))
    data = {name: values[kept] for name, values in design.items()} | {"y": Y[2, kept]}
    assert found.pvalues[2] == pytest.approx(
        flc.mmrm("y ~ drug * visit + us(visit | patient)", data).fit().test("drug").pvalue, rel=1e-5
    )
    batch = fit.simulate_fit(5, seed=11, dropout=dropout)
    assert batch.nobs[2] == len(kept)


def test_refusals(trial):
    source, _ = trial
    for given in (1.0, -0.1, [[0.1]], float("nan")):
        with pytest.raises(flc.LMMError, match="rate"):
            Dropout(given)
    with pytest.raises(flc.LMMError, match="slope=inf must be finite"):
        Dropout(0.1, slope=float("inf"))
    with pytest.raises(flc.LMMError, match="visit='week' is a column neither"):
        source.simulate(2, dropout=Dropout(0.1, visit="week"))
    with pytest.raises(flc.LMMError, match="rate has 2 values; the design has 5 visits"):
        source.simulate(2, dropout=Dropout([0.1, 0.1], visit="month"))
    with pytest.raises(flc.LMMError, match="visit must hold 200 finite numbers"):
        source.simulate(2, dropout=Dropout(0.1, visit=[1.0, 2.0]))
    with pytest.raises(flc.LMMError, match="subject='clinic' is not a grouping factor"):
        source.simulate(2, dropout=Dropout(0.1, subject="clinic"))
    with pytest.raises(flc.LMMError, match="dropout is of the rows of the model"):
        source.simulate(2, data={"month": [0.0], "drug": [0.0], "patient": [1]}, dropout=Dropout(0.1))
    with pytest.raises(flc.LMMError, match="dropout is for tests of fixed effects"):
        flc.power(source, "sd_Intercept|patient", dropout=Dropout(0.1))
    crossed = flc.assume(
        "y ~ 1 + (1 | a) + (1 | b)", {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]}, [0.0], {"a": 1.0, "b": 1.0}, 1.0
    )
    with pytest.raises(flc.LMMError, match="of the grouping factors a, b, whose levels leave"):
        crossed.simulate(2, dropout=Dropout(0.1))
    assert np.isnan(crossed.simulate(50, seed=1, dropout=Dropout(0.5, subject="a"))[:, [1, 3]]).any()
