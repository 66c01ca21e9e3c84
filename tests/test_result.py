"""What a result reports, against closed forms and dense algebra at the estimates that it gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.stats

import fastlmm_core as flc
import oracle

BOTH = pytest.mark.parametrize("reml", [True, False])

EXACT = 1e-9  # one linear algebra against another, of some dozen rows


def study(rng, m=14, weighted=False):
    sizes = rng.integers(2, 7, m)
    groups = np.repeat(np.arange(m), sizes)
    t = rng.uniform(-1.0, 1.5, len(groups))
    X = np.column_stack([np.ones(len(t)), t])
    b = rng.standard_normal((m, 2)) * [1.5, 1.0]
    w = rng.uniform(0.3, 3.0, len(t)) if weighted else None
    noise = rng.standard_normal(len(t)) / (1.0 if w is None else np.sqrt(w))
    return X @ [3.0, -1.0] + np.sum(X * b[groups], axis=1) + noise, X, groups, w


def balanced(rng, kind, m=12):
    """Five visits of every subject, with OLS coefficients as wanted and noise orthogonal to them."""
    x = np.arange(5.0)
    e = rng.standard_normal((m, 5))
    Q, _ = np.linalg.qr(np.column_stack([np.ones(5), x]))
    e -= (e @ Q) @ Q.T
    u, v = 2.0 * rng.standard_normal((2, m, 1))
    random = {
        "zero": 0.0 * u, "intercept": u + 0.0 * x, "slope": u * x, "+1": 2.0 * u + u * x, "-1": 2.0 * u - u * x,
        "interior": u + v * x,
    }[kind]  # fmt: skip
    return {"y": (1.0 + 0.5 * x + random + e).ravel(), "x": np.tile(x, m), "g": np.repeat(np.arange(m), 5)}


def closed(actual, desired, tolerance=EXACT):
    desired = np.asarray(desired, dtype=float)
    scale = max(1e-300, np.max(np.abs(desired), initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, dtype=float), desired, rtol=0.0, atol=tolerance * scale)


# ------------------------------------------------------------------------------------------------------------
# likelihood


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_likelihood_and_information_criteria(rng, weighted, reml):
    y, X, groups, w = study(rng, weighted=weighted)
    result = flc.LinearMixedModel(y, X, X, groups, weights=w).fit(reml=reml)
    G, s2 = oracle.covariance_blocks(result), result.sigma2
    expected = oracle.loglik(y, X, X, groups, result.params, G, s2, reml, w)
    assert result.llf == pytest.approx(expected, rel=1e-11)
    assert result.criterion == -2.0 * result.llf
    # lme4 counts fixed effects, the elements of theta and sigma, and takes log(nobs), by REML too
    k = 2 + 3 + 1
    assert result.n_parameters == k
    assert result.aic == pytest.approx(-2.0 * expected + 2.0 * k, rel=1e-11)
    assert result.bic == pytest.approx(-2.0 * expected + k * np.log(len(y)), rel=1e-11)
    diagonal = flc.LinearMixedModel(y, X, X, groups, weights=w, structure="diagonal").fit(reml=reml)
    assert diagonal.n_parameters == 2 + 2 + 1
    assert result.criterion <= diagonal.criterion + 1e-9


@BOTH
def test_estimates_at_the_theta_of_the_fit(rng, reml):
    y, X, groups, w = study(rng, weighted=True)
    result = flc.LinearMixedModel(y, X, X, groups, weights=w).fit(reml=reml)
    Ghat = result.G["group"] / result.sigma2
    Lam = oracle.lambda_from_theta(result.theta, 2)
    closed(Ghat, Lam @ Lam.T)
    assert result.sigma2 == pytest.approx(oracle.sigma2(y, X, X, groups, Ghat, reml, w), rel=EXACT)
    assert result.sigma == pytest.approx(np.sqrt(result.sigma2), rel=1e-15)
    closed(result.params, oracle.beta(y, X, X, groups, Ghat, w))
    cov = oracle.cov_params(y, X, X, groups, Ghat, reml, w)
    closed(result.cov_params(), cov)
    closed(result.bse, np.sqrt(np.diag(cov)))
    closed(result.tvalues, result.params / np.sqrt(np.diag(cov)))
    closed(result.random_effects, oracle.blups(y, X, X, groups, Ghat, w))
    assert result.nobs == len(y)
    assert result.n_groups == {"group": 14}
    assert list(result.group_labels) == list(range(14))


@pytest.mark.parametrize("ddf", ["normal", "residual"])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_intervals_and_tests(rng, level, ddf):
    y, X, groups, _ = study(rng)
    wide = np.column_stack([X, X[:, 1] * 2.0])  # a dropped column does not count among the degrees of freedom
    for design in (X, wide):
        result = flc.LinearMixedModel(y, design, X, groups).fit()
        df = len(y) - 2
        law = scipy.stats.norm if ddf == "normal" else scipy.stats.t(df)
        half = law.ppf(0.5 + level / 2.0) * result.bse
        limits = result.conf_int(level=level, ddf=ddf)
        np.testing.assert_allclose(limits, np.column_stack([result.params - half, result.params + half]), rtol=1e-12)
        p = 2.0 * law.sf(np.abs(result.params / result.bse))
        fixed = result.tidy(level=level, ddf=ddf)
        np.testing.assert_allclose(fixed["p_value"], p, rtol=1e-10)
        np.testing.assert_allclose(np.column_stack([fixed["conf_low"], fixed["conf_high"]]), limits, rtol=1e-15)
        by_default = result.tidy()
        np.testing.assert_array_equal(result.pvalues, by_default["p_value"])
        t = scipy.stats.t(by_default["df"])
        np.testing.assert_allclose(result.pvalues, 2.0 * t.sf(np.abs(result.tvalues)), rtol=1e-10)
        assert (by_default["df"][:2] < len(y) - 2).all()
    np.testing.assert_array_equal(result.conf_int(), result.conf_int(level=0.95, ddf="satterthwaite"))


def test_p_values_far_in_the_tail(rng):
    # 1e-100 is not zero: the tail is computed as a tail
    y, X, groups, _ = study(rng)
    error = flc.LinearMixedModel(y, X, X, groups).fit().bse[1]
    result = flc.LinearMixedModel(y + 22.0 * error * X[:, 1], X, X, groups).fit()
    expected = 2.0 * scipy.stats.norm.sf(np.abs(result.tvalues))
    assert 0.0 < expected[1] < 1e-50
    np.testing.assert_allclose(result.tidy(ddf="normal")["p_value"], expected, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------
# closed forms


@BOTH
def test_balanced_one_way_layout(rng, reml):
    # a random intercept, balanced: REML gives the analysis of variance, ML the same with m for m - 1
    m, k = 20, 6
    Y = 5.0 + 1.5 * rng.standard_normal((m, 1)) + rng.standard_normal((m, k))
    result = flc.LinearMixedModel(Y.ravel(), None, None, np.repeat(np.arange(m), k)).fit(reml=reml)
    means = Y.mean(axis=1)
    within = np.sum((Y - means[:, None]) ** 2) / (m * (k - 1))
    between = k * np.sum((means - means.mean()) ** 2) / (m - 1 if reml else m)
    assert between > within
    tau2 = (between - within) / k
    assert result.sigma2 == pytest.approx(within, rel=1e-9)
    assert result.G["group"][0, 0] == pytest.approx(tau2, rel=1e-8)
    assert result.params[0] == pytest.approx(Y.mean(), rel=1e-13)
    assert result.bse[0] == pytest.approx(np.sqrt(between / (m * k)), rel=1e-8)
    shrink = k * tau2 / (within + k * tau2)
    closed(result.random_effects[:, 0], shrink * (means - means.mean()), 1e-8)
    closed(result.random_effects_covariance()[:, 0, 0], np.full(m, (1.0 - shrink) * tau2), 1e-8)
    nu = m * k - (1 if reml else 0)
    value = m * (k - 1) * np.log(within) + m * np.log(within + k * tau2) + nu * (1.0 + np.log(2.0 * np.pi))
    if reml:
        value += np.log(m * k) - np.log(within + k * tau2)
    assert result.criterion == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize("ratio", [1e-2, 1e4, 1e8, 1e10])
def test_conditional_covariances_keep_their_digits(rng, ratio):
    # the variance of a random intercept given k rows is tau2 s2 / (s2 + k tau2), about s2 / k however large tau2 is
    m, k = 30, 4
    groups = np.repeat(np.arange(m), k)
    y = np.sqrt(ratio) * rng.standard_normal(m)[groups] + rng.standard_normal(m * k)
    result = flc.LinearMixedModel(y, None, None, groups).fit()
    tau2, s2 = result.G["group"][0, 0], result.sigma2
    conditional = tau2 * s2 / (s2 + k * tau2)
    np.testing.assert_allclose(result.random_effects_covariance()[:, 0, 0], conditional, rtol=1e-9)
    # and the error of the mean of a subject: what shrinkage leaves of the error of the grand mean is added
    left = s2 / (s2 + k * tau2)
    found = result.predict({"X": np.ones((1, 1)), "groups": [3]}, effects="all", interval="confidence")
    assert found["std_error"][0] == pytest.approx(np.sqrt(conditional + (left * result.bse[0]) ** 2), rel=1e-9)


@BOTH
def test_no_fixed_effects_at_all(rng, reml):
    # y ~ 0 + (1 | g): ML and REML are one, and the balanced case has a closed form around zero
    m, k = 15, 5
    Y = 1.5 * rng.standard_normal((m, 1)) + rng.standard_normal((m, k))
    data = {"y": Y.ravel(), "g": np.repeat(np.arange(m), k)}
    result = flc.lmm("y ~ 0 + (1 | g)", data).fit(reml=reml)
    arrays = flc.LinearMixedModel(data["y"], np.empty((m * k, 0)), None, data["g"]).fit(reml=reml)
    means = Y.mean(axis=1)
    within = np.sum((Y - means[:, None]) ** 2) / (m * (k - 1))
    tau2 = (k * np.sum(means**2) / m - within) / k
    for r in (result, arrays):
        assert r.converged
        assert r.sigma2 == pytest.approx(within, rel=1e-9)
        assert next(iter(r.G.values()))[0, 0] == pytest.approx(tau2, rel=1e-8)
        nu = m * k
        value = m * (k - 1) * np.log(within) + m * np.log(within + k * tau2) + nu * (1.0 + np.log(2.0 * np.pi))
        assert r.criterion == pytest.approx(value, rel=1e-11)
        assert r.n_parameters == 2
        assert r.dropped_columns == ()
        assert len(r.params) == len(r.bse) == len(r.pvalues) == 0
        assert np.shape(r.cov_params()) == (0, 0)
        np.testing.assert_array_equal(r.predict(), np.zeros(nu))
        shrink = k * tau2 / (within + k * tau2)
        closed(r.fittedvalues, np.repeat(shrink * means, k), 1e-8)
        closed(r.random_effects_covariance()[:, 0, 0], np.full(m, (1.0 - shrink) * tau2), 1e-8)
        se = r.predict(effects="all", interval="confidence")["std_error"]
        closed(se, np.full(nu, np.sqrt((1.0 - shrink) * tau2)), 1e-8)
        assert r.r2()["marginal"] == 0.0
        assert np.all(np.isfinite(r.residuals("whitened")))
        assert str(r.summary())
        assert len(r.tidy("ran_pars")["estimate"]) == 2
        assert len(r.tidy()["term"]) == 0


# ------------------------------------------------------------------------------------------------------------
# random effects


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_conditional_covariances_of_interior_fits(rng, weighted, reml):
    y, X, groups, w = study(rng, m=40, weighted=weighted)
    result = flc.LinearMixedModel(y, X, X, groups, weights=w).fit(reml=reml)
    assert not result.singular
    expected = oracle.blup_covariances(y, X, X, groups, result.G["group"] / result.sigma2, reml, w)
    closed(result.random_effects_covariance(), expected)


@BOTH
@pytest.mark.parametrize("kind", ["zero", "intercept", "slope", "+1", "-1"])
def test_conditional_covariances_of_singular_fits(rng, kind, reml):
    d = balanced(rng, kind)
    X = np.column_stack([np.ones(len(d["y"])), d["x"]])
    result = flc.LinearMixedModel(d["y"], X, X, d["g"]).fit(reml=reml)
    assert result.singular
    Ghat = result.G["group"] / result.sigma2
    found = result.random_effects_covariance()
    closed(found, oracle.blup_covariances(d["y"], X, X, d["g"], Ghat, reml))
    for C in found:
        assert np.linalg.eigvalsh(C)[0] >= -1e-12 * max(np.max(np.abs(C)), 1e-300)
    closed(result.random_effects, oracle.blups(d["y"], X, X, d["g"], Ghat))


@BOTH
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("zero", ("sd of Intercept | g is 0", "sd of x | g is 0")),
        ("intercept", ("sd of x | g is 0",)),
        ("slope", ("sd of Intercept | g is 0",)),
        ("+1", ("correlation of Intercept and x | g is +1",)),
        ("-1", ("correlation of Intercept and x | g is -1",)),
        ("interior", ()),
    ],
)
def test_what_is_singular_is_told_in_words(rng, kind, words, reml):
    result = flc.lmm("y ~ x + (x | g)", balanced(rng, kind)).fit(reml=reml)
    assert result.converged
    assert result.singular is bool(words)
    assert result.singular_components == words
    for line in words:
        assert line in result.message
        assert line in str(result.summary())
    G = result.G["g"]
    sd = result.random_effects_sd["g"]
    closed(sd, np.sqrt(np.diag(G)), 1e-14)
    corr = result.random_effects_corr["g"]
    if kind in ("+1", "-1"):
        assert corr[0, 1] == pytest.approx(float(kind), abs=1e-10)
    for i, name in enumerate(("Intercept", "x")):
        zero = f"sd of {name} | g is 0" in words
        assert (sd[i] == 0.0) == zero
        assert np.isnan(corr[i, i]) == zero
        assert zero or corr[i, i] == 1.0
    if kind == "interior":
        assert corr[0, 1] == pytest.approx(G[0, 1] / np.sqrt(G[0, 0] * G[1, 1]), rel=1e-13)


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_words_do_not_depend_on_units(rng, units):
    d = balanced(rng, "intercept")
    d["x"] = d["x"] * units
    assert flc.lmm("y ~ x + (x | g)", d).fit().singular_components == ("sd of x | g is 0",)
    d = balanced(rng, "+1")
    d["y"] = d["y"] * units
    assert flc.lmm("y ~ x + (x | g)", d).fit().singular_components == ("correlation of Intercept and x | g is +1",)


def test_a_null_direction_of_three_effects_is_told(rng):
    # b has three elements and rank two, no two of which are proportional
    m, x = 25, np.arange(6.0) - 2.5
    Z = np.column_stack([np.ones(6), x, x**2])
    e = rng.standard_normal((m, 6))
    Q, _ = np.linalg.qr(Z)
    e -= (e @ Q) @ Q.T
    u = 2.0 * rng.standard_normal((m, 2))
    b = u @ np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
    data = {"y": (b @ Z.T + e).ravel(), "x": np.tile(x, m), "g": np.repeat(np.arange(m), 6)}
    result = flc.lmm("y ~ x + I(x**2) + (x + I(x**2) | g)", data).fit()
    assert result.singular
    (words,) = result.singular_components
    assert words == "covariance of Intercept, x, I(x ** 2) | g has rank 2 of 3"
    values = np.linalg.eigvalsh(result.random_effects_corr["g"])
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert values[1] > 1e-3


def test_singular_parts_of_independent_effects(rng):
    result = flc.lmm("y ~ x + (x || g)", balanced(rng, "intercept")).fit()
    assert result.singular
    assert result.singular_components == ("sd of x | g is 0",)
    assert oracle.covariance_blocks(result)[0, 1] == 0.0


# ------------------------------------------------------------------------------------------------------------
# tables


def data_for_tables(rng):
    y, X, groups, _ = study(rng)
    return {"y": y, "x": X[:, 1], "g": np.array([f"s{k:02d}" for k in groups])}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_tables_speak_the_library_of_the_caller(rng, library):
    data = data_for_tables(rng)
    make, kind = {
        "pandas": (pd.DataFrame, pd.DataFrame), "polars": (pl.DataFrame, pl.DataFrame),
        "pyarrow": (pa.table, pa.Table), "dict": (dict, dict),
    }[library]  # fmt: skip
    result = flc.lmm("y ~ x + (x | g)", make(data)).fit()
    plain = flc.LinearMixedModel(
        data["y"], np.column_stack([np.ones(len(data["y"])), data["x"]]),
        np.column_stack([np.ones(len(data["y"])), data["x"]]), data["g"],
    ).fit()  # fmt: skip

    def columns(frame):
        assert isinstance(frame, kind)
        if library == "dict":
            return {name: list(values) for name, values in frame.items()}
        if library == "pandas":
            return {name: frame[name].tolist() for name in frame.columns}
        return frame.to_dict(as_series=False) if library == "polars" else frame.to_pydict()

    fixed = columns(result.tidy())
    assert list(fixed) == ["term", "estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"]
    assert fixed["term"] == ["Intercept", "x"]
    closed(fixed["estimate"], plain.params, 1e-7)
    closed(fixed["std_error"], plain.bse, 1e-7)
    closed(fixed["statistic"], plain.params / plain.bse, 1e-6)
    closed(np.column_stack([fixed["conf_low"], fixed["conf_high"]]), plain.conf_int(), 1e-7)

    parts = columns(result.tidy("ran_pars"))
    assert list(parts) == ["group", "term", "estimate"]
    assert dict(zip(zip(parts["group"], parts["term"], strict=True), parts["estimate"], strict=True)) == pytest.approx(
        {
            ("g", "sd_Intercept|g"): result.random_effects_sd["g"][0],
            ("g", "cor_Intercept.x|g"): result.random_effects_corr["g"][0, 1],
            ("g", "sd_x|g"): result.random_effects_sd["g"][1],
            ("Residual", "sigma"): result.sigma,
        },
        rel=1e-12,
    )

    values = columns(result.tidy("ran_vals"))
    assert list(values) == ["group", "level", "term", "estimate", "std_error"]
    assert len(values["level"]) == 14 * 2
    labels = sorted(set(data["g"]))
    for group, level, term, estimate, error in zip(*values.values(), strict=True):
        i, j = labels.index(level), ["Intercept", "x"].index(term)
        assert group == "g"
        assert estimate == pytest.approx(plain.random_effects[i, j], rel=1e-6, abs=1e-7)
        assert error == pytest.approx(np.sqrt(plain.random_effects_covariance()[i, j, j]), rel=1e-6)

    effects = columns(result.random_effects)
    assert list(effects) == ["g", "Intercept", "x"]
    assert [str(label) for label in effects["g"]] == labels
    closed(np.column_stack([effects["Intercept"], effects["x"]]), plain.random_effects, 1e-6)
    closed(oracle.values(result.params), plain.params, 1e-7)
    assert oracle.names(result.params) == ["Intercept", "x"]


def test_tables_of_arrays(rng):
    y, X, groups, _ = study(rng)
    result = flc.LinearMixedModel(y, X, X, groups, exog_names=["one", "t"], exog_re_names=["one", "t"]).fit()
    for effects, length in (("fixed", 2), ("ran_pars", 4), ("ran_vals", 28)):
        table = result.tidy(effects)
        assert isinstance(table, dict)
        assert {len(np.asarray(v)) for v in table.values()} == {length}
        assert all(isinstance(v, np.ndarray) for v in table.values())
    assert list(result.tidy()["term"]) == ["one", "t"]


def test_what_is_handed_out_is_a_copy(rng):
    y, X, groups, _ = study(rng)
    result = flc.LinearMixedModel(y, X, X, groups).fit()
    before = (result.params.copy(), result.cov_params().copy(), result.G["group"].copy())
    for array in (result.params, result.cov_params(), result.G["group"]):
        array[...] = 7.0
    for now, then in zip((result.params, result.cov_params(), result.G["group"]), before, strict=True):
        np.testing.assert_array_equal(now, then)


# ------------------------------------------------------------------------------------------------------------
# order and labels


@BOTH
@pytest.mark.parametrize("kind", ["irregular", "balanced", "+1"])
def test_order_of_rows_and_labels_do_not_matter(rng, kind, reml):
    if kind == "irregular":
        y, X, groups, _ = study(rng, m=30)
    else:
        d = balanced(rng, "interior" if kind == "balanced" else "+1", m=80)
        y, X, groups = d["y"], np.column_stack([np.ones(len(d["y"])), d["x"]]), d["g"]
    base = flc.LinearMixedModel(y, X, X, groups).fit(reml=reml)
    order = rng.permutation(len(y))
    names = np.array([f"{k:05d}" for k in rng.permutation(10_000)[: groups.max() + 1]])
    other = flc.LinearMixedModel(y[order], X[order], X[order], names[groups][order]).fit(reml=reml)
    assert other.criterion == pytest.approx(base.criterion, rel=1e-12)
    assert other.singular is base.singular
    # both certified: theta to some 1e-8, of which estimates hang to first order
    closed(other.params, base.params, 1e-7)
    closed(other.bse, base.bse, 1e-7)
    closed(other.G["group"], base.G["group"], 1e-6)
    closed(other.fittedvalues, base.fittedvalues[order], 1e-6)
    closed(other.resid, base.resid[order], 1e-6)
    assert list(other.group_labels) == sorted(names)
    at = np.argsort(names)
    closed(other.random_effects, base.random_effects[at], 1e-6)
    closed(other.random_effects_covariance(), base.random_effects_covariance()[at], 1e-6)


def test_gaps_in_integer_labels_do_not_matter(rng):
    y, X, groups, _ = study(rng)
    base = flc.LinearMixedModel(y, X, X, groups).fit()
    for labels in (3 * groups - 20, groups + 10**12, (groups * 37) % 101, groups.astype(np.int16) * 100):
        other = flc.LinearMixedModel(y, X, X, labels).fit()
        at = np.argsort(np.unique(labels[np.unique(groups, return_index=True)[1]], return_inverse=True)[1])
        assert list(other.group_labels) == sorted(set(labels.tolist()))
        assert other.n_groups == {"group": 14}
        assert other.criterion == pytest.approx(base.criterion, rel=1e-12)
        closed(other.random_effects, base.random_effects[at], 1e-6)
        label = labels[0]
        closed(other.marginal_covariance(label), base.marginal_covariance(groups[0]), 1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_tables_come_in_the_library_of_the_data(rng, library):
    y, X, groups, _ = study(rng)
    data = {"y": y, "t": X[:, 1], "g": groups}
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table, "dict": dict}[library]
    model = flc.lmm("y ~ t + (1 | g)", make(data))
    assert model.library == library
    found = model.table({"name": ["a", "b"], "value": np.array([1.0, np.nan])})
    assert type(found) is {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.Table, "dict": dict}[library]
    assert [str(value) for value in found["name"]] == ["a", "b"]
    np.testing.assert_array_equal(np.asarray(found["value"], dtype=float), [1.0, np.nan])
    arrays = flc.LinearMixedModel(y, X, groups=groups)
    assert arrays.library == "dict"
    assert isinstance(arrays.table({"name": ["a", "b"]})["name"], np.ndarray)


def test_factors_by_name_and_by_term(rng):
    a, b = rng.integers(0, 5, 60), rng.integers(0, 9, 60)
    terms = [
        flc.RandomTerm(None, a, "a"),
        flc.RandomTerm(rng.standard_normal((60, 2)), b, "b"),
        flc.RandomTerm(None, b, "b"),
    ]
    model = flc.LinearMixedModel(rng.standard_normal(60), terms=terms)
    assert model.factor() is model.factors[0]
    assert [model.factor(name).grouping.name for name in ("a", "b")] == ["a", "b"]
    with pytest.raises(flc.LMMError, match="factor='c' is not a grouping factor: use 'b' or 'a'"):
        model.factor("c")
    owners = [model.factor_of(block).grouping.name for block in model.structure.blocks]
    assert owners == ["b", "b", "a"]


@pytest.mark.parametrize("reml", [True, False])
def test_residuals_with_weights_and_an_offset(rng, reml):
    groups = rng.permutation(np.repeat(np.arange(12), 6))
    n = len(groups)
    Z = np.column_stack([np.ones(n), rng.uniform(-1.0, 1.0, n)])
    w, offset = rng.uniform(0.2, 5.0, n), rng.normal(0.0, 10.0, n)
    y = offset + Z @ [1.0, 2.0] + np.sum(Z * rng.standard_normal((12, 2))[groups], axis=1)
    y = y + rng.standard_normal(n) / np.sqrt(w)
    result = flc.LinearMixedModel(y, Z, Z, groups, weights=w, offset=offset).fit(reml=reml)
    Ghat = oracle.covariance_blocks(result) / result.sigma2
    for kind in ("conditional", "marginal", "pearson", "whitened"):
        expected = oracle.residuals(y, Z, Z, groups, Ghat, reml, kind, w, offset)
        np.testing.assert_allclose(result.residuals(kind), expected, rtol=1e-7, atol=1e-7)


def test_r2_and_icc_by_their_definitions(rng):
    groups = np.repeat(np.arange(10), 3)
    X = np.column_stack([np.ones(30), rng.standard_normal(30)])
    y = X @ [1.0, 0.7] + np.sum(X * rng.standard_normal((10, 2))[groups], axis=1) + rng.standard_normal(30)
    result = flc.LinearMixedModel(y, X, X, groups).fit()
    mean = X @ result.params
    fixed = np.sum((mean - mean.mean()) ** 2) / 29
    random = np.mean(np.einsum("ij,jk,ik->i", X, oracle.covariance_blocks(result), X))
    total = fixed + random + result.sigma2
    assert result.r2() == pytest.approx({"marginal": fixed / total, "conditional": (fixed + random) / total}, rel=1e-10)
    assert result.icc() == pytest.approx(random / (random + result.sigma2), rel=1e-10)


@pytest.mark.parametrize(("name", "singular"), [("dyestuff2", True), ("dyestuff", False)])
def test_the_message_says_whether_the_optimum_is_on_the_boundary(fitted_reference, name, singular):
    result = fitted_reference(name, True, "arrays")
    assert result.singular == singular
    assert result.message.startswith("certified: the gradient vanishes to rounding error")
    assert ("on the boundary" in result.message) == singular
