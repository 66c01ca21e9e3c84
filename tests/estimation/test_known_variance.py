"""A residual variance that is known, against dense algebra, nlme and a meta-analysis.

The oracle forms V = sigma^2 W^-1 + Z G Z' in full and minimises minus twice its log-likelihood over the factors of G.
"""

import pickle
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import chdtrc

import fastlmm_core as flc

CRITERION = 1e-8  # absolute; the search of the oracle ends at its own rounding errors
PARAMETERS = 2e-4  # relative, of variances: the search of the oracle has no derivatives
DERIVATIVES = 2e-6  # relative, central differences


def data(seed=0, m=25, per=4, q=1):
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(m), per), rng.standard_normal(m * per)
    b = rng.standard_normal((m, 2)) * [0.8, 0.5 * (q > 1)]
    w = rng.uniform(0.5, 3.0, m * per)
    y = 1.0 + 0.5 * x + b[g, 0] + b[g, 1] * x + 0.7 * rng.standard_normal(m * per) / np.sqrt(w)
    return {"y": y, "x": x, "g": g, "h": rng.integers(0, 6, m * per), "w": w}


def crossed(d):
    return [(d["g"], np.ones((len(d["y"]), 1))), (d["h"], np.ones((len(d["y"]), 1)))]


def dense(d, sigma, G, terms, reml, w=None):
    """Minus twice the log-likelihood, the coefficients and their covariance."""
    y, X = d["y"], np.column_stack([np.ones(len(d["y"])), d["x"]]) if "x" in d else np.ones((len(d["y"]), 1))
    V = np.diag(sigma**2 / (np.ones(len(y)) if w is None else w))
    for (codes, Z), own in zip(terms, G, strict=True):
        V += (Z @ own @ Z.T) * (np.asarray(codes)[:, None] == np.asarray(codes))
    inverse = np.linalg.inv(V)
    information = X.T @ inverse @ X
    beta = np.linalg.solve(information, X.T @ inverse @ y)
    rest = y - X @ beta
    nu = len(y) - X.shape[1] if reml else len(y)
    value = np.linalg.slogdet(V)[1] + rest @ inverse @ rest + nu * np.log(2.0 * np.pi)
    return value + reml * np.linalg.slogdet(information)[1], beta, np.linalg.inv(information)


