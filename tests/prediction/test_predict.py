"""Predictions, residuals, shares of variance and simulation, against dense algebra.

Predictions are judged by `kriging`: the joint covariance of the rows that were fitted, of rows observed later and of
the rows to predict, best linear unbiased prediction by generalised least squares, and its mean squared error. Nothing
in it knows of groups, random effects or Henderson's equations.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.linalg
from scipy.stats import norm, t

import dense_inference
import fastlmm_core as flc
import oracle

# Both sides solve systems of some dozen rows with condition numbers up to some thousand.
EXACT = 1e-9

BOTH = pytest.mark.parametrize("reml", [True, False])


def close(actual, desired, tolerance=EXACT):
    desired = np.asarray(desired, dtype=float)
    scale = max(1.0, np.max(np.abs(desired), initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, dtype=float), desired, rtol=0.0, atol=tolerance * scale)


class Study:
    """Irregular visits of some subjects; the last three are kept back."""

    def __init__(self, rng, weighted=False, with_offset=False, q=2, structure="full"):
        sizes = rng.integers(2, 7, 15)
        sizes[12:] = 4
        self.groups = np.repeat(np.arange(15), sizes)
        n = len(self.groups)
        t = rng.uniform(0.0, 3.0, n)
        self.X = np.column_stack([np.ones(n), t, rng.standard_normal(15)[self.groups]])
        self.Z = t[:, None] ** np.arange(q)
        b = rng.standard_normal((15, q)) * ([1.5, 0.8, 0.5][:q])
        self.weights = rng.uniform(0.3, 3.0, n) if weighted else None
        self.offset = rng.normal(0.0, 10.0, n) if with_offset else None
        noise = rng.standard_normal(n) / (1.0 if self.weights is None else np.sqrt(self.weights))
        self.y = 2.0 + 0.7 * t + np.sum(self.Z * b[self.groups], axis=1) + noise
        if with_offset:
            self.y = self.y + self.offset
        self.inside = self.groups < 12
        self.structure = structure

    def part(self, rows):
        return {
            "y": self.y[rows],
            "X": self.X[rows],
            "Z": self.Z[rows],
            "groups": self.groups[rows],
            "weights": None if self.weights is None else self.weights[rows],
            "offset": None if self.offset is None else self.offset[rows],
        }

    def fit(self, reml=True):
        d = self.part(self.inside)
        return flc.LinearMixedModel(
            d["y"], d["X"], d["Z"], d["groups"], weights=d["weights"], offset=d["offset"], structure=self.structure
        ).fit(reml=reml)


def kriging(result, seen, new, extra=None, *, effects, noise, at=None):
    """Best linear unbiased prediction of the rows `new` from the rows `seen`, and its mean squared error.

    G and sigma2 are those of the result, or `at`; beta is estimated from `seen` alone, then `extra` (rows of other
    subjects) is used with that beta, as observed= does. effects="population" predicts x'beta (with noise: for a new
    subject).
    """
    G, s2 = (oracle.covariance_blocks(result), float(result.sigma2)) if at is None else at

    def covariance(a, b):
        return (a["groups"][:, None] == b["groups"]) * (a["Z"] @ G @ b["Z"].T)

    def error(d):
        return np.diag(s2 / (np.ones(len(d["X"])) if d["weights"] is None else d["weights"]))

    def centred(d):
        return d["y"] - (0.0 if d["offset"] is None else d["offset"])

    V = covariance(seen, seen) + error(seen)
    Vi = np.linalg.inv(V)
    K = np.linalg.inv(seen["X"].T @ Vi @ seen["X"])
    W = K @ seen["X"].T @ Vi  # beta = W y
    beta = W @ centred(seen)
    add = np.zeros(len(new["X"])) if new["offset"] is None else new["offset"]
    if effects == "population":
        variance = new["X"] @ K @ new["X"].T
        if noise:
            variance = variance + new["Z"] @ G @ new["Z"].T + error(new)
        return new["X"] @ beta + add, np.diag(variance)
    # the predictor is linear in the stacked data: weights A on `seen` and B on `extra`
    if extra is None:
        extra = {k: (v[:0] if v is not None else None) for k, v in new.items()} | {"y": np.empty(0)}
    Ve = covariance(extra, extra) + error(extra)
    gain = covariance(new, extra) @ np.linalg.inv(Ve) if len(extra["y"]) else np.zeros((len(new["X"]), 0))
    own = covariance(new, seen) @ Vi
    A = new["X"] @ W + own @ (np.eye(len(V)) - seen["X"] @ W) - gain @ extra["X"] @ W
    mean = A @ centred(seen) + gain @ centred(extra) + add
    joint = np.block([[V, covariance(seen, extra)], [covariance(extra, seen), Ve]])
    weights = np.concatenate([A, gain], axis=1)
    to_new = np.concatenate([covariance(new, seen), covariance(new, extra)], axis=1)
    mse = covariance(new, new) + weights @ joint @ weights.T - to_new @ weights.T - weights @ to_new.T
    # unbiased whatever beta is
    np.testing.assert_allclose(A @ seen["X"] + gain @ extra["X"], new["X"], atol=1e-8)
    return mean, np.diag(mse + error(new) if noise else mse)


def new_rows(rng, groups, weighted=False, with_offset=False, q=2):
    n = len(groups)
    t = rng.uniform(0.0, 4.0, n)
    return {
        "X": np.column_stack([np.ones(n), t, rng.standard_normal(n)]),
        "Z": t[:, None] ** np.arange(q),
        "groups": np.asarray(groups),
        "weights": rng.uniform(0.2, 4.0, n) if weighted else None,
        "offset": rng.normal(0.0, 5.0, n) if with_offset else None,
    }


def arrays(rows):
    return {name: rows[name] for name in ("X", "Z", "groups", "y") if name in rows}


OPTIONS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("weighted", "with_offset"), OPTIONS, ids=["plain", "weights", "offset", "both"])
@pytest.mark.parametrize("effects", ["population", "all"])
@BOTH
def test_best_linear_unbiased_prediction(rng, effects, weighted, with_offset, reml):
    study = Study(rng, weighted, with_offset)
    result = study.fit(reml)
    seen = study.part(study.inside)
    new = new_rows(rng, [3, 0, 11, 3, 7], weighted, with_offset)
    options = {"effects": effects, "offset": new["offset"], "ddf": "normal"}
    mean, variance = kriging(result, seen, new, effects=effects, noise=False)
    close(result.predict(arrays(new), **options), mean)
    for interval in ("confidence", "prediction"):
        mean, variance = kriging(result, seen, new, effects=effects, noise=interval == "prediction")
        found = result.predict(arrays(new), interval=interval, weights=new["weights"], **options)
        assert list(found) == ["mean", "std_error", "df", "conf_low", "conf_high"]
        close(found["mean"], mean)
        close(found["std_error"], np.sqrt(variance))
        for level in (0.5, 0.95):
            found = result.predict(arrays(new), interval=interval, level=level, weights=new["weights"], **options)
            width = norm.ppf(0.5 + level / 2.0) * np.sqrt(variance)
            close(found["conf_low"], mean - width)
            close(found["conf_high"], mean + width)


@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "diagonal"), (3, "full")])
def test_prediction_for_other_shapes(rng, q, structure):
    study = Study(rng, q=q, structure=structure)
    result = study.fit()
    new = new_rows(rng, [1, 2, 2, 9], q=q)
    for interval in ("confidence", "prediction"):
        mean, variance = kriging(result, study.part(study.inside), new, effects="all", noise=interval == "prediction")
        found = result.predict(arrays(new), effects="all", interval=interval)
        # where the fit is singular or the polynomials are nearly collinear some digits go into the inverse of V
        close(found["mean"], mean, 1e-8)
        close(found["std_error"], np.sqrt(variance), 1e-8)


@BOTH
def test_one_subject_by_the_oracle(rng, reml):
    # Henderson's formula for a single subject, from another hand
    study = Study(rng)
    result = study.fit(reml)
    seen = study.part(study.inside)
    new = new_rows(rng, [5, 5])
    own = seen["groups"] == 5
    for noise in (False, True):
        mean, covariance = oracle.new_subject_prediction(
            new["X"], new["Z"], seen["y"][own], seen["X"][own], seen["Z"][own], result.params,
            oracle.covariance_blocks(result), result.sigma2, result.cov_params(), noise=noise,
        )  # fmt: skip
        found = result.predict(arrays(new), effects="all", interval="prediction" if noise else "confidence")
        close(found["mean"], mean)
        close(found["std_error"], np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize("interval", ["confidence", "prediction"])
@pytest.mark.parametrize("weighted", [False, True])
@BOTH
def test_new_subjects_by_their_observations(rng, reml, weighted, interval):
    # subjects 12, 13, 14 were not in the fit; of two of them some rows have been observed since
    study = Study(rng, weighted)
    result = study.fit(reml)
    seen, extra = study.part(study.inside), study.part((study.groups == 12) | (study.groups == 14))
    new = new_rows(rng, [14, 3, 12, 12, 8], weighted)
    mean, variance = kriging(result, seen, new, extra, effects="all", noise=interval == "prediction")
    observed = arrays(extra) | ({"weights": extra["weights"]} if weighted else {})
    found = result.predict(arrays(new), effects="all", interval=interval, observed=observed, weights=new["weights"])
    close(found["mean"], mean)
    close(found["std_error"], np.sqrt(variance))
    close(result.predict(arrays(new), effects="all", observed=observed), mean)
    if weighted:
        return
    # observations of subjects that are not asked for do no harm; of those asked for all are needed
    more = study.part(study.groups >= 12)
    close(result.predict(arrays(new), effects="all", observed=arrays(more)), mean)
    with pytest.raises(flc.LMMError, match=r"levels of group that the model has not seen: 13;"):
        result.predict(arrays(new_rows(rng, [13])), effects="all", observed=arrays(extra))


def test_observations_of_a_subject_of_the_fit_are_refused(rng):
    study = Study(rng)
    result = study.fit()
    new = new_rows(rng, [3])
    with pytest.raises(flc.LMMError, match=r"observed has the levels 3 that the model was fitted to"):
        result.predict(arrays(new), effects="all", observed=arrays(study.part(study.groups == 3)))


@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
def test_rows_without_the_constant(rng, interval):
    # differences of rows, and rows in which the columns that were constant in the fit have other values
    study = Study(rng, q=2)
    result = study.fit()
    seen, extra = study.part(study.inside), study.part(study.groups == 13)
    new = new_rows(rng, [3, 0, 11, 3, 13])
    new["X"][:4, 0] = new["Z"][:4, 0] = [0.0, 0.0, -1.0, 2.0]
    extra["X"] = extra["X"] * [3.0, 1.0, 1.0]
    mean, variance = kriging(result, seen, new, extra, effects="all", noise=interval == "prediction")
    options = {"effects": "all", "observed": arrays(extra)}
    close(result.predict(arrays(new), **options), mean)
    if interval is not None:
        found = result.predict(arrays(new), interval=interval, **options)
        close(found["mean"], mean)
        close(found["std_error"], np.sqrt(variance))
        _, variance = kriging(result, seen, new, effects="population", noise=interval == "prediction")
        close(result.predict(arrays(new), interval=interval)["std_error"], np.sqrt(variance))


@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
def test_unseen_subjects(rng, interval):
    study = Study(rng)
    result = study.fit()
    seen = study.part(study.inside)
    new = new_rows(rng, [77, 3, -5, 77])
    with pytest.raises(flc.LMMError, match=r"levels of group that the model has not seen: -5, 77; .*new_levels="):
        result.predict(arrays(new), effects="all", interval=interval)
    found = result.predict(arrays(new), effects="all", new_levels="population", interval=interval)
    # the joint covariance knows what to do: an unseen subject shares nothing with the rows seen
    mean, variance = kriging(result, seen, new, effects="all", noise=interval == "prediction")
    population = result.predict(arrays(new))
    if interval is None:
        close(found, mean)
        close(found[[0, 2, 3]], population[[0, 2, 3]])
        assert abs(found[1] - population[1]) > 1e-3
        return
    close(found["mean"], mean)
    if interval == "prediction":
        close(found["std_error"], np.sqrt(variance))
    else:  # the value promised is that of the population: the interval too
        known = np.array([1])
        close(found["std_error"][known], np.sqrt(variance)[known])
        _, variance = kriging(result, seen, new, effects="population", noise=False)
        close(found["std_error"][[0, 2, 3]], np.sqrt(variance)[[0, 2, 3]])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["interior", "zero", "one"])
def test_prediction_at_the_boundary(rng, kind, reml):
    # fits at which G is singular: zero, or of rank one
    m, x = 12, np.arange(5.0)
    e = rng.standard_normal((m, 5))
    Q, _ = np.linalg.qr(np.column_stack([np.ones(5), x]))
    e -= (e @ Q) @ Q.T
    u = rng.standard_normal((m, 1))
    Y = {"zero": 0.0, "one": 2.0 * u + 0.7 * u * x, "interior": 2.0 * u + rng.standard_normal((m, 1)) * x}[kind] + e
    groups = np.repeat(np.arange(m), 5)
    X = np.column_stack([np.ones(5 * m), np.tile(x, m)])
    result = flc.LinearMixedModel(Y.ravel(), X, X, groups).fit(reml=reml)
    assert result.singular is (kind != "interior")
    seen = {"y": Y.ravel(), "X": X, "Z": X, "groups": groups, "weights": None, "offset": None}
    new = {"X": X[[3, 8]] + [0.0, 4.0], "Z": X[[3, 8]] + [0.0, 4.0], "groups": groups[[3, 8]]}
    new |= {"weights": None, "offset": None}
    for interval in ("confidence", "prediction"):
        mean, variance = kriging(result, seen, new, effects="all", noise=interval == "prediction")
        found = result.predict(arrays(new), effects="all", interval=interval)
        close(found["mean"], mean)
        close(found["std_error"], np.sqrt(variance))


@pytest.mark.parametrize(("weighted", "with_offset"), OPTIONS, ids=["plain", "weights", "offset", "both"])
def test_rows_of_the_fit(rng, weighted, with_offset):
    study = Study(rng, weighted, with_offset)
    result = study.fit()
    seen = study.part(study.inside)
    close(result.predict(effects="all"), result.fittedvalues, 1e-11)
    close(result.predict(arrays(seen), effects="all", offset=seen["offset"]), result.fittedvalues, 1e-11)
    expected = oracle.fitted(
        seen["y"], seen["X"], seen["Z"], seen["groups"], oracle.covariance_blocks(result) / result.sigma2,
        seen["weights"], seen["offset"],
    )  # fmt: skip
    close(result.fittedvalues, expected)
    population = seen["X"] @ result.params + (0.0 if seen["offset"] is None else seen["offset"])
    close(result.predict(), population, 1e-12)
    # without new rows, a new observation has the weight of the row
    _, variance = kriging(result, seen, seen, effects="all", noise=True)
    close(result.predict(effects="all", interval="prediction")["std_error"], np.sqrt(variance))


# ------------------------------------------------------------------------------------------------------------
# degrees of freedom


def regular(rng, reml=True, **options):
    """A study whose fit is not on the boundary, and the fit."""
    draws = (Study(rng, **options) for _ in range(50))
    return next((study, fit) for study in draws if not (fit := study.fit(reml)).singular)


def delta_df(result, variance):
    """2 v^2 / var(v^): the variance as a function of (G, sigma2) by central differences, their covariance dense."""
    dense = dense_inference.at_optimum(result)

    def moved(direction, size):
        *of_g, of_noise = direction * size
        G = dense.G + sum((value * unit for value, unit in zip(of_g, dense.units, strict=True)), 0.0 * dense.G)
        return variance((G, dense.sigma2 + of_noise))

    count = len(dense.V_k)
    scale = np.array([*(np.trace(dense.G) * np.ones(count - 1)), dense.sigma2])
    steps = 1e-4 * scale
    g = np.array([(moved(row, h) - moved(row, -h)) / (2.0 * h) for row, h in zip(np.eye(count), steps, strict=True)])
    W = dense.covariance("observed")
    return 2.0 * moved(np.zeros(count), 0.0) ** 2 / np.einsum("ki,kl,li->i", g, W, g)


@pytest.mark.parametrize("interval", ["confidence", "prediction"])
@pytest.mark.parametrize("effects", ["population", "all"])
@pytest.mark.parametrize(("q", "structure", "weighted"), [(1, "full", True), (2, "full", False), (2, "diagonal", True)])
@BOTH
def test_degrees_of_freedom_by_the_delta_method(rng, reml, q, structure, weighted, effects, interval):
    study, result = regular(rng, reml, weighted=weighted, q=q, structure=structure)
    seen, extra = study.part(study.inside), study.part(study.groups == 13)
    # two of the subjects are known by observations that came later, one not at all
    groups = [3, 0, 11, 3] if effects == "population" else [3, 0, 11, 13, 13, 99]
    new = new_rows(rng, groups, weighted, q=q)
    options = {"effects": effects, "interval": interval, "weights": new["weights"], "new_levels": "population"}
    if effects == "all":
        options["observed"] = arrays(extra) | {"weights": extra["weights"]} if weighted else arrays(extra)
    noise = interval == "prediction"
    last = len(groups) - 1

    def variance(at):
        out = kriging(result, seen, new, extra, effects=effects, noise=noise, at=at)[1].copy()
        if effects == "all" and not noise:  # an unseen subject stands for the population
            out[last] = kriging(result, seen, new, effects="population", noise=False, at=at)[1][last]
        return out

    found = result.predict(arrays(new), **options)
    close(found["std_error"], np.sqrt(variance(None)))
    np.testing.assert_allclose(found["df"], delta_df(result, variance), rtol=1e-5)
    half = t.ppf(0.975, found["df"]) * found["std_error"]
    close(found["conf_low"], found["mean"] - half)
    close(found["conf_high"], found["mean"] + half)


def test_options_of_degrees_of_freedom(rng):
    result = Study(rng).fit()
    new = arrays(new_rows(rng, [3, 0, 11]))
    residual = result.predict(new, interval="prediction", ddf="residual")
    assert (residual["df"] == result.model.df_resid).all()
    normal = result.predict(new, interval="prediction", ddf="normal")
    assert np.isinf(normal["df"]).all()
    close(normal["conf_high"], normal["mean"] + norm.ppf(0.975) * normal["std_error"])
    # without random effects in it the variance is that of a linear function of beta
    for ddf in ("satterthwaite", "kenward-roger"):
        found = result.predict(new, interval="confidence", ddf=ddf)
        expected = result.test(new["X"], ddf=ddf)
        close(found["std_error"], expected.std_error, 1e-12)
        close(found["df"], expected.row_df, 1e-10)
    # Kenward and Roger add to the variance of the mean only
    mean, adjusted = (
        result.predict(new, interval="confidence", ddf=d)["std_error"] for d in ("normal", "kenward-roger")
    )
    whole = result.predict(new, interval="prediction", ddf="kenward-roger")
    close(whole["std_error"] ** 2 - normal["std_error"] ** 2, adjusted**2 - mean**2)
    assert (whole["df"] > 5.0).all() and (whole["df"] < result.nobs).all()
    with pytest.raises(flc.LMMError, match=r"ddf='kenward' is unknown"):
        result.predict(new, interval="confidence", ddf="kenward")


@pytest.mark.parametrize(
    ("name", "block", "formula"),
    [
        ("emmeans_cake", "emmeans_recipe_temperature", "angle ~ recipe * temperature + (1 | recipe:replicate)"),
        ("emmeans_machines_q3", "emmeans_Machine", "score ~ Machine + (0 + Machine | Worker)"),
        ("emmeans_machines_nested", "emmeans_Machine", "score ~ Machine + (1 | Worker/Machine)"),
    ],
)
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_means_of_cells_are_those_of_emmeans(name, block, formula, ddf):
    ref = json.loads((oracle.REFERENCE / f"{name}.json").read_text())
    data = pd.read_csv(oracle.REFERENCE / ref["data"], dtype=dict.fromkeys(ref["factors"], str))
    rows = pd.DataFrame(ref[block][ddf.replace("-", "_")]["emmeans"])
    cells = rows.drop(columns=["estimate", "se", "df", "lower", "upper"])
    found = flc.lmm(formula, data).fit().predict(cells, interval="confidence", ddf=ddf)
    for ours, theirs in (("mean", "estimate"), ("std_error", "se"), ("conf_low", "lower"), ("conf_high", "upper")):
        np.testing.assert_allclose(found[ours], rows[theirs], rtol=1e-6)
    np.testing.assert_allclose(found["df"], rows["df"], rtol=1e-5)


def test_balanced_one_way_layout_has_the_degrees_of_freedom_of_satterthwaite():
    # a new observation of a new group has variance (1 + 1/m) (MSB - MSW)/k + (1 + 1/(m k)) MSW
    rng = np.random.default_rng(5)
    m, k = 7, 4
    y = 2.0 * np.repeat(rng.standard_normal(m), k) + rng.standard_normal(m * k)
    result = flc.LinearMixedModel(y, groups=np.repeat(np.arange(m), k)).fit()
    means = y.reshape(m, k).mean(axis=1)
    msb, msw = k * np.var(means, ddof=1), np.sum((y.reshape(m, k) - means[:, None]) ** 2) / (m * (k - 1))
    parts = np.array([(1.0 + 1.0 / m) / k * msb, (1.0 - 1.0 / k) * msw])
    expected = parts.sum() ** 2 / (parts**2 / [m - 1, m * (k - 1)]).sum()
    found = result.predict({"X": np.ones((1, 1))}, interval="prediction")
    np.testing.assert_allclose(found["std_error"] ** 2, parts.sum(), rtol=1e-8)
    np.testing.assert_allclose(found["df"], expected, rtol=1e-6)


def test_nothing_to_estimate_and_nothing_to_predict(rng):
    study, result = regular(rng)
    zero = {"X": np.zeros((2, 3)), "Z": np.zeros((2, 2))}
    for ddf in ("satterthwaite", "kenward-roger", "normal"):
        found = result.predict(zero, interval="confidence", ddf=ddf)
        for name in ("mean", "std_error", "conf_low", "conf_high"):
            np.testing.assert_array_equal(found[name], [0.0, 0.0])
    # the residual variance alone, whatever G is: as many degrees of freedom as the profiled scale leaves
    whole = result.predict(zero, interval="prediction")
    np.testing.assert_allclose(whole["std_error"], result.sigma, rtol=1e-12)
    np.testing.assert_allclose(whole["df"], delta_df(result, lambda at: np.full(2, at[1])), rtol=1e-6)
    empty = {"X": np.zeros((0, 3)), "Z": np.zeros((0, 2)), "groups": np.zeros(0, dtype=int)}
    for effects in ("population", "all"):
        assert result.predict(empty, effects=effects, interval="prediction")["df"].shape == (0,)
    none = flc.LinearMixedModel(study.y, np.zeros((len(study.y), 0)), study.Z, study.groups).fit()
    rows = {"X": np.zeros((2, 0)), "Z": study.Z[:2], "groups": study.groups[:2]}
    for effects in ("population", "all"):
        found = none.predict(rows, effects=effects, interval="prediction")
        assert (found["df"] > 1.0).all()
        assert (found["conf_low"] < found["mean"]).all()


def test_several_factors(rng):
    # crossed factors: the same from the covariance of the three variances, which is linear in them
    n, a, b = 90, rng.integers(0, 8, 90), rng.integers(0, 10, 90)
    y = rng.standard_normal(8)[a] + 1.5 * rng.standard_normal(10)[b] + rng.standard_normal(n)
    X = np.column_stack([np.ones(n), rng.standard_normal(n)])
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")]
    result = flc.LinearMixedModel(y, X, terms=terms).fit()
    assert not result.singular
    V_k = [1.0 * (a[:, None] == a), 1.0 * (b[:, None] == b), np.eye(n)]
    x = np.array([result.G["a"][0, 0], result.G["b"][0, 0], result.sigma2])
    Vi = np.linalg.inv(sum(value * V for value, V in zip(x, V_k, strict=True)))
    Phi = np.linalg.inv(X.T @ Vi @ X)
    P = Vi - Vi @ X @ Phi @ X.T @ Vi
    T, w = [P @ V for V in V_k], np.array([V @ P @ y for V in V_k])
    W = 2.0 * np.linalg.inv(np.array([[-np.sum(s * t.T) for t in T] for s in T]) + 2.0 * w @ P @ w.T)
    rows = {"X": rng.standard_normal((3, 2)), "Z": np.ones((3, 2))}
    slopes = np.array([np.einsum("ij,jk,ik->i", rows["X"] @ Phi, X.T @ Vi @ V @ Vi @ X, rows["X"] @ Phi) for V in V_k])
    mean = np.einsum("ij,jk,ik->i", rows["X"], Phi, rows["X"])
    for interval, v, g in (("confidence", mean, slopes), ("prediction", mean + x.sum(), slopes + 1.0)):
        found = result.predict(rows, interval=interval)
        close(found["std_error"], np.sqrt(v))
        np.testing.assert_allclose(found["df"], 2.0 * v**2 / np.einsum("ki,kl,li->i", g, W, g), rtol=1e-6)
    # known levels of several factors have normal quantiles, new ones have not
    known = rows | {"groups": {"a": [0, 99, 3], "b": [1, 98, 99]}}
    found = result.predict(known, effects="all", interval="prediction", new_levels="population")
    assert np.isinf(found["df"][[0, 2]]).all()
    close(found["df"][1], result.predict(rows, interval="prediction")["df"][1], 1e-12)


def test_coverage_in_small_samples():
    # a new subject of a study with six: the normal interval misses twice as often as it says
    m, k, n = 6, 4, 1500
    x = np.tile(np.arange(float(k)), m)
    design = np.column_stack([np.ones(m * k), x])
    base = flc.LinearMixedModel(x + np.arange(m * k) % 5, design, groups=np.repeat(np.arange(m), k))
    rng = np.random.default_rng(11)
    level = 1.5 * rng.standard_normal((n, m + 1))
    noise = rng.standard_normal((n, m * k))
    row = {"X": np.array([[1.0, 2.0]])}
    inside = {(ddf, kind): 0 for ddf in ("satterthwaite", "normal") for kind in ("confidence", "prediction")}
    for i in range(n):
        fit = base.refit(np.repeat(level[i, :m], k) + noise[i])
        truth = {"confidence": 0.0, "prediction": level[i, m] + rng.standard_normal()}
        for ddf, kind in inside:
            found = fit.predict(row, interval=kind, ddf=ddf)
            inside[ddf, kind] += found["conf_low"][0] < truth[kind] < found["conf_high"][0]
    share = {key: count / n for key, count in inside.items()}
    for kind in ("confidence", "prediction"):
        assert abs(share["satterthwaite", kind] - 0.95) < 4.0 * np.sqrt(0.05 * 0.95 / n)
        assert share["normal", kind] < 0.925


# ------------------------------------------------------------------------------------------------------------
# frames


FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "dict": dict}


def table(rng, n_groups=14):
    sizes = rng.integers(3, 7, n_groups)
    g = np.repeat(np.array([f"s{i:02d}" for i in range(n_groups)]), sizes)
    n = len(g)
    t = rng.uniform(1.0, 4.0, n)
    arm = np.array(["control", "low", "high"])[rng.integers(0, 3, n)]
    y = 3.0 + t + (arm == "high") + rng.standard_normal(n_groups)[np.unique(g, return_inverse=True)[1]]
    return {
        "y": y + 0.5 * rng.standard_normal(n), "t": t, "arm": arm, "g": g,
        "o": rng.normal(0.0, 3.0, n), "w": rng.uniform(0.5, 2.0, n),
    }  # fmt: skip


def rows_of(data, rows):
    return {name: values[rows] for name, values in data.items()}


@pytest.mark.parametrize("library", FRAMES)
@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
def test_frames_in_and_out(rng, library, interval):
    make = FRAMES[library]
    data = table(rng)
    result = flc.lmm("y ~ t + (t | g)", make(data), weights="w", offset="o").fit()
    X = np.column_stack([np.ones(len(data["y"])), data["t"]])
    plain = flc.LinearMixedModel(data["y"], X, X, data["g"], weights=data["w"], offset=data["o"]).fit()
    at = rng.permutation(len(X))[:9]
    few = rows_of(data, at)
    rest = {"offset": few["o"], "weights": few["w"], "interval": interval}
    expected = plain.predict({"X": X[at], "Z": X[at], "groups": few["g"]}, effects="all", **rest)
    found = result.predict(make(few), effects="all", interval=interval, weights=few["w"])
    if interval is None:
        assert isinstance(found, pd.Series if library == "pandas" else np.ndarray)
        close(found, expected, 1e-8)
        return
    assert isinstance(found, {"pandas": pd.DataFrame, "polars": pl.DataFrame, "dict": dict}[library])
    names = list(found.keys() if library == "dict" else found.columns)
    assert names == ["mean", "std_error", "df", "conf_low", "conf_high"]
    for name in expected:
        close(found[name], expected[name], 1e-8)


@pytest.mark.parametrize("library", FRAMES)
def test_stateful_transforms_and_categories_remember_the_fit(rng, library):
    make = FRAMES[library]
    data = table(rng)
    formula = "y ~ center(t) + scale(o) + poly(w, 2) + C(arm, contr.sum) + (1 + center(t) | g)"
    result = flc.lmm(formula, make(data)).fit()
    inside = result.predict(effects="all", interval="prediction")
    # a few rows with one level of arm and other means than the fit
    at = np.flatnonzero(data["arm"] == "low")[:4]
    for rows in (at, at[:1], np.arange(len(data["y"]))[::-1]):
        found = result.predict(
            make(rows_of(data, rows)), effects="all", interval="prediction", weights=np.ones(len(rows))
        )
        for name in ("mean", "std_error"):
            close(found[name], np.asarray(inside[name])[rows])
    with pytest.raises(flc.LMMError, match=r"Column 'arm' of `data`.*has the level 'placebo'"):
        result.predict(make(rows_of(data, at) | {"arm": np.array(["placebo", "low", "low", "low"])}))


@pytest.mark.parametrize("library", FRAMES)
def test_new_subjects_of_a_frame(rng, library):
    make = FRAMES[library]
    data = table(rng)
    inside = ~np.isin(data["g"], ["s12", "s13"])
    fitted = rows_of(data, inside)
    result = flc.lmm("y ~ t + arm + (t | g)", make(fitted), offset="o").fit()
    X = np.column_stack([np.ones(inside.sum()), fitted["t"]])
    X = np.column_stack([X, fitted["arm"] == "high", fitted["arm"] == "low"])
    seen = {"y": fitted["y"], "X": X, "Z": X[:, :2], "groups": fitted["g"], "weights": None, "offset": fitted["o"]}

    def designed(rows):
        design = np.column_stack([np.ones(len(rows["t"])), rows["t"], rows["arm"] == "high", rows["arm"] == "low"])
        return {
            "y": rows["y"], "X": design, "Z": design[:, :2], "groups": rows["g"], "weights": None, "offset": rows["o"]
        }  # fmt: skip

    late = rows_of(data, ~inside)
    new = rows_of(late, slice(None, None, -1))
    with pytest.raises(flc.LMMError, match=r"levels of g that the model has not seen: 's12', 's13'; use"):
        result.predict(make(new), effects="all")
    for interval in ("confidence", "prediction"):
        mean, variance = kriging(
            result, seen, designed(new), designed(late), effects="all", noise=interval == "prediction"
        )
        found = result.predict(make(new), effects="all", observed=make(late), interval=interval)
        close(found["mean"], mean, 1e-8)
        close(found["std_error"], np.sqrt(variance), 1e-8)
    # neither the response nor, for the population, the groups are needed
    bare = {name: new[name] for name in ("t", "arm", "o")}
    close(result.predict(make(bare)), designed(new)["X"] @ oracle.values(result.params) + new["o"], 1e-10)


def test_offset_argument_goes_before_that_of_the_table(rng):
    data = table(rng)
    result = flc.lmm("y ~ t + (1 | g)", data, offset="o").fit()
    base = result.predict(data)
    close(result.predict(data, offset=data["o"] + 2.0), base + 2.0, 1e-12)
    close(result.predict(data, offset=np.zeros(len(base))), base - data["o"], 1e-12)


def test_a_table_with_gaps_is_predicted_in_the_rows_used(rng):
    data = table(rng)
    data["t"][[2, 9]] = np.nan
    result = flc.lmm("y ~ t + (1 | g)", data).fit()
    keep = np.isfinite(data["t"])
    close(result.predict(effects="all"), result.fittedvalues, 1e-12)
    close(result.predict(rows_of(data, keep), effects="all"), result.fittedvalues, 1e-11)
    with pytest.raises(flc.LMMError, match=r"Column 't' of `data` at rows 2, 9"):
        result.predict(data)


def test_columns_dropped_from_the_fit_do_not_count(rng):
    study = Study(rng)
    d = study.part(study.inside)
    wide = np.column_stack([d["X"], 2.0 * d["X"][:, 1] - 1.0])
    result = flc.LinearMixedModel(d["y"], wide, d["Z"], d["groups"]).fit()
    slim = flc.LinearMixedModel(d["y"], d["X"], d["Z"], d["groups"]).fit()
    new = new_rows(rng, [0, 1, 2])
    wide_new = arrays(new) | {"X": np.column_stack([new["X"], 2.0 * new["X"][:, 1] - 1.0])}
    for effects in ("population", "all"):
        found = result.predict(wide_new, effects=effects, interval="prediction")
        expected = slim.predict(arrays(new), effects=effects, interval="prediction")
        for name in expected:
            close(found[name], expected[name], 1e-7)


# ------------------------------------------------------------------------------------------------------------
# residuals and covariances


@pytest.mark.parametrize(("weighted", "with_offset"), OPTIONS, ids=["plain", "weights", "offset", "both"])
@BOTH
def test_residuals(rng, weighted, with_offset, reml):
    study = Study(rng, weighted, with_offset)
    order = rng.permutation(np.flatnonzero(study.inside))
    d = study.part(order)
    result = flc.LinearMixedModel(d["y"], d["X"], d["Z"], d["groups"], weights=d["weights"], offset=d["offset"]).fit(
        reml=reml
    )
    Ghat = oracle.covariance_blocks(result) / result.sigma2
    for kind in ("conditional", "marginal", "pearson", "whitened"):
        expected = oracle.residuals(d["y"], d["X"], d["Z"], d["groups"], Ghat, reml, kind, d["weights"], d["offset"])
        close(result.residuals(kind), expected, 1e-8)
    close(result.residuals(), result.resid, 0.0)
    # sum of squares of the whitened ones is r'V^-1 r / sigma2 = nu
    nu = len(d["y"]) - (3 if reml else 0)
    assert np.sum(result.residuals("whitened") ** 2) == pytest.approx(nu, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_marginal_covariance_and_correlation(rng, weighted):
    study = Study(rng, weighted)
    d = study.part(rng.permutation(np.flatnonzero(study.inside)))
    result = flc.LinearMixedModel(d["y"], d["X"], d["Z"], d["groups"], weights=d["weights"]).fit()
    G = oracle.covariance_blocks(result)
    for subject in (0, 7, np.int32(11)):
        V = oracle.marginal_covariance(subject, d["Z"], d["groups"], G, result.sigma2, d["weights"])
        close(result.marginal_covariance(subject), V, 1e-13)
        sd = np.sqrt(np.diag(V))
        close(result.marginal_correlation(subject), V / np.outer(sd, sd), 1e-13)
        assert np.array_equal(np.diag(result.marginal_correlation(subject)), np.ones(len(V))) or np.allclose(
            np.diag(result.marginal_correlation(subject)), 1.0, rtol=1e-15
        )
    for call in (result.marginal_covariance, result.marginal_correlation):
        with pytest.raises(flc.LMMError, match=r"subject=99: group has no such level among the rows used"):
            call(99)


def test_shares_of_variance_by_hand(rng):
    study = Study(rng)
    d = study.part(study.inside)
    result = study.fit()
    G, s2 = oracle.covariance_blocks(result), float(result.sigma2)
    random = np.mean([z @ G @ z for z in d["Z"]])
    fixed = np.var(d["X"] @ result.params, ddof=1)
    assert result.icc() == pytest.approx(random / (random + s2), rel=1e-12)
    assert result.r2()["marginal"] == pytest.approx(fixed / (fixed + random + s2), rel=1e-12)
    assert result.r2()["conditional"] == pytest.approx((fixed + random) / (fixed + random + s2), rel=1e-12)
    intercept = flc.LinearMixedModel(d["y"], None, None, d["groups"]).fit()
    tau2 = intercept.G["group"][0, 0]
    assert intercept.icc() == pytest.approx(tau2 / (tau2 + intercept.sigma2), rel=1e-13)
    assert intercept.r2()["marginal"] == pytest.approx(0.0, abs=1e-14)
    assert intercept.r2()["conditional"] == pytest.approx(intercept.icc(), rel=1e-12)


# ------------------------------------------------------------------------------------------------------------
# simulation


@pytest.mark.parametrize(("weighted", "with_offset"), OPTIONS, ids=["plain", "weights", "offset", "both"])
def test_moments_of_simulated_responses(rng, weighted, with_offset):
    study = Study(rng, weighted, with_offset)
    d = study.part(rng.permutation(np.flatnonzero(study.inside)))
    result = flc.LinearMixedModel(d["y"], d["X"], d["Z"], d["groups"], weights=d["weights"], offset=d["offset"]).fit()
    draws = 20_000
    Y = result.simulate(draws, seed=20240229)
    n = len(d["y"])
    assert Y.shape == (draws, n)
    s2 = result.sigma2
    V = s2 * oracle.relative_v(d["Z"], d["groups"], oracle.covariance_blocks(result) / s2, d["weights"])
    mean = d["X"] @ result.params + (0.0 if d["offset"] is None else d["offset"])
    # exact normal theory; 5.5 standard errors, over some thousand statistics, happen once in 10,000 seeds
    z = (Y.mean(axis=0) - mean) / np.sqrt(np.diag(V) / draws)
    assert np.max(np.abs(z)) < 5.5
    E = Y - mean
    S = E.T @ E / draws
    z = (S - V) / np.sqrt((np.outer(np.diag(V), np.diag(V)) + V**2) / draws)
    assert np.max(np.abs(z)) < 5.5
    # and together: a chi-square with draws * n degrees of freedom
    half = scipy.linalg.solve_triangular(np.linalg.cholesky(V), E.T, lower=True)
    total = np.sum(half**2)
    assert abs(total - draws * n) / np.sqrt(2.0 * draws * n) < 5.0


def test_seeds(rng):
    result = Study(rng).fit()
    first = result.simulate(3, seed=5)
    np.testing.assert_array_equal(first, result.simulate(3, seed=5))
    assert not np.array_equal(first, result.simulate(3, seed=6))
    # a generator gives a key for the streams and moves on
    generator = np.random.default_rng(5)
    again = result.simulate(3, seed=generator)
    np.testing.assert_array_equal(again, result.simulate(3, seed=np.random.default_rng(5)))
    assert not np.array_equal(again, result.simulate(3, seed=generator))
    assert not np.array_equal(result.simulate(), result.simulate())
    assert result.simulate().shape == (1, result.nobs)


def test_simulated_effects_of_a_singular_fit(rng):
    # correlation one: differences between a subject's rows beyond the noise lie on a line
    x = np.tile([0.0, 1.0, 2.0, 3.0], 10)
    groups = np.repeat(np.arange(10), 4)
    u = rng.standard_normal(10)[groups]
    e = rng.standard_normal((10, 4))
    Q, _ = np.linalg.qr(np.column_stack([np.ones(4), x[:4]]))
    y = 3.0 * u + 1.5 * u * x + 0.01 * (e - (e @ Q) @ Q.T).ravel()
    X = np.column_stack([np.ones(40), x])
    result = flc.LinearMixedModel(y, X, X, groups).fit()
    assert result.singular
    Y = result.simulate(50, seed=1) - X @ result.params
    b = np.linalg.lstsq(X[:4], Y.reshape(-1, 4).T, rcond=None)[0]
    sd = np.sqrt(np.diag(oracle.covariance_blocks(result)))
    # the noise of 0.01 is all that keeps the two effects apart
    assert np.max(np.abs(b[0] / sd[0] - b[1] / sd[1])) < 6.0 * 0.01 * 2.0


@pytest.mark.parametrize(("written", "back", "slope"), [
    ("np.log(v)", np.exp, np.exp), ("log2(v)", np.exp2, lambda m: np.log(2.0) * np.exp2(m)),
    ("np.sqrt(v)", np.square, lambda m: 2.0 * m), ("np.log1p(v)", np.expm1, np.exp),
])  # fmt: skip
def test_predictions_on_the_scale_of_the_response(written, back, slope):
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(15), 4)
    x = rng.random(60)
    eta = 2.0 + x + 0.3 * rng.standard_normal(15)[g] + 0.2 * rng.standard_normal(60)
    fit = flc.lmm(f"{written} ~ x + (1 | g)", {"v": back(eta), "x": x, "g": g}).fit()
    new = {"x": np.array([0.1, 0.7]), "g": np.array([3, 5])}
    np.testing.assert_allclose(fit.predict(new, "all", transform="response"), back(fit.predict(new, "all")), rtol=1e-12)
    for interval in ("confidence", "prediction"):
        plain = fit.predict(new, "all", interval=interval)
        found = fit.predict(new, "all", interval=interval, transform="response")
        assert list(found) == ["median", "std_error", "df", "conf_low", "conf_high"]
        for name, other in (("median", "mean"), ("conf_low", "conf_low"), ("conf_high", "conf_high")):
            np.testing.assert_allclose(found[name], back(plain[other]), rtol=1e-12)
        np.testing.assert_allclose(found["std_error"], slope(plain["mean"]) * plain["std_error"], rtol=1e-12)
    with pytest.raises(flc.LMMError, match="'none' or 'response'"):
        fit.predict(new, transform="mean")
    with pytest.raises(flc.LMMError, match="no transformation that can be undone"):
        flc.lmm("v ~ x + (1 | g)", {"v": eta, "x": x, "g": g}).fit().predict(new, transform="response")
