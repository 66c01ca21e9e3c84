"""Specifications of statsmodels: what they mean, written out for `lmm`, and by statsmodels where it is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

CASES = [
    ("Reaction ~ Days", "sleepstudy", {"groups": "Subject"}, "(1 | Subject)"),
    ("Reaction ~ Days", "sleepstudy", {"groups": "Subject", "re_formula": "~Days"}, "(Days | Subject)"),
    (
        "Reaction ~ Days", "sleepstudy",
        {"groups": "Subject", "re_formula": "1", "vc_formula": {"d": "0 + Days"}}, "(Days || Subject)",
    ),
    (
        "strength ~ 1", "pastes", {"groups": "batch", "re_formula": "1", "vc_formula": {"cask": "0 + C(cask)"}},
        "(1 | batch/cask)",
    ),
    ("strength ~ 1", "pastes", {"groups": "batch", "vc_formula": {"cask": "~ C(cask) - 1"}}, "(1 | batch:cask)"),
    (
        "diameter ~ 1", "penicillin",
        {"groups": np.ones(144), "vc_formula": {"p": "0 + C(plate)", "s": "0 + C(sample)"}},
        "(1 | plate) + (1 | sample)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "dataset", "options", "bars"), CASES)
@pytest.mark.parametrize("library", ["pandas", "dict"])
def test_the_model_written_out(formula, dataset, options, bars, library):
    data = flc.datasets.load(dataset, library)
    found = flc.from_statsmodels(formula, data, **options)
    whole = flc.lmm(f"{formula} + {bars}", flc.datasets.load(dataset))
    np.testing.assert_array_equal(found.exog, whole.exog)
    np.testing.assert_array_equal(found.exog_re, whole.exog_re)
    assert found.structure.n_parameters == whole.structure.n_parameters
    assert found.fit().criterion == pytest.approx(whole.fit().criterion, rel=1e-12)


@pytest.mark.parametrize(("formula", "dataset", "options", "bars"), CASES)
def test_statsmodels_says_the_same(formula, dataset, options, bars):
    smf = pytest.importorskip("statsmodels.formula.api")
    data = flc.datasets.load(dataset, "pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = smf.mixedlm(formula, data, **options).fit()
    ours = flc.from_statsmodels(formula, data, **options).fit()
    assert ours.llf == pytest.approx(theirs.llf, rel=1e-7)


def test_slopes_of_levels():
    data = pd.DataFrame({"g": np.repeat([0, 1, 2, 3], 12), "h": np.tile(np.repeat([0, 1, 2], 4), 4)})
    data["x"], data["y"] = np.random.default_rng(0).random((2, 48))
    found = flc.from_statsmodels("y ~ x", data, groups="g", vc_formula={"s": "0 + C(h):x"})
    assert found.spec.formula == "y ~ x + (0 + x | g:h)"
    named = data.rename(columns={"g": "the group"})
    assert "| `the group`)" in flc.from_statsmodels("y ~ x", named, groups="the group").spec.formula


@pytest.mark.parametrize(
    "text", ["C(h)", "0 + C(h) + C(x)", "0 + C(h):C(x):np.log(C(x))", "0", "1 + C(h)", "0 + C(h) - 1"]
)
def test_other_components_are_refused(text):
    data = {"y": np.arange(6.0), "h": [0, 1] * 3, "x": np.arange(6.0), "g": [0, 0, 1, 1, 2, 2]}
    with pytest.raises(flc.LMMError, match=r"vc_formula\['v'\] = .* is none of"):
        flc.from_statsmodels("y ~ x", data, groups="g", vc_formula={"v": text})


def test_one_group_is_left_out():
    data = flc.datasets.load("penicillin")
    found = flc.from_statsmodels("diameter ~ 1", data, groups=np.ones(144), vc_formula={"p": "0 + C(plate)"})
    assert found.spec.formula == "diameter ~ 1 + (1 | plate)"


def test_one_group_has_no_effect():
    data = {"y": np.arange(6.0), "h": [0, 1] * 3}
    with pytest.raises(flc.LMMError, match="has one level: leave re_formula out"):
        flc.from_statsmodels("y ~ 1", data, groups=np.ones(6), re_formula="1")
