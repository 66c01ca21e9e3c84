"""Structured residuals where other programs stop at wrong points, or at none."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense


def trial(
    n: int, m: int, missing: float, seed: int, slopes: float = 0.0, sizes: tuple[float, float] = (1.0, 1.0)
) -> pd.DataFrame:
    """Subjects over visits with an unstructured covariance, dropout rising to `missing`, two arms and a covariate."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(m, m)) * 0.4 + np.eye(m)
    Y = rng.normal(size=(n, m)) @ root.T * np.linspace(*sizes, m)
    Y += slopes * rng.normal(size=(n, 1)) * np.arange(m)
    arm, base = rng.integers(0, 2, n), rng.normal(size=n)
    Y += base[:, None] + arm[:, None] * np.linspace(0.0, 1.0, m)
    seen = rng.random((n, m)) >= np.linspace(0.0, missing, m)
    seen[:, 0] = True
    i, k = np.nonzero(seen)
    visit = np.array([f"v{j:02d}" for j in range(m)])[k]
    return pd.DataFrame({"id": i, "visit": visit, "v": k, "arm": arm[i], "base": base[i], "y": Y[i, k]})


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("structure", ["us", "toeph", "ar1h", "csh"])
def test_no_fit_fails(structure, missing):
    for seed in range(3):
        data = trial(200, 10, missing, seed)
        fit = flc.lmm("y ~ base + arm * visit", data, residual=f"{structure}(visit | id)").fit()
        assert fit.converged, (seed, fit.message)


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 400, 600])
@pytest.mark.parametrize("structure", ["us", "toeph", "ar1h", "csh"])
def test_no_fit_of_many_fails(structure, n):
    for missing in (0.0, 0.1, 0.2, 0.4):
        for seed in range(100):
            data = trial(n, 10, missing, seed)
            fit = flc.lmm("y ~ base + arm * visit", data, residual=f"{structure}(visit | id)").fit()
            assert fit.converged, (missing, seed, fit.message)


def test_standard_deviations_from_300_to_6000():
    data = trial(200, 10, 0.3, 1, 600.0, (300.0, 900.0))
    fit = flc.lmm("y ~ arm * v", data, residual="us(visit | id)").fit()
    sd = np.sqrt(np.diag(fit.residual_covariance()))
    assert fit.converged and 150.0 < sd[0] < 1000.0 and sd[-1] > 4000.0
    # no other start leads lower
    for seed in range(3):
        start = fit.phi + np.random.default_rng(seed).normal(size=len(fit.phi)) * 0.3
        assert fit.model.fit(start=start).criterion >= fit.criterion - 1e-6


def test_twelve_visits():
    assert flc.lmm("y ~ arm * visit", trial(450, 12, 0.4, 2), residual="us(visit | id)").fit().converged


def test_thirteen_subjects():
    # the first rows of the data of mmrm, where SAS does not converge and stops at 144.0145
    fit = flc.lmm("FEV1 ~ RACE + SEX + ARMCD * AVISIT", flc.datasets.load("fev")[:50], residual="us(AVISIT | USUBJID)")
    fit = fit.fit()
    assert fit.converged and fit.criterion < 144.0145


def test_visits_that_tell_no_variance_are_named():
    data = trial(60, 4, 0.3, 3)
    same = data.assign(y=np.where(data.visit == "v01", 7.0, data.y))
    with pytest.raises(flc.LMMError, match="all responses at visit v01 are equal"):
        flc.lmm("y ~ arm", same, residual="us(visit | id)")
    with pytest.raises(flc.LMMError, match="one row at visit v03"):
        flc.lmm("y ~ visit", data[(data.visit != "v03") | (data.id == data.id[data.visit == "v03"].iloc[0])],
                residual="us(visit | id)")  # fmt: skip
    one = data[(data.visit != "v03") | (data.id == data.id[data.visit == "v03"].iloc[0])]
    with pytest.raises(flc.LMMError, match="one row at visit v03"):
        flc.lmm("y ~ arm", one, residual="us(visit | id)")
    assert flc.lmm("y ~ arm", one, residual="ar1h(visit | id)").fit().converged


def test_pairs_of_visits_that_no_subject_has():
    data = trial(80, 4, 0.2, 4)
    odd = data.id % 2 == 1
    data = data[~(odd & (data.visit == "v03")) & ~(~odd & (data.visit == "v00"))]
    fit = flc.lmm("y ~ arm + visit", data, residual="us(visit | id)").fit()
    assert fit.converged and np.linalg.eigvalsh(fit.residual_covariance())[0] > 0.0


