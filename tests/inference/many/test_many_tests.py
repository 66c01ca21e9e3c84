"""Several tests, analyses of variance, means and slopes of a batch: each is that of the fit of one response."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

AGREE = 1e-6
"""Derivatives of variances follow theta, which both searches leave at 1e-8 standard errors of the optimum."""
TIGHT = 1e-8


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(20), 6)
    table = {
        "y": rng.normal(size=120), "arm": np.array(["a", "b"])[g % 2], "visit": np.tile(["v1", "v2", "v3"], 40),
        "x": rng.normal(size=120), "g": g, "o": rng.normal(size=120),
    }  # fmt: skip
    model = flc.lmm("y ~ arm * visit + x:arm + (x | g)", table, offset=table["o"])
    effects = rng.normal(size=(9, 20, 2)) * np.array([1.0, 0.5])
    Y = effects[:, g, 0] + effects[:, g, 1] * table["x"] + rng.normal(size=(9, 120)) + table["o"]
    Y[7:] = rng.normal(size=(2, 120))  # at the boundary, or near
    return model.fit_many(Y)


DDFS = [("satterthwaite", "auto"), ("kenward-roger", "auto"), ("kenward-roger", "observed"), ("residual", "auto")]


@pytest.mark.parametrize(("ddf", "information"), [*DDFS, ("normal", "auto")])
def test_several_hypotheses(batch, ddf, information):
    asked = {
        "one": "x:arm[a]", "sum": "x:arm[a] + x:arm[b] = 0.5", "joint": ["visit[T.v2]", "visit[T.v3]"],
        "dependent": np.array([[0, 1, 0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]]),
    }  # fmt: skip
    found = batch.tests(asked, ddf=ddf, information=information)
    assert list(found) == list(asked) and found.pvalues.shape == (9, len(asked))
    for i in range(9):
        one = batch[i]
        for name, hypothesis in asked.items():
            wanted = one.test(hypothesis, ddf=ddf, information=information)
            np.testing.assert_allclose(found[name].statistic[i], wanted.statistic, rtol=AGREE)
            np.testing.assert_allclose(found[name].std_error[i], wanted.std_error, rtol=TIGHT if i < 7 else AGREE)
            np.testing.assert_allclose(found[name].pvalues[i], wanted.pvalue, rtol=AGREE)
    # together or by themselves
    for name, hypothesis in asked.items():
        alone = batch.test(hypothesis, ddf=ddf, information=information)
        np.testing.assert_allclose(found[name].statistic, alone.statistic, rtol=1e-12)
    frame = found.to_frame()
    assert len(frame["statistic"]) == 9 * len(asked)
    np.testing.assert_allclose(np.asarray(frame["p_value"]).reshape(9, -1), found.pvalues)


def test_many_rows_are_looked_at_some_at_a_time(batch):
    p = len(batch.model.exog_names)
    rows = np.random.default_rng(1).normal(size=(40, p))
    found = batch.tests({f"row {j}": rows[[j]] for j in range(40)})
    for j in (0, 11, 12, 13, 39):
        np.testing.assert_allclose(found[f"row {j}"].df_denom, batch.test(rows[[j]]).df_denom, rtol=1e-12)


@pytest.mark.parametrize("type", ["I", "II", "III"])
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_anova(batch, type, ddf):
    found = batch.anova(type, ddf=ddf)
    frame = found.to_frame()
    F = np.asarray(frame["statistic"]).reshape(9, -1)
    for i in (0, 3, 8):
        wanted = batch[i].anova(type, ddf=ddf)
        assert tuple(found) == wanted.terms
        np.testing.assert_allclose(F[i], wanted.statistic, rtol=AGREE)
        np.testing.assert_allclose(found.pvalues[i], wanted.pvalues, rtol=AGREE)
    assert "p < 0.05" in str(found)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_means_and_slopes(batch, ddf):
    calls = [
        lambda r: r.emmeans("visit", by="arm", contrasts="pairwise", ddf=ddf),
        lambda r: r.emmeans(["arm", "visit"], at={"x": 0.3}, weights="proportional", ddf=ddf),
        lambda r: r.slopes("x", "arm", contrasts="revpairwise", ddf=ddf),
    ]
    for call in calls:
        found = call(batch)
        for i in (0, 5, 8):
            wanted = call(batch[i])
            assert found.labels == wanted.labels
            for one, single in ((found, wanted), (found.comparison, wanted.comparison)):
                if single is None:
                    assert one is None
                    continue
                np.testing.assert_allclose(one.estimate[i], single.estimate, rtol=1e-7, atol=1e-8)
                np.testing.assert_allclose(one.std_error[i], single.std_error, rtol=AGREE)
                np.testing.assert_allclose(one.df[i], single.df, rtol=AGREE)
                np.testing.assert_array_equal(one.L, single.L)
        limits = found.conf_int()
        np.testing.assert_allclose(limits.mean(axis=-1), found.estimate)
        assert len(found.to_frame()["estimate"]) == found.estimate.size
        assert "p < 0.05" in str(found)


def test_means_that_hold_no_coefficient_are_not_estimated():
    rng = np.random.default_rng(0)
    g, x = np.repeat(np.arange(12), 5), rng.normal(size=60)
    data = {"y": x + rng.normal(size=12)[g] + rng.normal(size=60), "x": x, "arm": np.array(["a", "b"])[g % 2], "g": g}
    batch = flc.lmm("y ~ 0 + x:arm + (1 | g)", data).fit_many(np.array([data["y"], x[::-1] + data["y"]]))
    found = batch.emmeans("arm", at={"x": 0.0})
    assert not found.L.any() and np.isnan(found.estimate).all() and np.isnan(found.std_error).all()
    shown = batch.emmeans("arm", at={"x": 1.0})
    frame = shown.to_frame()
    assert list(frame["response"]) == [0, 0, 1, 1] and list(frame["arm"]) == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(frame["estimate"], shown.estimate.ravel())
    counts = [int((shown.pvalues[:, j] < 0.05).sum()) for j in range(2)]
    assert [line.split()[-1] for line in str(shown).splitlines()[-2:]] == [str(count) for count in counts]
    assert counts != [1, 1]


def test_what_is_refused(batch):
    with pytest.raises(LMMError, match="hypotheses must be names to hypotheses"):
        batch.tests(["x:arm[a]"])
    with pytest.raises(LMMError, match="type='IV' is unknown"):
        batch.anova("IV")
    with pytest.raises(LMMError, match="for single fits"):
        batch.emmeans("arm", ddf="between-within")
    with pytest.raises(KeyError, match="there is no test 'b'"):
        batch.tests({"a": "x:arm[a]"})["b"]
