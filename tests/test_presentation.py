"""Every result travels to other processes, says its numbers when printed, and shows in notebooks."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc


def sleepstudy():
    data = flc.datasets.load("sleepstudy", "pandas")
    return flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()


def cake():
    data = flc.datasets.load("cake", "pandas")
    return flc.lmm("angle ~ recipe * temperature + (1 | recipe:replicate)", data).fit()


@pytest.fixture(scope="module")
def sleep():
    return sleepstudy()


@pytest.fixture(scope="module")
def pastry():
    return cake()


RESULTS = {
    "test": (lambda fit: fit.test("Days = 10"), lambda made: [made.estimate[0], made.row_df[0]]),
    "joint test": (lambda fit: fit.test(["Days", "Intercept"]), lambda made: [*made.estimate]),
    "anova": (lambda fit: fit.anova(), lambda made: [*made.statistic]),
    "bootstrap": (lambda fit: fit.bootstrap(20, seed=1), lambda made: [*made.estimate]),
    "cases": (lambda fit: fit.bootstrap(20, "cases", seed=1), lambda made: [*made.estimate]),
    "profile": (lambda fit: fit.profile(), lambda made: [*made.conf_int()["conf_low"]]),
    "influence": (lambda fit: fit.influence(), lambda made: [made.cooks_distance.max()]),
    "rows": (lambda fit: fit.influence("observation"), lambda made: [made.cooks_distance.max()]),
    "pooling": (lambda fit: fit.pooling(), lambda made: [*made.average_reliability, *made.no_pooling[0]]),
    "design effect": (lambda fit: fit.design_effect(), lambda made: [made.mean, made.kish["Subject"]]),
    "covariance": (lambda fit: fit.marginal_covariance_at([0, 9]), lambda made: [*np.sqrt(made.variance), *made.icc]),
    "least variance": (lambda fit: fit.least_variance_time(), lambda made: [made.at, made.variance]),
    "power": (
        lambda fit: flc.power(fit, "Days", n_sim=20, seed=1),
        lambda made: [made.power, made.conf_low, made.conf_high],
    ),
    "curve": (
        lambda fit: flc.power_curve(fit, "Days", along="subjects", values=[4, 6], n_sim=20, seed=1),
        lambda made: [*made.power, *made.conf_low],
    ),
    "batch": (lambda fit: fit.model.fit_many(fit.simulate(12, seed=1)), lambda made: [made.params[0, 0]]),
    "drawn": (lambda fit: fit.simulate_fit(12, seed=1), lambda made: [made.params[0, 0]]),
    "batch test": (lambda fit: fit.simulate_fit(12, seed=1).test("Days"), lambda made: [made.statistic[0]]),
    "comparison": (lambda fit: fit.random_effect_test(), lambda made: [made.rows[-1].statistic]),
    "summary": (lambda fit: fit.summary(), lambda made: []),
    "fit": (lambda fit: fit, lambda made: [made.criterion, *made.params, *made.bse, made.sigma]),
}  # fmt: skip


def agrees(text, value):
    """Whether some number in a text is a value, to the digits that it is given to (two at least)."""
    for found in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text):
        decimals = len(found.partition(".")[2].partition("e")[0]) if "." in found else 0
        if "e" not in found and len(found.strip("-").replace(".", "").strip("0")) >= 2:
            if round(value, decimals) == float(found):
                return True
        elif ("e" in found and abs(float(found) - value) <= 5e-3 * abs(value)) or float(found) == value:
            return True
    return False


@pytest.mark.parametrize("name", RESULTS)
def test_results_travel_and_say_their_numbers(sleep, name):
    make, numbers = RESULTS[name]
    made = make(sleep)
    text, page = str(made), made._repr_html_()
    for value in numbers(made):
        assert agrees(text, value), (value, text)
    assert "<table" in page or name == "least variance"
    assert page.count("<tr>") == page.count("</tr>") and page.startswith("<div")
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        again = pickle.loads(pickle.dumps(made, protocol=protocol))
        assert repr(again) == repr(made) and str(again) == text and again._repr_html_() == page


def test_means_and_tests_of_factors(pastry):
    means = pastry.emmeans("recipe", contrasts="pairwise")
    for made in (means, means.joint_test(), pastry.anova()):
        again = pickle.loads(pickle.dumps(made))
        assert str(again) == str(made) and again._repr_html_() == made._repr_html_()
        assert "<table" in made._repr_html_()
    assert agrees(str(pastry.anova()), pastry.anova().statistic[1])
    assert str(pastry.anova()) == repr(pastry.anova())


def test_names_are_escaped():
    data = pd.DataFrame({"y": np.sin(np.arange(40.0) ** 2), "a<b": np.arange(40.0), "g": np.repeat(range(8), 5)})
    fit = flc.lmm("y ~ `a<b` + (1 | g)", data).fit()
    for made in (fit.test([[0, 1]]), fit.bootstrap(3, seed=1), fit.influence(), fit.pooling()):
        page = made._repr_html_()
        assert "a<b" not in page


ELSEWHERE = """
import pickle, sys
import fastlmm_core as flc

fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "pandas")).fit()
sys.stdout.buffer.write(pickle.dumps((fit.bootstrap(40, seed=3), fit.profile("Days"))))
"""


def test_results_come_back_from_other_processes(sleep):
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, check=True)
    boot, profile = pickle.loads(done.stdout)
    expected = sleep.bootstrap(40, seed=3)
    np.testing.assert_array_equal(boot.replicates, expected.replicates)
    pd.testing.assert_frame_equal(
        boot.conf_int(method="bca", names="fixed"), expected.conf_int(method="bca", names="fixed")
    )
    pd.testing.assert_frame_equal(profile.conf_int(0.8), sleep.profile("Days").conf_int(0.8))
    pd.testing.assert_frame_equal(profile.to_frame(), sleep.profile("Days").to_frame())


# ------------------------------------------------------------------------------------------------------------
# statistics of the caller's own


def test_names_of_a_statistic_are_kept(sleep):
    def of(fit):
        return {"slope": fit.params["Days"], "ratio": fit.params["Days"] / fit.sigma}

    named = sleep.bootstrap(6, statistic=of, seed=2)
    assert named.names == ("slope", "ratio")
    series = sleep.bootstrap(6, statistic=lambda fit: pd.Series(of(fit)), seed=2)
    plain = sleep.bootstrap(6, statistic=lambda fit: list(of(fit).values()), seed=2)
    for other in (series, plain):
        np.testing.assert_array_equal(other.replicates, named.replicates)
    assert series.names == named.names and plain.names == ("statistic_0", "statistic_1")
    assert named.conf_int().index.tolist() == ["slope", "ratio"]
    assert list(named.to_frame()) == ["slope", "ratio"]
    assert "ratio" in str(named) and "ratio" in pickle.loads(pickle.dumps(named))._repr_html_()
    whole = sleep.bootstrap(6, statistic=lambda fit: fit.params, seed=2)
    assert whole.names == ("Intercept", "Days")
    np.testing.assert_array_equal(whole.replicates[:, 1], named.replicates[:, 0])
    with pytest.raises(flc.LMMError, match="method='bca' needs deletions of groups"):
        named.conf_int(method="bca")


def test_limits_are_labelled(sleep):
    boot = sleep.bootstrap(60, seed=3)
    for method in ("percentile", "normal", "auto"):
        limits = boot.conf_int(method=method)
        assert limits.index.tolist() == list(boot.names) and list(limits) == ["conf_low", "conf_high"]
    for method in ("basic", "bca", "studentized"):
        assert boot.conf_int(method=method, names="fixed").index.tolist() == ["Intercept", "Days"]
    low = np.quantile(boot.replicates[:, 1], 0.025)
    assert boot.conf_int(method="percentile").loc["Days", "conf_low"] == pytest.approx(low, rel=1e-12)
    polars = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "polars")).fit()
    assert polars.bootstrap(5, seed=1).conf_int()["term"].to_list() == list(boot.names)
    series = flc.LinearMixedModel(*(sleep.model.design.caller_rows.series(v, "v") for v in [sleep.model.endog]),
                                  groups=pd.Series(np.repeat(range(18), 10))).fit()  # fmt: skip
    assert list(series.bootstrap(5, seed=1).conf_int().index) == ["Intercept", "sd_Intercept|group", "sigma"]


@pytest.mark.parametrize(
    ("statistic", "words"),
    [
        (lambda fit: {"a": "text"}, "statistic must hold numbers, not text"),
        (lambda fit: np.eye(2), r"statistic returned an array of shape \(2, 2\); return numbers by name, or one row"),
        (lambda fit: None, "statistic returned nothing; it must return a number"),
        (
            lambda fit: {f"{fit.criterion:.9f}": 1.0},
            r"statistic returned '.*' for replicate 0 and '.*' for the fit itself",
        ),
    ],
    ids=["text", "matrix", "nothing", "changing"],
)
def test_what_a_statistic_must_return(sleep, statistic, words):
    with pytest.raises(flc.LMMError, match=words):
        sleep.bootstrap(3, statistic=statistic, seed=1)
