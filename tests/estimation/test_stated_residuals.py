"""Stated parameters of structured residuals, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

import fastlmm_core as flc

RTOL = 1e-8
"""Products of inverse covariance matrices of some rows, against one dense solution."""

US = np.array([[4.0, 2.0, 1.0, 0.5], [2.0, 5.0, 2.0, 1.0], [1.0, 2.0, 6.0, 2.0], [0.5, 1.0, 2.0, 7.0]])
LAG = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
STRUCTURES = {
    "us": (US, US),
    "ar1": (2.0 * 0.6**LAG, {"rho|id": 0.6, "var|id": 2.0}),
    "cs": (3.0 * (0.4 + 0.6 * np.eye(4)), {"rho|id": 0.4, "var|id": 3.0}),
}


def data(seed: int = 0, m: int = 24, response: bool = True) -> dict[str, np.ndarray]:
    """Visits 0 to 3 of m subjects, some of them missing, in any order."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(rng.uniform(size=4 * m) > 0.2))
    found = {"id": np.repeat(np.arange(m), 4)[chosen], "visit": np.tile(np.arange(4), m)[chosen]}
    found |= {"x": rng.standard_normal(len(chosen)), "site": found["id"] // 4}
    return found | ({"y": rng.standard_normal(len(chosen))} if response else {})


def named(residual: str, given):
    """A statement in the names that the structure has."""
    if not isinstance(given, dict):
        return given
    fit = flc.lmm("y ~ x", data(), residual=f"{residual}(visit | id)").fit()
    terms = list(fit.residual_parameters()["term"])
    values = {"rho": next(v for k, v in given.items() if k.startswith("rho"))}
    values["var"] = next(v for k, v in given.items() if k.startswith("var"))
    psi = {}
    for term in terms:
        if term.startswith("cov"):
            psi[term] = values["rho"] * values["var"]
        else:
            psi[term] = values["rho"] if term.startswith(("rho", "cor")) else values["var"]
    return psi


def dense(result: flc.LMMResult, R: np.ndarray, rows: dict[str, np.ndarray], w=None) -> np.ndarray:
    same = rows["id"][:, None] == rows["id"]
    root = np.ones(len(same)) if w is None else 1.0 / np.sqrt(w)
    V = same * R[np.ix_(rows["visit"], rows["visit"])] * np.outer(root, root)
    for f, G in zip(result.model.factors, result.G.values(), strict=False):
        Z, index = result.model.exog_re[:, f.columns], f.grouping.index
        V = V + (Z @ G @ Z.T) * (index[:, None] == index)
    return V


@pytest.mark.parametrize("random", ["", " + (x | site)"])
@pytest.mark.parametrize("residual", STRUCTURES)
def test_against_dense_matrices(residual, random):
    R, given = STRUCTURES[residual]
    rows, w = data(), np.random.default_rng(3).uniform(0.5, 2.0, len(data()["id"]))
    G = np.array([[1.5, 0.3], [0.3, 0.4]]) if random else None
    state = {"G": G, "R": named(residual, given), "residual": f"{residual}(visit | id)", "weights": w}
    result = flc.assume("y ~ x" + random, rows, [0.3, -0.5], **state)
    V = dense(result, R, rows, w)
    X, v = result.model.exog, rows["y"] - result.model.exog @ [0.3, -0.5]
    n, r = X.shape
    full = n * np.log(2.0 * np.pi) + np.linalg.slogdet(V)[1] + v @ np.linalg.solve(V, v)
    np.testing.assert_allclose(result.llf, -full / 2.0, rtol=RTOL)
    H = X.T @ np.linalg.solve(V, X)
    np.testing.assert_allclose(result.cov_params(), np.linalg.inv(H), rtol=RTOL)
    gls = np.linalg.solve(H, X.T @ np.linalg.solve(V, rows["y"]))
    np.testing.assert_allclose(result.at(params="gls").beta, gls, rtol=RTOL)
    left = rows["y"] - X @ gls
    restricted = (n - r) * np.log(2.0 * np.pi) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(H)[1]
    restricted += left @ np.linalg.solve(V, left)
    np.testing.assert_allclose(result.log_likelihood(reml=True), -restricted / 2.0, rtol=RTOL)
    Y = result.simulate(20_000, 1)[:, :12]
    sd = np.sqrt(np.diag(V))[:12]
    assert np.abs((np.cov(Y.T) - V[:12, :12]) / np.outer(sd, sd)).max() < 5.5 * np.sqrt(2.0 / 20_000)
    del rows["y"]
    empty = flc.assume("y ~ x" + random, rows, [0.3, -0.5], **state)
    np.testing.assert_allclose(empty.cov_params(), np.linalg.inv(H), rtol=RTOL)
    if random:
        (f,) = result.model.factors
        m = len(f.grouping.labels)
        Z = np.zeros((n, 2 * m))
        for i, level in enumerate(f.grouping.index):
            Z[i, 2 * level : 2 * level + 2] = result.model.exog_re[i]
        big = np.kron(np.eye(m), G)
        np.testing.assert_allclose(result.blups[0].ravel(), big @ Z.T @ np.linalg.solve(V, v), rtol=1e-6, atol=1e-9)
        whole = big - big @ Z.T @ np.linalg.solve(V, Z @ big)
        for found in (result, empty):
            np.testing.assert_allclose(
                found.blup_covariances[0], [whole[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(m)], rtol=1e-6
            )
    assert "stated parameters" in str(empty.summary())


def test_one_subject_and_one_visit():
    rows = {"id": np.array([1, 1]), "visit": np.array([0, 2]), "x": np.array([1.0, 1.0]), "y": np.array([2.0, 2.0])}
    result = flc.assume("y ~ x", rows, [1.0, 0.5], R=US[:2, :2], residual="us(visit | id)")
    v = np.array([0.5, 0.5])
    full = np.linalg.slogdet(2.0 * np.pi * US[:2, :2])[1] + v @ np.linalg.solve(US[:2, :2], v)
    np.testing.assert_allclose(result.llf, -full / 2.0, rtol=RTOL)


@pytest.mark.parametrize("residual", ["us", "ar1", "cs", "toep", "adh", "csh"])
def test_a_fit_that_is_moved(residual):
    fit = flc.lmm("y ~ x", data(5), residual=f"{residual}(visit | id)").fit()
    still = fit.at()
    np.testing.assert_allclose(still.log_likelihood(reml=True), fit.llf, rtol=1e-10)
    np.testing.assert_allclose(fit.log_likelihood(reml=True), fit.llf, rtol=1e-10)
    np.testing.assert_allclose(still.cov, fit.cov, rtol=1e-8)
    np.testing.assert_array_equal(still.simulate(2, 3), fit.simulate(2, 3))
    table = fit.residual_parameters()
    names, values = list(table["term"]), np.asarray(table["estimate"])
    for given in (dict(zip(names, values.tolist(), strict=True)), values, {names[0]: float(values[0])}):
        again = fit.at(R=given)
        np.testing.assert_allclose(again.llf, fit.log_likelihood(), rtol=1e-9)
        np.testing.assert_allclose(again.residual_parameters()["estimate"], values, rtol=1e-8, atol=1e-10)
    assert "std_error" not in still.residual_parameters()


def test_strata():
    rows = data(6) | {"y": np.random.default_rng(1).standard_normal(len(data(6)["id"]))}
    rows["arm"] = np.where(rows["id"] % 2 == 0, "a", "b")
    fit = flc.lmm("y ~ x", rows, residual="ar1(visit | id, by=arm)").fit()
    table = fit.residual_parameters()
    given = dict(zip(table["term"], table["estimate"], strict=True))
    stated = flc.assume("y ~ x", rows, fit.beta, R=given, residual="ar1(visit | id, by=arm)")
    np.testing.assert_allclose(stated.log_likelihood(reml=True), fit.llf, rtol=1e-9)
    np.testing.assert_allclose(stated.residual_parameters()["estimate"], table["estimate"], rtol=1e-8)


def test_power_of_a_trial_with_repeated_measures():
    """Complete visits and a mean for each visit and arm: the change from baseline is a t test with m - 2 df."""
    m, n = 30, 500
    rows = {"id": np.repeat(np.arange(m), 4), "visit": np.tile(np.arange(4), m)}
    rows |= {"v": rows["visit"].astype(str), "arm": (rows["id"] % 2).astype(float)}
    params = dict.fromkeys(["Intercept", "v[T.1]", "v[T.2]", "v[T.3]", "arm", "v[T.1]:arm", "v[T.2]:arm"], 0.0)
    trial = flc.assume("y ~ v * arm", rows, params | {"v[T.3]:arm": 2.5}, R=US, residual="us(visit | id)")
    found = flc.power(trial, "v[T.3]:arm", n_sim=n, seed=1, ddf="kenward-roger")
    variance = (US[3, 3] + US[0, 0] - 2.0 * US[0, 3]) * 4.0 / m
    np.testing.assert_allclose(dict(trial.bse)["v[T.3]:arm"], np.sqrt(variance), rtol=RTOL)
    bound, shift = special.stdtrit(m - 2, 0.975), 2.5 / np.sqrt(variance)
    exact = 1.0 - special.nctdtr(m - 2, shift, bound) + special.nctdtr(m - 2, shift, -bound)
    assert found.n_converged == n
    assert abs(found.power - exact) < 4.5 * np.sqrt(exact * (1.0 - exact) / n)
    y = trial.simulate(3, 1)[2]
    fit = flc.lmm("y ~ v * arm", rows | {"y": y}, residual="us(visit | id)").fit()
    np.testing.assert_allclose(found.pvalues[2], fit.test("v[T.3]:arm", ddf="kenward-roger").pvalue, rtol=1e-4)
    part = flc.power(trial, "v[T.3]:arm", n_sim=3, seed=1, first=2, ddf="kenward-roger")
    np.testing.assert_allclose(part.pvalues, found.pvalues[2:5], rtol=1e-9)
    ratio = flc.power(trial, "v[T.3]:arm", n_sim=20, seed=1, method="lrt")
    assert ratio.n_converged == 20
    y = trial.simulate(5, 1)[4]
    full = flc.lmm("y ~ v * arm", rows | {"y": y}, residual="us(visit | id)").fit(reml=False)
    rest = {name: rows["v"] == name for name in "12"}
    less = {"v1": 1.0 * rest["1"], "v2": 1.0 * rest["2"], "a1": rows["arm"] * rest["1"], "a2": rows["arm"] * rest["2"]}
    null = flc.lmm("y ~ v + arm + a1 + a2", rows | less | {"y": y}, residual="us(visit | id)").fit(reml=False)
    np.testing.assert_allclose(ratio.pvalues[4], special.chdtrc(1, null.criterion - full.criterion), rtol=1e-4)
    assert 0.0 < ratio.power < 1.0
    # twice the subjects, half the variance; an exact power again
    curve = flc.power_curve(trial, "v[T.3]:arm", values=[m // 2 * 2, 20], n_sim=200, seed=1, ddf="kenward-roger")
    for count, power in zip(curve.values, curve.power, strict=True):
        bound, shift = special.stdtrit(count - 2, 0.975), 2.5 / np.sqrt(variance * m / count)
        exact = 1.0 - special.nctdtr(count - 2, shift, bound) + special.nctdtr(count - 2, shift, -bound)
        assert abs(power - exact) < 4.5 * np.sqrt(exact * (1.0 - exact) / 200)
    effects = flc.power_curve(trial, "v[T.3]:arm", "effect", [0.0, 6.0], n_sim=20, seed=1)
    assert effects.power[0] < 0.5 < effects.power[1]


@pytest.mark.parametrize(
    ("residual", "state", "message"),
    [
        ("us(visit | id)", {}, "R is missing"),
        (
            "us(visit | id)",
            {"R": US, "sigma2": 1.0},
            r"sigma2 is for independent residuals; state the parameters of us",
        ),
        (None, {"R": US, "sigma2": 1.0, "G": 1.0}, "R is for structured residuals"),
        ("us(visit | id)", {"R": US[:2, :2]}, r"R must be a symmetric \(4, 4\) matrix, for visit 0, 1, 2, 3"),
        ("us(visit | id)", {"R": US - 6.0 * np.eye(4)}, "there is no covariance us with"),
        ("ar1(visit | id)", {"R": US}, r"R must give the parameters of ar1\(visit \| id\)"),
        ("ar1(visit | id)", {"R": [1.0]}, "R must hold 2 values"),
        ("ar1(visit | id)", {"R": {"rho": 0.5}}, "R names 'rho', which is not among the parameters of the residuals"),
        ("ar1(visit | id)", {"R": [2.0, 1.5]}, "there is no covariance ar1 with"),
        ("ar1(visit | id)", {"R": [-2.0, 0.5]}, "there is no covariance ar1 with"),
    ],
)
def test_refused(residual, state, message):
    formula = "y ~ x" if residual else "y ~ x + (1 | id)"
    with pytest.raises(flc.LMMError, match=message):
        flc.assume(formula, data(), [0.0, 1.0], residual=residual, **state)
