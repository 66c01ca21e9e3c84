"""Models at stated parameters, against dense algebra that forms V and takes no shortcut."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

import fastlmm_core as flc

RTOL = 1e-9
"""Sums over some dozen rows of well-scaled numbers, against solutions of dense systems with conditions below 1e5."""

SLEEP = "Reaction ~ Days + (Days | Subject)"


def one_factor(response: bool = True, weighted: bool = True) -> flc.LMMResult:
    """Groups of 1 to 6 rows, weights and an offset."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 2, 3, 4])
    n = len(g)
    data = {"g": g, "t": rng.uniform(0, 8, n), "x": rng.standard_normal(n)}
    if response:
        data["y"] = 3.0 + rng.standard_normal(n)
    options = {"weights": rng.uniform(0.4, 3.0, n), "offset": rng.standard_normal(n)} if weighted else {}
    return flc.assume("y ~ t + x + (t | g)", data, [2.0, 0.4, -0.3], [[2.0, -0.3], [-0.3, 0.2]], 1.3, **options)


def crossed(response: bool = True) -> flc.LMMResult:
    rng = np.random.default_rng(5)
    n = 60
    data = {"a": rng.integers(0, 7, n), "b": rng.integers(0, 5, n), "x": rng.standard_normal(n)}
    if response:
        data["y"] = rng.standard_normal(n) + 1.0
    G = {"a": [[1.5, 0.2], [0.2, 0.3]], "b": 0.8}
    return flc.assume("y ~ x + (x | a) + (1 | b)", data, [1.0, 0.5], G, 0.7, weights=rng.uniform(0.5, 2.0, n))


