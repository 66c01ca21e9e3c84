"""F tests of nested fixed parts and of terms left out, against pbkrtest and lmerTest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

HERE = Path(__file__).parents[2] / "reference"
REFERENCE = json.loads((HERE / "nested_tests.json").read_text())
# lme4's optimum: F moves with it to first order; p-values and degrees of freedom are those of F
TOLERANCE = {"F": 2e-6, "df_denom": 2e-7, "p": 1e-6}
TESTS = ("kenward-roger", "satterthwaite")


def data(formula: str) -> pd.DataFrame:
    name = "cake_unbalanced" if formula.startswith("angle") else "orthodont"
    return pd.read_csv(HERE / "data" / f"{name}.csv", dtype={"temperature": str})


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("case", REFERENCE["drop1"], ids=lambda case: case["formula"])
def test_terms_left_out(case, test):
    expected = case[test.replace("-", "_")]
    result = flc.lmm(case["formula"], data(case["formula"])).fit()
    found = result.drop1(test=test)
    assert [row.name for row in found.rows[1:]] == [f"without {term}" for term in expected["term"]]
    assert [row.df for row in found.rows[1:]] == expected["df"]
    for i, row in enumerate(found.rows[1:]):
        assert row.statistic == pytest.approx(expected["F"][i], rel=TOLERANCE["F"])
        assert row.df_denom == pytest.approx(expected["df_denom"][i], rel=TOLERANCE["df_denom"])
        assert row.pvalue == pytest.approx(expected["p"][i], abs=TOLERANCE["p"])
    # the criteria are those of the likelihood ratio tests
    assert [row.llf for row in found.rows] == pytest.approx([row.llf for row in result.drop1().rows], abs=1e-9)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("case", REFERENCE["nested"], ids=lambda case: case["small"])
@pytest.mark.parametrize("reml", [True, False])
def test_nested_models(case, test, reml):
    expected = case[test.replace("-", "_")]
    frame = data(case["large"])
    large, small = (flc.lmm(case[size], frame).fit(reml=reml) for size in ("large", "small"))
    row = flc.compare(small, large, test=test).rows[1]
    assert row.df == expected["df"]
    assert row.statistic == pytest.approx(expected["F"], rel=TOLERANCE["F"])
    assert row.df_denom == pytest.approx(expected["df_denom"], rel=TOLERANCE["df_denom"])
    assert row.pvalue == pytest.approx(expected["p"], abs=TOLERANCE["p"])


def test_origin_units_and_order_of_rows_do_not_matter():
    frame = data("angle")
    base = flc.lmm("angle ~ recipe * x + (1 | batch)", frame).fit().drop1(test="kenward-roger").rows[1]
    moved = frame.sample(frac=1.0, random_state=1).assign(x=lambda d: 1e4 + 1e-2 * d["x"])
    again = flc.lmm("angle ~ recipe * x + (1 | batch)", moved).fit()
    other = again.drop1(test="kenward-roger").rows[1]
    assert other.statistic == pytest.approx(base.statistic, rel=1e-8)
    smaller = flc.lmm("angle ~ recipe + x + (1 | batch)", moved).fit()
    compared = flc.compare(smaller, again, test="kenward-roger").rows[1]
    assert compared.statistic == pytest.approx(base.statistic, rel=1e-8)
    assert compared.df_denom == pytest.approx(base.df_denom, rel=1e-8)


def test_an_empty_cell_leaves_what_can_be_estimated():
    frame = data("angle")
    frame = frame[~((frame["recipe"] == "B") & (frame["heat"] == "mid"))]
    result = flc.lmm("angle ~ recipe * heat + (1 | batch)", frame).fit()
    row = result.drop1(test="kenward-roger").rows[1]
    assert row.df == 3
    table = result.anova("II", ddf="kenward-roger")
    at = table.terms.index("recipe:heat")
    assert row.statistic == pytest.approx(table.statistic[at], rel=1e-9)
    assert row.df_denom == pytest.approx(table.df_denom[at], rel=1e-9)


def test_a_singular_fit_says_what_is_known():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"g": np.repeat(np.arange(8), 6), "x": rng.normal(size=48), "z": rng.normal(size=48)})
    frame["y"] = rng.normal(size=48)
    frame["y"] -= frame.groupby("g")["y"].transform("mean")
    result = flc.lmm("y ~ x + z + (1 | g)", frame).fit()
    assert result.singular
    row = result.drop1("x", test="kenward-roger").rows[1]
    assert "taken for known" in row.null
    # without its random effects the model is a regression
    assert row.df_denom == pytest.approx(45.0)


def test_shows_and_refuses():
    frame = data("distance")
    small = flc.lmm("distance ~ age + (1 | Subject)", frame).fit()
    large = flc.lmm("distance ~ age + Sex + (1 | Subject)", frame).fit()
    found = flc.compare(small, large, test="kenward-roger")
    assert found.by_f
    assert "DenDF" in str(found)
    assert "DenDF" in found._repr_html_()
    assert found.to_frame()["df_denom"].iloc[1] == pytest.approx(25.0)
    slopes = flc.lmm("distance ~ age + Sex + (age | Subject)", frame).fit()
    assert "differ in their covariances" in flc.compare(small, slopes, test="kenward-roger").rows[1].null
    other = flc.lmm("distance ~ Sex + (1 | Subject)", frame).fit()
    crossed = flc.lmm("distance ~ age * I(age > 9) + (1 | Subject)", frame).fit()
    assert "not nested" in flc.compare(other, crossed, test="satterthwaite").rows[1].null
    with pytest.raises(flc.LMMError, match="test='kr' is unknown"):
        flc.compare(small, large, test="kr")
    with pytest.raises(flc.LMMError, match="null='bootstrap' is of likelihood ratio tests"):
        large.drop1(test="kenward-roger", null="bootstrap")
