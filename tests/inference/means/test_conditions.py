"""What marginal means and slopes stand for: reference levels, values of covariates, averages and interactions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

# Sums of a few coefficients; slopes of parabolas by differences over a thousandth of the range.
EXACT = {"rtol": 1e-9, "atol": 1e-12}
BY_DIFFERENCE = {"rtol": 1e-7, "atol": 1e-9}


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 300
    frame = pd.DataFrame(
        {
            "arm": np.array(["active", "half", "placebo"])[rng.integers(0, 3, n)],
            "sex": np.array(["f", "m"])[rng.integers(0, 2, n)],
            "week": rng.integers(0, 9, n).astype(float),
            "age": rng.normal(45.0, 9.0, n),
            "who": np.repeat(np.arange(30), 10),
        }
    )
    frame["y"] = frame["week"] * (frame["arm"] == "active") + rng.normal(size=30)[frame["who"]] + rng.normal(size=n)
    return frame


@cache
def fitted(fixed: str):
    return flc.lmm(f"y ~ {fixed} + (1 | who)", data()).fit()


# ---- reference levels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coded", "base"),
    [
        ("arm", "active"), ("C(arm)", "active"), ("C(arm, Treatment('placebo'))", "placebo"),
        ("C(arm, Treatment(reference='half'))", "half"), ("C(arm, contr.treatment(base='half'))", "half"),
        ("C(arm, Sum)", "active"), ("C(arm, Helmert)", "active"),
        ("C(arm, levels=['half', 'active', 'placebo'])", "half"),
    ],
)  # fmt: skip
def test_references_are_those_of_the_coding(coded, base):
    result = fitted(f"{coded} + sex + age")
    found = result.emmeans("arm", contrasts="reference").comparison
    others = [level for level in result.model.spec.reference["arm"] if level != base]
    assert found.labels["contrast"] == [f"{level} - {base}" for level in others]
    # without interactions these are the coefficients of the coding by that level, which is another fit
    plain = fitted(f"C(arm, Treatment('{base}')) + sex + age")
    wanted = [plain.params[f"C(arm, Treatment('{base}'))[T.{level}]"] for level in others]
    np.testing.assert_allclose(found.estimate, wanted, rtol=1e-6)


def test_references_of_a_declared_order_and_of_two_factors():
    ordered = data().assign(arm=pd.Categorical(data()["arm"], ["placebo", "active", "half"]))
    result = flc.lmm("y ~ arm*C(sex, Treatment('m')) + (1 | who)", ordered).fit()
    found = result.emmeans(["arm", "sex"], contrasts="reference").comparison
    assert len(found.estimate) == 5 and all(label.endswith("- placebo m") for label in found.labels["contrast"])
    assert result.emmeans("arm", by="sex", contrasts="reference").comparison.labels["contrast"] == [
        "active - placebo", "half - placebo", "active - placebo", "half - placebo",
    ]  # fmt: skip
    # where the reference is not among the means, with the first
    some = result.emmeans("arm", at={"arm": ["half", "active"]}, contrasts="reference").comparison
    assert some.labels["contrast"] == ["active - half"]


def test_another_reference():
    result = fitted("C(arm, Treatment('placebo'))*sex")
    for found in (
        result.emmeans("arm", contrasts="reference", ref="half").comparison,
        result.emmeans("arm").contrast("reference", ref="half"),
    ):
        assert found.labels["contrast"] == ["active - half", "placebo - half"]
        means = dict(zip(result.emmeans("arm").labels["arm"], result.emmeans("arm").estimate, strict=True))
        wanted = [means["active"] - means["half"], means["placebo"] - means["half"]]
        np.testing.assert_allclose(found.estimate, wanted, **EXACT)
    both = result.emmeans(["arm", "sex"], contrasts="reference", ref=("half", "f")).comparison
    assert all(label.endswith("- half f") for label in both.labels["contrast"])
    slopes = fitted("arm*week").slopes("week", "arm", contrasts="reference", ref="placebo").comparison
    assert slopes.labels["contrast"] == ["active - placebo", "half - placebo"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contrasts": "reference", "ref": "full"}, "ref='full' is not one of the means: 'active', 'half', 'placebo'"),
        ({"contrasts": "pairwise", "ref": "half"}, "ref is for contrasts='reference'; leave it out"),
        ({"ref": "half"}, "ref is for contrasts='reference'; leave it out, or ask for these contrasts"),
    ],
)
def test_references_that_make_no_sense(options, words):
    with pytest.raises(LMMError) as error:
        fitted("arm + sex").emmeans("arm", **options)
    assert words in str(error.value)


# ---- slopes at values ----------------------------------------------------------------------------------------------


def test_each_value_has_its_slope():
    result = fitted("week + I(week**2) + arm")
    found = result.slopes("week", at={"week": [0.0, 4.0, 8.0]})
    assert found.labels == {"week": [0.0, 4.0, 8.0]}
    b = result.params
    np.testing.assert_allclose(
        found.estimate, b["week"] + 2.0 * b["I(week ** 2)"] * np.array([0.0, 4.0, 8.0]), **BY_DIFFERENCE
    )
    np.testing.assert_allclose(found.estimate, result.slopes("week", "week", at={"week": [0.0, 4.0, 8.0]}).estimate)
    one = result.slopes("week", at={"week": 4.0})
    assert one.labels == {"slope": ["week"]} and one.estimate[0] == pytest.approx(found.estimate[1], rel=1e-9)


def test_each_value_of_another_covariate_has_its_slope():
    result = fitted("week*age + arm*week")
    found = result.slopes("week", "arm", at={"age": [30.0, 60.0]})
    b = result.params
    own = {"active": 0.0, "half": b["week:arm[T.half]"] if "week:arm[T.half]" in b else b["arm[T.half]:week"]}
    for arm, extra in own.items():
        rows = [i for i, level in enumerate(found.labels["arm"]) if level == arm]
        assert [found.labels["age"][i] for i in rows] == [30.0, 60.0]
        wanted = b["week"] + b["week:age"] * np.array([30.0, 60.0]) + extra
        np.testing.assert_allclose(found.estimate[rows], wanted, **BY_DIFFERENCE)
    families = result.slopes("week", "arm", by="age", at={"age": [30.0, 60.0]}, contrasts="pairwise")
    assert len(families.comparison.estimate) == 6
    # a selection of levels of a factor is still averaged over
    assert len(result.slopes("week", at={"arm": ["half", "placebo"]}).estimate) == 1


# ---- notes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "ask", "notes"),
    [
        ("arm", lambda r: r.emmeans("arm"), ()),
        ("arm + sex", lambda r: r.emmeans("arm"), ("Averaged over sex, with equal weights.",)),
        ("arm + sex + age", lambda r: r.emmeans("arm"),
         ("Averaged over sex, with equal weights.", "At age = {age:.4g} (mean).")),
        ("arm*week", lambda r: r.emmeans("arm"),
         ("At week = {week:.4g} (mean).", "Interaction of arm with week: means and their differences depend on it.")),
        ("arm*week*sex", lambda r: r.emmeans("arm"),
         ("Averaged over sex, with equal weights.", "At week = {week:.4g} (mean).",
          "Interaction of arm with week, sex: means and their differences depend on them.")),
        ("arm*week", lambda r: r.emmeans("arm", by="week", at={"week": [0, 8]}), ()),
        ("arm*week", lambda r: r.emmeans("arm", at={"week": 8}),
         ("At week = 8.", "Interaction of arm with week: means and their differences depend on it.")),
        ("arm + week", lambda r: r.emmeans("arm", at={"week": [0, 8]}), ("Averaged over week, with equal weights.",)),
        ("arm + C(sex)", lambda r: r.emmeans("arm", at={"sex": "m"}), ("At sex = m.",)),
        ("week + sex", lambda r: r.slopes("week"), ()),
        ("week*sex + age", lambda r: r.slopes("week"),
         ("Averaged over sex, with equal weights.", "Interaction of week with sex: slopes depend on it.")),
        ("week*sex + age", lambda r: r.slopes("week", "sex"), ("Slopes along week.",)),
        ("week + I(week**2) + age", lambda r: r.slopes("week"), ("At week = {week:.4g} (mean).",)),
        ("week*age", lambda r: r.slopes("week"),
         ("At age = {age:.4g} (mean).", "Interaction of week with age: slopes depend on it.")),
    ],
)  # fmt: skip
def test_notes(fixed, ask, notes):
    means = ask(fitted(fixed))
    values = {"age": data()["age"].mean(), "week": data()["week"].mean()}
    assert sorted(means.notes) == sorted(note.format(**values) for note in notes)
    assert all(note.format(**values) in str(means) and note.format(**values) in means._repr_html_() for note in notes)


def test_means_do_depend_on_what_the_notes_name():
    """And on nothing else: moved to other values of a variable, means without a note of it stay the same."""
    result = fitted("arm*week + sex")
    moved = result.emmeans("arm", at={"week": 0.0}, contrasts="pairwise")
    here = result.emmeans("arm", contrasts="pairwise")
    assert not np.allclose(moved.comparison.estimate, here.comparison.estimate)
    other = result.emmeans("arm", at={"sex": "m"}, contrasts="pairwise")
    np.testing.assert_allclose(other.comparison.estimate, here.comparison.estimate, **EXACT)
    assert not np.allclose(other.estimate, here.estimate)