def minimum(d, sigma, terms, reml, w=None):
    """Value and G at the lowest point that searches from several starts find."""
    sizes = [Z.shape[1] for _, Z in terms]
    counts = [q * (q + 1) // 2 for q in sizes]

    def matrices(x):
        out = []
        for q, part in zip(sizes, np.split(x, np.cumsum(counts)[:-1]), strict=True):
            L = np.zeros((q, q))
            L[np.tril_indices(q)] = part
            out.append(L @ L.T)
        return out

    found = []
    for size in (0.1, 0.5, 2.0):
        start = np.concatenate([size * np.eye(q)[np.tril_indices(q)] + 0.01 for q in sizes])
        for _ in range(2):
            run = minimize(lambda x: dense(d, sigma, matrices(x), terms, reml, w)[0], start, method="BFGS", tol=1e-10)
            start = run.x
        found.append((run.fun, matrices(run.x)))
    return min(found, key=lambda one: one[0])


CASES = {
    "intercept": ("y ~ x + (1 | g)", 1, lambda d: [(d["g"], np.ones((len(d["y"]), 1)))]),
    "slope": ("y ~ x + (x | g)", 2, lambda d: [(d["g"], np.column_stack([np.ones(len(d["y"])), d["x"]]))]),
    "crossed": ("y ~ x + (1 | g) + (1 | h)", 1, crossed),
}


@pytest.mark.parametrize(("case", "reml", "weighted"), list(product(CASES, [True, False], [True, False])))
def test_the_optimum_is_that_of_dense_algebra(case, reml, weighted):
    formula, q, terms = CASES[case]
    d = data(3, q=q)
    w = d["w"] if weighted else None
    fit = flc.lmm(formula, d, weights=w, sigma=0.6).fit(reml)
    value, G = minimum(d, 0.6, terms(d), reml, w)
    assert fit.converged and fit.sigma2 == pytest.approx(0.36) and fit.sigma == pytest.approx(0.6)
    assert fit.criterion <= value + CRITERION
    assert fit.criterion == pytest.approx(value, abs=1e-6)
    at_ours, beta, cov = dense(d, 0.6, list(fit.G.values()), terms(d), reml, w)
    assert at_ours == pytest.approx(fit.criterion, abs=CRITERION)
    np.testing.assert_allclose(fit.beta, beta, rtol=1e-8)
    np.testing.assert_allclose(fit.cov, cov, rtol=1e-8)
    for own, other in zip(fit.G.values(), G, strict=True):
        np.testing.assert_allclose(own, other, rtol=PARAMETERS, atol=PARAMETERS)
    # one parameter fewer
    free = flc.lmm(formula, d, weights=w).fit(reml)
    assert fit.n_parameters == free.n_parameters - 1
    assert fit.aic == pytest.approx(fit.criterion + 2 * fit.n_parameters) and fit.criterion >= free.criterion - 1e-9
    assert fit.log_likelihood(reml) == pytest.approx(fit.llf, rel=1e-10)
    same = flc.lmm(formula, d, weights=w, sigma=free.sigma).fit(reml)
    assert same.criterion == pytest.approx(free.criterion, abs=1e-7)
    np.testing.assert_allclose(same.theta, free.theta, atol=1e-4)


@pytest.mark.parametrize(("case", "reml"), list(product(CASES, [True, False])))
def test_derivatives_are_those_of_differences(case, reml):
    formula, q, _ = CASES[case]
    d = data(4, q=q)
    model = flc.lmm(formula, d, weights="w", sigma=0.9)
    k = model.structure.n_parameters
    theta = np.array([0.9, 0.2, 0.7][:k] if q > 1 else [0.9, 0.4][:k])
    found = model.evaluate(theta, reml, 2)
    step = 1e-5
    up = [model.evaluate(theta + step * e, reml, 1) for e in np.eye(k)]
    down = [model.evaluate(theta - step * e, reml, 1) for e in np.eye(k)]
    slopes = [(a.value - b.value) / (2.0 * step) for a, b in zip(up, down, strict=True)]
    np.testing.assert_allclose(found.gradient, slopes, rtol=1e-6, atol=1e-6)
    curves = [(a.gradient - b.gradient) / (2.0 * step) for a, b in zip(up, down, strict=True)]
    np.testing.assert_allclose(found.hessian, curves, rtol=DERIVATIVES, atol=1e-4)


# The effect of vaccination against tuberculosis (Colditz et al. 1994, JAMA 271, 698-702): log relative risks of 13
# trials and their sampling variances, from the numbers of cases and of the others.
TRIALS = np.array([
    [4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619], [33, 5036, 47, 5761],
    [180, 1361, 372, 1079], [8, 2537, 10, 619], [505, 87886, 499, 87892], [29, 7470, 45, 7232],
    [17, 1699, 65, 1600], [186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825],
], dtype=float)  # fmt: skip


def trials():
    a, b, c, d = TRIALS.T
    y, v = np.log(a / (a + b)) - np.log(c / (c + d)), 1.0 / a - 1.0 / (a + b) + 1.0 / c - 1.0 / (c + d)
    return {"y": y, "v": v, "w": 1.0 / v, "trial": np.arange(13)}


def meta_analysis(y, v, tau2):
    """The restricted deviance, the mean and its variance, written out."""
    w = 1.0 / (v + tau2)
    mean = w @ y / w.sum()
    value = np.log(v + tau2).sum() + np.log(w.sum()) + w @ (y - mean) ** 2 + (len(y) - 1) * np.log(2.0 * np.pi)
    return value, mean, 1.0 / w.sum()


def test_a_meta_analysis():
    d = trials()
    fit = flc.lmm("y ~ 1 + (1 | trial)", d, weights="w", sigma=1.0).fit()
    tau2 = float(fit.G["trial"][0, 0])
    # metafor: tau2 0.3132, estimate -0.7145, standard error 0.1798
    assert round(tau2, 4) == 0.3132 and round(float(fit.beta[0]), 4) == -0.7145
    assert round(float(np.sqrt(fit.cov[0, 0])), 4) == 0.1798
    value, mean, variance = meta_analysis(d["y"], d["v"], tau2)
    assert fit.criterion == pytest.approx(value, abs=1e-9)
    assert fit.beta[0] == pytest.approx(mean, rel=1e-9) and fit.cov[0, 0] == pytest.approx(variance, rel=1e-9)
    step = 1e-5
    up, down = (meta_analysis(d["y"], d["v"], tau2 + s)[0] for s in (step, -step))
    assert abs(up - down) / (2.0 * step) < 1e-5
    # BLUPs shrink by tau2 / (tau2 + v)
    np.testing.assert_allclose(fit.blups[0][:, 0], tau2 / (tau2 + d["v"]) * (d["y"] - mean), rtol=1e-8)
    # Satterthwaite: df = 2 var^2 / var(var), by the observed information on tau2
    second = (up + down - 2.0 * value) / step**2
    slope = ((1.0 / (d["v"] + tau2)) ** 2).sum() / (1.0 / (d["v"] + tau2)).sum() ** 2
    assert (
        fit.df.iloc[0]
        if hasattr(fit.df, "iloc")
        else next(iter(fit.df.values())) == pytest.approx(2.0 * variance**2 / (slope**2 * 2.0 / second), rel=1e-4)
    )
    table = fit.variance_components(method="wald")
    assert list(table["term"]) == ["sd_Intercept|trial", "var_Intercept|trial", "theta_Intercept|trial"]
    assert table["std_error"][1] == pytest.approx(np.sqrt(2.0 / second), rel=1e-4)


@pytest.mark.parametrize("reml", [True, False])
def test_profile_of_a_meta_analysis(reml):
    d = trials()
    fit = flc.lmm("y ~ 1 + (1 | trial)", d, weights="w", sigma=1.0).fit(reml)
    profile = fit.profile(reml=False)
    limits = profile.conf_int(0.95)
    y, v = d["y"], d["v"]

    def deviance(mean, tau2):
        return np.log(v + tau2).sum() + ((y - mean) ** 2 / (v + tau2)).sum()

    def least(mean=None, tau2=None):
        if tau2 is not None:
            w = 1.0 / (v + tau2)
            return deviance(w @ y / w.sum(), tau2)
        if mean is not None:
            run = minimize_scalar(
                lambda t: deviance(mean, t), bounds=(0.0, 5.0), method="bounded", options={"xatol": 1e-10}
            )
            return run.fun
        run = minimize_scalar(lambda t: least(tau2=t), bounds=(0.0, 5.0), method="bounded", options={"xatol": 1e-12})
        return run.fun

    best = least()
    rows = {
        name: (low, high)
        for name, low, high in zip(limits["term"], limits["conf_low"], limits["conf_high"], strict=True)
    }
    for side in (0, 1):
        assert least(tau2=rows["sd_Intercept|trial"][side] ** 2) - best == pytest.approx(3.841459, abs=1e-4)
        assert least(mean=rows["Intercept"][side]) - best == pytest.approx(3.841459, abs=1e-4)
    assert "sigma" not in rows


def test_profiles_of_slopes_against_dense_algebra():
    d = data(2, m=15, q=2)
    fit = flc.lmm("y ~ x + (x | g)", d, weights="w", sigma=0.6).fit(reml=False)
    Z = np.column_stack([np.ones(60), d["x"]])
    same = d["g"][:, None] == d["g"]
    limits = fit.profile().conf_int(0.95)

    def rise(name, value):
        def deviance(x):
            sd, rho = np.exp(x[:2]), np.tanh(x[2])
            if name == "sd_x|g":
                sd[1] = value
            if name == "cor_Intercept.x|g":
                rho = value
            G = np.outer(sd, sd) * [[1.0, rho], [rho, 1.0]]
            V = np.diag(0.36 / d["w"]) + (Z @ G @ Z.T) * same
            inverse, y = np.linalg.inv(V), d["y"]
            X = Z
            if name == "x":
                X, y = Z[:, :1], y - value * Z[:, 1]
            rest = y - X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y)
            return np.linalg.slogdet(V)[1] + rest @ inverse @ rest + 60.0 * np.log(2.0 * np.pi)

        runs = [minimize(deviance, [-0.3, -0.7, start], method="BFGS", tol=1e-9).fun for start in (-0.5, 0.5)]
        return min(runs) - fit.criterion

    for term, low, high in zip(limits["term"], limits["conf_low"], limits["conf_high"], strict=True):
        if term in ("sd_x|g", "cor_Intercept.x|g", "x"):
            for value in (low, high):
                assert rise(term, value) == pytest.approx(3.841459, abs=2e-4), term


