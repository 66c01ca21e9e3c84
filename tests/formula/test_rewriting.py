"""Formulas made from formulas: what they say is the design that they make."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.formula.rewriting import Written, updated

OLD = "y ~ a * x + (x | g)"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "y": rng.random(120) + 1.0, "x": rng.random(120), "z": rng.random(120), "my col": rng.random(120),
            "a": np.array(["p", "q", "r"])[rng.integers(0, 3, 120)], "g": np.repeat(np.arange(12), 10),
            "h": np.tile(np.arange(5), 24),
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (". ~ . + z", "y ~ a * x + z + (x | g)"),
        ("~ . + z", "y ~ a * x + z + (x | g)"),
        ("log(.) ~ .", "log(y) ~ a * x + (x | g)"),
        (". ~ . - a:x", "y ~ a + x + (x | g)"),
        (". ~ . - (x|g) + (1 | g)", "y ~ a * x + (1 | g)"),
        (". ~ . + (1 | h)", "y ~ a * x + (x | g) + (1 | h)"),
        (". ~ . + (x | g)", OLD),
        (". ~ .:z + (1 | g)", "y ~ (a * x):z + (1 | g)"),
        (". ~ . - a * x", "y ~ 1 + (x | g)"),
        (". ~ . - 1", "y ~ 0 + a * x + (x | g)"),
        (". ~ . + `my col` + I(.5 * z)", "y ~ a * x + `my col` + I(.5 * z) + (x | g)"),
        ("z ~ x + (1 | h)", "z ~ x + (1 | h)"),
        (". ~ . - x:a", "y ~ a + x + (x | g)"),
        (". ~ . - a * z", "y ~ x + a:x + (x | g)"),
        (". ~ 0 + a + x + (x | g) - 1", "y ~ 0 + a + x + (x | g)"),
    ],
)
def test_the_design_is_the_one_written_out(data, new, expected):
    found = flc.lmm(OLD, data).update(new)
    whole = flc.lmm(expected, data)
    assert set(found.exog_names) == set(whole.exog_names)
    order = [found.exog_names.index(name) for name in whole.exog_names]
    np.testing.assert_array_equal(found.exog[:, order], whole.exog)
    np.testing.assert_array_equal(found.exog_re, whole.exog_re)
    np.testing.assert_array_equal(found.endog, whole.endog)
    assert found.term_names == whole.term_names


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (". ~ . - (1 | g)", r"no term \(1 \| g\) to leave out; its random-effects terms are \(x \| g\)"),
        (". + z", "must have one '~'"),
        (". ~ z - .", "takes all old terms away"),
        (". ~ . - z", "no term z to leave out; the terms of its fixed part are 1, a, x, a:x$"),
        (". ~ . - x - x:z", "no term x:z to leave out"),
        (". ~ . - I(x ** 2)", r"no term I\(x \*\* 2\) to leave out"),
        (". ~ . +", None),
    ],
)
def test_refused(new, words):
    if words is None:
        assert updated(OLD, new) == "y ~ a * x + (x | g)"
        return
    with pytest.raises(flc.LMMError, match=words):
        updated(OLD, new)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ a * x + I(x ** 2) + (x | g)", "log(y) ~ 0 + a + `my col`:x + (0 + x || g) + (1 | h)",
        "y ~ 1 + (a * x | g) + (1 | h/a)", "y ~ (a + x)**2 - a + (`my col` | h:g) + (1 | a)",
    ],
)  # fmt: skip
def test_lists_say_what_the_text_says(data, formula):
    one, other = flc.lmm(formula, data), flc.lmm(Written.of(formula).formula, data)
    np.testing.assert_array_equal(one.exog, other.exog)
    np.testing.assert_array_equal(one.exog_re, other.exog_re)
    assert one.exog_names == other.exog_names and one.exog_re_names == other.exog_re_names
    assert one.structure.blocks == other.structure.blocks


def test_what_can_be_left_out():
    written = Written.of("y ~ x + (a * x | g) + (0 + x | h) + (1 | k)")
    assert [(name, small.formula.partition(" + ")[2]) for name, small in written.simpler()] == [
        ("correlations of (a + x + a:x | g)", "(a + x + a:x || g) + (0 + x | h) + (1 | k)"),
        ("a:x | g", "(a + x | g) + (0 + x | h) + (1 | k)"),
        ("(0 + x | h)", "(a + x + a:x | g) + (1 | k)"),
        ("(1 | k)", "(a + x + a:x | g) + (0 + x | h)"),
    ]
    alone = Written.of("y ~ x + (x || g)")
    assert [small.formula for _, small in alone.simpler()] == ["y ~ x + (1 | g)"]
    assert not list(Written.of("y ~ x + (1 | g)").simpler())
    assert Written.of("y ~ a * x + (1 | g)").without("x:a").formula == "y ~ a + x + (1 | g)"


def test_options_stay(data):
    weights = np.linspace(0.5, 1.5, 120)
    fit = flc.lmm("y ~ x + (1 | g)", data, weights=weights, offset="z").fit(reml=False)
    found = fit.update(". ~ . + a")
    whole = flc.lmm("y ~ x + a + (1 | g)", data, weights=weights, offset="z").fit(reml=False)
    assert found.criterion == pytest.approx(whole.criterion, rel=1e-12) and not found.reml
    bare = fit.update(". ~ . + a", weights=None, offset=None)
    assert bare.criterion == pytest.approx(flc.lmm("y ~ x + a + (1 | g)", data).fit(reml=False).criterion, rel=1e-12)
    half = flc.lmm("y ~ x + (1 | g)", data).fit().update(data=data[:60])
    assert half.nobs == 60


def test_what_a_file_has_lost(data, tmp_path):
    flc.lmm("y ~ x + (1 | g)", data).fit().save(tmp_path / "a.lmm")
    again = flc.load(tmp_path / "a.lmm")
    with pytest.raises(flc.LMMError, match="data is missing"):
        again.update(". ~ . + z")
    assert again.update(". ~ . + z", data).nobs == 120
    flc.lmm("y ~ x + (1 | g)", data, weights="z").fit().save(tmp_path / "b.lmm")
    with pytest.raises(flc.LMMError, match="has lost weights"):
        flc.load(tmp_path / "b.lmm").update(". ~ . + a", data)
    arrays = flc.LinearMixedModel(data["y"].to_numpy(), None, None, data["g"].to_numpy())
    with pytest.raises(flc.LMMError, match="from arrays and has no formula"):
        arrays.update(". ~ . + z")
