"""Sources that can be read once, whose formula has to see all rows first: the numbers of the same rows in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from streamed import cut, simulated

CRITERIA = 1e-12
"""Criteria of the same rows about other columns."""

ROUNDED = 1e-8
"""Estimates in their standard errors, where columns are rounded otherwise."""


def data():
    found = simulated(4000)
    rng = np.random.default_rng(8)
    n = len(found)
    found["z"] = found["z"] + 0.3 * rng.normal(size=n)
    found["far"] = 1e6 + 1e-2 * found["x"] + 0.01 * rng.normal(size=n)
    found["kind"] = rng.choice(["p", "q", "r", "s"], n)
    found.loc[: n // 4, "kind"] = "r"  # the first pieces know one level
    found["k"] = rng.integers(1, 4, n)
    found["flag"] = rng.random(n) < 0.3
    found["h"] = rng.integers(0, 9, n)
    found["w"] = rng.integers(1, 4, n).astype(float)
    found["o"] = 0.2 * found["x"]
    found["room"] = found["g"]
    found["school"] = found["g"] // 10
    return found


DATA = data()

FORMULAS = [
    "y ~ x + kind + (1 | g)", "y ~ 0 + kind + x:kind + (x | g)", "y ~ center(x) * kind + (1 | g)",
    "y ~ scale(x) + C(k) * z + (1 | g)", "y ~ standardize(far) + scale(x):kind + (center(x) | g)",
    "y ~ within(x, g) + between(x, g) + (1 | g)", "y ~ within(x, h) * kind + between(x, h) + (1 | g)",
    "y ~ between(x, g) * z + within(x, g):kind + (within(x, g) | g)", "y ~ between(x, g, k) + kind + (1 | g)",
    "y ~ x + (kind | g)", "y ~ C(kind, Sum) + flag + np.log(w) + (flag | g)", "y ~ flag * center(z) + (1 | g)",
    "y ~ kind + {x + 1} + I(x ** 2) + (1 | g)", "y ~ center(x) + kind + (1 | school/room)",
    "y ~ kind + within(x, school) + (1 | g) + (center(x) | h)", "np.exp(y / 100) ~ kind + (kind || g)",
    "y ~ poly(x, 2) + poly(z, 5):kind + (poly(x, 1) | g)", "y ~ poly(far, 2) * within(x, g) + poly(x, 3) + (1 | g)",
    "y ~ poly(x, 2, raw=True) + kind + (1 | g)", "y ~ poly(x, 1) + poly(x, 3):kind + (1 | g)",
    "y ~ kind + (1 | g:kind)", "y ~ kind:flag + (1 | g)",
    "y ~ kind * C(k) + (1 | g)",
]  # fmt: skip


def near(one, other):
    assert other.model.design.passes == 1 and other.converged == one.converged
    assert other.criterion == pytest.approx(one.criterion, rel=CRITERIA)
    np.testing.assert_allclose(other.theta, one.theta, rtol=ROUNDED, atol=ROUNDED)
    assert other.model.exog_names == one.model.exog_names
    size = np.sqrt(np.diag(one.cov))
    np.testing.assert_allclose(other.beta / size, one.beta / size, atol=ROUNDED)
    np.testing.assert_allclose(np.sqrt(np.diag(other.cov)), size, rtol=1e-7)


@pytest.mark.parametrize("formula", FORMULAS)
def test_one_reading_has_the_numbers_of_memory(formula):
    one = flc.lmm(formula, DATA).fit()
    other = flc.lmm(formula, flc.scan(iter(cut(DATA, 333)))).fit()
    near(one, other)
    for a, b in zip(other.blups, one.blups, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    new = DATA.iloc[1::97]
    np.testing.assert_allclose(other.predict(new), one.predict(new), rtol=1e-9, atol=1e-9)


def test_weights_offset_and_missing_rows():
    holed = DATA.astype({"x": float})
    holed.loc[5::37, "x"] = np.nan
    holed.loc[7::41, "kind"] = None
    options = {"weights": "w", "offset": "o"}
    for formula in ("y ~ center(x) * kind + (1 | g)", "y ~ within(x, g) + kind + (x | g)"):
        one = flc.lmm(formula, holed, **options).fit(reml=False)
        other = flc.lmm(formula, flc.scan(iter(cut(holed, 500))), **options).fit(reml=False)
        near(one, other)
        assert other.nobs == one.nobs and other.model.design.n_dropped == one.model.design.n_dropped
        assert set(other.model.design.missing) == {"x", "kind"}


def test_arrow_batches_whose_dictionaries_differ():
    pa = pytest.importorskip("pyarrow")
    batches = [
        pa.RecordBatch.from_pandas(part.assign(kind=part["kind"].astype("category")), preserve_index=False)
        for part in cut(DATA[["y", "x", "kind", "g"]], 800)
    ]
    unified = pa.Table.from_batches(batches[:1]).schema
    reader = pa.RecordBatchReader.from_batches(unified, iter(batches))
    other = flc.lmm("y ~ center(x) + kind + (1 | g)", flc.scan(reader)).fit()
    near(flc.lmm("y ~ center(x) + kind + (1 | g)", DATA).fit(), other)


def test_what_varies_little_beside_its_mean():
    # about the mean of the first rows, which are far from the others
    far = DATA.assign(t=np.r_[np.zeros(400), 1e7 + np.arange(len(DATA) - 400.0)])
    for right in ("center(t) + kind", "scale(t)", "within(t, g) + between(t, g)"):
        one = flc.lmm(f"y ~ {right} + (1 | g)", far).fit()
        near(one, flc.lmm(f"y ~ {right} + (1 | g)", flc.scan(iter(cut(far, 200)))).fit())
        twice = flc.lmm(f"y ~ {right} + (1 | g)", flc.scan(cut(far, 200))).fit()
        assert twice.criterion == pytest.approx(one.criterion, rel=CRITERIA)


def test_inference_and_means_know_the_levels():
    formula = "y ~ center(x) * kind + (1 | g)"
    one = flc.lmm(formula, DATA).fit()
    other = flc.lmm(formula, flc.scan(iter(cut(DATA, 1000)))).fit()
    for at in ({}, {"x": [0.0, 1.0]}):
        a, b = (fit.emmeans("kind", at=at) for fit in (one, other))
        np.testing.assert_allclose(b.estimate, a.estimate, rtol=1e-9)
        np.testing.assert_allclose(b.df, a.df, rtol=1e-6)
    np.testing.assert_allclose(other.anova().to_frame()["p_value"], one.anova().to_frame()["p_value"], rtol=1e-6)


def test_collinear_levels_are_dropped_as_in_memory():
    again = DATA.assign(copy=DATA["kind"] + "2")
    one = flc.lmm("y ~ kind + copy + (1 | g)", again)
    other = flc.lmm("y ~ kind + copy + (1 | g)", flc.scan(iter(cut(again, 500))))
    np.testing.assert_array_equal(other.problem.kept, one.problem.kept)
    assert other.fit().criterion == pytest.approx(one.fit().criterion, rel=CRITERIA)


@pytest.mark.parametrize("formula", [
    "y ~ I(center(x) ** 2) + (1 | g)", "y ~ np.exp(scale(x)) + (1 | g)", "center(y) ~ x + (1 | g)",
])  # fmt: skip
def test_what_one_reading_cannot_sum_is_refused(formula):
    with pytest.raises(flc.LMMError, match="in a way that one reading of them does not find; compute it as a column"):
        flc.lmm(formula, flc.scan(iter(cut(DATA, 700))))


def test_other_refusals():
    with pytest.raises(flc.LMMError, match="that a scan does not find"):
        flc.lmm("y ~ poly(x, df=2) + (1 | g)", flc.scan(iter(cut(DATA, 700))))
    with pytest.raises(flc.LMMError, match="have to be read again, and an iterator gives its tables once"):
        flc.plan("y ~ center(x) + (1 | g)", flc.scan(iter(cut(DATA, 700))))
    many = pd.DataFrame({"y": np.random.default_rng(0).normal(size=60_000), "g": np.arange(60_000) // 2, "kind": "a"})
    many["kind"] = np.where(np.arange(60_000) % 2 == 0, "a", "b")
    with pytest.raises(flc.LMMError, match="memory=1"):
        flc.lmm("y ~ kind + (1 | g)", flc.scan(iter(cut(many, 5000)), memory=1.0))
    with pytest.raises(flc.LMMError, match="kind"):
        flc.lmm("y ~ kind + (1 | g)", flc.scan(iter(cut(DATA.assign(kind="a"), 500))))
