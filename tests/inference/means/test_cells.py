"""Averages weighted by the rows of the data: against averages of predictions over the rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.inference.means.grid import ReferenceGrid

EXACT = {"rtol": 1e-9, "atol": 1e-11}


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    n = 400
    frame = pd.DataFrame(
        {
            "arm": np.array(["a", "b", "c"])[rng.choice(3, n, p=[0.6, 0.3, 0.1])],
            "sex": np.array(["f", "m"])[rng.choice(2, n, p=[0.7, 0.3])],
            "site": np.array(["n", "o", "p", "q"])[rng.choice(4, n, p=[0.1, 0.2, 0.3, 0.4])],
            "x": rng.normal(size=n),
            "who": np.repeat(np.arange(40), 10),
        }
    )
    frame["y"] = rng.normal(size=n) + frame["x"] * (frame["arm"] == "b") + rng.normal(size=40)[frame["who"]]
    return frame


def by_rows(result, frame, names, kind):
    """Averages of the design over the rows themselves, with the covariate at its mean and the levels of each mean."""
    frame = frame.assign(x=data()["x"].mean())
    others = [name for name in ("arm", "sex", "site") if name not in names]
    out = []
    cells = frame[names].drop_duplicates().sort_values(names[::-1]).itertuples(index=False)
    for cell in cells:
        levels = dict(zip(names, cell, strict=True))
        same = np.logical_and.reduce([frame[name] == level for name, level in levels.items()])
        rows = frame if kind == "proportional" else frame[same]
        if kind == "flat":
            rows = rows.drop_duplicates(others)
        out.append(result.model.spec.fixed(rows.assign(**levels)).mean(axis=0))
    return np.array(out)


@pytest.mark.parametrize("kind", ["proportional", "cells", "flat"])
@pytest.mark.parametrize("names", [["arm"], ["site"], ["sex", "arm"]])
@pytest.mark.parametrize("fixed", ["arm * sex * site + arm * x ", "arm + sex * x + C(site, Sum)", "0 + arm:sex + site"])
def test_means_are_averages_over_rows(kind, names, fixed):
    frame = data()
    frame = frame[~((frame["arm"] == "c") & (frame["site"] == "n"))] if kind == "flat" else frame
    result = flc.lmm(f"y ~ {fixed} + (1 | who)", frame).fit()
    expected = by_rows(result, frame.assign(x=0.0), names, kind)
    found = ReferenceGrid(result.model, {"x": data()["x"].mean()} if " x " in fixed else None, kind).functions(names)
    np.testing.assert_allclose(found, expected, **EXACT)


def test_means_by_cells_of_the_saturated_model_are_those_of_the_rows():
    # ordinary means of a model with all interactions and no random effects to speak of
    frame = data().assign(y=lambda d: d["y"].round(3))
    model = flc.lmm("y ~ arm * sex * site + (1 | who)", frame)
    result = model.fit()
    found = result.emmeans("arm", weights="cells")
    fitted = result.predict(frame, effects="population")
    np.testing.assert_allclose(found.estimate, pd.Series(fitted).groupby(frame["arm"].to_numpy()).mean(), rtol=1e-9)
    assert "Averaged over sex, site, in proportion to the rows of each mean." in found.notes


def test_weights_with_a_selection_of_levels_and_values():
    frame = data()
    result = flc.lmm("y ~ arm * sex + x * sex + (1 | who)", frame).fit()
    found = result.emmeans("sex", at={"arm": ["c", "a"], "x": [0.0, 3.0]}, weights="proportional")
    share = (frame["arm"] == "a").sum() / frame["arm"].isin(["a", "c"]).sum()
    cells = result.emmeans(["arm", "sex"], at={"x": 1.5})
    table = cells.estimate.reshape(2, 3)
    np.testing.assert_allclose(found.estimate, share * table[:, 0] + (1.0 - share) * table[:, 2], rtol=1e-9)


def test_nested_factors_are_averaged_over_what_exists():
    frame = data()
    frame = frame.assign(clinic=frame["sex"] + frame["site"])  # eight clinics, four of each sex
    result = flc.lmm("y ~ sex + sex:clinic + (1 | who)", frame).fit()
    found = result.emmeans("sex", weights="flat")
    mean = result.predict(frame.drop_duplicates("clinic"), effects="population")
    sexes = frame.drop_duplicates("clinic")["sex"].to_numpy()
    np.testing.assert_allclose(found.estimate, [mean[sexes == sex].mean() for sex in ("f", "m")], rtol=1e-8)
    with pytest.warns(UserWarning, match="cannot be estimated"):
        assert np.isnan(result.emmeans("sex").estimate).all()


def test_means_by_visit_with_structured_residuals():
    frame = flc.datasets.load("fev")
    result = flc.lmm("FEV1 ~ RACE + SEX + ARMCD * AVISIT", frame, residual="us(AVISIT | USUBJID)").fit()
    used = pd.DataFrame(frame).dropna(subset=["FEV1"])
    found = result.emmeans("ARMCD", by="AVISIT", weights="proportional", contrasts="revpairwise", ddf="kenward-roger")
    rows = []
    for visit in dict.fromkeys(found.labels["AVISIT"]):
        for arm in dict.fromkeys(found.labels["ARMCD"]):
            rows.append(result.model.spec.fixed(used.assign(AVISIT=visit, ARMCD=arm)).mean(axis=0))
    np.testing.assert_allclose(found.L, np.array(rows), **EXACT)
    # differences between arms do not depend on how race and sex are weighted
    equal = result.emmeans("ARMCD", by="AVISIT", contrasts="revpairwise", ddf="kenward-roger")
    np.testing.assert_allclose(found.comparison.estimate, equal.comparison.estimate, rtol=1e-8)
    np.testing.assert_allclose(found.comparison.df, equal.comparison.df, rtol=1e-6)


def test_slopes_are_weighted_too():
    frame = data()
    result = flc.lmm("y ~ x * sex + (1 | who)", frame).fit()
    share = (frame["sex"] == "m").mean()
    slope = result.params["x"] + share * result.params["x:sex[T.m]"]
    np.testing.assert_allclose(result.slopes("x", weights="proportional").estimate, [slope], rtol=1e-7)


def test_refuses():
    result = flc.lmm("y ~ x:arm + sex + (1 | who)", data()).fit()
    with pytest.raises(flc.LMMError, match="weights='rows' is unknown: use one of equal"):
        result.emmeans("sex", weights="rows")
    with pytest.raises(flc.LMMError, match="rows of each level of 'arm' cannot be told"):
        result.emmeans("sex", weights="cells")
