"""Robust covariances: clubSandwich's numbers, and matrices of all rows by the definitions."""

from __future__ import annotations

import json
import pickle
from functools import cache

import numpy as np
import pandas as pd
import pytest

import dense_sandwich
import fastlmm_core as flc
import fits
import oracle
import several
from fastlmm_core import RandomTerm
from fastlmm_core.inference import sandwich as module

KINDS = ("CR0", "CR1", "CR2", "CR3")

# Against dense algebra at the same parameters, where only rounding differs.
DENSE = 1e-8
# What clubSandwich prints, on lme4's fit.
REFERENCE = 1e-6


def same(actual, desired, tolerance=DENSE):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_club_sandwich(kind):
    expected = json.loads((oracle.REFERENCE / "clubsandwich.json").read_text())["sleepstudy"]
    table = fits.fitted(fits.SLEEPSTUDY, "sleepstudy").tidy(vcov=kind)
    same(table.std_error, expected[kind]["se"], REFERENCE)
    same(table.df, expected[kind]["df"], REFERENCE)
    covariance = fits.fitted(fits.SLEEPSTUDY, "sleepstudy").cov_params(vcov=kind)
    same(covariance.to_numpy().ravel(), expected[kind]["cov"], REFERENCE)


# ---- dense matrices --------------------------------------------------------------------------------


def one_factor(rng, sizes, weighted, columns=3):
    """Groups of these sizes with random slopes; the last column of X is one group's alone."""
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(group)
    Z = np.column_stack([np.ones(n), rng.standard_normal(n)])
    X = np.column_stack([Z, rng.standard_normal((n, columns - 2))])
    y = 1.0 + np.sum(Z * (rng.standard_normal((len(sizes), 2)) * [1.5, 0.8])[group], axis=1) + rng.standard_normal(n)
    weights = rng.uniform(0.3, 3.0, n) if weighted else None
    return y, X, [RandomTerm(Z, group, "g")], weights


def matrices(result, terms):
    parts = []
    for term, G in zip(terms, result.G.values(), strict=True):
        Z = np.ones((result.nobs, 1)) if term.Z is None else np.asarray(term.Z, dtype=float).reshape(result.nobs, -1)
        parts.append((Z, np.unique(term.groups, return_inverse=True)[1], G))
    return dense_sandwich.covariance(parts, result.model.weights, result.sigma2, result.nobs)


def compare(result, V, labels, kind, cluster=None, tolerance=DENSE):
    """Everything that is public, against dense matrices."""
    X, y = result.model.exog, result.model.endog
    y = y if result.model.offset is None else y - result.model.offset
    kept = result.model.problem.kept
    dense = dense_sandwich.Dense(X[:, kept], V, labels, kind)
    estimate = dense.estimate(y)
    names = np.array(result.model.exog_names)[kept]
    found = np.asarray(result.cov_params(vcov=kind, cluster=cluster))[np.ix_(kept, kept)]
    size = np.sqrt(np.diag(estimate))
    assert np.max(np.abs(found - estimate) / np.outer(size, size)) < tolerance
    table = result.tidy(vcov=kind, cluster=cluster)
    same(np.asarray(table["std_error"])[kept], size, tolerance)
    same(np.asarray(table["df"])[kept], [dense.df(row) for row in np.eye(len(kept))], tolerance)
    # a contrast, and rows together, one of which says nothing new
    L = np.zeros((3, X.shape[1]))
    L[0, kept[:2]], L[1, kept[[1, 2]]] = [1.0, -0.5], [2.0, 1.0]
    L[2] = L[0] - L[1]
    joint = result.test(L, vcov=kind, cluster=cluster)
    same(joint.row_df, [dense.df(row[kept]) for row in L], tolerance)
    statistic, k, freedom = dense.htz(L[:2][:, kept], result.beta[kept], y)
    same(joint.statistic, statistic, tolerance)
    assert joint.df_num == k
    same(joint.df_denom, freedom, tolerance)
    assert joint.vcov == kind and len(names) == len(kept)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 3, 5, 4, 6, 2, 7), (40, 33, 3, 50, 1, 12, 2), (35, 36, 40, 33, 34, 50)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_factor_against_dense_matrices(rng, kind, sizes, weighted):
    y, X, terms, weights = one_factor(rng, sizes, weighted, columns=4)
    result = flc.LinearMixedModel(y, X, terms=terms, weights=weights).fit()
    compare(result, matrices(result, terms), terms[0].groups, kind)