def test_a_known_variance_larger_than_all_variation():
    d = data(5)
    fit = flc.lmm("y ~ x + (1 | g)", d, sigma=5.0).fit()
    assert fit.converged and fit.singular and fit.G["g"][0, 0] == 0.0
    _, _, cov = dense(d, 5.0, [np.zeros((1, 1))], [(d["g"], np.ones((100, 1)))], True)
    np.testing.assert_allclose(fit.cov, cov, rtol=1e-10)
    assert min(fit.df.values()) == np.inf
    # tests without a parameter estimated are those of the normal distribution
    for ddf in ("satterthwaite", "kenward-roger"):
        table = fit.model.update(". ~ . + C(h)").fit().anova(ddf=ddf)
        assert (table.df_denom == np.inf).all()
        np.testing.assert_allclose(table.pvalues, chdtrc(table.df_num, table.df_num * table.statistic), rtol=1e-10)


ALIKE = {
    "one row per group": ("y ~ 1 + (1 | each)", 1),
    "intercept": ("y ~ x + (1 | g)", 1),
    "slope": ("y ~ x + (x | g)", 2),
    "crossed": ("y ~ 1 + (1 | g) + (1 | h)", 1),
    "nested": ("y ~ x + (1 | h/g)", 1),
}


@pytest.mark.parametrize("level", [0.0, 0.3, -7.1, 1e6])
@pytest.mark.parametrize(("case", "reml"), list(product(ALIKE, [True, False])))
def test_a_response_that_the_fixed_effects_reproduce(case, reml, level):
    # estimates that are all alike are a meta-analysis like others: determinants grow with G, so that the optimum is 0
    formula = ALIKE[case][0]
    rng = np.random.default_rng(5)
    d = {"g": np.repeat(np.arange(12), 2), "h": np.repeat(np.arange(4), 6), "each": np.arange(24)}
    if case == "crossed":
        d["h"] = np.tile(np.arange(4), 6)
    d |= {"x": rng.standard_normal(24), "w": rng.uniform(0.3, 3.0, 24)}
    d["y"] = np.full(24, level) + (0.25 * d["x"] if case == "nested" else 0.0)
    fit = flc.lmm(formula, d, weights="w", sigma=0.6).fit(reml)
    fixed = d if "y ~ x" in formula else {name: d[name] for name in d if name != "x"}
    value, beta, cov = dense(fixed, 0.6, [], [], reml, d["w"])
    size = max(1.0, abs(level))
    assert fit.converged and fit.singular and not any(G.any() for G in fit.G.values())
    assert fit.criterion == pytest.approx(value, abs=1e-9 * size**0.5)
    assert fit.log_likelihood(reml) == pytest.approx(-0.5 * value, abs=1e-9 * size**0.5)
    np.testing.assert_allclose(fit.beta, beta, rtol=1e-9, atol=1e-9 * size)
    np.testing.assert_allclose(fit.cov, cov, rtol=1e-9)
    if case == "one row per group":
        # what the criterion is elsewhere, and the limit of the variance where it is 3.84 higher
        terms = [(d["each"], np.ones((24, 1)))]
        for theta in (0.3, 1.0, 4.0):
            there = dense(fixed, 0.6, [np.array([[(0.6 * theta) ** 2]])], terms, reml, d["w"])[0]
            assert fit.model.evaluate([theta], reml, 0).value == pytest.approx(there, abs=1e-9 * size**0.5)
        limits = fit.profile(reml=reml).conf_int(0.95)
        high = float(np.asarray(limits["conf_high"])[list(limits["term"]).index("sd_Intercept|each")])
        rise = dense(fixed, 0.6, [np.array([[high**2]])], terms, reml, d["w"])[0] - value
        assert rise == pytest.approx(3.841459, abs=1e-5)
        table = fit.variance_components(method="wald")
        assert np.asarray(table["estimate"]).max() == 0.0


