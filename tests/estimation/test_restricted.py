"""Random effects with restricted covariances, against dense algebra in natural parameters and against equal models."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import fastlmm_core as flc
import fits
from fastlmm_core import LMMError
from fastlmm_core.simulation.bootstrap import _resamples
from structures_cases import difference

TOLERANCES = {
    "criterion": 1e-9,  # absolute, of a criterion of some hundreds: rounding of two ways to sum it
    "gradient": 2e-5,  # differences of a criterion of some hundreds: 1e-13 / step
    "inference": 2e-5,  # relative: second differences of the dense criterion
}


def study(seed=0, m=40, missing=0.2):
    """Three rows at each of four visits of m subjects, with visits missing, on six sites."""
    rng = np.random.default_rng(seed)
    C = 0.6 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    b = rng.standard_normal((m, 4)) @ np.linalg.cholesky(C).T * np.array([1.0, 1.5, 2.0, 1.2])
    subject, visit = (part.ravel() for part in np.indices((m, 4)))
    kept = rng.uniform(size=m * 4) > missing
    subject, visit = np.repeat(subject[kept], 3), np.repeat(visit[kept], 3)
    x = rng.standard_normal(len(subject))
    site = rng.integers(0, 6, len(subject))
    y = 1.0 + 0.5 * x + b[subject, visit] + rng.standard_normal(6)[site] + rng.standard_normal(len(subject))
    weights = rng.uniform(0.5, 2.0, len(subject))
    return pd.DataFrame(
        {"y": y, "x": x, "id": subject, "visit": pd.Categorical(visit), "site": site, "w": weights, "v": visit}
    )


def correlations(name, c, q):
    lags = np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    return np.where(lags == 0, 1.0, c) if name == "cs" else c**lags


class Dense:
    """The criterion of natural parameters, sd (1 or q), rho, sigma2 and the variance of sites if any, by V in full."""

    def __init__(self, data, name, hom, reml, weights=False, sites=False):
        self.y, self.n = data.y.to_numpy(), len(data)
        self.X = np.column_stack((np.ones(self.n), data.x))
        self.Z = np.eye(4)[data.v.to_numpy()]
        ids, site = data.id.to_numpy(), data.site.to_numpy()
        self.same, self.sites = np.equal.outer(ids, ids), np.equal.outer(site, site) * 1.0 if sites else None
        self.name, self.hom, self.reml = name, hom, reml
        self.noise = np.diag(1.0 / data.w.to_numpy()) if weights else np.eye(self.n)

    def V(self, psi):
        k = 1 if self.hom else 4
        variances = np.full(4, psi[0]) if self.hom else psi[:4]
        s = np.sqrt(variances)
        G = np.outer(s, s) * correlations(self.name, psi[k] / psi[0] if self.linear else psi[k], 4)
        V = (self.Z @ G @ self.Z.T) * self.same + psi[k + 1] * self.noise
        return V if self.sites is None else V + psi[k + 2] * self.sites

    @property
    def linear(self):
        # SAS's parameters of cs are a variance and a covariance
        return self.name == "cs" and self.hom

    def psi(self, fit):
        G, k = fit.G["id"], 1 if self.hom else 4
        rho = G[0, 1] if self.linear else G[0, 1] / np.sqrt(G[0, 0] * G[1, 1])
        own = [*np.diag(G)[:k], rho, fit.sigma2]
        return np.array(own if self.sites is None else [*own, fit.G["site"][0, 0]])

    def pieces(self, psi):
        V = self.V(psi)
        W = np.linalg.inv(V)
        Phi = np.linalg.inv(self.X.T @ W @ self.X)
        r = self.y - self.X @ (Phi @ self.X.T @ W @ self.y)
        return V, W, Phi, r

    def __call__(self, psi):
        V, W, Phi, r = self.pieces(psi)
        value = np.linalg.slogdet(V)[1] + r @ W @ r
        if self.reml:
            return value - np.linalg.slogdet(Phi)[1] + (self.n - 2) * np.log(2.0 * np.pi)
        return value + self.n * np.log(2.0 * np.pi)

    def gradient(self, psi):
        _, W, Phi, r = self.pieces(psi)
        A, e = W @ self.X, W @ r
        K = W - np.outer(e, e) - (A @ Phi @ A.T if self.reml else 0.0)
        return np.array([np.vdot(K, D) for D in difference(self.V, psi, 1e-4)])


CASES = [
    ("ar1(0 + visit | id)", "ar1", True),
    ("ar1(0 + visit | id, hom=False)", "ar1", False),
    ("cs(0 + visit | id, hom=TRUE)", "cs", True),
    ("cs(0 + visit | id)", "cs", False),
]


@pytest.mark.parametrize(("term", "name", "hom"), CASES)
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weights", [False, True])
def test_optimum(term, name, hom, reml, weights):
    data = study()
    fit = flc.lmm(f"y ~ x + {term}", data, weights="w" if weights else None).fit(reml=reml)
    assert fit.converged and not fit.singular
    dense = Dense(data, name, hom, reml, weights)
    psi = dense.psi(fit)
    np.testing.assert_allclose(fit.criterion, dense(psi), rtol=0, atol=TOLERANCES["criterion"])
    np.testing.assert_allclose(dense.gradient(psi), 0.0, atol=TOLERANCES["gradient"])
    # G is a member, and the parameters are counted
    G = fit.G["id"]
    s = np.sqrt(np.diag(G))
    np.testing.assert_allclose(G / np.outer(s, s), correlations(name, G[0, 1] / s[0] / s[1], 4), atol=1e-12)
    assert fit.n_parameters == 2 + (1 if hom else 4) + 1 + 1
    _, W, Phi, _ = dense.pieces(psi)
    np.testing.assert_allclose(np.asarray(fit.params), Phi @ dense.X.T @ W @ dense.y, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(fit.cov_params()), Phi, rtol=1e-8)


@pytest.mark.parametrize(("term", "name", "hom"), CASES)
def test_several_factors(term, name, hom):
    data = study(3, m=20)
    fit = flc.lmm(f"y ~ x + {term} + (1 | site)", data).fit()
    assert fit.converged
    dense = Dense(data, name, hom, True, sites=True)
    psi = dense.psi(fit)
    np.testing.assert_allclose(fit.criterion, dense(psi), rtol=0, atol=TOLERANCES["criterion"])
    np.testing.assert_allclose(dense.gradient(psi), 0.0, atol=TOLERANCES["gradient"])


def check_inference(fit, dense, ddf):
    """Satterthwaite, or Kenward and Roger (1997) with the second derivatives of V in natural parameters."""
    psi = dense.psi(fit)
    _, W, Phi, _ = dense.pieces(psi)
    A = W @ dense.X
    D = difference(dense.V, psi, 1e-3)
    if ddf == "expected":
        P = W - A @ Phi @ A.T
        information = np.array([[np.trace(P @ a @ P @ b) for b in D] for a in D])
    else:
        hessian = difference(dense.gradient, psi, 1e-3)
        information = 0.5 * (hessian + hessian.T)
    cov = 2.0 * np.linalg.inv(information)
    changes = np.array([Phi @ A.T @ d @ A @ Phi for d in D])
    if ddf == "satterthwaite":
        slopes = np.einsum("kii->ik", changes)
        df = 2.0 * np.diag(Phi) ** 2 / np.einsum("ik,kl,il->i", slopes, cov, slopes)
        np.testing.assert_allclose(fit.test("x = 0").df_denom, df[1], rtol=TOLERANCES["inference"])
        return
    middle = np.zeros((2, 2))
    second = difference(lambda x: difference(dense.V, x, 1e-2), psi, 1e-2)
    of_x = np.array([A.T @ d @ A for d in D])
    for a in range(len(psi)):
        for b in range(len(psi)):
            Q = A.T @ D[a] @ W @ D[b] @ A
            middle += cov[a, b] * (Q - of_x[a] @ Phi @ of_x[b] - 0.25 * A.T @ second[a, b] @ A)
    adjusted = Phi + 2.0 * Phi @ middle @ Phi
    for j, hypothesis in enumerate(("Intercept = 0", "x = 0")):
        found = fit.test(hypothesis, ddf="kenward-roger", information=ddf).std_error
        np.testing.assert_allclose(found**2, adjusted[j, j], rtol=TOLERANCES["inference"])


@pytest.mark.parametrize(("term", "name", "hom"), CASES)
@pytest.mark.parametrize("ddf", ["satterthwaite", "observed", "expected"])
def test_inference(term, name, hom, ddf):
    data = study(5, m=15, missing=0.3)
    check_inference(flc.lmm(f"y ~ x + {term}", data).fit(), Dense(data, name, hom, True), ddf)


def test_homogeneous_symmetry_is_a_nested_factor():
    data = flc.datasets.load("machines")
    cs = flc.lmm("score ~ Machine + cs(0 + Machine | Worker, hom=True)", data).fit()
    nested = flc.lmm("score ~ Machine + (1 | Worker/Machine)", data).fit()
    np.testing.assert_allclose(cs.criterion, nested.criterion, rtol=1e-12)
    np.testing.assert_allclose(cs.params, nested.params, rtol=1e-10)
    assert cs.n_parameters == nested.n_parameters
    for ddf in ("satterthwaite", "kenward-roger"):
        one, other = (fit.anova(ddf=ddf).to_frame() for fit in (cs, nested))
        np.testing.assert_allclose(one.statistic, other.statistic, rtol=1e-7)
        np.testing.assert_allclose(one.df_denom, other.df_denom, rtol=1e-6)
    G, inner = cs.G["Worker"], nested.G
    np.testing.assert_allclose(G[0, 1], inner["Worker"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(G[0, 0] - G[0, 1], inner["Worker:Machine"][0, 0], rtol=1e-6)
    table, before = (
        fit.variance_components().set_index("term") for fit in (cs, nested)
    )  # fmt: skip
    np.testing.assert_allclose(
        table.std_error["cov_Machine[A].Machine[B]|Worker"], before.std_error["var_Intercept|Worker"], rtol=1e-6
    )
    np.testing.assert_allclose(cs.predict(), nested.predict(), rtol=1e-10)


@pytest.mark.parametrize("reml", [True, False])
def test_full_rank_is_unstructured(reml):
    data = flc.datasets.load("sleepstudy")
    full = flc.lmm("Reaction ~ Days + fa0(Days | Subject, rank=2)", data).fit(reml=reml)
    us = fits.fitted("Reaction ~ Days + (Days | Subject)", "sleepstudy", reml)
    np.testing.assert_allclose(full.criterion, us.criterion, rtol=1e-12)
    np.testing.assert_allclose(full.G["Subject"], us.G["Subject"], rtol=1e-6)
    np.testing.assert_allclose(full.test("Days = 0").df_denom, us.test("Days = 0").df_denom, rtol=1e-6)
    assert full.n_parameters == us.n_parameters


def test_lower_rank_is_a_boundary_of_the_full_one():
    data = flc.datasets.load("sleepstudy")
    fit = flc.lmm("Reaction ~ Days + fa0(Days | Subject)", data).fit()
    assert fit.converged and not fit.singular
    np.testing.assert_allclose(np.abs(fit.random_effects_corr["Subject"][0, 1]), 1.0, rtol=1e-12)
    us = fits.fitted("Reaction ~ Days + (Days | Subject)", "sleepstudy")
    assert fit.criterion > us.criterion and fit.n_parameters == us.n_parameters - 1


def test_arrays():
    data = study(2)
    Z, y = np.eye(4)[data.v.to_numpy()], data.y.to_numpy()
    X = np.column_stack((np.ones(len(data)), data.x))
    for name, hom in (("ar1", None), ("ar1", False), ("cs", True)):
        term = flc.RandomTerm(Z, data.id.to_numpy(), name="id", structure=name, hom=hom)
        fit = flc.LinearMixedModel(y, X, terms=[term]).fit()
        written = f"{name}(0 + visit | id{'' if hom is None else f', hom={hom}'})"
        np.testing.assert_allclose(fit.criterion, flc.lmm(f"y ~ x + {written}", data).fit().criterion, rtol=1e-12)
    for options, message in (
        ({"structure": "full", "hom": True}, r"terms\[0\]: structure='full' takes neither hom= nor rank="),
        ({"structure": "fa0", "rank": 5}, r"terms\[0\]: fa0\(\) takes a rank from 1 to 4"),
        ({"structure": "us", "hom": True}, r"terms\[0\]: us\(\) takes no hom="),
    ):
        with pytest.raises(LMMError, match=message):
            flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(Z, data.id.to_numpy(), **options)])


def test_words_for_what_is_free():
    data = flc.datasets.load("sleepstudy")
    for term, bars in (("us(Days | Subject)", "(Days | Subject)"), ("diag(Days | Subject)", "(Days || Subject)")):
        one, other = (flc.lmm(f"Reaction ~ Days + {text}", data).fit() for text in (term, bars))
        assert one.criterion == other.criterion


def test_correlations_of_one_are_a_random_intercept():
    data = flc.datasets.load("orthodont")
    data["visit"] = data.age.astype(int).astype(str).astype("category")
    fit = flc.lmm("distance ~ age * Sex + ar1(0 + visit | Subject)", data).fit()
    assert fit.converged and fit.singular
    assert fit.singular_components == ("rho|Subject = 1",)
    intercept = flc.lmm("distance ~ age * Sex + (1 | Subject)", data).fit()
    np.testing.assert_allclose(fit.criterion, intercept.criterion, rtol=1e-9)
    np.testing.assert_allclose(fit.test("age = 0").df_denom, intercept.test("age = 0").df_denom, rtol=1e-4)


def test_units_and_order_of_rows_do_not_matter():
    data = study(7)
    fit = flc.lmm("y ~ x + ar1(0 + visit | id, hom=False)", data).fit()
    other = data.assign(y=1e6 * data.y, x=1e-3 * data.x).sample(frac=1.0, random_state=1)
    scaled = flc.lmm("y ~ x + ar1(0 + visit | id, hom=False)", other).fit()
    np.testing.assert_allclose(scaled.G["id"], 1e12 * fit.G["id"], rtol=1e-6)
    np.testing.assert_allclose(scaled.test("x = 0").df_denom, fit.test("x = 0").df_denom, rtol=1e-6)


def test_terms_that_overlap():
    # a random intercept and a decaying part, which only their structures tell apart
    fit = flc.lmm("y ~ x + (1 | id) + ar1(0 + visit | id)", study(8)).fit()
    assert fit.converged
    assert set(fit.G) == {"id", "id.1"}


def test_what_is_not_identified():
    data = study(9).drop_duplicates(["id", "visit"])
    with pytest.raises(LMMError, match="cannot be told apart, or not from the residual variance"):
        flc.lmm("y ~ x + cs(0 + visit | id, hom=True)", data).fit()
    # an autoregression beside noise is
    assert flc.lmm("y ~ x + ar1(0 + visit | id)", data).fit().converged


def test_pickle_and_simulate():
    fit = flc.lmm("y ~ x + ar1(0 + visit | id)", study(1)).fit()
    copy = pickle.loads(pickle.dumps(fit))
    assert copy.criterion == fit.criterion and copy.n_parameters == fit.n_parameters
    again = fit.model.with_response(fit.simulate(1, seed=1)[0]).fit()
    assert again.converged


FORMULAS = {
    "ar1": "y ~ x + ar1(0 + visit | id)",
    "cs": "y ~ x + cs(0 + visit | id)",
    "fa0": "y ~ x + fa0(0 + visit | id)",
    "sites": "y ~ x + ar1(0 + visit | id, hom=False) + (1 | site)",
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_many_responses_are_fitted_as_one(formula):
    model = flc.lmm(formula, study(1))
    Y = model.fit().simulate(3, seed=1)
    batch = model.fit_many(Y)
    tests = batch.test("x = 0", ddf="kenward-roger")
    for i, y in enumerate(Y):
        one = model.refit(y)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-10)
        assert batch.aic[i] == pytest.approx(one.aic, rel=1e-10)
        assert batch.converged[i] == one.converged
        np.testing.assert_allclose(batch.params[i], one.params, rtol=1e-6)
        np.testing.assert_allclose(batch.covariance[i], one.covariance, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.bse[i], one.bse, rtol=1e-6)
        assert batch.pvalues[i][1] == pytest.approx(one.pvalues["x"], rel=1e-5)
        assert tests.pvalues[i] == pytest.approx(one.test("x = 0", ddf="kenward-roger").pvalue, rel=1e-5)
        for found, known in zip(batch.cov_params()[i], one.cov_params().to_numpy(), strict=True):
            np.testing.assert_allclose(found, known, rtol=1e-6)


def test_influence_is_that_of_refits():
    data = study(1, m=12)
    fit = flc.lmm("y ~ x + ar1(0 + visit | id)", data).fit()
    found = fit.influence()
    for i, label in enumerate(found.labels):
        rest = data[data.id != label].reset_index(drop=True)
        without = flc.lmm("y ~ x + ar1(0 + visit | id)", rest).fit()
        np.testing.assert_allclose(found.params[i], without.params, rtol=1e-6)
        assert found.criterion[i] == pytest.approx(without.criterion, abs=1e-8)


def test_bootstraps():
    data = study(1, m=15)
    fit = flc.lmm("y ~ x + ar1(0 + visit | id)", data).fit()
    drawn = fit.bootstrap(4, seed=3)
    for i, y in enumerate(fit.simulate(4, seed=3)):
        again = fit.model.refit(y)
        np.testing.assert_allclose(drawn.replicates[i, :2], again.params, rtol=1e-6)
        assert drawn.replicates[i, -1] == pytest.approx(again.sigma, rel=1e-6)
    cases = fit.bootstrap(3, "cases", seed=3)
    for i, counts in enumerate(_resamples(15, 3, 3, 0)):
        parts = [data[data.id == g].assign(id=f"{g}.{c}") for g in range(15) for c in range(counts[g])]
        copied = flc.lmm("y ~ x + ar1(0 + visit | id)", pd.concat(parts, ignore_index=True)).fit()
        np.testing.assert_allclose(cases.replicates[i, :2], copied.params, rtol=1e-6)
        np.testing.assert_allclose(cases.replicates[i, -1], copied.sigma, rtol=1e-6)
    assert fit.bootstrap(4, "residual", seed=1).converged.all()
    assert fit.bootstrap(4, "conditional", seed=1).converged.all()


@pytest.mark.parametrize(
    ("small", "large", "df"),
    [
        ("ar1(0 + visit | id)", "ar1(0 + visit | id, hom=False)", 3),
        ("ar1(0 + visit | id, hom=False)", "us(0 + visit | id)", 5),
        ("cs(0 + visit | id, hom=True)", "toep(0 + visit | id)", 2),
        ("diag(0 + visit | id)", "us(0 + visit | id)", 6),
    ],
)
def test_structures_are_compared_by_chi_square_where_one_is_part_of_the_other(small, large, df):
    data = study(1)
    one, other = (flc.lmm(f"y ~ x + {term}", data).fit() for term in (small, large))
    table = flc.compare(one, other)
    row = table.rows[1]
    assert row.df == df == other.n_parameters - one.n_parameters
    assert row.statistic == pytest.approx(one.criterion - other.criterion, abs=1e-7)
    assert row.pvalue == pytest.approx(stats.chi2.sf(row.statistic, df), rel=1e-6)


def test_structures_of_which_neither_is_part_of_the_other():
    data = study(1)
    ar1 = flc.lmm("y ~ x + ar1(0 + visit | id)", data).fit()
    csh = flc.lmm("y ~ x + cs(0 + visit | id)", data).fit()
    assert "nothing tells whether ar1 is part of csh" in flc.compare(ar1, csh).rows[1].null


def test_a_structure_against_none_is_for_the_bootstrap():
    data = study(1, m=20)
    none = flc.lmm("y ~ x + (1 | site)", data).fit()
    ar1 = flc.lmm("y ~ x + (1 | site) + ar1(0 + visit | id)", data).fit()
    assert "not determined where the variances are zero" in str(flc.compare(none, ar1))
    assert flc.compare(none, ar1, null="bootstrap", n_sim=20, seed=1).rows[1].pvalue < 0.1
    tests = ar1.random_effect_test()
    assert [row.df for row in tests.rows[1:]] == [2, 1]
    assert np.isfinite(tests.rows[2].pvalue) and "No test" in tests.rows[1].null
    equal = flc.lmm("y ~ x + (1 | site) + diag(0 + visit | id, hom=True)", data).fit()
    row = flc.compare(none, equal).rows[1]
    assert row.pvalue == pytest.approx(0.5 * stats.chi2.sf(row.statistic, 1), rel=1e-6)


# ---- beside structured residuals -----------------------------------------------------------------


def diary(seed, m=12, visits=8):
    """A row at each of eight visits of m subjects in two halves, with an autoregression."""
    rng = np.random.default_rng(seed)
    id_, v = (part.ravel() for part in np.indices((m, visits)))
    half = (v >= visits // 2) * 1
    x = rng.standard_normal(len(v))
    C = 0.5 ** np.abs(np.subtract.outer(np.arange(visits), np.arange(visits)))
    noise = (rng.standard_normal((m, visits)) @ np.linalg.cholesky(C).T).ravel()
    b = rng.standard_normal((m, 2)) @ np.array([[1.5, 0.6], [0.0, 1.2]])
    y = 1.0 + 0.5 * x + b[id_, half] * (1.0 + 0.3 * x) + noise
    data = pd.DataFrame({"y": y, "x": x, "id": id_, "v": v, "half": pd.Categorical(half)})
    return data[rng.uniform(size=len(v)) > 0.15].reset_index(drop=True)


class DenseBoth(Dense):
    """Natural parameters: those of G, sigma2 and rho of residuals."""

    def __init__(self, data, kind, reml):
        self.y, self.n, self.kind, self.reml = data.y.to_numpy(), len(data), kind, reml
        self.X = np.column_stack((np.ones(self.n), data.x))
        half = np.eye(2)[data.half.cat.codes.to_numpy()]
        self.Z = np.column_stack((np.ones(self.n), data.x)) if kind == "fa0" else half
        self.same = np.equal.outer(data.id.to_numpy(), data.id.to_numpy())
        self.lags = np.abs(np.subtract.outer(data.v.to_numpy(), data.v.to_numpy()))

    def V(self, psi):
        symmetric = np.where(np.eye(2) == 1.0, psi[0], psi[1])
        G = np.outer(psi[:2], psi[:2]) if self.kind == "fa0" else symmetric
        return self.same * (self.Z @ G @ self.Z.T + psi[2] * psi[3] ** self.lags)

    def psi(self, fit):
        G = fit.G["id"]
        rho = fit.residual_parameters().set_index("term").estimate["rho|id"]
        own = [np.sqrt(G[0, 0]), G[0, 1] / np.sqrt(G[0, 0])] if self.kind == "fa0" else [G[0, 0], G[0, 1]]
        return np.array([*own, fit.sigma2, rho])


BOTH = [("cs(0 + half | id, hom=True)", "cs"), ("fa0(x | id)", "fa0")]


@pytest.mark.parametrize(("term", "kind"), BOTH)
@pytest.mark.parametrize("reml", [True, False])
def test_beside_structured_residuals(term, kind, reml):
    data = diary(3)
    fit = flc.lmm(f"y ~ x + {term}", data, residual="ar1(v | id)").fit(reml=reml)
    assert fit.converged and not fit.singular
    dense = DenseBoth(data, kind, reml)
    psi = dense.psi(fit)
    np.testing.assert_allclose(fit.criterion, dense(psi), rtol=0, atol=TOLERANCES["criterion"])
    np.testing.assert_allclose(dense.gradient(psi), 0.0, atol=TOLERANCES["gradient"])
    assert fit.n_parameters == 2 + 4


@pytest.mark.parametrize(("term", "kind"), BOTH)
@pytest.mark.parametrize("ddf", ["satterthwaite", "observed", "expected"])
def test_inference_beside_structured_residuals(term, kind, ddf):
    data = diary(3)
    fit = flc.lmm(f"y ~ x + {term}", data, residual="ar1(v | id)").fit()
    check_inference(fit, DenseBoth(data, kind, True), ddf)


def test_full_rank_beside_structured_residuals():
    data = diary(4)
    full = flc.lmm("y ~ x + fa0(x | id, rank=2)", data, residual="ar1(v | id)").fit()
    us = flc.lmm("y ~ x + (x | id)", data, residual="ar1(v | id)").fit()
    np.testing.assert_allclose(full.criterion, us.criterion, rtol=1e-10)
    np.testing.assert_allclose(full.G["id"], us.G["id"], rtol=1e-5)
    np.testing.assert_allclose(full.test("x = 0").df_denom, us.test("x = 0").df_denom, rtol=1e-5)
    np.testing.assert_allclose(full.blups[0], us.blups[0], rtol=1e-4, atol=1e-6)


def test_replicated_crossover():
    """The FDA's model of bioequivalence: FA0(2) for the subjects, a residual variance for each treatment."""
    rng = np.random.default_rng(2)
    rows = []
    for subject in range(24):
        sequence = ("TRTR", "RTRT")[subject % 2]
        b = np.array([[0.4, 0.0], [0.2, 0.3]]) @ rng.standard_normal(2)
        for period, treat in enumerate(sequence):
            k = "RT".index(treat)
            y = 4.0 + 0.1 * k + b[k] + (0.1, 0.2)[k] * rng.standard_normal()
            rows.append((subject, sequence, period, treat, y))
    data = pd.DataFrame(rows, columns=["subject", "sequence", "period", "treat", "y"])
    fixed = "y ~ treat + C(period) + sequence"
    fit = flc.lmm(f"{fixed} + fa0(0 + treat | subject, rank=2)", data, variance="~ 0 + treat").fit()
    us = flc.lmm(f"{fixed} + (0 + treat | subject)", data, variance="~ 0 + treat").fit()
    assert fit.converged and not fit.singular
    np.testing.assert_allclose(fit.criterion, us.criterion, rtol=1e-10)
    for ddf in ("satterthwaite", "kenward-roger"):
        one, other = (result.test("treat[T.T] = 0", ddf=ddf) for result in (fit, us))
        np.testing.assert_allclose(one.df_denom, other.df_denom, rtol=1e-5)
        np.testing.assert_allclose(one.std_error, other.std_error, rtol=1e-6)
    # V in full at these estimates
    X = fit.model.exog
    second = (data.treat == "T").to_numpy() * 1
    deviations = np.sqrt(fit.sigma2) * np.exp(
        fit.residual_parameters().set_index("term").estimate["logsd_treat[T]"] * second
    )
    Z = np.eye(2)[second]
    same = np.equal.outer(data.subject.to_numpy(), data.subject.to_numpy())
    V = same * (Z @ fit.G["subject"] @ Z.T) + np.diag(deviations**2)
    W = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ W @ X)
    r = data.y.to_numpy() - X @ Phi @ X.T @ W @ data.y.to_numpy()
    value = np.linalg.slogdet(V)[1] - np.linalg.slogdet(Phi)[1] + r @ W @ r + (96 - X.shape[1]) * np.log(2.0 * np.pi)
    np.testing.assert_allclose(fit.criterion, value, rtol=0, atol=TOLERANCES["criterion"])


