"""BLUPs of fits of which each has a design of its own, and responses that are given back: against V in full."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core import LMMError
from fastlmm_core.estimation.many import masks

AGREE = 1e-9
"""At the same estimates only rounding is left."""


def data(q=2):
    """A design with labels that are text, and a response whose random effects vary by their slopes."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.array([f"s{k:02d}" for k in rng.permutation(14)]), 6)
    x = 2000.0 + np.tile(np.arange(6.0), 14)
    Z = np.column_stack([np.ones(84), x])[:, :q]
    return rng, g, np.column_stack([np.ones(84), x, rng.normal(size=84)]), Z


def draws(rng, g, Z, count):
    index = np.unique(g, return_inverse=True)[1]
    centred = Z - [0.0, 2002.5][: Z.shape[1]]
    b = rng.normal(size=(count, 14, Z.shape[1])) * [1.0, 0.5][: Z.shape[1]]
    return np.einsum("rij,ij->ri", b[:, index], centred) + rng.normal(size=(count, len(g)))


def dense(fits, i, rows, X, offset=None, weights=None):
    """BLUPs by the oracle, at the estimates of the i-th fit, of the groups that there are."""
    y, Z, g = rows
    ghat = fits.covariance[i] / fits.sigma2[i]
    residual = y - X @ np.nan_to_num(fits.params[i]) - (0.0 if offset is None else offset)
    names = np.unique(g)
    V = oracle.relative_v(Z, g, ghat, weights)
    return names, np.array([ghat @ Z[g == k].T @ np.linalg.solve(V, residual)[g == k] for k in names])


@pytest.mark.parametrize("q", [1, 2])
def test_responses_with_values_of_their_own(q):
    rng, g, X, Z = data(q)
    Y = draws(rng, g, Z, 40)
    weights, offset, c = rng.uniform(0.5, 2.0, Y.shape), rng.normal(size=Y.shape), rng.normal(size=Y.shape)
    Y += offset + 0.3 * c
    Y[1, g == "s03"] = np.nan
    Y[2, rng.choice(84, 9, replace=False)] = np.nan
    Y[4] = np.nan
    Y[5] = 1.0 + offset[5]
    model = flc.LinearMixedModel(Y[0], X, Z, g)
    fits = model.fit_many(Y, weights=weights, offset=offset, covariates={"c": c}, missing="drop")
    found = fits.random_effects()
    assert found.shape == (40, 14, q)
    levels = model.grouping.labels
    for i in range(40):
        if i in (4, 5):
            assert np.isnan(found[i]).all() and i in fits.reasons
            continue
        at = ~np.isnan(Y[i])
        names, wanted = dense(
            fits, i, (Y[i, at], Z[at], g[at]), np.column_stack([X, c[i]])[at], offset[i, at], weights[i, at]
        )
        own = np.isin(levels, names)
        scale = np.sqrt(np.diag(fits.covariance[i]).max()) + 1e-3
        np.testing.assert_allclose(found[i, own] @ [1.0, 2000.0][:q], wanted @ [1.0, 2000.0][:q], atol=1e-7 * scale)
        np.testing.assert_allclose(found[i, own][:, -1], wanted[:, -1], atol=1e-7 * scale)
        assert np.isnan(found[i, ~own]).all()
    np.testing.assert_array_equal(fits.random_effects([7, 2]), found[[7, 2]])
    np.testing.assert_array_equal(fits.random_effects(slice(3, 5)), found[3:5])
    with pytest.raises(LMMError, match="positions below 40"):
        fits.random_effects([40])


def test_masks_and_scattered_responses(monkeypatch):
    monkeypatch.setattr(masks, "FEW", 16)
    rng, g, X, Z = data(2)
    Y = draws(rng, g, Z, 90)
    Y[:20, g == "s05"] = np.nan
    Y[20:22, 2:9] = np.nan
    Y[22] = np.nan
    for i in range(40, 90):
        Y[i, rng.choice(84, 7, replace=False)] = np.nan
    labels = [f"v{i}" for i in range(90)]
    model = flc.LinearMixedModel(Y[30], X, Z, g)
    batch = model.fit_many(dict(zip(labels, Y, strict=True)), missing="drop")
    assert batch.scattered is not None and len(batch.masks) > 1
    found, levels = batch.random_effects(), model.grouping.labels
    for i in range(90):
        at = ~np.isnan(Y[i])
        if not at.any():
            assert np.isnan(found[i]).all()
            continue
        names, wanted = dense(batch, i, (Y[i, at], Z[at], g[at]), X[at])
        own = np.isin(levels, names)
        np.testing.assert_allclose(found[i, own] @ [1.0, 2000.0], wanted @ [1.0, 2000.0], atol=1e-6)
        np.testing.assert_allclose(found[i, own][:, 1], wanted[:, 1], atol=1e-7)
        assert np.isnan(found[i, ~own]).all()
    np.testing.assert_array_equal(batch.random_effects(["v50", "v3"]), found[[50, 3]])
    np.testing.assert_array_equal(batch.random_effects("v50"), found[[50]])
    again = pickle.loads(pickle.dumps(batch))
    with pytest.raises(LMMError, match=r"not part of a pickle; give them again by with_responses\(Y\)"):
        again.random_effects()
    back = again.with_responses(dict(zip(labels, Y, strict=True)))
    np.testing.assert_array_equal(back.random_effects(), found)
    np.testing.assert_array_equal(back.labels, labels)
    assert back["v3"].criterion == batch["v3"].criterion
    for given, message in (
        (Y[:-1], "Y has 89 responses and the batch 90"),
        (Y[:, ::-1], "other missing values"),
        (dict(zip(labels[::-1], Y, strict=True)), "the label 'v89' where 'v0' was fitted"),
        (np.where(np.arange(90)[:, None] < 40, Y, Y + 1.0), "Y is not what was fitted"),
    ):
        with pytest.raises(LMMError, match=message):
            again.with_responses(given)
    with pytest.raises(LMMError, match="changed since it was fitted"):
        again.with_responses(np.where(np.arange(90)[:, None] < 20, Y + 1.0, Y)).random_effects([3])