@pytest.mark.parametrize("kind", ["CR0", "CR2", "CR3"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("study", ["nested", "apart"])
def test_several_factors_against_dense_matrices(rng, study, weighted, kind):
    made = several.Study(rng, study, weighted)
    terms = [RandomTerm(Z, labels, name) for name, (Z, labels) in made.terms.items()]
    result = flc.LinearMixedModel(made.y, made.X, terms=terms, weights=made.w, offset=made.offset).fit()
    V = matrices(result, terms)
    apart = np.unique(V != 0.0, axis=0, return_inverse=True)[1] if study == "nested" else None
    labels = terms[-1].groups if apart is not None else np.asarray(terms[0].groups) // 100
    compare(result, V, labels, kind, None if study == "nested" else labels)


def test_many_columns_and_few_rows_in_each_cluster(rng):
    """More columns than a cluster has rows: the smaller eigenproblem is that of the rows."""
    y, X, terms, _ = one_factor(rng, [2, 3, 4] * 12, False, columns=9)
    result = flc.LinearMixedModel(y, X, terms=terms).fit()
    for kind in KINDS:
        compare(result, matrices(result, terms), terms[0].groups, kind)


def test_all_ways_agree(rng, monkeypatch):
    """Rows of a covariance matrix that is formed, and sums over rows of V^-1 X, give the same."""
    y, X, terms, weights = one_factor(rng, [5, 9, 14, 20, 7, 6], True)
    result = flc.LinearMixedModel(y, X, terms=terms, weights=weights).fit()
    formed = result.test(np.eye(3)[1:], vcov="CR2")
    monkeypatch.setattr(module, "FORMED", 0)
    monkeypatch.setattr(module, "HELD", 50)
    summed = result.model.fit().test(np.eye(3)[1:], vcov="CR2")
    same([summed.statistic, summed.df_denom, *summed.std_error], [formed.statistic, formed.df_denom, *formed.std_error])


@pytest.mark.parametrize("size", [5, 60])
@pytest.mark.parametrize("spread", [1.0, 1e4, 1e6])
def test_large_random_effects(rng, spread, size):
    """V^-1 is nearly singular along the random effects, and nothing may be lost in it.

    In a balanced design with covariates of groups only, fit and CR2 are least squares of the means of groups and HC2
    (MacKinnon and White 1985), whatever the variances are.
    """
    m = 14
    group, x = np.repeat(np.arange(m), size), rng.standard_normal(m)
    y = (spread * rng.standard_normal(m))[group] + rng.standard_normal(m * size)
    result = flc.LinearMixedModel(y, np.column_stack([np.ones(m * size), x[group]]), None, group).fit()
    means, M = np.bincount(group, y) / size, np.column_stack([np.ones(m), x])
    inner = np.linalg.inv(M.T @ M)
    rest, leverage = means - M @ inner @ M.T @ means, np.einsum("ij,jk,ik->i", M, inner, M)
    expected = inner @ (M.T * (rest**2 / (1.0 - leverage))) @ M @ inner
    same(result.tidy(vcov="CR2")["std_error"], np.sqrt(np.diag(expected)), 1e-7)


def test_pairs_and_no_columns(rng):
    """Clusters of two rows; and nothing to estimate."""
    x, z = rng.standard_normal((2, 40))
    y = 1.0 + x + rng.standard_normal(40)
    group = np.r_[np.arange(20), np.arange(20)]
    result = flc.LinearMixedModel(y, np.column_stack([np.ones(40), x, z]), None, group).fit()
    compare(result, matrices(result, [RandomTerm(None, group, "g")]), group, "CR2")
    empty = flc.LinearMixedModel(y, np.zeros((40, 0)), None, group).fit()
    assert empty.cov_params(vcov="CR2").shape == (0, 0) and len(empty.tidy(vcov="CR2")["term"]) == 0


@pytest.mark.parametrize("kind", ["CR2", "CR3"])
def test_what_one_cluster_knows_alone(rng, kind):
    """A column that is other than zero in one cluster only: its variance cannot be estimated from one residual."""
    y, X, terms, _ = one_factor(rng, [6, 5, 7, 4, 6, 8, 5], False)
    alone = (np.asarray(terms[0].groups) == 3).astype(float)
    X = np.column_stack([X, alone])
    result = flc.LinearMixedModel(y, X, terms=terms).fit()
    table = result.tidy(vcov=kind)
    assert np.isnan(table["std_error"][3]) and np.isnan(table["df"][3]) and np.isnan(table["p_value"][3])
    dense = dense_sandwich.Dense(X, matrices(result, terms), terms[0].groups, kind)
    same(table["std_error"][:3], np.sqrt(np.diag(dense.estimate(y)))[:3])
    same(table["df"][:3], [dense.df(row) for row in np.eye(4)[:3]])


def test_a_joint_test_of_more_rows_than_clusters_allow():
    data = flc.datasets.load("orthodont")
    few = data[data.Subject.isin(data.Subject.unique()[:3])]
    result = flc.lmm("distance ~ C(age) + (1 | Subject)", few).fit()
    found = result.test(np.eye(4)[1:], vcov="CR2")
    assert np.isnan(found.statistic) and np.isnan(found.pvalue) and np.isnan(found.df_denom)
    assert "3 clusters (Subject) are too few for 3 rows" in str(found)


def test_unbiased_where_the_model_is_right(rng):
    """The mean of CR2 over the distribution of y is the model's covariance: exactly, from the quadratic forms."""
    y, X, terms, _ = one_factor(rng, [3, 8, 2, 9, 4], False)
    result = flc.LinearMixedModel(y, X, terms=terms).fit()
    V = matrices(result, terms)
    dense = dense_sandwich.Dense(X, V, terms[0].groups, "CR2")
    same(dense.mean(np.eye(3)), np.asarray(result.cov_params()), 1e-6)


# ---- structured residuals --------------------------------------------------------------------------


FEV = "FEV1 ~ RACE + SEX + ARMCD * AVISIT"


@cache
def fev(structure, formula=FEV, weighted=False):
    data = pd.read_csv(oracle.REFERENCE / "data" / "fev_full.csv")
    return flc.lmm(formula, data, residual=structure, weights="WEIGHT" if weighted else None).fit()


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("us", "us(AVISIT | USUBJID)"),
        ("ar1", "ar1(AVISIT | USUBJID)"),
        ("ar1h_by_arm", "ar1h(AVISIT | USUBJID, by=ARMCD)"),
    ],
)
def test_mmrm(name, structure):
    expected = json.loads((oracle.REFERENCE / "mmrm_fev_full.json").read_text())[name]
    result = fev(structure)
    for kind, theirs in (("CR0", "Empirical"), ("CR2", "Empirical-Bias-Reduced"), ("CR3", "Empirical-Jackknife")):
        table = result.tidy(vcov=kind)
        # mmrm's optimum is good to about 1e-8
        same(table.std_error, expected[theirs]["se"], 1e-7)
        same(table.df, expected[theirs]["df"], 1e-6)
    same(result.tidy(vcov="CR1").std_error, np.sqrt(197 / 196) * result.tidy(vcov="CR0").std_error, 1e-12)