def test_a_response_that_is_reproduced_where_the_variance_is_not_known():
    d = {"y": np.full(24, 0.3), "g": np.repeat(np.arange(12), 2), "h": np.tile(np.arange(4), 6)}
    for formula in ("y ~ 1 + (1 | g)", "y ~ 1 + (1 | g) + (1 | h)"):
        with pytest.raises(flc.LMMError, match="y is constant"):
            flc.lmm(formula, d)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_degrees_of_freedom_are_those_of_dense_algebra(ddf):
    d = data(6, m=8, q=1)
    fit = flc.lmm("y ~ x + (1 | g)", d, sigma=0.7).fit()
    G, X = fit.G["g"], np.column_stack([np.ones(32), d["x"]])
    same = (d["g"][:, None] == d["g"]).astype(float)
    V = 0.49 * np.eye(32) + G[0, 0] * same
    inverse = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ inverse @ X)
    P = inverse - inverse @ X @ Phi @ X.T @ inverse
    A = inverse @ same @ inverse
    gradient = np.diag(Phi @ X.T @ A @ X @ Phi)
    y = d["y"]
    if ddf == "satterthwaite":
        # second derivative of minus twice the restricted log-likelihood
        second = -np.trace(P @ same @ P @ same) + 2.0 * y @ P @ same @ P @ same @ P @ y
        w = 2.0 / second
        variance = np.diag(Phi)
        df = 2.0 * variance**2 / (gradient**2 * w)
    else:
        w = 2.0 / np.trace(P @ same @ P @ same)
        Q = X.T @ A @ same @ inverse @ X
        own = X.T @ A @ X
        adjusted = Phi + 2.0 * Phi @ (w * (Q - own @ Phi @ own)) @ Phi
        variance = np.diag(adjusted)
        df = 2.0 * np.diag(Phi) ** 2 / (gradient**2 * w)
    found = fit.tidy(ddf=ddf)
    np.testing.assert_allclose(found["df"], df, rtol=1e-7)
    np.testing.assert_allclose(np.asarray(found["std_error"]) ** 2, variance, rtol=1e-7)


