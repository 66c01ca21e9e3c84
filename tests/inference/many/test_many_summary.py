"""Summaries of simulation studies: figures one by one, and Monte Carlo errors against studies that are repeated."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.inference.many.summary import MEASURES


@pytest.fixture(scope="module")
def source():
    g = np.repeat(np.arange(12), 5)
    design = {"g": g, "x": np.tile(np.arange(5.0), 12), "arm": (g % 2) * 1.0}
    return flc.assume("y ~ x + arm + (1 | g)", design, [1.0, 0.3, 0.0], [[0.8]], 1.0)


def test_figures(source):
    batch = source.simulate_fit(150, 3)
    found = batch.summarise(source, level=0.9, alpha=0.1)
    assert found.names == ("Intercept", "x", "arm", "sd_Intercept|g", "sigma") and (found.n, found.n_lost) == (150, 0)
    np.testing.assert_allclose(found.truth, [1.0, 0.3, 0.0, np.sqrt(0.8), 1.0])
    rows = batch.tidy(0.9)
    n = 150
    for j, name in enumerate(found.names[:3]):
        mine = [i for i, term in enumerate(rows["term"]) if term == name]
        column = {k: np.asarray(rows[k])[mine] for k in rows}
        est, se, truth = column["estimate"], column["std_error"], found.truth[j]
        mean = sum(est) / n
        emp = np.sqrt(sum((e - mean) ** 2 for e in est) / (n - 1))
        mse = sum((e - truth) ** 2 for e in est) / n
        model = np.sqrt(sum(s**2 for s in se) / n)
        var_of_var = sum((s**2 - model**2) ** 2 for s in se) / (n - 1)
        inside = np.mean([lo <= truth <= hi for lo, hi in zip(column["conf_low"], column["conf_high"], strict=True)])
        near = np.mean([lo <= mean <= hi for lo, hi in zip(column["conf_low"], column["conf_high"], strict=True)])
        power = np.mean(column["p_value"] < 0.1)
        wanted = {
            "bias": (mean - truth, np.sqrt(sum((e - mean) ** 2 for e in est) / (n * (n - 1)))),
            "emp_se": (emp, emp / np.sqrt(2 * (n - 1))),
            "mse": (mse, np.sqrt(sum(((e - truth) ** 2 - mse) ** 2 for e in est) / (n * (n - 1)))),
            "model_se": (model, np.sqrt(var_of_var / (4 * n * model**2))),
            "relative_error": (
                100 * (model / emp - 1),
                100 * model / emp * np.sqrt(var_of_var / (4 * n * model**4) + 1 / (2 * (n - 1))),
            ),
            "cover": (inside, np.sqrt(inside * (1 - inside) / n)),
            "bias_eliminated_cover": (near, np.sqrt(near * (1 - near) / n)),
            "rejection": (power, np.sqrt(power * (1 - power) / n)),
        }
        assert set(wanted) == set(MEASURES)
        for measure, (value, error) in wanted.items():
            np.testing.assert_allclose(getattr(found, measure)[j], value, rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(found.mcse[measure][j], error, rtol=1e-10)
    sd = np.asarray(batch.to_frame()["sd_Intercept|g"])
    np.testing.assert_allclose(found.bias[3], sd.mean() - np.sqrt(0.8), rtol=1e-12)
    assert np.isnan(found.cover[3:]).all()
    assert "coverage of 90 %" in str(found) and "rejection_mcse" in found.to_frame()


def test_monte_carlo_errors_are_those_of_repeated_studies(source):
    """The standard deviation of each figure over 400 studies, whose own error is some 4 %."""
    whole = source.simulate_fit(400 * 60, 5)
    studies = [whole[60 * i : 60 * i + 60].summarise(source) for i in range(400)]
    for measure in MEASURES:
        values = np.array([getattr(study, measure)[:3] for study in studies])
        errors = np.sqrt(np.mean([study.mcse[measure][:3] ** 2 for study in studies], axis=0))
        np.testing.assert_allclose(values.std(axis=0), errors, rtol=0.16)


def test_ways_to_give_the_truth(source):
    batch = source.simulate_fit(50, 1)
    whole = batch.summarise(source)
    some = batch.summarise({"x": 0.3, "sigma": 1.0})
    np.testing.assert_allclose(some.bias[[1, 4]], whole.bias[[1, 4]])
    assert np.isnan(some.bias[0]) and np.isnan(some.cover[0]) and not np.isnan(some.rejection[0])
    np.testing.assert_allclose(batch.summarise([1.0, 0.3, 0.0]).bias[:3], whole.bias[:3])
    # a model that has more than the one that generates: slopes whose variance is zero
    wide = flc.lmm("y ~ x + arm + (x || g)", {"y": source.simulate(1, 2)[0], **_design(source)})
    found = source.simulate_fit(50, 1, fit=wide).summarise(source)
    assert found.truth[found.names.index("sd_x|g")] == 0.0
    for truth, message in (({"z": 1.0}, "there is no 'z'"), ([1.0, 2.0], "of the 3 coefficients")):
        with pytest.raises(LMMError, match=message):
            batch.summarise(truth)
    with pytest.raises(LMMError, match="two certified fits"):
        batch[:1].summarise(source)
    with pytest.raises(LMMError, match="alpha=2"):
        batch.summarise(source, alpha=2.0)


def _design(source):
    g = source.model.grouping.index
    return {"x": source.model.exog[:, 1], "arm": source.model.exog[:, 2], "g": g}


@pytest.mark.parametrize("dropout", [None, 0.1])
@pytest.mark.parametrize("effects", ["", " + (1 | g)"])
def test_studies_of_structured_residuals(dropout, effects):
    rng = np.random.default_rng(7)
    g, visit = np.repeat(np.arange(40), 4), np.tile(np.arange(4), 40)
    data = {"g": g, "visit": visit, "arm": (g % 2) * 1.0, "y": rng.normal(size=40)[g] + rng.normal(size=160)}
    structure = "ar1(visit | g)" if effects else "us(visit | g)"
    source = flc.lmm("y ~ visit + arm" + effects, data, residual=structure).fit()
    more = {} if dropout is None else {"dropout": flc.Dropout(dropout, visit="visit")}
    batch = source.simulate_fit(40, seed=2, **more)
    found = batch.summarise(source)
    good = batch.converged
    # no standard deviation is that of all residuals
    assert found.names == ("Intercept", "visit", "arm", *(["sd_Intercept|g"] if effects else []))
    assert found.n == good.sum()
    true = source.beta
    np.testing.assert_allclose(found.truth[:3], true)
    np.testing.assert_allclose(found.bias[:3], batch.params[good].mean(axis=0) - true, rtol=1e-9, atol=1e-12)
    limits = batch.conf_int()[good]
    inside = ((limits[:, :, 0] <= true) & (true <= limits[:, :, 1])).mean(axis=0)
    np.testing.assert_allclose(found.cover[:3], inside)
    if effects:
        spread = np.sqrt(batch.covariance[good, 0, 0])
        np.testing.assert_allclose(found.mean[3], spread.mean(), rtol=1e-9)
        assert found.truth[3] == pytest.approx(float(np.sqrt(source.covariance[0, 0])))
    # a model without the structure: what its variances should be nobody says
    plain = flc.lmm("y ~ visit + arm + (1 | g)", data)
    other = source.simulate_fit(40, seed=2, fit=plain, **more).summarise(source)
    assert other.names[3:] == ("sd_Intercept|g", "sigma") and np.isnan(other.truth[4])
    assert np.isnan(other.truth[3]) == (not effects)
    assert np.isfinite(other.cover[:3]).all()