@pytest.mark.parametrize("structure", ["us", "ar1", "cs"])
@pytest.mark.parametrize("weighted", [False, True])
def test_empirical_covariance_of_sas(structure, weighted):
    expected = json.loads((oracle.REFERENCE / "sas_mmrm.json").read_text())["treatment"][structure]
    found = fev(f"{structure}(AVISIT | USUBJID)", "FEV1 ~ ARMCD", weighted).cov_params(vcov="CR0")
    # SAS stopped before the optimum in one case: its coefficients too are off by 6e-6 there
    tolerance = 3e-5 if structure == "us" and not weighted else 1e-6
    same(found.to_numpy(), expected["cr0_cov_weighted" if weighted else "cr0_cov"], tolerance)


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("kind", ["CR0", "CR2", "CR3"])
def test_long_series_against_dense_matrices(rng, kind, random):
    """Clusters of more rows than are formed, correlated by ar1, with and without random intercepts."""
    subjects, visits = 9, 50
    keep = rng.uniform(size=subjects * visits) > 0.1
    g, t = np.repeat(np.arange(subjects), visits)[keep], np.tile(np.arange(visits), subjects)[keep]
    noise = np.zeros(len(g))
    for i in range(1, len(g)):
        noise[i] = (0.6 * noise[i - 1] if g[i] == g[i - 1] else 0.0) + rng.standard_normal()
    x = rng.standard_normal(len(g))
    y = 1.0 + 0.3 * x + noise + random * 2.0 * rng.standard_normal(subjects)[g]
    data = {"y": y, "x": x, "z": rng.standard_normal(subjects)[g], "t": t, "g": g}
    formula = "y ~ x + z" + " + (1 | g)" * random
    result = flc.lmm(formula, data, residual="ar1(t | g)").fit()
    assert np.bincount(g).min() > module.FORMED
    natural = dict(zip(*(result.residual_parameters()[c] for c in ("term", "estimate")), strict=True))
    R = natural["sigma2|g"] * natural["rho|g"] ** np.abs(t[:, None] - t) * (g[:, None] == g)
    V = R + (result.covariance[0, 0] * (g[:, None] == g) if random else 0.0)
    compare(result, V, g, kind, tolerance=1e-7)