def test_variances_of_zero():
    # the batches of Dyestuff2 do not vary: G is zero, and the mean has n - 1 degrees of freedom
    data = flc.datasets.load("dyestuff2")
    data["half"] = pd.Categorical(np.tile(np.arange(5), 6) > 2)
    fit = flc.lmm("Yield ~ 1 + cs(0 + half | Batch, hom=True)", data).fit()
    assert fit.converged and fit.singular_components == ("var|Batch = 0",)
    assert not fit.G["Batch"].any()
    intercept = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff2")
    np.testing.assert_allclose(fit.criterion, intercept.criterion, rtol=1e-10)
    np.testing.assert_allclose(fit.test("Intercept = 0").df_denom, 29.0, rtol=1e-6)
    table = fit.variance_components().set_index("term")
    assert np.isnan(table.std_error["sd_half[False]|Batch"]) and np.isfinite(table.std_error["sigma"])


def test_order_of_mixed_terms():
    # factors stand by their number of levels, terms of one factor in the order of the formula
    data = flc.datasets.load("machines")
    fit = flc.lmm("score ~ 1 + diag(0 + Machine | Worker, hom=True) + (1 | Worker)", data).fit()
    other = flc.lmm("score ~ 1 + (1 | Worker) + diag(0 + Machine | Worker, hom=True)", data).fit()
    assert fit.n_parameters == other.n_parameters == 4
    np.testing.assert_allclose(fit.criterion, other.criterion, rtol=1e-11)
    assert fit.G["Worker"].shape == other.G["Worker.1"].shape == (3, 3)
    np.testing.assert_allclose(fit.G["Worker"], other.G["Worker.1"], rtol=1e-5)
    np.testing.assert_allclose(fit.G["Worker.1"], other.G["Worker"], rtol=1e-5)