def test_a_hundred_visits():
    rng = np.random.default_rng(5)
    e = np.zeros((40, 100))
    e[:, 0] = rng.normal(size=40)
    for k in range(1, 100):
        e[:, k] = 0.8 * e[:, k - 1] + 0.6 * rng.normal(size=40)
    frame = pd.DataFrame({"id": np.repeat(np.arange(40), 100), "v": np.tile(np.arange(100), 40), "y": e.ravel()})
    fit = flc.lmm("y ~ v", frame[rng.random(len(frame)) > 0.1], residual="ar1(v | id)").fit()
    assert fit.converged
    assert fit.residual_parameters()["estimate"][1] == pytest.approx(0.8, abs=0.03)


def test_units_and_orders_do_not_matter():
    data = trial(100, 5, 0.4, 6)
    formula, residual = "y ~ base + arm * visit", "us(visit | id)"
    fit = flc.lmm(formula, data, residual=residual).fit()
    scaled = flc.lmm(formula, data.assign(y=1e-6 * data.y + 3.0, base=1e5 * data.base), residual=residual).fit()
    shift = 2.0 * (len(data) - len(fit.beta)) * np.log(1e-6) + 2.0 * np.log(1e5)
    assert scaled.criterion == pytest.approx(fit.criterion + shift, abs=1e-6)
    np.testing.assert_allclose(scaled.residual_covariance(), 1e-12 * fit.residual_covariance(), rtol=1e-6)
    turned = data.sample(frac=1.0, random_state=1).assign(id=lambda d: -d.id)
    again = flc.lmm(formula, turned, residual=residual).fit()
    assert again.criterion == pytest.approx(fit.criterion, abs=1e-8)
    np.testing.assert_allclose(again.df, fit.df, rtol=1e-6)
    # the order of visits says nothing to an unstructured covariance
    named = data.assign(visit=data.visit.map({"v00": "e", "v01": "d", "v02": "c", "v03": "b", "v04": "a"}))
    assert flc.lmm(formula, named, residual=residual).fit().criterion == pytest.approx(fit.criterion, abs=1e-8)


@pytest.mark.parametrize("formula, visits, gain", [("FEV1 ~ ARMCD", "VIS1, VIS2 and VIS3", 1),
                                                   ("FEV1 ~ AVISIT", "VIS1, VIS2, VIS3 and VIS4", 1)])  # fmt: skip
def test_a_likelihood_without_maximum_is_named(formula, visits, gain):
    data = flc.datasets.load("fev")[:50]
    model = flc.lmm(formula, data, residual="us(AVISIT | USUBJID)")
    fit = model.fit()
    assert not fit.converged
    assert f"a combination of AVISIT {visits} has no variance left" in fit.message
    # by dense algebra: each tenth of its standard deviation lowers -2 log(REML) by 2 (N - r) log(10)
    covariance = fit.residual_covariance()
    size = np.sqrt(np.diag(covariance))
    left, _, _ = np.linalg.svd(covariance / np.outer(size, size))
    gone = size * left[:, -1]
    values = []
    for share in (1e-4, 1e-5):
        wider = covariance + share**2 * np.outer(gone, gone)
        values.append(dense.criterion(model, model.residual.strata[0].structure.nearest(wider)[0], True))
    assert values[0] - values[1] == pytest.approx(2.0 * gain * np.log(10.0), rel=0.05)