# ---- the public face -------------------------------------------------------------------------------


def test_degrees_of_freedom_of_other_kinds():
    result = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    own = result.test(["Days", "Intercept"], vcov="CR2")
    z = result.test(["Days", "Intercept"], vcov="CR2", ddf="normal")
    t = result.test(["Days", "Intercept"], vcov="CR2", ddf="residual")
    same(z.std_error, own.std_error, 1e-12)
    # eta = 17 for a balanced design: F = T2 (17 - 2 + 1) / (17 * 2)
    same(own.statistic, z.statistic * 16.0 / 34.0, 1e-10)
    same(own.df_denom, 16.0, 1e-10)
    same([t.statistic, t.df_denom], [z.statistic / 2.0, 178.0], 1e-12)
    with pytest.raises(flc.LMMError, match="'kenward-roger' adjusts the covariance of the model"):
        result.test("Days", vcov="CR2", ddf="kenward-roger")


def test_everything_shows_the_same_standard_error():
    result = fits.fitted("angle ~ recipe * temperature + (1 | recipe:replicate)", "cake")
    means = result.emmeans("recipe", contrasts="pairwise", adjust="none", vcov="CR2")
    L = np.atleast_2d(means.comparison.L)
    test = result.test(L, vcov="CR2")
    same(means.comparison.std_error, test.std_error, 1e-12)
    same(means.comparison.df, test.row_df, 1e-12)
    table = result.anova(vcov="CR2")
    same(table.statistic[0], means.joint_test().statistic[0], 1e-9)
    same(table.df_denom[0], means.joint_test().df_denom[0], 1e-9)
    assert np.isnan(table.sum_sq).all() and "Sum Sq" not in str(table) and "CR2" in str(table)
    assert "CR2" in str(means) and "CR2" in str(result.summary(vcov="CR2"))
    tidy, limits = result.tidy(vcov="CR2"), result.conf_int(vcov="CR2")
    same(limits.conf_low, tidy.conf_low, 1e-14)
    same(np.sqrt(np.diag(result.cov_params(vcov="CR2"))), tidy.std_error, 1e-12)


