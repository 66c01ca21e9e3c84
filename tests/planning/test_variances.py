"""Power of tests of variances, one-sided tests, and curves along intraclass correlations and missing observations."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.planning.curves import _place
from fastlmm_core.planning.variations import with_icc


@pytest.fixture(scope="module")
def plan():
    g = np.repeat(np.arange(16), 5)
    design = {"g": g, "x": np.tile(np.arange(5.0), 16) - 2.0, "arm": (g % 2) * 1.0}
    return flc.assume("y ~ x + arm + (1 | g)", design, [1.0, 0.2, 0.3], [[0.3]], 1.0)


@pytest.fixture(scope="module")
def slopes():
    g = np.repeat(np.arange(16), 5)
    design = {"g": g, "x": np.tile(np.arange(5.0), 16) - 2.0}
    G = {"sd": [0.8, 0.3], "corr": 0.2}
    return flc.assume("y ~ x + (x | g)", design, [1.0, 0.2], {"g": G}, 1.0)


def test_a_variance_is_tested_as_in_each_fit(plan, slopes):
    for source, name, effect in ((plan, "sd_Intercept|g", "Intercept"), (slopes, "sd_x|g", "x")):
        found = flc.power(source, name, n_sim=40, seed=4, alpha=[0.05, 0.2])
        batch = source.simulate_fit(40, 4)
        for i in (0, 7, 39):
            wanted = batch[i].random_effect_test(effect, seed=4).rows[1]
            np.testing.assert_allclose(found.pvalues[i], wanted.pvalue, rtol=1e-5)
        assert found.method == "lrt" and found.test == name and found.n_converged == 40
        np.testing.assert_allclose(found.estimate, np.mean(batch.to_frame()[name]), rtol=1e-12)
        np.testing.assert_allclose(found.power, [(found.pvalues < 0.05).mean(), (found.pvalues < 0.2).mean()])
        joined = flc.power(source, name, n_sim=15, seed=4, alpha=[0.05, 0.2]).join(
            flc.power(source, name, n_sim=25, seed=4, alpha=[0.05, 0.2], first=15)
        )
        np.testing.assert_array_equal(joined.pvalues, found.pvalues)


def test_effects_of_variances(plan, slopes):
    """0 gives the level of the test, and the exact null distribution keeps it."""
    null = flc.power(plan, "sd_Intercept|g", effect=0.0, n_sim=3000, seed=1)
    assert null.conf_low < 0.05 < null.conf_high and null.effect == 0.0
    strong = flc.power(plan, "sd_Intercept|g", effect=2.0, n_sim=200, seed=1)
    assert strong.power > 0.95 and abs(strong.bias[0]) < 0.15
    moved = flc.planning.variances.given_sd(slopes, "sd_x|g", 0.6)
    wanted = np.outer([0.8, 0.6], [0.8, 0.6]) * np.array([[1.0, 0.2], [0.2, 1.0]])
    np.testing.assert_allclose(moved.covariance, wanted, rtol=1e-12)
    # an effect that does not vary is correlated with none
    again = flc.planning.variances.given_sd(flc.planning.variances.given_sd(slopes, "sd_x|g", 0.0), "sd_x|g", 0.6)
    np.testing.assert_allclose(again.covariance, np.diag([0.64, 0.36]), rtol=1e-12, atol=1e-15)
    curve = flc.power_curve(plan, "sd_Intercept|g", along="effect", values=[0.2, 0.5, 1.0], n_sim=200, seed=2)
    assert (np.diff(curve.power) > 0.0).all()


def test_one_sided_tests(plan):
    two = flc.power(plan, "x", n_sim=300, seed=3)
    up = flc.power(plan, "x", n_sim=300, seed=3, alternative="greater")
    down = flc.power(plan, "x", n_sim=300, seed=3, alternative="less")
    batch = plan.simulate_fit(300, 3)
    positive = batch.params[:, 1] > 0
    np.testing.assert_allclose(up.pvalues, np.where(positive, two.pvalues / 2, 1 - two.pvalues / 2), rtol=1e-12)
    np.testing.assert_allclose(up.pvalues + down.pvalues, 1.0, rtol=1e-12)
    assert up.power > two.power > down.power
    for call in (
        lambda: flc.power(plan, ["x", "arm"], alternative="greater"),
        lambda: flc.power(plan, "x", alternative="greater", method="lrt"),
    ):
        with pytest.raises(LMMError, match="alternative='greater' is for a t test"):
            call()


def test_curves_along_icc_and_missing(plan):
    curve = flc.power_curve(plan, "arm", along="icc", values=[0.0, 0.3, 0.8], n_sim=400, seed=5)
    assert (np.diff(curve.power) < 0.0).all()  # between groups, what they share counts against a test
    within = flc.power_curve(plan, "x", along="icc", values=[0.0, 0.8], n_sim=400, seed=5)
    assert within.power[1] > within.power[0] + 0.1
    moved = flc.planning.variations.with_icc(plan, 0.8)
    np.testing.assert_allclose([moved.icc(), moved.sigma2 + moved.covariance[0, 0]], [0.8, 1.3], rtol=1e-12)
    lost = flc.power_curve(plan, "x", along="missing", values=[0.0, 0.6], n_sim=400, seed=5)
    assert lost.power[0] > lost.power[1] + 0.1
    np.testing.assert_array_equal(
        lost.power, flc.power_curve(plan, "x", along="missing", values=[0.0, 0.6], n_sim=400, seed=5).power
    )
    rows, levels = flc.planning.variations.left_out(plan.model.design, 0.9, 3)
    assert len(rows) == 8 and (np.diff(rows) > 0).all() and levels[0].max() == len(np.unique(levels[0])) - 1


def test_what_is_refused(plan, slopes):
    for call, message in (
        (lambda: flc.power(plan, "sd_x|g"), "is not a standard deviation of the model"),
        (lambda: flc.power(slopes, "sd_Intercept|g"), "cannot be left out by itself.*use sd_x"),
        (lambda: flc.power(plan, "sd_Intercept|g", effect=-1.0), "not negative"),
        (lambda: flc.power(plan, "sd_Intercept|g", alternative="less"), "a variance is not below zero"),
        (lambda: flc.power_curve(plan, "x", along="icc", values=[0.2, 1.0]), "shares of icc"),
        (lambda: flc.power_curve(plan, "x", along="missing", values=[-0.1]), "shares of missing"),
    ):
        with pytest.raises(LMMError, match=message):
            call()


def test_a_grid_is_a_curve_at_each_value_of_the_others(plan):
    options = {"n_sim": 120, "seed": 5}
    grid = flc.power_curve(plan, "x", along=["icc", "subjects"], values=[[0.1, 0.5], [8, 12, 30]], **options)
    assert grid.along == ("icc", "subjects")
    assert grid.power.shape == grid.conf_low.shape == grid.conf_high.shape == (2, 3)
    assert (grid.power[:, 0] < grid.power[:, 2]).all()
    # by hand: the designs at one intraclass correlation, with the seed of its place
    at = with_icc(plan, 0.5)
    curve = flc.power_curve(at, "x", values=[8, 12, 30], n_sim=120, seed=_place(5, 1))
    np.testing.assert_array_equal(grid.power[1], curve.power)
    frame = grid.to_frame()
    assert list(frame)[:3] == ["icc", "subjects", "power"]
    np.testing.assert_array_equal(np.asarray(frame["subjects"]), [8, 12, 30, 8, 12, 30])
    np.testing.assert_array_equal(np.asarray(frame["icc"]), [0.1] * 3 + [0.5] * 3)
    assert "subjects" in str(grid) and len(str(grid).splitlines()) >= 7


def test_grids_that_make_no_sense_are_refused(plan):
    for along, values, words in (
        (["icc", "subjects"], [0.1, 0.2, 0.3], "as many sequences"),
        (["icc", "icc"], [[0.1], [0.2]], "different names"),
        (["icc", "nothing"], [[0.1], [0.2]], "is unknown"),
    ):
        with pytest.raises(flc.LMMError, match=words):
            flc.power_curve(plan, "x", along=along, values=values, n_sim=10)
    with pytest.raises(flc.LMMError, match="leave it out"):
        flc.power_curve(plan, "x", along=["icc", "effect"], values=[[0.1], [0.2]], effect=1.0, n_sim=10)
