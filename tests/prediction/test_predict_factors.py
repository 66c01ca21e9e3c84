"""Predictions, residuals and their covariances with several grouping factors, against dense n x n algebra and lme4.

Predictions are judged by best linear unbiased prediction from the joint covariance of all rows, without random effects,
levels or elimination.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import fastlmm_core as flc
import oracle
from fastlmm_core import LMMError, RandomTerm
from fastlmm_core.design.independence import cluster_labels
from fastlmm_core.engines.crossed import posterior_root as posterior
from fastlmm_core.estimation.whitening import rows_covariance
from fastlmm_core.prediction.conditional import posterior_of
from several import KINDS, Study, blocks, close, covariance, noise


def joined(a, b):
    if b is None:
        return a
    out = {key: np.concatenate([a[key], b[key]]) for key in a if key not in ("Z", "groups")}
    for key in ("Z", "groups"):
        out[key] = {name: np.concatenate([a[key][name], b[key][name]]) for name in a[key]}
    return out


def kriging(result, seen, new, names, extra=None, prediction=False):
    """Mean and standard error for rows of which the effects of `names` are predicted, by universal kriging.

    beta is that of `seen`; `extra` are rows observed later.
    """
    V = covariance(result, seen, seen) + np.diag(noise(result, seen))
    X, beta = seen["X"], np.asarray(result.params)
    H = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    rest = seen["y"] - seen.get("offset", 0.0)
    close(H @ X.T @ np.linalg.solve(V, rest), beta, 1e-7)
    every = joined(seen, extra)
    W = covariance(result, every, every) + np.diag(noise(result, every))
    c = covariance(result, every, new, names)
    u = np.linalg.solve(W, c)
    mean = new["X"] @ beta + u.T @ (every["y"] - every.get("offset", 0.0) - every["X"] @ beta) + new.get("offset", 0.0)
    # only levels that occur are known
    own = np.zeros(len(new["X"]))
    for name in blocks(result):
        seen_level = np.isin(new["groups"][name], every["groups"][name])
        part = np.diag(covariance(result, new, new, [name]))
        counted = seen_level if name in names else np.zeros(len(own), dtype=bool)
        own += part if prediction else np.where(counted, part, 0.0)
    d = new["X"].T - every["X"].T @ u
    variance = own - np.einsum("ij,ij->j", c, u) + np.einsum("ij,ij->j", d, H @ d)
    if prediction:
        variance = variance + noise(result, new)
    return mean, np.sqrt(variance)


def levels_of(study):
    names = list(study.terms)
    return ["population", "all", names[0], names[1:], names]


# ---- predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_best_linear_unbiased_prediction(rng, kind, weighted):
    study = Study(rng, kind, weighted)
    rows = np.arange(len(study.y))
    seen = study.part(rows[:130])
    result = study.model(rows[:130]).fit()
    new = study.part(rows[130:])
    # combinations that were not observed, and levels that were not
    for name in new["groups"]:
        new["groups"][name] = rng.permutation(seen["groups"][name])[:20]
        new["groups"][name][rng.integers(0, 20, 3)] = 7777
    for effects in levels_of(study):
        names = [] if effects == "population" else list(study.terms) if effects == "all" else np.atleast_1d(effects)
        mean, _ = kriging(result, seen, new, names)
        extra = {"offset": new.get("offset")} if weighted else {}
        close(result.predict(new, effects=effects, new_levels="population", **extra), mean)
        for interval in ("confidence", "prediction"):
            mean, se = kriging(result, seen, new, names, prediction=interval == "prediction")
            found = result.predict(
                new, effects=effects, new_levels="population", interval=interval, level=0.9, **extra,
                weights=new.get("weights"), ddf="normal",
            )  # fmt: skip
            close(found["mean"], mean)
            close(found["std_error"], se)
            close(found["conf_high"], mean + norm.ppf(0.95) * se)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_observations_of_new_levels(rng, kind, weighted):
    study = Study(rng, kind, weighted)
    rows = np.arange(len(study.y))
    seen, result = study.part(rows[:120]), study.model(rows[:120]).fit()
    extra, new = study.part(rows[120:135]), study.part(rows[135:])
    names = list(study.terms)
    # new levels of one factor with old ones of the others, and of all
    for part in (extra, new):
        part["groups"][names[0]][::2] = 5000 + np.arange(len(part["y"][::2])) % 3
        part["groups"][names[-1]][::3] = 6000
    for effects in ("all", names[0]):
        chosen = names if effects == "all" else [effects]
        for interval in ("confidence", "prediction"):
            mean, se = kriging(result, seen, new, chosen, extra, interval == "prediction")
            found = result.predict(
                new, effects=effects, interval=interval, observed=extra, new_levels="population",
                offset=new.get("offset"), weights=new.get("weights"),
            )  # fmt: skip
            close(found["mean"], mean)
            close(found["std_error"], se)


def test_rows_of_the_fit_are_the_fitted_values(rng):
    study = Study(rng, "mixed", True)
    result = study.model(np.arange(150)).fit()
    close(result.predict(effects="all"), result.fittedvalues)
    found = result.predict(effects="all", interval="confidence")
    mean, se = kriging(result, study.part(np.arange(150)), study.part(np.arange(150)), list(study.terms))
    close(found["mean"], mean)
    close(found["std_error"], se)


def test_many_rows(rng):
    """Nested factors with thousands of rows are conditioned in another way."""
    study = Study(rng, "nested", True, n=2100)
    result, seen, new = (
        study.model(np.arange(2090)).fit(),
        study.part(np.arange(2090)),
        study.part(np.arange(2090, 2100)),
    )
    for effects in ("all", "school"):
        names = list(study.terms) if effects == "all" else [effects]
        mean, se = kriging(result, seen, new, names, prediction=True)
        found = result.predict(
            new, effects=effects, interval="prediction", offset=new["offset"], weights=new["weights"]
        )  # fmt: skip
        close(found["mean"], mean)
        close(found["std_error"], se)


def test_a_singular_fit(rng):
    study = Study(rng, "crossed", True)
    study.y = study.X[:, 1] + study.offset + np.repeat([1.0, -1.0], 75)[rng.permutation(150)]
    # no variance in b
    b = study.terms["b"][1]
    rest = study.y - study.offset
    study.y = study.y - (np.bincount(b, study.w * rest) / np.bincount(b, study.w))[b]
    seen, result = study.part(np.arange(150)), study.model(np.arange(150)).fit()
    assert result.singular
    for effects in ("all", "b"):
        names = list(study.terms) if effects == "all" else [effects]
        found = result.predict(effects=effects, interval="confidence")
        mean, se = kriging(result, seen, seen, names)
        close(found["mean"], mean)
        close(found["std_error"], se)


def test_units_and_origins_do_not_matter(rng):
    study = Study(rng, "nested", True)
    one = study.model(np.arange(150)).fit().predict(effects="all", interval="confidence")
    study.y, study.offset = 1e-9 * study.y, 1e-9 * study.offset
    for name, (Z, labels) in study.terms.items():
        study.terms[name] = (np.add(Z, [0.0, 2000.0]), labels)
    study.X = np.add(study.X, [0.0, 2000.0, 0.0])
    other = study.model(np.arange(150)).fit().predict(effects="all", interval="confidence")
    for key in ("mean", "std_error"):
        close(1e9 * other[key], one[key], 1e-7)


def test_pieces_agree_with_the_whole(rng, monkeypatch):
    for kind in ("apart", "three"):
        study = Study(rng, kind, True)
        result = study.model(np.arange(150)).fit()
        whole = result.predict(effects="all", interval="confidence")
        with monkeypatch.context() as patch:
            patch.setattr(posterior, "HELD", 50)
            close(result.predict(effects="all", interval="confidence")["std_error"], whole["std_error"], 1e-13)
            patch.setattr(posterior, "LARGEST_DENSE", 0)
            close(result.predict(effects="all", interval="confidence")["std_error"], whole["std_error"], 1e-12)


def test_no_rows(rng):
    study = Study(rng, "mixed")
    result = study.model(np.arange(150)).fit()
    assert result.predict(study.part(np.arange(0)), effects="all").shape == (0,)
    assert result.predict(study.part(np.arange(0)), effects="all", interval="prediction")["std_error"].shape == (0,)


@pytest.mark.parametrize("ratio", [30.0, 1000.0])
def test_variances_that_cancel(rng, ratio):
    """Effects known only in sum: each has a huge conditional variance, the sum that of a mean of residuals."""
    a, b = np.repeat(np.arange(12), 10), np.tile(np.arange(5), 24)
    y = ratio * rng.standard_normal(12)[a] + ratio * rng.standard_normal(5)[b] + rng.standard_normal(120)
    result = flc.LinearMixedModel(y, terms=[RandomTerm(None, a, "a"), RandomTerm(None, b, "b")]).fit()
    found = result.predict(effects="all", interval="confidence")["std_error"]
    # the fit by least squares with fixed effects is the limit for large variances: (12 + 5 - 1) / n of sigma^2
    limit = np.sqrt(result.sigma2 * (1 / 10 + 1 / 24 - 1 / 120))
    np.testing.assert_allclose(found, limit, rtol=3.0 * result.sigma2 / min(g[0, 0] for g in result.G.values()))
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


def test_the_root_of_the_conditional_covariance(rng):
    for kind in KINDS:
        study = Study(rng, kind, True)
        result = study.model(np.arange(150)).fit()
        model, problem = result.model, result.model.problem
        posterior = posterior_of(result)
        for f, of in zip(model.factors, problem.effects_covariance(result.optimum.factor), strict=True):
            q, m = f.stop - f.start, len(f.grouping.labels)
            for j in range(q):
                Z = [np.zeros((m, g.stop - g.start)) for g in model.factors]
                levels = [np.full(m, -1) for _ in model.factors]
                at = model.factors.index(f)
                Z[at][:, j], levels[at] = 1.0, np.arange(m)
                carried, variance = posterior.at(Z, levels)
                close(variance, of[:, j, j])
                close(carried[:, -1], problem.effects(result.optimum.factor, result.solution.beta)[at][:, j])


@pytest.mark.parametrize("name", ["penicillin", "pastes", "machines_nested"])
def test_lme4(name):
    expected = json.loads((oracle.REFERENCE / f"{name}.json").read_text())
    formula = expected["formula"] if isinstance(expected["formula"], str) else expected["formula"][0]
    data = pd.read_csv(oracle.REFERENCE / expected["data"])
    for column in expected["factors"]:
        data[column] = data[column].astype(str)
    for kind in ("reml", "ml"):
        result = flc.lmm(formula, data).fit(reml=kind == "reml")
        fitted = np.asarray(expected[kind]["fitted"])
        close(result.predict(effects="all")[: len(fitted)], fitted, 1e-7)
        close(result.predict(data, effects="all")[: len(fitted)], fitted, 1e-7)
        # the effects of one factor
        for f, b in zip(result.model.factors, result.blups, strict=True):
            one = result.predict(data, effects=f.grouping.name) - result.predict(data)
            close(one, b[f.grouping.index, 0])


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pastes():
    data = flc.datasets.load("pastes")
    data["x"] = np.random.default_rng(3).standard_normal(len(data))
    return data, flc.lmm("strength ~ x + (x | batch) + (1 | batch:cask)", data).fit()


def test_only_the_columns_of_the_factors_asked_for_are_needed(pastes):
    data, result = pastes
    assert [f.grouping.name for f in result.model.factors] == ["batch:cask", "batch"]
    whole = result.predict(data, effects="batch")
    close(result.predict(data[["x", "batch"]], effects="batch"), whole)
    close(result.predict(data[["x"]]), result.predict(data))
    with pytest.raises(LMMError, match="no column 'cask'"):
        result.predict(data[["x", "batch"]], effects="all")
    # the random design of a table is in the order of the model, not of the formula
    b = result.random_effects["batch"].set_index("batch").loc[data["batch"]].to_numpy()
    close(whole - result.predict(data), b[:, 0] + b[:, 1] * data["x"])
    close(result.predict(data, effects="all"), result.fittedvalues)
    found = result.predict(data, effects="all", interval="prediction")
    close(found["mean"], result.fittedvalues)
    assert list(found.columns) == ["mean", "std_error", "df", "conf_low", "conf_high"]


def test_an_unseen_level_keeps_the_effects_of_the_others(pastes):
    data, result = pastes
    new = data.head(4).copy()
    new["cask"] = ["z", "z", "a", "a"]
    with pytest.raises(LMMError, match=r"levels of batch:cask that the model has not seen: 'A:z'"):
        result.predict(new, effects="all")
    found = result.predict(new, effects="all", new_levels="population")
    close(found[:2], result.predict(new, effects="batch")[:2])
    close(found[2:], result.predict(new, effects="all", new_levels="population")[2:])
    close(result.predict(new, effects="batch"), result.predict(data, effects="batch")[:4])


def test_one_factor_by_name():
    data = flc.datasets.load("sleepstudy")
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()
    for effects in ("Subject", ["Subject"]):
        close(result.predict(data, effects=effects), result.predict(data, effects="all"), 0.0)
    close(result.predict(data, effects=[]), result.predict(data), 0.0)


def test_a_factor_that_is_called_all():
    data = flc.datasets.load("pastes").rename(columns={"batch": "all", "cask": "population"})
    result = flc.lmm("strength ~ 1 + (1 | all) + (1 | all:population)", data).fit()
    own = np.asarray(result.random_effects["all"]["Intercept"])[result.model.factor("all").grouping.index]
    close(result.predict(data, effects=["all"]), result.predict(data) + own)
    close(result.predict(data, effects="all"), result.fittedvalues)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effects": "plates"}, r"effects='plates' is unknown.*'all'.*'a', 'b'"),
        ({"effects": ["a", "c"]}, r"effects=\['a', 'c'\] is unknown"),
        ({"effects": 3}, r"effects must be a string or a list of strings, not 3"),
        ({"effects": "all", "drop": "groups"}, r"data has no 'groups'"),
        ({"effects": "all", "groups": np.zeros(4, dtype=int)}, r"data\['groups'\] must be a mapping.*'a': labels"),
        ({"effects": "b", "groups": {"a": np.zeros(4, dtype=int)}}, r"data\['groups'\] has no 'b'"),
        ({"effects": "all", "Z": np.ones((4, 2))}, r"data\['Z'\] must have 3 columns"),
        ({"effects": "a", "Z": {"b": np.ones((4, 1))}}, r"data has no Z of 'a'"),
        ({"effects": "a", "Z": {"a": np.ones((4, 3))}}, r"data\['Z'\]\['a'\] must have 2 columns"),
        ({"effects": "a", "groups": {"a": np.zeros(3, dtype=int)}}, r"data\['groups'\]\['a'\] has 3 rows.*has 4"),
        ({"effects": "a", "Z": {"a": np.full((4, 2), np.nan)}}, r"data\['Z'\]\['a'\] has values that are not finite"),
        ({"effects": "a", "drop": "X"}, r"data has no 'X'"),
    ],
)
def test_errors(rng, options, message):
    study = Study(rng, "crossed")
    result = study.model(np.arange(150)).fit()
    new = study.part(np.arange(4))
    effects = options.pop("effects")
    new.pop(options.pop("drop", None), None)
    with pytest.raises(LMMError, match=message):
        result.predict(new | options, effects=effects)


def test_an_intercept_needs_no_Z(rng):
    study = Study(rng, "crossed")
    result = flc.LinearMixedModel(
        study.y, study.X, terms=[RandomTerm(None, labels, name) for name, (_, labels) in study.terms.items()]
    ).fit()
    new = study.part(np.arange(150))
    del new["Z"]
    close(result.predict(new, effects="all"), result.fittedvalues)
    del new["groups"]["a"]
    close(result.predict(new, effects="b", interval="prediction")["mean"], result.predict(effects="b"))


def test_observed_rows_need_all_groups_and_the_offset(rng):
    study = Study(rng, "crossed", True)
    result = study.model(np.arange(130)).fit()
    extra = study.part(np.arange(130, 140))
    without = {key: value for key, value in extra.items() if key != "offset"}
    with pytest.raises(LMMError, match="offset"):
        result.predict(extra, effects="a", observed=without, new_levels="population", offset=0.0)
    del extra["groups"]["b"]
    with pytest.raises(LMMError, match=r"observed\['groups'\] has no 'b'"):
        result.predict(extra, effects="a", observed=extra, new_levels="population", offset=0.0)


# ---- residuals and covariances of rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_marginal_covariance_and_whitened_residuals(rng, kind):
    study = Study(rng, kind, True)
    result = study.model(np.arange(150)).fit()
    rows = study.part(np.arange(150))
    V = covariance(result, rows, rows) + np.diag(noise(result, rows))
    close(rows_covariance(result, np.arange(150)), V, 1e-12)
    for f in result.model.factors:
        mine = np.flatnonzero(rows["groups"][f.grouping.name] == f.grouping.labels[1])
        own = result.marginal_covariance(f.grouping.labels[1], factor=f.grouping.name)
        close(own, V[np.ix_(mine, mine)], 1e-12)
        sd = np.sqrt(np.diag(own))
        close(result.marginal_correlation(f.grouping.labels[1], factor=f.grouping.name), own / np.outer(sd, sd), 1e-12)
    labels = cluster_labels(result.model.design)
    assert len(np.unique(labels)) == (5 if kind in ("nested", "apart") else 1)
    assert not (V * (labels[:, None] != labels)).any()
    w, r = result.residuals("whitened"), result.residuals("marginal")
    close(np.sum(w**2), r @ np.linalg.solve(V, r))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        close(w[mine], np.linalg.solve(np.linalg.cholesky(V[np.ix_(mine, mine)]), r[mine]))


def test_clusters_are_whitened_alike_together_and_one_by_one(rng, monkeypatch):
    from fastlmm_core.estimation import whitening as clusters

    study = Study(rng, "nested", True)
    result = study.model(np.arange(150)).fit()
    once = result.residuals("whitened")
    monkeypatch.setattr(clusters, "TOGETHER", 1)
    close(result.residuals("whitened"), once, 1e-12)
