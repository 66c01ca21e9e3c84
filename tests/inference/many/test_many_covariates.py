"""Means, slopes, F tests and shares of responses with covariates of their own: each as a single fit has them."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

AGREE = 1e-5
"""Both searches end within 1e-6 standard errors of the same optimum; degrees of freedom follow theta fastest."""


def table():
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(14), 6)
    return {
        "y": rng.normal(size=84), "age": rng.normal(40.0, 8.0, 84), "arm": np.array(["a", "b", "c"])[g % 3], "g": g,
        "h": np.tile(np.arange(6), 14), "visit": np.tile(np.arange(6.0), 14),
    }  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return table()


def drawn(data, seed=6):
    rng = np.random.default_rng(seed)
    gm = rng.normal(3.0, 1.0, (7, 84))
    Y = (
        gm
        + rng.normal(size=(7, 84))
        + 1.5 * rng.normal(size=(7, 14))[:, data["g"]]
        + rng.normal(size=(7, 6))[:, data["h"]]
    )
    Y[2] -= 1.5 * rng.normal(size=14)[data["g"]]
    return Y, gm


OWN = {"one": "(1 | g)", "slopes": "(visit | g)", "two": "(1 | g) + (1 | h)"}


@pytest.fixture(scope="module", params=[(name, kind) for name in OWN for kind in ("complete", "holes", "weights")])
def fits(request, data):
    """Fits with gm and its product with visit, and the single fits of the same rows with gm as a column."""
    name, kind = request.param
    Y, gm = drawn(data)
    weights = None
    if kind == "holes":
        Y[np.random.default_rng(7).uniform(size=Y.shape) < 0.1] = np.nan
    elif kind == "weights":
        weights = np.random.default_rng(8).uniform(0.5, 2.0, Y.shape)
    model = flc.lmm(f"y ~ arm * age + visit + {OWN[name]}", data)
    many = model.fit_many(Y, missing="drop", weights=weights, covariates={"gm": gm, "gm:visit": gm})
    singles = []
    for i in range(len(Y)):
        there = ~np.isnan(Y[i])
        own = {key: value[there] for key, value in data.items()} | {"y": Y[i, there], "gm": gm[i, there]}
        w = None if weights is None else weights[i]
        singles.append(flc.lmm(f"y ~ arm * age + visit + gm + gm:visit + {OWN[name]}", own, weights=w).fit())
    return many, singles


def agree(found, i, wanted, names=("estimate", "std_error", "df")):
    for name in names:
        np.testing.assert_allclose(
            getattr(found, name)[i], np.asarray(wanted[name], dtype=float), rtol=AGREE, err_msg=f"{name} of {i}"
        )


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_means(fits, data, ddf):
    many, singles = fits
    found = many.emmeans("arm", contrasts="pairwise", ddf=ddf)
    for i, one in enumerate(singles):
        # other covariates stand at their means over all rows
        at = {"age": data["age"].mean(), "visit": data["visit"].mean()}
        wanted = one.emmeans("arm", at=at, contrasts="pairwise", ddf=ddf, adjust="none")
        agree(found, i, wanted.to_frame())
        agree(found.comparison, i, wanted.comparison.to_frame())
    assert found.L.shape[1] == many.params.shape[1] - 2


def test_slopes(fits):
    many, singles = fits
    found, by_arm = many.slopes("visit"), many.slopes("age", "arm")
    for i, one in enumerate(singles):
        agree(found, i, one.slopes("visit").to_frame())
        agree(by_arm, i, one.slopes("age", "arm").to_frame())


@pytest.mark.parametrize("kind", ["III", "II", "I"])
def test_anova(fits, kind):
    many, singles = fits
    found = many.anova(kind)
    order = ["arm", "age", "arm:age", "visit", "gm", "gm:visit"]
    assert sorted(found) == sorted(order)
    for i, one in enumerate(singles):
        # the columns of X in another order: type I tests depend on it
        wanted = one.anova(kind).to_frame()
        F = dict(zip(list(wanted["term"]), np.asarray(wanted["statistic"], dtype=float), strict=True))
        for name, test in found.items():
            mine = test.statistic[i] ** (2 if len(test.L) == 1 else 1)
            other = F.get(name, F.get("visit:gm"))
            if kind == "I" and name in ("gm", "arm:age"):
                continue
            np.testing.assert_allclose(mine, other, rtol=1e-4, err_msg=f"{name} of {i}")


def test_shares(fits):
    many, singles = fits
    found = many.variance_fractions()
    assert found.names[:6] == ("arm", "age", "visit", "arm:age", "gm", "gm:visit")
    np.testing.assert_allclose(found.fractions.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(1.0 - found.fractions[:, -1], [one.r2()["conditional"] for one in singles], rtol=1e-4)


def test_products_with_a_factor_are_one_term(data):
    Y, gm = drawn(data)
    model = flc.lmm("y ~ arm + (1 | g)", data)
    names = ["gm:arm[T.b]", "gm:arm[T.c]"]
    many = model.fit_many(Y, covariates={"gm": gm} | dict.fromkeys(names, gm))
    found = many.anova("II")
    assert list(found) == ["arm", "gm", "gm:arm"] and found["gm:arm"].df_num == 2
    one = flc.lmm("y ~ arm * gm + (1 | g)", data | {"y": Y[3], "gm": gm[3]}).fit().anova("II").to_frame()
    wanted = dict(zip(list(one["term"]), np.asarray(one["statistic"], dtype=float), strict=True))
    for name, test in found.items():
        mine = test.statistic[3] ** (2 if len(test.L) == 1 else 1)
        np.testing.assert_allclose(mine, wanted.get(name, wanted["arm:gm"]), rtol=1e-4)
    alone = model.fit_many(Y, covariates={"gm": gm, names[1]: gm})
    assert list(alone.anova()) == ["arm", "gm", names[1]]


def test_what_is_refused(data):
    Y, gm = drawn(data)
    with pytest.raises(LMMError, match="need an intercept"):
        flc.lmm("y ~ 0 + age + (1 | g)", data).fit_many(Y, covariates={"gm": gm}).slopes("age")
    # levels of a factor span a constant
    found = flc.lmm("y ~ 0 + arm + (1 | g)", data).fit_many(Y, covariates={"gm": gm}).emmeans("arm")
    one = flc.lmm("y ~ arm + gm + (1 | g)", data | {"y": Y[1], "gm": gm[1]}).fit().emmeans("arm").to_frame()
    agree(found, 1, one)
    arrays = flc.LinearMixedModel(data["y"], data["age"][:, None], None, data["g"])
    with pytest.raises(LMMError, match="models from a formula"):
        arrays.fit_many(Y, covariates={"gm": gm}).emmeans("arm")
