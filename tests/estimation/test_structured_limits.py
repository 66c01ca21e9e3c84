"""Structured residuals at the limits of their parameters, and where structures are the same model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.covariance.residual.catalogue import coordinate_names, position_names

N, M = 40, 4
SAME = 1e-9
"""Relative, of criteria of one model in two parametrisations."""


def rows():
    rng = np.random.default_rng(3)
    i, v = (part.ravel() for part in np.indices((N, M)))
    x, e, b = rng.normal(size=N * M), rng.normal(size=(N, M)), rng.normal(size=N)
    return pd.DataFrame({"id": i, "v": v, "t": v + 0.1 * (i % 3), "x": x, "site": i % 8}), e, b


def opposed():
    """Errors that are negatively correlated from visit to visit."""
    data, e, _ = rows()
    return data.assign(y=1.0 + data.x + (e - 0.3 * np.roll(e, 1, axis=1)).ravel())


def without_sites():
    """An autoregression from which the means of sites are taken out."""
    data, e, _ = rows()
    for k in range(1, M):
        e[:, k] = 0.8 * e[:, k - 1] + 0.6 * e[:, k]
    y = 1.0 + data.x + e.ravel()
    return data.assign(y=y - y.groupby(data.site).transform("mean"))


def certified(formula, residual, data, component, **options):
    fit = flc.lmm(formula, data, residual=residual, **options).fit()
    assert fit.converged and fit.singular, fit.message
    assert component in fit.singular_components
    return fit


@pytest.mark.parametrize("name", coordinate_names())
def test_no_correlation_at_any_distance(name):
    data = opposed()
    what = "rho|id = 0" if name in ("car1", "sp_power") else "range|id = 0"
    fit = certified("y ~ x", f"{name}(t | id)", data, what)
    independent = flc.lmm("y ~ x", data, residual="id(v | id)").fit()
    assert fit.criterion == pytest.approx(independent.criterion, abs=1e-6)
    with_nugget = flc.lmm("y ~ x", data, residual=f"{name}(t | id, nugget=True)").fit()
    assert with_nugget.converged and with_nugget.singular
    assert with_nugget.criterion == pytest.approx(independent.criterion, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in position_names() if name not in ("id", "diag")])
def test_random_effects_without_variance(name):
    data = without_sites()
    fit = certified("y ~ x + (1 | site)", f"{name}(v | id)", data, "sd of Intercept | site is 0")
    alone = flc.lmm("y ~ x", data, residual=f"{name}(v | id)").fit()
    assert fit.criterion == pytest.approx(alone.criterion, abs=1e-7)
    np.testing.assert_allclose(fit.bse, alone.bse, rtol=1e-5)


def test_correlations_of_one_and_variances_of_zero():
    data, e, b = rows()
    certified("y ~ 1", "ar1(v | id)", data.assign(y=b[data.id] + 1e-3 * e.ravel()), "rho|id = 1")
    loadings = np.array([1.0, 0.9, 1.1, 0.8])
    y = np.outer(b, loadings) + e * np.array([0.0, 1.0, 1.0, 1.0])
    certified("y ~ 1", "fa(v | id)", data.assign(y=y.ravel()), "specific variance of 0|id = 0")
    slopes = flc.lmm("y ~ x + (x | site)", data.assign(y=e.ravel()), residual="ar1(v | id)").fit()
    assert slopes.converged and slopes.singular and slopes.singular_components


def test_us_is_a_random_effect_of_each_visit():
    """Sigma = G + s^2 I for any s^2 below its eigenvalues: one criterion, which has no one maximum in (G, s^2)."""
    data = without_sites()
    fit = flc.lmm("y ~ x", data, residual="us(v | id)").fit()
    Sigma = np.asarray(fit.residual_covariance())
    cells = data.assign(v=pd.Categorical(data.v))
    for share in (0.2, 0.7):
        s2 = share * np.linalg.eigvalsh(Sigma)[0]
        stated = flc.assume("y ~ x + (0 + v | id)", cells, fit.beta, Sigma - s2 * np.eye(M), s2)
        assert -2.0 * stated.log_likelihood(reml=True) == pytest.approx(fit.criterion, rel=SAME)


def test_loadings_of_full_rank_are_us():
    data = pd.concat([without_sites()] * 3, ignore_index=True)
    data["y"] += np.random.default_rng(1).normal(size=len(data))
    data["v"] = pd.Categorical(data.v)
    us = flc.lmm("y ~ x + (0 + v | id)", data).fit()
    full = flc.lmm("y ~ x + fa0(0 + v | id, rank=4)", data).fit()
    assert full.converged and full.criterion == pytest.approx(us.criterion, rel=SAME)
    np.testing.assert_allclose(full.covariance, us.covariance, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(full.bse, us.bse, rtol=1e-6)


def test_a_moving_average_of_zero_is_an_autoregression():
    data = without_sites()
    arma = flc.lmm("y ~ x", data, residual="arma(v | id)")
    ar1 = flc.lmm("y ~ x", data, residual="ar1(v | id)").fit()
    sigma2, rho = ar1.residual_parameters()["estimate"]
    inner, _ = arma.residual.strata[0].structure.from_natural(np.array([sigma2, rho, rho]))
    assert arma.evaluate(inner, reml=True).value == pytest.approx(ar1.criterion, rel=SAME)
    assert arma.fit().criterion <= ar1.criterion + 1e-8


@pytest.mark.parametrize("name", [*position_names(), *coordinate_names()])
def test_units_labels_and_order(name):
    data = without_sites()
    data = data[np.random.default_rng(5).random(len(data)) > 0.2].reset_index(drop=True)
    place = "v" if name in position_names() else "t"
    random = "" if name == "us" else " + (1 | site)"
    fit = flc.lmm(f"y ~ x{random}", data, residual=f"{name}({place} | id)").fit()
    other = data.sample(frac=1.0, random_state=2)
    other = other.assign(
        y=1e4 * other.y + 7.0, x=1e-3 * other.x, t=100.0 * other.t, id="n" + (97 - other.id).astype(str)
    )
    again = flc.lmm(f"y ~ x{random}", other, residual=f"{name}({place} | id)").fit()
    shift = 2.0 * (len(data) - 2) * np.log(1e4) + 2.0 * np.log(1e-3)
    assert fit.converged and again.converged
    assert again.criterion == pytest.approx(fit.criterion + shift, abs=2e-7 * abs(shift))
    np.testing.assert_allclose(again.tvalues["x"], fit.tvalues["x"], rtol=1e-5)
    np.testing.assert_allclose(again.df["x"], fit.df["x"], rtol=1e-3)
    G = fit.relative_covariance if random else None
    assert dense.criterion(fit.model, fit.phi, True, G) == pytest.approx(fit.criterion, rel=1e-9)


@pytest.mark.parametrize(("seed", "is_one"), [(8, False), (9, True)])
def test_an_adjustment_that_leaves_no_covariance_is_refused(seed, is_one):
    """Kenward and Roger's in full has variances below zero at a range of which nearly nothing is known."""
    rng = np.random.default_rng(seed)
    data, _, b = rows()
    data = data.assign(t=data.v + rng.uniform(0.0, 0.5, N * M), y=data.x + 0.7 * b[data.id] + rng.normal(size=N * M))
    fit = flc.lmm("y ~ x + t", data, residual="sp_exp(t | id, nugget=True)").fit()
    assert fit.converged
    assert not fit.singular
    with np.errstate(invalid="ignore"):
        errors, _ = dense.inference(fit.model, fit.phi, fit.sigma2)("kenward-roger")
    assert np.isfinite(errors).all() == is_one
    if is_one:
        np.testing.assert_allclose(fit.tidy(ddf="kenward-roger")["std_error"], errors, rtol=1e-5)
        return
    for ask in (fit.tidy, fit.summary, fit.anova, fit.conf_int):
        with pytest.raises(flc.LMMError, match="ddf='kenward-roger-linear' or ddf='satterthwaite'"):
            ask(ddf="kenward-roger")
    assert np.isfinite(fit.tidy(ddf="kenward-roger-linear")["std_error"]).all()


def test_ordinary_least_squares_have_their_exact_f():
    data = opposed().assign(h=lambda d: np.array(list("abc"))[d.v % 3])
    fit = flc.lmm("y ~ x + h", data, residual="id(v | id)").fit()
    full = fit.model.exog
    y = data.y.to_numpy()
    rests = [y - X @ np.linalg.lstsq(X, y, rcond=None)[0] for X in (full, full[:, :2])]
    df = len(y) - full.shape[1]
    F = ((rests[1] @ rests[1]) / (rests[0] @ rests[0]) - 1.0) * df / 2.0
    for ddf in ("satterthwaite", "kenward-roger", "residual"):
        test = fit.test(["h[T.b]", "h[T.c]"], ddf=ddf)
        assert test.statistic == pytest.approx(F, rel=1e-10)
        assert test.df_denom == pytest.approx(df)
    means = fit.emmeans("h", ddf="kenward-roger")
    np.testing.assert_allclose(means.df, df)
    with pytest.raises(flc.LMMError, match="the model has no random effects"):
        fit.random_effect_test()