def test_problems_of_a_table():
    rng, g, X, Z = data(2)
    count = 12
    y = draws(rng, g, Z, count)
    y[3] = 0.0
    table = {
        "y": y.ravel(), "x": np.tile(X[:, 1] - 2002.5, count), "g": np.tile(g, count),
        "gene": np.repeat([f"G{k}" for k in range(count)], 84),
    }  # fmt: skip
    table["g"][table["gene"] == "G7"] = np.repeat(np.arange(7).astype(str), 12)
    fits = flc.fit_by("y ~ x + (x | g)", table, by="gene")
    found = fits.random_effects()
    assert list(found) == ["problem", "g", "Intercept", "x"]
    labels = fits.labels.tolist()
    assert "G3" not in found["problem"]
    for k, gene in enumerate(labels):
        if gene == "G3":
            continue
        at, own = table["gene"] == gene, found["problem"] == gene
        x = np.column_stack([np.ones(84), table["x"][at]])
        names, wanted = dense(fits, k, (table["y"][at], x, table["g"][at]), x)
        np.testing.assert_array_equal(np.asarray(found["g"])[own], names)
        got = np.column_stack([found["Intercept"], found["x"]])[own]
        np.testing.assert_allclose(got, wanted, atol=AGREE * np.abs(wanted).max())
    some = fits.random_effects(["G7", "G3", "G1"])
    assert list(dict.fromkeys(some["problem"].tolist())) == ["G7", "G1"]
    assert fits.with_responses(table["y"]) is fits
    with pytest.raises(LMMError, match="Y is not what was fitted: problems have other values"):
        fits.with_responses(table["y"] + 1.0)
    # a full copy: a pickle carries its rows
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fits)).random_effects()["x"], found["x"])


def test_several_factors():
    rng, g, _, _ = data(1)
    h = np.tile(np.array(list("abcdef")), 14)
    Y = rng.normal(size=(6, 14))[:, np.unique(g, return_inverse=True)[1]] + rng.normal(size=(6, 84))
    Y += rng.normal(size=(6, 6))[:, np.tile(np.arange(6), 14)]
    Y[2, h == "c"] = np.nan
    model = flc.lmm("y ~ 1 + (1 | g) + (1 | h)", {"y": Y[0], "g": g, "h": h})
    weights = rng.uniform(0.5, 2.0, Y.shape)
    for fits in (model.fit_many(Y, missing="drop"), model.fit_many(Y, weights=weights, missing="drop")):
        found = fits.random_effects()
        assert found["g"].shape == (6, 14, 1) and found["h"].shape == (6, 6, 1)
        assert np.isnan(found["h"][2, 2]).all() and np.isfinite(found["h"][[0, 1, 3, 4, 5]]).all()
        for i in range(6):
            at = ~np.isnan(Y[i])
            w = weights[i, at] if isinstance(fits, type(model.fit_many(Y, weights=weights, missing="drop"))) else None
            one = flc.lmm("y ~ 1 + (1 | g) + (1 | h)", {"y": Y[i, at], "g": g[at], "h": h[at]}, weights=w).fit()
            for name in ("g", "h"):
                wanted = np.asarray(one.random_effects[name]["Intercept"])
                got = found[name][i, :, 0]
                np.testing.assert_allclose(got[~np.isnan(got)], wanted, atol=1e-6)
    parts = {"y": Y[:2].ravel(), "g": np.tile(g, 2), "h": np.tile(h, 2), "k": np.repeat([1, 2], 84)}
    table = flc.fit_by("y ~ 1 + (1 | g) + (1 | h)", parts, by="k").random_effects()
    assert list(table) == ["g", "h"] and len(table["h"]["problem"]) == 12