def nested(response: bool = True) -> flc.LMMResult:
    rng = np.random.default_rng(6)
    b = rng.integers(0, 12, 70)
    data = {"a": b // 3, "b": b, "x": rng.standard_normal(70)}
    if response:
        data["y"] = rng.standard_normal(70) + 1.0
    return flc.assume("y ~ x + (1 | a / b)", data, [1.0, 0.5], {"a": 1.5, "a:b": 0.8}, 0.7)


MODELS = [one_factor, crossed, nested]


def covariance(result: flc.LMMResult) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """V, and for each factor Z over all levels (n, m q) and the covariance of its effects."""
    model = result.model
    wide, big = [], []
    for f in model.factors:
        m, q = len(f.grouping.labels), f.stop - f.start
        Z = np.zeros((model.nobs, m * q))
        for i, level in enumerate(f.grouping.index):
            Z[i, level * q : (level + 1) * q] = model.exog_re[i, f.columns]
        blocks = [result.G[n] for n, b in zip(model.term_names, model.structure.blocks, strict=True)
                  if f.start <= b.start < f.stop]  # fmt: skip
        G = np.zeros((q, q))
        at = 0
        for block in blocks:
            G[at : at + len(block), at : at + len(block)] = block
            at += len(block)
        wide.append(Z)
        big.append(np.kron(np.eye(m), G))
    w = np.ones(model.nobs) if model.weights is None else model.weights
    V = np.diag(result.sigma2 / w)
    for Z, G in zip(wide, big, strict=True):
        V = V + Z @ G @ Z.T
    return V, wide, big


def rest(result: flc.LMMResult) -> np.ndarray:
    model = result.model
    return model.endog - model.exog @ np.asarray(result.params.tolist() if hasattr(result.params, "tolist") else
                                                 list(dict(result.params).values())) - (
        0.0 if model.offset is None else model.offset)  # fmt: skip


# ---- the textbook's numbers ----------------------------------------------------------------------------------------


def test_two_visits():
    """G = [[1, .5], [.5, .25]], sigma^2 = 1, visits at 0 and 2: a design on which nothing of it could be estimated."""
    visits = {"patient": np.repeat([1, 2, 3], 2), "year": np.tile([0.0, 2.0], 3)}
    with pytest.raises(flc.LMMError, match="cannot be told"):
        flc.lmm("y ~ year + (year | patient)", visits | {"y": np.arange(6.0) ** 2}).fit()
    model = flc.assume("y ~ year + (year | patient)", visits, [10.0, 1.0], [[1.0, 0.5], [0.5, 0.25]], 1.0)
    at = model.marginal_covariance_at([0.0, 2.0])
    np.testing.assert_allclose(at.covariance, [[2.0, 2.0], [2.0, 5.0]], rtol=1e-14)
    np.testing.assert_allclose(at.correlation[0, 1], np.sqrt(10.0) / 5.0, rtol=1e-14)
    np.testing.assert_allclose(model.marginal_covariance(1), [[2.0, 2.0], [2.0, 5.0]], rtol=1e-14)
    np.testing.assert_allclose(model.icc_at([0.0, 2.0]), [1 / 2, 4 / 5], rtol=1e-14)
    np.testing.assert_allclose(model.icc(), 2.5 / 3.5, rtol=1e-14)
    least = model.least_variance_time()
    np.testing.assert_allclose([least.at, least.variance], [-2.0, 1.0], rtol=1e-12)
    assert (least.shape, model.singular) == ("fan-out", True)
    np.testing.assert_array_equal(list(dict(model.params).values()), [10.0, 1.0])
    assert model.simulate(3, 1).shape == (3, 6)
    with pytest.raises(flc.LMMError, match="cannot be told"):
        model.simulate_fit(3, 1)


def test_strong_and_weak_shrinkage():
    def shrinkage(n: int, sigma2: float, tau2: float) -> flc.LMMResult:
        return flc.assume("y ~ 1 + (1 | g)", {"g": np.repeat([0, 1], n)}, [0.0], tau2, sigma2).pooling()

    strong, weak = shrinkage(3, 16.0, 0.5), shrinkage(20, 0.25, 9.0)
    np.testing.assert_allclose(strong.shrinkage.ravel(), 0.5 / (0.5 + 16.0 / 3.0), rtol=1e-12)
    np.testing.assert_allclose(weak.reliability.ravel(), 9.0 / (9.0 + 0.25 / 20.0), rtol=1e-12)
    times = np.arange(4.0)
    G = np.array([[4.0, 0.3], [0.3, 0.2]])
    lines = flc.assume("y ~ t + (t | g)", {"g": np.repeat([0, 1, 2], 4), "t": np.tile(times, 3)}, [1.0, 2.0], G, 2.0)
    Z = np.column_stack([np.ones(4), times])
    noise = 2.0 * np.linalg.inv(Z.T @ Z)
    found = lines.pooling()
    np.testing.assert_allclose(found.shrinkage[1], G @ np.linalg.inv(G + noise), rtol=RTOL)
    np.testing.assert_allclose(found.reliability[1], np.diag(G) / np.diag(G + noise), rtol=RTOL)
    np.testing.assert_array_equal(found.population, [1.0, 2.0])
    assert "no_pooling" not in found.to_frame()
    with pytest.raises(flc.LMMError, match="no response, so that groups have no coefficients"):
        _ = found.partial_pooling


def test_a_new_patient_of_a_published_model():
    """Three measurements, and the trajectory with intervals: the conditional normal distribution."""
    beta, G, sigma2 = np.array([50.0, -2.0]), np.array([[30.0, -2.0], [-2.0, 1.5]]), 9.0
    measured, future = np.array([0.0, 1.0, 2.5]), np.array([3.0, 5.0, 8.0])
    y = np.array([61.0, 57.0, 55.0])
    one = {"id": np.array(["new"] * 3), "t": measured, "y": y}
    later = {"id": np.array(["new"] * 3), "t": future}

    def rows(t):
        return np.column_stack([np.ones(len(t)), t])

    V = rows(measured) @ G @ rows(measured).T + sigma2 * np.eye(3)
    cross = rows(future) @ G @ rows(measured).T
    mean = rows(future) @ beta + cross @ np.linalg.solve(V, y - rows(measured) @ beta)
    variance = np.diag(rows(future) @ G @ rows(future).T - cross @ np.linalg.solve(V, cross.T))
    anything = {"id": ["new", "b"], "t": [0.0, 0.0]}  # one occasion, and the name of the patient
    without = flc.assume("y ~ t + (t | id)", anything, beta, G, sigma2)
    hers = flc.assume("y ~ t + (t | id)", one, beta, G, sigma2)
    for known in (
        without.predict(later, effects="all", observed=one, interval="prediction"),
        hers.predict(later, effects="all", interval="prediction"),
    ):
        np.testing.assert_allclose(known["mean"], mean, rtol=RTOL)
        np.testing.assert_allclose(known["std_error"], np.sqrt(variance + sigma2), rtol=RTOL)
        assert np.isinf(known["df"]).all()
        np.testing.assert_allclose(known["conf_high"] - known["mean"], 1.959963984540054 * known["std_error"])
    line = hers.predict(later, effects="all", interval="confidence")
    np.testing.assert_allclose(line["std_error"], np.sqrt(variance), rtol=RTOL)
    nothing = without.predict(later, interval="prediction")
    np.testing.assert_allclose(nothing["mean"], rows(future) @ beta)
    whole = np.sqrt(np.diag(rows(future) @ G @ rows(future).T) + sigma2)
    np.testing.assert_allclose(nothing["std_error"], whole, rtol=RTOL)
    assert without.predict(later, interval="confidence")["std_error"].tolist() == [0.0, 0.0, 0.0]
    effects = G @ rows(measured).T @ np.linalg.solve(V, y - rows(measured) @ beta)
    np.testing.assert_allclose([hers.random_effects["Intercept"][0], hers.random_effects["t"][0]], effects, rtol=RTOL)
    np.testing.assert_allclose(without.at(data=one).blups[0][0], effects, rtol=RTOL)
    with pytest.raises(flc.LMMError, match=r"no response, so that nothing is known of the levels of id.*observed="):
        without.predict(later, effects="all")
    np.testing.assert_allclose(
        without.predict(later, effects="all", new_levels="population"), rows(future) @ beta, rtol=RTOL
    )


# ---- against dense algebra -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_log_likelihood(make):
    result = make()
    V, *_ = covariance(result)
    v, X = rest(result), result.model.exog
    n, r = X.shape
    full = n * np.log(2.0 * np.pi) + np.linalg.slogdet(V)[1] + v @ np.linalg.solve(V, v)
    np.testing.assert_allclose([result.llf, result.log_likelihood(), result.criterion], [-full / 2, -full / 2, full])
    H = X.T @ np.linalg.solve(V, X)
    left = v - X @ np.linalg.solve(H, X.T @ np.linalg.solve(V, v))
    restricted = (n - r) * np.log(2.0 * np.pi) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(H)[1]
    restricted += left @ np.linalg.solve(V, left)
    np.testing.assert_allclose(result.log_likelihood(reml=True), -restricted / 2, rtol=RTOL)


@pytest.mark.parametrize("make", MODELS)
def test_random_effects_and_residuals(make):
    result = make()
    V, wide, big = covariance(result)
    v, model = rest(result), result.model
    w = np.ones(model.nobs) if model.weights is None else model.weights
    fitted = model.endog - v
    for f, Z, G, b, M in zip(model.factors, wide, big, result.blups, result.blup_covariances, strict=True):
        mean = G @ Z.T @ np.linalg.solve(V, v)
        left = G - G @ Z.T @ np.linalg.solve(V, Z @ G)
        np.testing.assert_allclose(b.ravel(), mean, rtol=RTOL, atol=1e-12)
        q = f.stop - f.start
        for i, block in enumerate(M):
            part = slice(i * q, (i + 1) * q)
            np.testing.assert_allclose(block, left[part, part], rtol=RTOL, atol=1e-12)
        fitted = fitted + Z @ mean
    np.testing.assert_allclose(result.fittedvalues, fitted, rtol=RTOL)
    R = np.diag(result.sigma2 / w)
    variance = np.diag(R @ np.linalg.solve(V, R))
    np.testing.assert_allclose(result.residuals("studentized"), (model.endog - fitted) / np.sqrt(variance), rtol=1e-7)
    hat = sum(Z @ G @ Z.T for Z, G in zip(wide, big, strict=True)) @ np.linalg.inv(V)
    rows = result.augment()
    np.testing.assert_allclose(rows["leverage"], np.diag(hat), rtol=1e-7)
    assert "cooks_distance" not in rows
    np.testing.assert_allclose(np.sum(result.residuals("whitened") ** 2), v @ np.linalg.solve(V, v), rtol=RTOL)
    for f, Z, G, b in zip(model.factors, wide, big, result.blups, strict=True):
        spread = G @ Z.T @ np.linalg.solve(V, Z @ G)
        q = f.stop - f.start
        each = [
            row @ np.linalg.solve(spread[i * q : (i + 1) * q, i * q : (i + 1) * q], row)
            for i, row in enumerate(b)
            if (f.grouping.index == i).sum() >= q
        ]
        found = result.mahalanobis(f.grouping.name)
        enough = np.bincount(f.grouping.index) >= q
        np.testing.assert_allclose(np.asarray(found["distance"])[enough], each, rtol=1e-6)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("response", [True, False])
def test_standard_errors_are_those_of_the_design(make, response):
    result = make(response)
    V, *_ = covariance(result)
    X = result.model.exog
    np.testing.assert_allclose(result.cov_params(), np.linalg.inv(X.T @ np.linalg.solve(V, X)), rtol=RTOL)
    np.testing.assert_allclose(
        list(dict(result.bse).values()), np.sqrt(np.diag(np.linalg.inv(X.T @ np.linalg.solve(V, X)))), rtol=RTOL
    )


@pytest.mark.parametrize("make", MODELS)
def test_generalised_least_squares(make):
    result = make().at(params="gls")
    V, *_ = covariance(result)
    X, y = result.model.exog, result.model.endog - (0.0 if result.model.offset is None else result.model.offset)
    np.testing.assert_allclose(
        result.beta, np.linalg.solve(X.T @ np.linalg.solve(V, X), X.T @ np.linalg.solve(V, y)), rtol=RTOL
    )


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("response", [True, False])
def test_predictions_of_new_rows(make, response):
    """Of old and new levels, given all that is known, with more observations of both."""
    result = make(response)
    model = result.model
    names = [f.grouping.name for f in model.factors]
    rng = np.random.default_rng(8)

    def rows(levels: list[int], y: bool):
        n = len(levels)
        data = {name: np.array(levels) // (3 if name == "a" and "a:b" in names else 1) for name in "gab"}
        data |= {"x": rng.standard_normal(n)}
        if "t" in model.exog_names:
            data["t"] = rng.uniform(0, 9, n)
        if y:
            data["y"] = rng.standard_normal(n)
        return data

    more = rows([50, 50, 51], True)
    wanted = rows([50, 51, 50] + ([2] if response else []), False)
    if model.offset is not None:  # the formula has no column of it, which more observations would need
        result = one_factor(response, weighted=False)
        model = result.model
    found = result.predict(wanted, effects="all", observed=more, interval="prediction")
    # the joint normal distribution of everything
    known = result.at(data=_joined(model, more, wanted) if response else _stack(more, wanted), weights=None if
                      model.weights is None else np.concatenate([model.weights if response else [],
                                                                 np.ones(3 + len(wanted["x"]))]))  # fmt: skip
    V, *_ = covariance(known)
    mean = known.model.exog @ known.beta
    k = len(wanted["x"])
    y = np.concatenate([model.endog, more["y"]]) if response else more["y"]
    seen, new = slice(0, len(V) - k), slice(len(V) - k, None)
    exact = mean[new] + V[new, seen] @ np.linalg.solve(V[seen, seen], y - mean[seen])
    spread = np.diag(V[new, new] - V[new, seen] @ np.linalg.solve(V[seen, seen], V[seen, new]))
    np.testing.assert_allclose(found["mean"], exact, rtol=RTOL)
    np.testing.assert_allclose(found["std_error"], np.sqrt(spread), rtol=RTOL)


def _stack(*tables):
    names = [name for name in tables[-1] if all(name in table for table in tables)]
    return {name: np.concatenate([table[name] for table in tables]) for name in names}


def _joined(model, *tables):
    """The rows of the model and others; labels of the fit are its own."""
    own = {}
    for f in model.factors:
        labels = f.grouping.labels[f.grouping.index]
        own |= dict(zip(f.grouping.name.split(":"), zip(*[str(label).split(":") for label in labels], strict=True),
                        strict=True))  # fmt: skip
    own = {name: np.array([int(value) for value in values]) for name, values in own.items()}
    own |= {name: model.exog[:, i] for i, name in enumerate(model.exog_names) if name != "Intercept"}
    return _stack(own, *tables)


# ---- designs and responses that leave parameters open --------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "data", "params", "G"),
    [
        ("y ~ t + (t | g)", {"g": [1], "t": [3.0], "y": [2.0]}, [1.0, 2.0], np.diag([1.0, 0.5])),
        ("y ~ t + (t | g)", {"g": [1, 1, 2], "t": [3.0, 3.0, 3.0], "y": [2.0, 2.0, 2.0]}, [1.0, 2.0], np.eye(2)),
        ("y ~ t + s + (1 | g)", {"g": [1, 1, 2], "t": [1.0, 2, 3], "s": [2.0, 4, 6], "y": [1.0, 4, 9]}, [1, 2, 3], 1.0),
        ("y ~ t + (1 | g)", {"g": [1, 2, 3, 4], "t": [1.0, 2, 3, 4], "y": [3.0, 5, 7, 9]}, [1.0, 2.0], 2.0),
        ("y ~ t + (t || g)", {"g": [1, 1, 2], "t": [0.0, 0.0, 0.0], "y": [0.0, 0, 0]}, [1.0, 2.0], np.diag([1.0, 0])),
        ("y ~ g + (1 | g)", {"g": ["a", "a", "b", "c"], "y": [1.0, 2, 3, 4]}, [0.5, 1.0, 2.0], 1.0),
        ("y ~ 0 + (1 | g)", {"g": [1, 1, 2], "y": [1.0, 2.0, 4.0]}, [], 1.0),
        ("y ~ t + (1 | g) + (1 | h)", {"g": [1, 1], "h": [1, 2], "t": [0.0, 1], "y": [1.0, 2]}, [1.0, 2.0], np.eye(2)),
        ("y ~ t + (t | h) + (1 | g)", {"g": [1, 1, 1, 2], "h": [1, 2, 1, 2], "t": [1.0] * 4, "y": [7.0] * 4},
         [1.0, 2.0], np.diag([1.0, 2.0, 0.0])),
    ],
)  # fmt: skip
def test_designs_that_leave_parameters_open(formula, data, params, G):
    data = {name: np.array(values) for name, values in data.items()}
    result = flc.assume(formula, data, params, G, 0.5)
    V, wide, big = covariance(result)
    v = data["y"] - result.model.exog @ np.asarray(params, dtype=float)
    exact = -0.5 * (np.linalg.slogdet(2.0 * np.pi * V)[1] + v @ np.linalg.solve(V, v))
    np.testing.assert_allclose(result.llf, exact, rtol=RTOL)
    for Z, B, b in zip(wide, big, result.blups, strict=True):
        np.testing.assert_allclose(b.ravel(), B @ Z.T @ np.linalg.solve(V, v), rtol=RTOL, atol=1e-12)
    X = result.model.exog
    if np.linalg.matrix_rank(X) == X.shape[1]:
        np.testing.assert_allclose(result.cov_params(), np.linalg.inv(X.T @ np.linalg.solve(V, X)), rtol=RTOL)
    else:
        assert np.isnan(list(dict(result.bse).values())).any()
    assert result.simulate(2, 1).shape == (2, len(v))
    assert "stated" in str(result.summary())
    if X.shape[1]:
        with pytest.raises(flc.LMMError):
            result.model.fit()
    empty = flc.assume(formula, {name: values for name, values in data.items() if name != "y"}, params, G, 0.5)
    np.testing.assert_allclose(empty.cov_params(), result.cov_params(), rtol=RTOL)
    np.testing.assert_allclose(empty.blup_covariances[0], result.blup_covariances[0], rtol=RTOL, atol=1e-15)


def test_one_patient_of_a_model_with_arms():
    pd = pytest.importorskip("pandas")
    one = pd.DataFrame({"id": "new", "arm": ["drug", "drug"], "t": [0.0, 1.0], "y": [3.0, 4.0]})
    arms = pd.CategoricalDtype(["placebo", "drug"])
    state = {"params": [1.0, 2.0, 3.0, 4.0], "G": np.eye(2), "sigma2": 1.0}
    with pytest.raises(flc.LMMError, match="make it a categorical column with all its levels"):
        flc.assume("y ~ arm * t + (t | id)", one, **state)
    hers = flc.assume("y ~ arm * t + (t | id)", one.astype({"arm": arms}), **state)
    np.testing.assert_array_equal(hers.model.exog, [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    both = pd.DataFrame({"id": ["a", "b"], "arm": pd.Categorical(["drug", "placebo"], arms.categories), "t": 0.0})
    design = flc.assume("y ~ arm * t + (t | id)", both, **state)
    np.testing.assert_allclose(design.at(data=one).llf, hers.llf, rtol=RTOL)
    later = one.assign(t=[5.0, 6.0])
    np.testing.assert_allclose(
        design.predict(later, effects="all", observed=one), hers.predict(later, effects="all"), rtol=RTOL
    )
    del one["y"]
    assert not flc.assume("y ~ arm * t + (t | id)", one.astype({"arm": arms}), **state).model.has_response


def test_a_covariate_may_come_from_any_stream():
    g = np.repeat(np.arange(20), 4)
    for x in (np.random.default_rng(0).standard_normal(80), one_factor(False).simulate(1, 0)[0][:24].repeat(4)[:80]):
        model = flc.assume("y ~ x + (1 | g)", {"g": g, "x": x}, [0.0, 0.0], 0.0, 1.0)
        assert model.simulate_fit(20, 0).converged.all()


def test_large_designs():
    """The same numbers as a fit of the same rows, whose columns are conditioned in another way."""
    rng = np.random.default_rng(1)
    school, pupil = np.repeat(np.arange(60), 50), np.repeat(np.arange(600), 5)
    data = {"s": school, "p": pupil, "t": 2000.0 + rng.uniform(0, 9, 3000)}
    data["y"] = rng.standard_normal(3000) + rng.standard_normal(60)[school] + rng.standard_normal(600)[pupil]
    for formula in ("y ~ t + (1 | s / p)", "y ~ t + (1 | p)"):
        fit = flc.lmm(formula, data).fit()
        stated = flc.assume(formula, data, fit.params, fit.G, fit.sigma2)
        np.testing.assert_allclose(stated.log_likelihood(reml=True), fit.llf, rtol=1e-10)
        np.testing.assert_allclose(stated.cov, fit.cov, rtol=1e-6)
        np.testing.assert_allclose(stated.rest, fit.rest, atol=1e-7)


# ---- fits that are moved -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    return flc.lmm(SLEEP, flc.datasets.load("sleepstudy", "dict")).fit()


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("formula", [SLEEP, "Reaction ~ Days + (1 | Subject) + (1 | Days)"])
def test_a_fit_that_is_not_moved(formula, reml):
    fit = flc.lmm(formula, flc.datasets.load("sleepstudy", "dict")).fit(reml=reml)
    still = fit.at()
    np.testing.assert_allclose([fit.log_likelihood(reml), still.log_likelihood(reml)], fit.llf, rtol=1e-11)
    np.testing.assert_allclose(still.log_likelihood(not reml), fit.log_likelihood(not reml), rtol=1e-11)
    np.testing.assert_allclose(still.cov, fit.cov, rtol=1e-8)
    np.testing.assert_allclose(still.fittedvalues, fit.fittedvalues, rtol=1e-9)
    np.testing.assert_array_equal(still.simulate(2, 5), fit.simulate(2, 5))
    np.testing.assert_array_equal(still.simulate_fit(2, 5).params, fit.simulate_fit(2, 5).params)
    np.testing.assert_allclose(fit.at(params="gls").beta, fit.beta, rtol=1e-9)
    assert still.reml == fit.reml


def test_what_is_not_named_stays(fit):
    moved = fit.at(params={"Days": 0.0}, sigma2=100.0)
    np.testing.assert_array_equal(moved.beta, [fit.beta[0], 0.0])
    np.testing.assert_allclose(moved.G["Subject"], fit.G["Subject"], rtol=1e-12)
    assert moved.sigma2 == 100.0
    two = flc.lmm("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    other = two.at(G={"Subject.1": 9.0})
    np.testing.assert_allclose(other.G["Subject"], two.G["Subject"], rtol=1e-12)
    assert other.G["Subject.1"][0, 0] == pytest.approx(9.0)
    again = moved.at(fit.params, fit.G, fit.sigma2)
    np.testing.assert_allclose(again.llf, fit.log_likelihood(), rtol=1e-11)
    np.testing.assert_array_equal(fit.at(params=list(fit.beta)).beta, fit.beta)


def test_other_rows(fit):
    data = flc.datasets.load("sleepstudy", "dict")
    parts = [np.flatnonzero(data["Subject"] == label) for label in fit.group_labels]
    alone = [fit.at(data={name: values[part] for name, values in data.items()}) for part in parts]
    np.testing.assert_allclose(sum(one.llf for one in alone), fit.log_likelihood(), rtol=1e-10)
    np.testing.assert_allclose(np.concatenate([one.blups[0] for one in alone]), fit.blups[0], rtol=1e-7)
    assert alone[0].model.nobs == 10
    empty = fit.at(data={"Subject": ["x"], "Days": [3.0]})
    assert not empty.model.has_response
    np.testing.assert_allclose(empty.marginal_mean, [fit.beta @ [1.0, 3.0]])
    arrays = flc.LinearMixedModel(fit.model.endog, fit.model.exog, fit.model.exog_re, data["Subject"]).fit()
    rows = {"X": fit.model.exog[:10], "Z": fit.model.exog_re[:10], "groups": [1] * 10}
    np.testing.assert_allclose(arrays.at(data=rows | {"y": fit.model.endog[:10]}).llf, alone[0].llf, rtol=1e-8)
    np.testing.assert_allclose(arrays.at(data=rows).simulate(1, 1), alone[0].simulate(1, 1), rtol=1e-5)


def test_dropped_columns_stay_dropped():
    data = flc.datasets.load("sleepstudy", "dict")
    data["twice"] = 2.0 * data["Days"]
    fit = flc.lmm("Reaction ~ Days + twice + (1 | Subject)", data).fit()
    for moved in (fit.at(), fit.at(params=fit.params), fit.at(params={"Days": float(fit.beta[1])})):
        np.testing.assert_array_equal(moved.beta, fit.beta)
        np.testing.assert_allclose(moved.log_likelihood(reml=True), fit.llf, rtol=1e-11)


def test_arrays():
    rng = np.random.default_rng(2)
    X, groups = np.column_stack([np.ones(12), rng.standard_normal(12)]), np.repeat(["a", "b", "c"], 4)
    y = rng.standard_normal(12)
    empty = flc.LinearMixedModel(None, X, None, groups)
    model = flc.assume(empty, params=[1.0, 2.0], G=0.7, sigma2=0.4)
    V = 0.7 * (groups[:, None] == groups) + 0.4 * np.eye(12)
    np.testing.assert_allclose(model.cov_params(), np.linalg.inv(X.T @ np.linalg.solve(V, X)), rtol=RTOL)
    for known in (
        model.at(data={"X": X, "groups": groups, "y": y}),
        flc.assume(flc.LinearMixedModel(y, X, None, groups), params=[1.0, 2.0], G=0.7, sigma2=0.4),
    ):
        v = y - X @ [1.0, 2.0]
        exact = -0.5 * (np.linalg.slogdet(2.0 * np.pi * V)[1] + v @ np.linalg.solve(V, v))
        np.testing.assert_allclose(known.llf, exact, rtol=RTOL)
    batch = empty.fit_many(model.simulate(5, 1))
    np.testing.assert_allclose(batch.params, model.simulate_fit(5, 1).params, rtol=1e-6)
    np.testing.assert_allclose(batch.params[2], empty.refit(model.simulate(5, 1)[2]).params, rtol=1e-6)
    assert 0.0 < flc.power(model, "x1", n_sim=50, seed=1).power <= 1.0
    terms = [flc.RandomTerm(None, groups, "g"), flc.RandomTerm(None, np.tile([0, 1], 6), "h")]
    two = flc.assume(flc.LinearMixedModel(None, X, terms=terms), params=[1, 2], G={"g": 1.0, "h": 2.0}, sigma2=1.0)
    assert two.icc()["h"] == pytest.approx(0.5)
    with pytest.raises(flc.LMMError, match="a model holds its data, weights and offset"):
        flc.assume(empty, {"x": [1]}, [1.0, 2.0], 0.7, 0.4)
    with pytest.raises(flc.LMMError, match="y, X, Z and groups are missing"):
        flc.LinearMixedModel(None)
    with pytest.raises(flc.LMMError, match="this model has no response"):
        empty.fit()


# ---- restricted covariances of random effects ----------------------------------------------------------------------

R = np.array([[1.0, 0.4, 0.4], [0.4, 1.0, 0.4], [0.4, 0.4, 1.0]])
AR = 0.6 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
SD = np.array([1.0, 0.5, 2.0])
LOADINGS = np.array([1.0, -0.5, 0.3])


@pytest.mark.parametrize(
    ("term", "G"),
    [
        ("cs(0 + v | g, hom=TRUE)", 2.0 * R),
        ("cs(0 + v | g)", np.outer(SD, SD) * R),
        ("ar1(0 + v | g)", 1.7 * AR),
        ("ar1(0 + v | g, hom=FALSE)", np.outer(SD, SD) * AR),
        ("diag(0 + v | g, hom=TRUE)", 0.7 * np.eye(3)),
        ("fa0(0 + v | g)", np.outer(LOADINGS, LOADINGS)),
    ],
)
def test_restricted_covariances(term, G):
    rng = np.random.default_rng(7)
    data = {"g": np.repeat(np.arange(12), 6), "v": np.tile(["a", "b", "c"], 24), "y": rng.standard_normal(72)}
    stated = flc.assume(f"y ~ 1 + {term}", data, [0.3], G, 0.8)
    free = flc.assume("y ~ 1 + (0 + v | g)", data, [0.3], G, 0.8)
    np.testing.assert_allclose(stated.G["g"], G, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(stated.llf, free.llf, rtol=RTOL)
    np.testing.assert_allclose(stated.blups[0], free.blups[0], rtol=1e-6, atol=1e-9)
    fit = flc.lmm(f"y ~ 1 + {term}", data).fit()
    still = fit.at(sigma2=1.3).at(sigma2=fit.sigma2)
    np.testing.assert_allclose(still.log_likelihood(reml=True), fit.llf, rtol=1e-10)
    with pytest.raises(flc.LMMError, match=r"G is none of the structure|G has covariances"):
        stated.at(G=np.diag([1.0, 2.0, 3.0]) + 0.1 + 0.3 * np.eye(3, k=1) + 0.3 * np.eye(3, k=-1))


def test_standard_deviations_and_correlations():
    rows = {"g": [1, 1, 2], "t": [0.0, 1.0, 2.0]}

    def G(formula, given):
        return flc.assume(formula, rows, [0.0, 0.0], given, 1.0).G

    found = G("y ~ t + (t | g)", {"sd": [14.0, 1.8], "corr": -0.2})["g"]
    np.testing.assert_allclose(found, [[196.0, -5.04], [-5.04, 3.24]], rtol=1e-12)
    np.testing.assert_allclose(G("y ~ t + (1 | g)", {"sd": 3.0})["g"], [[9.0]])
    two = G("y ~ t + (t | g) + (1 | t)", {"g": {"sd": [1.0, 2.0], "corr": np.eye(2)}, "t": 4.0})
    np.testing.assert_allclose(two["g"], np.diag([1.0, 4.0]))
    for given, message in (
        ({"sd": [1.0, -1.0]}, r"G\['sd'\] must hold standard deviations"),
        ({"sd": [1.0, 1.0], "corr": 2.0}, "not positive semidefinite"),
        ({"sd": [1.0, 1.0, 1.0], "corr": 0.5}, r"G\['corr'\] must be a \(3, 3\) matrix; a number is"),
        ({"sd": [1.0, 1.0], "corr": 2.0 * np.eye(2)}, "with ones on its diagonal"),
    ):
        with pytest.raises(flc.LMMError, match=message):
            G("y ~ t + (t | g)", given)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("response", [True, False])
def test_everything_answers_or_says_why_not(make, response):
    """Each attribute and method without arguments: an answer, or an error that names the remedy."""
    result = make(response)
    rows = result.model.exog_re[:2]
    given = {
        "test": ["x"], "emmeans": ["x"], "slopes": ["x"], "marginal_covariance": [0], "marginal_correlation": [0],
        "marginal_covariance_at": [rows], "icc_at": [rows], "simulate_fit": [2], "bootstrap": [2],
    }  # fmt: skip
    refused = set()
    for name in dir(type(result)):
        if name.startswith("_") or name in ("again", "once", "require_estimates"):
            continue
        try:
            value = getattr(result, name)
            if callable(value):
                wanted = [p for p in inspect.signature(value).parameters.values() if p.default is p.empty]
                if name not in given and any(p.kind is p.POSITIONAL_OR_KEYWORD for p in wanted):
                    continue
                value = value(*given.get(name, []))
            repr(value)
        except flc.LMMError:
            refused.add(name)
    assert {"pvalues", "anova", "profile"} <= refused
    assert ("random_effects" in refused) == (not response)
    answered = {"simulate_fit", "summary", "tidy", "icc", "r2", "bse", "params", "pooling", "glance", "design_effect"}
    assert not refused & answered


@pytest.mark.parametrize("make", MODELS)
def test_without_a_response(make):
    result = make(False)
    for name in ("random_effects", "resid", "fittedvalues", "criterion", "llf", "blups"):
        with pytest.raises(flc.LMMError, match=r"no response.*as y.*predict\(observed"):
            getattr(result, name)
    for call in (result.residuals, result.log_likelihood, result.residual_tests, result.mahalanobis,
                 lambda: result.at(params="gls"), lambda: result.tidy("ran_vals"), result.model.fit):  # fmt: skip
        with pytest.raises(flc.LMMError, match="no response"):
            call()
    assert np.isfinite(result.design_effect().mean)
    assert 0.0 < result.r2()["marginal"] < 1.0
    assert "Log-likelihood" not in str(result.summary())


def test_estimates_are_needed(fit):
    stated = fit.at(params={"Days": 5.0})
    for name in ("tvalues", "pvalues", "df", "aic", "bic"):
        with pytest.raises(flc.LMMError, match=f"^{name}: the parameters of this result are stated"):
            getattr(stated, name)
    for name, arguments in {
        "test": ("Days",), "conf_int": (), "anova": (), "emmeans": ("Days",), "slopes": ("Days",), "profile": (),
        "variance_components": (), "bootstrap": (10,), "influence": (), "random_effect_test": (),
        "contextual_effect": (),
    }.items():  # fmt: skip
        with pytest.raises(flc.LMMError, match=f"^{name}: the parameters of this result are stated, not estimated; "):
            getattr(stated, name)(*arguments)
    with pytest.raises(flc.LMMError, match="stated, not estimated"):
        flc.random_effect_test(stated)
    for pooled in (flc.compare, lambda *results: flc.pool(results)):
        with pytest.raises(flc.LMMError, match="stated, not estimated"):
            pooled(stated, fit)
    with pytest.raises(flc.LMMError, match="ddf='kenward-roger' is for estimates"):
        stated.predict(interval="confidence", ddf="kenward-roger")
    assert list(stated.tidy()) == ["term", "estimate", "std_error"]
    assert fit.test("Days").pvalue < 1e-4
    assert fit.tvalues["Days"] > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": {"days": 1.0}}, "params names 'days'.*did you mean 'Days'"),
        ({"params": "ols"}, "params='ols' is unknown"),
        ({"params": [1.0]}, "params must hold 2 values"),
        ({"G": {"Subjects": np.eye(2)}}, "G has the terms 'Subjects'"),
        ({"G": 3.0}, r"G must be a \(2, 2\) matrix"),
        ({"sigma2": -1.0}, "sigma2=-1.0 must be a positive number"),
        ({"weights": [1.0]}, "weights and offset are those of data"),
        ({"data": {"Subject": [1]}}, "no column 'Days'"),
    ],
)
def test_refused_by_at(fit, arguments, message):
    with pytest.raises(flc.LMMError, match=message):
        fit.at(**arguments)


def test_plots(fit):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    stated = fit.at(G={"Subject": np.diag([100.0, 4.0])})
    for draw in ("caterpillar", "shrinkage", "marginal_variance", "trajectories", "residual_panels", "missingness"):
        getattr(flc.plots, draw)(stated.model if draw == "missingness" else stated)
    empty = one_factor(False)
    flc.plots.marginal_variance(empty)
    for draw in ("caterpillar", "shrinkage", "trajectories"):
        with pytest.raises(flc.LMMError, match="no response"):
            getattr(flc.plots, draw)(empty)
    plt.close("all")


def test_it_is_shown_and_pickled(fit):
    stated = fit.at(params={"Days": 5.0})
    assert repr(stated).startswith("<LMMResult at stated parameters: Intercept=251.405, Days=5; <LinearMixedModel: 180")
    text = str(stated.summary())
    assert "Linear mixed model at stated parameters" in text
    assert "Parameters stated, not estimated" in text
    assert "REML" not in text
    assert "stated parameters" in stated._repr_html_()
    for result in (stated, one_factor(False), crossed()):
        again = pickle.loads(pickle.dumps(result))
        np.testing.assert_array_equal(again.cov, result.cov)
        np.testing.assert_array_equal(again.simulate(1, 1), result.simulate(1, 1))
        assert repr(again) == repr(result)
        pickle.loads(pickle.dumps(result.pooling()))
