"""Residual diagnostics against dense algebra, closed forms and scipy; tests of assumptions by simulation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats

import fastlmm_core as flc
import fits
from fastlmm_core.diagnostics.assumptions import mahalanobis, normal_scores, residual_tests, subject_chi2
from fastlmm_core.diagnostics.autocorrelation import autocorrelation
from fastlmm_core.diagnostics.leverage import leverage
from fastlmm_core.diagnostics.studentized import studentized_residuals
from fastlmm_core.errors import LMMError
from several import KINDS, Study, covariance, noise


def data(seed, m=20, q=2, sizes=(3, 7), weights=False, offset=False, sd=1.0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(sizes[0], sizes[1] + 1, m)
    codes = np.repeat(np.arange(m), counts)
    n = len(codes)
    t = rng.uniform(0.0, 3.0, n)
    X = np.column_stack([np.ones(n), t, rng.normal(size=m)[codes]])
    Z = np.column_stack([np.ones(n), t])[:, :q]
    w = rng.uniform(0.5, 3.0, n) if weights else None
    o = rng.normal(size=n) if offset else None
    y = X @ [1.0, 0.5, -1.0] + np.sum(Z * (sd * rng.normal(size=(m, q)))[codes], axis=1)
    y = y + rng.normal(size=n) / (1.0 if w is None else np.sqrt(w)) + (0.0 if o is None else o)
    perm = rng.permutation(n)
    return [None if v is None else v[perm] for v in (y, X, Z, codes, w, o)]


def fit(d, reml=True):
    y, X, Z, codes, w, o = d
    return flc.LinearMixedModel(y, X, Z, codes, weights=w, offset=o).fit(reml=reml)


def dense(result):
    """V, R, Phi, P and Z G Z' of a fit."""
    model = result.model
    n = model.nobs
    R = np.diag(result.sigma2 / (np.ones(n) if model.weights is None else model.weights))
    same = model.grouping.index[:, None] == model.grouping.index
    ZGZ = (model.exog_re @ result.G["group"] @ model.exog_re.T) * same
    V = R + ZGZ
    X = model.exog
    Vi = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ Vi @ X)
    return V, R, Phi, Vi - Vi @ X @ Phi @ X.T @ Vi, ZGZ


CASES = [{}, {"q": 1}, {"weights": True, "offset": True}, {"sizes": (1, 4)}]