def test_nlme():
    # nlme 3.1: lme(Reaction ~ Days, sleepstudy, ~ Days | Subject, method = "ML", control = lmeControl(sigma = 25))
    sleepstudy = flc.datasets.load("sleepstudy")
    model = flc.lmm("Reaction ~ Days + (Days | Subject)", sleepstudy, sigma=25.0)
    full = model.fit(reml=False)
    np.testing.assert_allclose(full.G["Subject"], [[575.857858, 9.422421], [9.422421, 33.045094]], rtol=2e-5)
    np.testing.assert_allclose(full.beta, [251.4051048485, 10.4672859596], rtol=1e-11)
    # by REML it ends at another G, of a lower restricted likelihood
    fit = model.fit()
    theirs = np.array([[613.383491, 8.253161], [8.253161, 34.970286]])
    there = model.evaluate(np.linalg.cholesky(theirs / 625.0)[np.tril_indices(2)]).value
    assert fit.criterion < there - 1e-4
    days = sleepstudy["Days"].to_numpy(dtype=float)
    d = {"y": sleepstudy["Reaction"].to_numpy(), "x": days}
    terms = [(sleepstudy["Subject"].to_numpy(), np.column_stack([np.ones(180), days]))]
    assert dense(d, 25.0, [fit.G["Subject"]], terms, True)[0] == pytest.approx(fit.criterion, abs=1e-7)
    assert dense(d, 25.0, [theirs], terms, True)[0] == pytest.approx(there, abs=1e-7)


def test_many_and_other_fits_are_single_fits(tmp_path):
    d = data(7)
    model = flc.lmm("y ~ x + (1 | g)", d, weights="w", sigma=0.7)
    fit = model.fit()
    rng = np.random.default_rng(0)
    Y = np.array([d["y"] + 0.3 * rng.standard_normal(100) for _ in range(3)])
    many = model.fit_many(Y)
    for i in range(3):
        alone = model.with_response(Y[i]).fit()
        assert many.criterion[i] == pytest.approx(alone.criterion, abs=1e-9)
        np.testing.assert_allclose(many.sigma2[i], 0.49)
        np.testing.assert_allclose(np.sqrt(np.diag(alone.cov)), many.bse[i], rtol=1e-7)
    fit.save(tmp_path / "fit.flc")
    for other in (flc.load(tmp_path / "fit.flc"), pickle.loads(pickle.dumps(fit))):
        assert other.model.sigma == 0.7 and other.criterion == pytest.approx(fit.criterion, abs=1e-10)
        assert other.sigma2 == pytest.approx(0.49) and other.n_parameters == fit.n_parameters
    influence = fit.influence()
    kept = np.asarray(d["g"]) != 0
    without = flc.lmm("y ~ x + (1 | g)", {k: np.asarray(v)[kept] for k, v in d.items()}, weights="w", sigma=0.7).fit()
    np.testing.assert_allclose(np.asarray(influence.params)[0], without.beta, rtol=1e-7)
    boot = fit.bootstrap(20, seed=1)
    assert boot.replicates.shape[0] == 20
    assert model.refit(Y[0]).sigma2 == pytest.approx(0.49)