def test_clusters_by_name_and_by_label():
    data = flc.datasets.load("pastes")
    data["region"] = np.where(
        data.batch.isin(list("ABCD")), "north", np.where(data.batch.isin(list("EFG")), "mid", "x")
    )
    data["half"] = np.arange(len(data)) % 2
    result = flc.lmm("strength ~ 1 + (1 | batch/cask)", data).fit()
    plain = result.tidy(vcov="CR2")
    assert float(plain.df.iloc[0]) == pytest.approx(9.0)
    same(result.tidy(vcov="CR2", cluster="batch").std_error, plain.std_error, 1e-12)
    regions = result.tidy(vcov="CR2", cluster="region")
    same(regions.std_error, result.tidy(vcov="CR2", cluster=data.region).std_error, 1e-12)
    assert regions.df.iloc[0] < 2.5
    compare_labels = np.unique(data.region, return_inverse=True)[1]
    same(regions.df, result.tidy(vcov="CR2", cluster=compare_labels).df, 1e-12)
    for wrong in ("batch:cask", "half", data.cask):
        with pytest.raises(flc.LMMError, match=r"both batch(:cask)? 'A(:a)?', in different clusters"):
            result.test("Intercept", vcov="CR2", cluster=wrong)
    with pytest.raises(flc.LMMError, match=r"no column 'regoin'.*Did you mean 'region'"):
        result.test("Intercept", vcov="CR2", cluster="regoin")
    with pytest.raises(flc.LMMError, match="one level"):
        result.test("Intercept", vcov="CR2", cluster=np.zeros(60))
    with pytest.raises(flc.LMMError, match="cluster has 12 values for 60 rows"):
        result.test("Intercept", vcov="CR2", cluster=np.zeros(12))
    with pytest.raises(flc.LMMError, match="no label at row 3"):
        result.test("Intercept", vcov="CR2", cluster=data.region.where(data.index != 3))
    with pytest.raises(flc.LMMError, match="cluster is for robust covariances"):
        result.test("Intercept", cluster="batch")
    with pytest.raises(flc.LMMError, match="'HC3' is unknown"):
        result.test("Intercept", vcov="HC3")
    with pytest.raises(flc.LMMError, match="'profile' is by the likelihood"):
        result.conf_int(method="profile", vcov="CR2")


def test_rows_with_missing_values():
    data = flc.datasets.load("pastes")
    data["region"] = np.where(data.batch.isin(list("ABCDE")), "north", "south")
    complete = flc.lmm("strength ~ 1 + (1 | batch/cask)", data.drop(index=[3, 17])).fit()
    data.loc[[3, 17], "strength"] = np.nan
    result = flc.lmm("strength ~ 1 + (1 | batch/cask)", data).fit()
    expected = complete.tidy(vcov="CR2", cluster="region")
    for cluster in ("region", data.region, data.region.drop([3, 17])):
        same(result.tidy(vcov="CR2", cluster=cluster).df, expected.df, 1e-12)