@pytest.mark.parametrize("case", CASES)
def test_leverage_against_dense_algebra(case):
    result = fit(data(1, **case))
    V, _, Phi, _, ZGZ = dense(result)
    X = result.model.exog
    H1 = X @ Phi @ X.T @ np.linalg.inv(V)
    H2 = ZGZ @ np.linalg.inv(V) @ (np.eye(len(X)) - H1)
    found = leverage(result)
    np.testing.assert_allclose(found["fixed"], np.diag(H1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["random"], np.diag(H2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["overall"], np.diag(H1 + H2), rtol=1e-9, atol=1e-12)
    assert abs(found["fixed"].sum() - X.shape[1]) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_internally_studentized_against_dense_algebra(case):
    result = fit(data(2, **case))
    V, R, Phi, P, _ = dense(result)
    X = result.model.exog
    marginal = result.residuals("marginal") / np.sqrt(np.diag(V - X @ Phi @ X.T))
    conditional = result.resid / np.sqrt(np.diag(R @ P @ R))
    np.testing.assert_allclose(studentized_residuals(result, "marginal"), marginal, rtol=1e-8)
    np.testing.assert_allclose(studentized_residuals(result, "conditional"), conditional, rtol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_externally_studentized_against_refits(case):
    d = data(3, m=15, **case)
    result = fit(d)
    y, X, Z, codes, w, o = d
    marginal = studentized_residuals(result, "marginal", external=True)
    conditional = studentized_residuals(result, "conditional", external=True)
    for i in range(0, len(y), 4):
        keep = np.arange(len(y)) != i
        part = fit([None if v is None else v[keep] for v in d])
        G, s2, cov = part.G["group"], part.sigma2, part.cov_params()
        noise = s2 / (1.0 if w is None else w[i])
        gap = y[i] - X[i] @ part.params - (0.0 if o is None else o[i])
        expected = gap / np.sqrt(noise + Z[i] @ G @ Z[i] + X[i] @ cov @ X[i])
        assert abs(marginal[i] - expected) < 1e-6 * (1 + abs(expected))
        own = np.flatnonzero(keep & (codes == codes[i]))
        R = np.diag(s2 / (np.ones(len(own)) if w is None else w[own]))
        gain = np.linalg.solve(Z[own] @ G @ Z[own].T + R, Z[own] @ G @ Z[i]) if len(own) else np.zeros(0)
        r = y[own] - X[own] @ part.params - (0.0 if o is None else o[own])
        x = X[i] - gain @ X[own]
        variance = noise + Z[i] @ G @ Z[i] - gain @ Z[own] @ G @ Z[i] + x @ cov @ x
        expected = (gap - gain @ r) / np.sqrt(variance)
        assert abs(conditional[i] - expected) < 1e-6 * (1 + abs(expected))


def test_a_singular_fit_gives_the_residuals_of_regression():
    """Without variance between groups everything is ordinary least squares."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(12), 4)
    X = np.column_stack([np.ones(48), rng.normal(size=48)])
    y = X @ [1.0, 2.0] + rng.normal(size=48)
    H = X @ np.linalg.inv(X.T @ X) @ X.T
    e = y - H @ y
    h = np.diag(H)
    s2 = e @ e / 46
    # no deletion may leave the boundary: means of groups pulled to the regression line
    y = y - 0.999 * (np.bincount(codes, e) / 4)[codes]
    result = flc.LinearMixedModel(y, X, None, codes).fit()
    assert result.singular
    e = y - H @ y
    s2 = e @ e / 46
    internal = e / np.sqrt(s2 * (1 - h))
    for kind in ("marginal", "conditional"):
        np.testing.assert_allclose(studentized_residuals(result, kind), internal, rtol=1e-8)
        external = internal * np.sqrt((46 - 1) / (46 - internal**2))
        np.testing.assert_allclose(studentized_residuals(result, kind, external=True), external, rtol=1e-6)
    assert np.allclose(leverage(result)["random"], 0.0)
    frame = mahalanobis(result)
    assert (np.asarray(frame["df"]) == 0).all() and np.isnan(frame["p_value"]).all()


def test_normal_scores():
    values = np.array([3.0, 1.0, 2.0, 2.0, np.nan])
    expected = stats.norm.ppf((np.array([4.0, 1.0, 2.5, 2.5]) - 0.375) / 4.25)
    found = normal_scores(values)
    np.testing.assert_allclose(found[:4], expected)
    assert np.isnan(found[4])


@pytest.mark.parametrize("case", CASES)
def test_mahalanobis_against_dense_algebra(case):
    result = fit(data(4, **case))
    _, _, _, P, _ = dense(result)
    model = result.model
    G = result.G["group"]
    found = mahalanobis(result)
    b = result.random_effects
    for g in range(len(b)):
        rows = model.grouping.index == g
        Zi = np.where(rows[:, None], model.exog_re, 0.0)
        cov = G @ Zi.T @ P @ Zi @ G
        rank = min(rows.sum(), Zi.shape[1])
        assert found["df"][g] == rank
        expected = b[g] @ np.linalg.pinv(cov, rcond=1e-9, hermitian=True) @ b[g]
        np.testing.assert_allclose(found["distance"][g], expected, rtol=1e-6)
        np.testing.assert_allclose(found["p_value"][g], stats.chi2.sf(expected, rank), rtol=1e-5)


def test_subject_chi2_against_dense_algebra():
    result = fit(data(5, weights=True))
    found = subject_chi2(result)
    r = result.residuals("marginal")
    for g, label in enumerate(result.group_labels):
        rows = result.model.grouping.index == g
        expected = r[rows] @ np.linalg.solve(result.marginal_covariance(label), r[rows])
        np.testing.assert_allclose(found["chi2"][g], expected, rtol=1e-9)
        assert found["df"][g] == rows.sum()


def whitened_by_hand(result, order):
    model = result.model
    r = result.residuals("marginal")
    out = {}
    for g, label in enumerate(result.group_labels):
        rows = np.array([i for i in order if model.grouping.index[i] == g])
        original = np.flatnonzero(model.grouping.index == g)
        V = result.marginal_covariance(label)
        place = [int(np.flatnonzero(original == i)[0]) for i in rows]
        out[g] = np.linalg.solve(np.linalg.cholesky(V[np.ix_(place, place)]), r[rows])
    return out


def test_autocorrelation_by_rows():
    result = fit(data(6, sizes=(2, 6)))
    w = whitened_by_hand(result, range(result.nobs))
    scale = np.mean(np.concatenate(list(w.values())) ** 2)
    found = autocorrelation(result, 6)
    for lag in range(1, 7):
        products = np.concatenate([v[lag:] * v[: max(len(v) - lag, 0)] for v in w.values()])
        assert found["pairs"][lag - 1] == len(products)
        if len(products):
            r = products.mean() / scale
            np.testing.assert_allclose(found["autocorrelation"][lag - 1], r, rtol=1e-9)
            z = r * np.sqrt(len(products))
            np.testing.assert_allclose(found["p_value"][lag - 1], 2 * stats.norm.sf(abs(z)), rtol=1e-9)
        else:
            assert np.isnan(found["autocorrelation"][lag - 1])


def test_autocorrelation_by_time_with_gaps():
    d = data(7, sizes=(4, 6))
    codes = d[3]
    rng = np.random.default_rng(0)
    time = np.empty(len(codes))
    for g in np.unique(codes):
        rows = np.flatnonzero(codes == g)
        time[rows] = 2010.0 + 0.5 * rng.permutation(9)[: len(rows)]
    result = fit(d)
    order = np.argsort(time, kind="stable")
    w = whitened_by_hand(result, order)
    scale = np.mean(np.concatenate(list(w.values())) ** 2)
    found = autocorrelation(result, 3, time=time)
    for lag in (1, 2, 3):
        products = []
        for g, v in w.items():
            t = np.sort(time[codes == g])
            products += [
                v[i] * v[j] for i in range(len(t)) for j in range(len(t)) if abs(t[j] - t[i] - 0.5 * lag) < 1e-9
            ]
        assert found["pairs"][lag - 1] == len(products)
        np.testing.assert_allclose(found["autocorrelation"][lag - 1], np.mean(products) / scale, rtol=1e-9)


def test_lags_without_pairs_do_not_count_in_box_pierce():
    # times 0, 1 and 5: pairs at lags 1, 4 and 5 only
    rng = np.random.default_rng(4)
    m = 30
    codes, time = np.repeat(np.arange(m), 3), np.tile([0.0, 1.0, 5.0], m)
    y = rng.standard_normal(m)[codes] + rng.standard_normal(3 * m)
    result = flc.LinearMixedModel(y, np.column_stack([np.ones(3 * m), time]), None, codes).fit()
    w = np.array(list(whitened_by_hand(result, range(3 * m)).values()))
    scale = np.mean(w**2)
    products = {1: w[:, 0] * w[:, 1], 4: w[:, 1] * w[:, 2], 5: w[:, 0] * w[:, 2]}
    for max_lag, used in ((3, [1]), (4, [1, 4]), (8, [1, 4, 5])):
        statistic = sum(m * (products[lag].mean() / scale) ** 2 for lag in used)
        table = residual_tests(result, max_lag, time)
        line = list(table["test"]).index("Box-Pierce")
        np.testing.assert_allclose(table["statistic"][line], statistic, rtol=1e-9)
        assert table["df"][line] == len(used)
        np.testing.assert_allclose(table["p_value"][line], stats.chi2.sf(statistic, len(used)), rtol=1e-9)


def simulated(rng, m=60, n_i=8, kind="fine"):
    codes = np.repeat(np.arange(m), n_i)
    t = np.tile(np.linspace(-1, 1, n_i), m)
    X = np.column_stack([np.ones(m * n_i), t, rng.normal(size=m * n_i)])
    e = rng.standard_normal((m, n_i))
    b = rng.standard_normal((m, 2)) * [1.0, 0.7]
    if kind == "autocorrelation":
        for j in range(1, n_i):
            e[:, j] = 0.5 * e[:, j - 1] + np.sqrt(0.75) * e[:, j]
    if kind == "groups":
        e *= np.where(np.arange(m) % 2, 0.5, 1.5)[:, None]
    if kind == "mean":
        e *= np.exp(0.35 * (X[:, 2]).reshape(m, n_i))
    if kind == "heavy":
        e = rng.standard_t(2.5, size=(m, n_i))
    if kind == "skewed effects":
        b[:, 0] = 2.0 * (rng.exponential(size=m) - 1.0)
    if kind == "outlier":
        b[5] = [7.0, -6.0]
    y = X @ [1.0, 1.0, 1.0] + b[codes, 0] + b[codes, 1] * t + e.ravel()
    return flc.LinearMixedModel(y, X, X[:, :2].copy(), codes).fit()


def test_p_values_are_uniform_under_the_model():
    rng = np.random.default_rng(12)
    p = np.array([residual_tests(simulated(rng))["p_value"] for _ in range(200)])
    names = residual_tests(simulated(rng))["test"]
    assert np.isfinite(p).all()
    for j, name in enumerate(names):
        # a chance of 1e-6 each, were they exactly uniform
        low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 200, 0.1)
        assert np.sum(p[:, j] < 0.1) <= high, name
        if name not in ("Box-Pierce", "Mahalanobis", "chi^2"):
            assert np.sum(p[:, j] < 0.1) >= low, name
            assert stats.kstest(p[:, j], "uniform").pvalue > 1e-6, name


@pytest.mark.parametrize(
    ("kind", "line"),
    [("heavy", 0), ("skewed effects", 1), ("groups", 3), ("mean", 4), ("autocorrelation", 5), ("outlier", 6)],
)
def test_violations_are_found(kind, line):
    rng = np.random.default_rng(3)
    found = [residual_tests(simulated(rng, kind=kind))["p_value"][line] for _ in range(10)]
    assert np.median(found) < 0.01


def test_outlier_is_named():
    table = residual_tests(simulated(np.random.default_rng(3), kind="outlier"))
    assert table["of"][6] == "group 5"


def test_statistics_against_scipy():
    result = simulated(np.random.default_rng(1))
    table = residual_tests(result)
    w = result.residuals("whitened")
    index = result.model.grouping.index
    assert table["statistic"][0] == stats.shapiro(w).statistic
    f, p = stats.f_oneway(*[np.abs(w[index == g]) for g in range(60)])
    np.testing.assert_allclose([table["statistic"][3], table["p_value"][3]], [f, p], rtol=1e-9)
    mean = result.model.exog @ result.params
    r = stats.pearsonr(w**2, mean).statistic
    np.testing.assert_allclose(table["statistic"][4], len(w) * r**2, rtol=1e-9)
    acf = autocorrelation(result, 3)
    np.testing.assert_allclose(table["statistic"][5], np.sum(acf["z"] ** 2), rtol=1e-9)
    np.testing.assert_allclose(table["p_value"][5], stats.chi2.sf(table["statistic"][5], 3), rtol=1e-9)
    each = mahalanobis(result)
    worst = int(np.argmin(each["p_value"]))
    np.testing.assert_allclose(table["p_value"][6], 1 - (1 - each["p_value"][worst]) ** 60, rtol=1e-9)


def test_frames_of_the_callers_library():
    frame = flc.datasets.load("sleepstudy")
    for convert in (lambda f: f, lambda f: pytest.importorskip("polars").from_pandas(f)):
        result = flc.lmm("Reaction ~ Days + (Days | Subject)", convert(frame)).fit()
        for table in (leverage(result), mahalanobis(result), autocorrelation(result), residual_tests(result)):
            assert type(table).__module__.split(".")[0] == type(convert(frame)).__module__.split(".")[0]
    assert list(residual_tests(result)["of"])[1:3] == ["random effects: Intercept", "random effects: Days"]


def test_constant_mean_and_singular_fits_leave_tests_out():
    rng = np.random.default_rng(0)
    y = rng.normal(size=60)
    codes = np.repeat(np.arange(15), 4)
    y -= 0.9 * (np.bincount(codes, y) / 4)[codes]
    result = flc.LinearMixedModel(y, None, None, codes).fit()
    assert result.singular
    table = residual_tests(result)
    of = dict(zip(table["test"], table["p_value"], strict=True))
    assert np.isnan(of["Breusch-Pagan"]) and np.isnan(of["Mahalanobis"])
    assert np.isfinite(of["Levene"]) and np.isfinite(of["Box-Pierce"])


def test_errors():
    result = fit(data(1))
    with pytest.raises(LMMError, match="'marginal' or 'conditional'"):
        studentized_residuals(result, "pearson")  # type: ignore[arg-type]
    with pytest.raises(LMMError, match="at least 1"):
        autocorrelation(result, 0)
    with pytest.raises(LMMError, match="one per row"):
        autocorrelation(result, 2, time=[1.0, 2.0])
    with pytest.raises(LMMError, match="repeats"):
        autocorrelation(result, 2, time=np.zeros(result.nobs))
    with pytest.raises(LMMError, match="equally spaced"):
        autocorrelation(result, 2, time=np.random.default_rng(0).uniform(size=result.nobs))
    with pytest.raises(LMMError, match="not finite"):
        autocorrelation(result, 2, time=np.full(result.nobs, np.nan))


# ---- several grouping factors --------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def several(request, rng):
    study = Study(rng, request.param, True, n=120)
    result = study.model(np.arange(120)).fit()
    rows = study.part(np.arange(120))
    R = np.diag(noise(result, rows))
    V = covariance(result, rows, rows) + R
    X = study.X
    Vi = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ Vi @ X)
    return study, result, rows, V, R, Phi, Vi - Vi @ X @ Phi @ X.T @ Vi


def test_several_factors_leverage_and_studentized_residuals(several):
    study, result, _, V, R, Phi, P = several
    X = study.X
    H1 = X @ Phi @ X.T @ np.linalg.inv(V)
    H2 = (V - R) @ np.linalg.inv(V) @ (np.eye(len(X)) - H1)
    found = leverage(result)
    np.testing.assert_allclose(found["fixed"], np.diag(H1), rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(found["random"], np.diag(H2), rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(found["overall"], np.diag(H1 + H2), rtol=1e-8, atol=1e-11)
    marginal = result.residuals("marginal") / np.sqrt(np.diag(V - X @ Phi @ X.T))
    conditional = result.resid / np.sqrt(np.diag(R @ P @ R))
    np.testing.assert_allclose(studentized_residuals(result, "marginal"), marginal, rtol=1e-8)
    np.testing.assert_allclose(result.residuals("studentized"), conditional, rtol=1e-7)


def test_several_factors_externally_studentized(rng):
    study = Study(rng, "crossed", True, n=50)
    every = np.arange(50)
    result = study.model(every).fit()
    marginal = studentized_residuals(result, "marginal", external=True)
    conditional = studentized_residuals(result, "conditional", external=True)
    for i in range(0, 50, 7):
        keep = np.delete(every, i)
        part, seen, one = study.model(keep).fit(), study.part(keep), study.part(np.array([i]))
        R, own = np.diag(noise(part, seen)), covariance(part, one, one) + noise(part, one)
        c = covariance(part, seen, one)
        gain = np.linalg.solve(covariance(part, seen, seen) + R, c)
        r = seen["y"] - seen["X"] @ part.params - seen["offset"]
        gap = (one["y"] - one["X"] @ part.params - one["offset"])[0]
        x = one["X"][0]
        expected = gap / np.sqrt(own[0, 0] + x @ part.cov_params() @ x)
        assert abs(marginal[i] - expected) < 1e-6 * (1 + abs(expected))
        x = x - gain[:, 0] @ seen["X"]
        variance = own[0, 0] - c[:, 0] @ gain[:, 0] + x @ part.cov_params() @ x
        expected = (gap - gain[:, 0] @ r) / np.sqrt(variance)
        assert abs(conditional[i] - expected) < 1e-6 * (1 + abs(expected))


def test_several_factors_mahalanobis(several):
    _, result, rows, _, _, _, P = several
    for factor in result.model.factors:
        name = factor.grouping.name
        G, b = result.covariance[factor.columns, factor.columns], result.random_effects[name]
        found = mahalanobis(result, name)
        assert found[name] is factor.grouping.labels
        for g, label in enumerate(factor.grouping.labels):
            Zi = np.where((rows["groups"][name] == label)[:, None], rows["Z"][name], 0.0)
            cov = G @ Zi.T @ P @ Zi @ G
            expected = b[g] @ np.linalg.pinv(cov, rcond=1e-9, hermitian=True) @ b[g]
            np.testing.assert_allclose(found["distance"][g], expected, rtol=1e-6)
            np.testing.assert_allclose(found["p_value"][g], stats.chi2.sf(expected, found["df"][g]), rtol=1e-5)
    np.testing.assert_array_equal(mahalanobis(result)["df"], mahalanobis(result, result.model.grouping.name)["df"])


def test_several_factors_chi2_and_autocorrelation(several):
    study, result, rows, V, _, _, _ = several
    r = result.residuals("marginal")
    names = list(study.terms)
    if names[-1] == "school":
        found = subject_chi2(result)
        for label, chi2, df in zip(found["school"], found["chi2"], found["df"], strict=True):
            mine = np.flatnonzero(rows["groups"]["school"] == label)
            np.testing.assert_allclose(chi2, r[mine] @ np.linalg.solve(V[np.ix_(mine, mine)], r[mine]), rtol=1e-9)
            assert df == len(mine)
    else:
        with pytest.raises(LMMError, match="factors of this model are crossed"):
            subject_chi2(result)
    # whitened with the rows of a level of the first factor one after the other
    name = result.model.grouping.name
    for factor in (None, result.model.factors[-1].grouping.name):
        labels = rows["groups"][name if factor is None else factor]
        order = np.argsort(labels, kind="stable")
        w = np.linalg.solve(np.linalg.cholesky(V[np.ix_(order, order)]), r[order])
        found = autocorrelation(result, 3, factor=factor)
        for lag in (1, 2, 3):
            pairs = labels[order][lag:] == labels[order][:-lag]
            assert found["pairs"][lag - 1] == pairs.sum()
            expected = np.mean((w[lag:] * w[:-lag])[pairs]) / np.mean(w**2)
            np.testing.assert_allclose(found["autocorrelation"][lag - 1], expected, rtol=1e-7, atol=1e-10)


def test_several_factors_residual_tests():
    result = fits.fitted("strength ~ 1 + (1 | batch/cask)", "pastes")
    table = result.residual_tests()
    assert list(table["of"])[:5] == [
        "whitened residuals", "random effects: Intercept (batch:cask)", "random effects: Intercept (batch)",
        "whitened residuals over batch:cask", "whitened residuals over batch",
    ]  # fmt: skip
    w = result.residuals("whitened")
    np.testing.assert_allclose(table["p_value"][0], stats.shapiro(w).pvalue)
    assert list(table["test"])[7:] == ["Mahalanobis", "Mahalanobis", "chi^2"]
    assert np.isfinite(table["p_value"]).sum() == 9
    crossed = fits.fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    assert list(crossed.residual_tests()["test"])[-2:] == ["Mahalanobis", "Mahalanobis"]
    for call in (mahalanobis, lambda r, name: autocorrelation(r, 2, factor=name)):
        with pytest.raises(LMMError, match="factor='x' is not a grouping factor: use 'plate' or 'sample'"):
            call(crossed, "x")


def test_times_by_the_name_of_a_column():
    data = flc.datasets.load("sleepstudy").sample(frac=0.8, random_state=2).assign(day=lambda d: 2.0 * d["Days"])
    data.loc[data.index[3], "Reaction"] = np.nan
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()
    for found, given in (
        (fit.autocorrelation(3, "day"), fit.autocorrelation(3, data["day"])),
        (fit.residual_tests(time="day"), fit.residual_tests(time=data["day"])),
    ):
        for name in found:
            np.testing.assert_array_equal(found[name], given[name])
    with pytest.raises(flc.LMMError, match=r"no column 'dey'.*Did you mean 'day'"):
        fit.autocorrelation(time="dey")
    with pytest.raises(flc.LMMError, match="time='day': the table of the model is not there"):
        pickle.loads(pickle.dumps(fit)).autocorrelation(time="day")