def test_predictions_and_comparisons():
    d = data(8)
    fit = flc.lmm("y ~ x + (1 | g)", d, sigma=0.7).fit()
    row = {"x": [0.3], "g": [4]}
    found = fit.predict(row, "all", interval="prediction", ddf="satterthwaite")
    assert np.isfinite(found["conf_low"]).all()
    population = fit.predict({"x": [0.3]}, interval="prediction", ddf="normal")
    a = np.array([1.0, 0.3])
    expected = a @ fit.cov @ a + fit.G["g"][0, 0] + 0.49
    assert population["std_error"][0] ** 2 == pytest.approx(expected, rel=1e-9)
    small = flc.lmm("y ~ 1 + (1 | g)", d, sigma=0.7).fit(reml=False)
    both = flc.compare(small, fit.model.fit(reml=False))
    assert both.rows[1].df == 1
    assert both.rows[1].statistic == pytest.approx(small.criterion - fit.model.fit(reml=False).criterion, abs=1e-8)
    with pytest.raises(flc.LMMError, match=r"differ in sigma.*estimated and known as 0.7"):
        flc.compare(flc.lmm("y ~ 1 + (1 | g)", d).fit(), fit)
    test = fit.random_effect_test()
    without = dense(d, 0.7, [np.zeros((1, 1))], [(d["g"], np.ones((100, 1)))], True)[0]
    assert test.rows[1].statistic == pytest.approx(without - fit.criterion, abs=1e-8)
    assert [row.n_parameters for row in test.rows] == [3, 2]
    assert 0.0 <= test.rows[1].pvalue <= 1.0 and "exact" not in str(test).lower()
    assert "known" in str(fit.summary()) and "is known and was held at 0.7" in str(fit.report())
    assert fit.update(". ~ . - x").model.sigma == 0.7


def test_refused():
    d = data(9)
    number = "sigma must be a number"
    for sigma, message in (
        (0.0, "positive number, .*weights=1/v"), (-1.0, "positive"), (np.nan, "positive"), (True, number),
        (d["w"], number), ("1", number),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=message):
            flc.lmm("y ~ x + (1 | g)", d, sigma=sigma)
    d["k"] = np.tile(np.arange(4), 25)
    with pytest.raises(flc.LMMError, match="independent residuals"):
        flc.lmm("y ~ x", d, residual="cs(k | g)", sigma=1.0)
    with pytest.raises(flc.LMMError, match=r"conditional_aic.*is known"):
        flc.lmm("y ~ x + (1 | g)", d, sigma=1.0).fit().conditional_aic()
    fit = flc.lmm("y ~ x + (1 | g)", d, sigma=1.0).fit()
    many = fit.model.fit_many(d["y"][None])
    for refused in (
        lambda: fit.random_effect_test(null="exact"), lambda: fit.random_effect_test(null="bootstrap", n_sim=9),
        lambda: fit.model.fit_many(d["y"][None], missing="drop"), lambda: fit.model.fit_many(d["y"][None], min_obs=3),
        lambda: many.permute("x", 9), many.variance_components, many.random_effect_test,
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match="estimates the residual variance, and that of this model is known"):
            refused()
    one = {"y": d["y"][:20], "x": d["x"][:20], "g": np.arange(20), "h": np.arange(20)}
    with pytest.raises(flc.LMMError, match="cannot be told apart"):
        flc.lmm("y ~ x + (1 | g) + (1 | h)", one, sigma=1.0).fit()


def test_models_from_arrays():
    d = trials()
    fit = flc.LinearMixedModel(d["y"], None, None, d["trial"], weights=d["w"], sigma=1.0).fit()
    assert round(float(fit.G["group"][0, 0]), 4) == 0.3132
    assert float(fit.params[0]) == pytest.approx(-0.7145, abs=5e-5)