@pytest.mark.parametrize(
    "seed, residual, said",
    [
        (20, "toeph", "a combination of v 1, 2 and 3 has no variance left in the 4 subjects"),
        (29, "toeph", "a combination of v 0, 1, 2 and 3 has no variance left in the 4 subjects"),
        (34, "toep", "2 combinations of v 0, 2 and 3 have no variance left in the 3 subjects"),
        (26, "adh", "a combination of v 1 and 2 has no variance left in the 4 subjects"),
        (23, "ar1h", "3 combinations of v 0, 1, 2 and 3 have no variance left in the 3 subjects"),
        # visits 1 and 2 may both vanish with visit 3, and rounding errors choose
        (19, "fa", "a combination of v [12] and 3 has no variance left in the 4 subjects"),
        (33, "toeph", "v 3 has no variance left in the 5 subjects that have it; leave the visit out"),
    ],
)
def test_what_vanishes_is_named_of_any_structure(seed, residual, said):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    i, v = np.indices((n, 4)).reshape(2, -1)
    data = pd.DataFrame({"id": i, "v": v, "x": rng.normal(size=4 * n), "arm": i % 2})
    data["y"] = rng.normal(size=n)[i] + rng.normal(size=4 * n)
    model = flc.lmm("y ~ C(v) + x + arm", data[rng.random(4 * n) < 0.8], residual=f"{residual}(v | id)")
    fit = model.fit()
    assert not fit.converged and re.search(f"the likelihood has no maximum: {said}", fit.message)
    assert fit.singular_components[0].partition(" =")[0] in fit.message
    # a parameter that is further off, and the others after it: the criterion falls on
    far = fit.phi.copy()
    far[np.argmax(np.abs(far))] *= 1.5
    further = model.fit(start=far)
    assert further.criterion < fit.criterion


@pytest.mark.parametrize(
    "seed, residual, effects, said",
    [
        (33, "toeph", "(1 | id)", "combinations of v 0, 1, 2 and 3 have no variance left in the 7 subjects"),
        (30, "csh", "(1 | id)", "combinations of v 0, 1, 2 and 3 have no variance left in the 3 subjects"),
        (32, "adh", "(x | id)", "combinations of v 0, 1 and 2 have no variance left in the 7 subjects"),
        (34, "adh", "(1 | site)", "combinations of v 0, 2 and 3 have no variance left in the 3 subjects"),
        (25, "us", "(1 | site)", "combinations of v 0, 1 and 2 have no variance left in the 5 subjects"),
        (36, "toeph", "(1 | id)", "no variance left in the 4 subjects"),
        # some searches end at minima, above points from which the criterion falls without bound
        (21, "csh", "(x | id)", "combinations of v 0, 1, 2 and 3 have no variance left"),
        (33, "adh", "(1 | id)", "have no variance left in the"),
    ],
)
def test_what_vanishes_beside_random_effects_is_named(seed, residual, effects, said):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    i, v = np.indices((n, 4)).reshape(2, -1)
    data = pd.DataFrame({"id": i, "v": v, "x": rng.normal(size=4 * n), "arm": i % 2, "site": i // 2})
    data["y"] = rng.normal(size=n)[i] + rng.normal(size=4 * n)
    data = data[rng.random(4 * n) < 0.8]
    fit = flc.lmm(f"y ~ C(v) + x + arm + {effects}", data, residual=f"{residual}(v | id)").fit()
    assert not fit.converged and "the likelihood has no maximum: " in fit.message and said in fit.message
    # by dense algebra: a parameter that is further off lowers the criterion where the others are as they were
    G = next(iter(fit.G.values())) / fit.sigma2
    far = fit.phi.copy()
    far[np.argmax(np.abs(far))] *= 1.1
    assert dense.criterion(fit.model, far, True, G) < dense.criterion(fit.model, fit.phi, True, G)


def test_a_variance_that_vanishes_at_a_finite_limit_is_certified():
    # no more subjects have all visits than X has combinations of them
    fit = flc.lmm("FEV1 ~ RACE + SEX + ARMCD * AVISIT", flc.datasets.load("fev")[:50], residual="us(AVISIT | USUBJID)")
    fit = fit.fit()
    assert fit.converged and fit.singular
    assert fit.singular_components == ("var of a combination of VIS1, VIS2, VIS3 and VIS4|USUBJID = 0",)
    for missing, seed in ((0.7, 1), (0.7, 2), (0.7, 7), (0.8, 0), (0.8, 2)):
        fit = flc.lmm("y ~ base + arm * visit", trial(200, 10, missing, seed), residual="us(visit | id)").fit()
        assert fit.converged, (missing, seed, fit.message)


@pytest.mark.parametrize("missing, seed", [(0.7, 0), (0.7, 4), (0.7, 5), (0.8, 1), (0.8, 5), (0.8, 6)])
def test_few_subjects_with_all_visits_end_with_a_reason(missing, seed):
    fit = flc.lmm("y ~ base + arm * visit", trial(200, 10, missing, seed), residual="us(visit | id)").fit()
    assert not fit.converged and "the likelihood has no maximum" in fit.message and "visit v00" in fit.message
    assert fit.n_evaluations < 1000