def test_a_table_that_has_been_changed_since():
    data = flc.datasets.load("pastes")
    data["region"] = np.where(data.batch.isin(list("ABCDE")), "north", "south")
    result = flc.lmm("strength ~ 1 + (1 | batch/cask)", data).fit()
    data["later"] = data.region
    expected = result.tidy(vcov="CR2", cluster="region").df
    same(result.tidy(vcov="CR2", cluster="later").df, expected, 1e-12)
    other = result.model.fit()
    data.index = data.index[::-1]
    with pytest.raises(flc.LMMError, match="another order of rows, than the 60"):
        other.tidy(vcov="CR2", cluster="region")
    data.index = data.index[::-1]
    same(other.tidy(vcov="CR2", cluster="region").df, expected, 1e-12)
    data.loc[60] = data.loc[0]
    with pytest.raises(flc.LMMError, match="other rows"):
        other.tidy(vcov="CR2", cluster="later")


def test_crossed_factors_have_no_clusters():
    result = fits.fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    with pytest.raises(flc.LMMError, match="plate and sample, which are crossed"):
        result.test("Intercept", vcov="CR2")


def test_pickle_and_models_from_arrays():
    result = flc.lmm(fits.SLEEPSTUDY, flc.datasets.load("sleepstudy")).fit()
    before = result.test("Days", vcov="CR2")
    again = pickle.loads(pickle.dumps(result))
    assert again.model.design.source is None
    same(again.test("Days", vcov="CR2").std_error, before.std_error, 1e-14)
    with pytest.raises(flc.LMMError, match="there is no table"):
        again.test("Days", vcov="CR2", cluster="site")
    assert isinstance(result.cov_params(vcov="CR2"), pd.DataFrame)


def test_dropped_columns_are_nan(rng):
    y, X, terms, _ = one_factor(rng, [6, 5, 7, 4, 6, 8, 5], False)
    result = flc.LinearMixedModel(y, np.column_stack([X[:, :2], X[:, 1] * 2.0, X[:, 2]]), terms=terms).fit()
    plain = flc.LinearMixedModel(y, X, terms=terms).fit()
    found, kept = result.cov_params(vcov="CR2"), [0, 1, 3]
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    same(found[np.ix_(kept, kept)], plain.cov_params(vcov="CR2"), 1e-6)
    assert np.isnan(result.tidy(vcov="CR2")["std_error"][2])


def test_invariance(rng):
    """Units, the order of rows and the names of groups change nothing."""
    y, X, terms, _ = one_factor(rng, [6, 5, 7, 40, 6, 8, 5], False)
    Z, group = terms[0].Z, np.asarray(terms[0].groups)
    plain = flc.LinearMixedModel(y, X, terms=terms).fit().test(np.eye(3)[1:], vcov="CR2")
    order = rng.permutation(len(y))
    scale = np.array([1.0, 1e3, 1e-2])
    other = flc.LinearMixedModel(
        1e5 * y[order], (X * scale)[order], terms=[RandomTerm(Z[order], np.array(list("gfedcba"))[group[order]], "h")]
    ).fit()
    found = other.test(np.eye(3)[1:], vcov="CR2")
    same([found.statistic, found.df_denom, *found.row_df], [plain.statistic, plain.df_denom, *plain.row_df], 1e-6)


def test_batches():
    result = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    Y = np.array(result.simulate(4, seed=3))
    Y[2] = 1.0
    batch = result.model.fit_many(Y)
    found = batch.test(np.eye(2), vcov="CR2")
    single = result.model.refit(Y[3]).test(np.eye(2), vcov="CR2")
    same(found.std_error[3], single.std_error)
    same([found.statistic[3], found.df_denom[3], found.pvalues[3]], [single.statistic, single.df_denom, single.pvalue])
    assert np.isnan(found.statistic[2]) and found.vcov == "CR2"
    table = batch.tidy(vcov="CR2")
    own = result.model.refit(Y[3]).tidy(vcov="CR2")
    for column in ("estimate", "std_error", "df", "p_value", "conf_low"):
        same(table[column][6:8], own[column])
    assert np.isnan(table["std_error"][4:6]).all()
    stream = result.model.fit_many(iter([Y[:2]]))
    with pytest.raises(flc.LMMError, match="robust covariances are made of residuals"):
        stream.test("Days", vcov="CR2")
