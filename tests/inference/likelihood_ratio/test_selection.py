"""Backward elimination against fits and tests that are made one by one."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits

MAXIMAL = "y ~ c * f + z + (c * f | s) + (c | i)"


@pytest.fixture(scope="module")
def maximal():
    """Crossed: of the slopes only that of c by s is there."""
    rng = np.random.default_rng(1)
    s, i = np.repeat(np.arange(20), 24), np.tile(np.arange(24), 20)
    c, f = np.where((s + i) % 2, "a", "b"), np.where(i % 4 < 2, "hi", "lo")
    y = 500.0 + 30.0 * (c == "a") + 20.0 * (f == "hi") + rng.normal(0, 40, 20)[s] + rng.normal(0, 25, 24)[i]
    y = y + rng.normal(0, 40, 20)[s] * (c == "a") + rng.normal(0, 60, 480)
    data = pd.DataFrame({"y": y, "c": c, "f": f, "s": s, "i": i, "z": rng.standard_normal(480)})
    data.loc[5, "z"] = np.nan
    return data


def test_each_step_is_the_least_needed(maximal):
    """Of all models with one thing less, by `compare` of separate fits to the same rows."""
    fit = flc.lmm(MAXIMAL, maximal).fit()
    found = fit.simplify()
    assert found.result.nobs == 479 and found.result.converged
    rows = maximal.dropna()
    fixed, current = "y ~ c * f + z", "(c * f | s) + (c | i)"
    ways = {
        "(c * f | s) + (c | i)": {
            "correlations of (c + f + c:f | s)": "(c * f || s) + (c | i)", "c:f | s": "(c + f | s) + (c | i)",
            "correlations of (c | i)": "(c * f | s) + (c || i)", "c | i": "(c * f | s) + (1 | i)",
        },
    }  # fmt: skip
    first = found.steps[0]
    large = flc.lmm(f"{fixed} + {current}", rows).fit()
    tests = {name: flc.compare(flc.lmm(f"{fixed} + {way}", rows).fit(), large) for name, way in ways[current].items()}
    best = max(tests, key=lambda name: tests[name].rows[1].pvalue)
    row = tests[best].rows[1]
    assert first.left_out == best
    assert first.pvalue == pytest.approx(row.pvalue, rel=1e-4, abs=1e-6)
    assert first.statistic == pytest.approx(row.statistic, abs=1e-5)
    assert first.aic_change == pytest.approx(row.statistic - 2.0 * row.df, abs=1e-5)
    assert fit.singular and first.rank == "1 of 2 (i), 3 of 4 (s)" and fit.random_effects_rank == {"i": 1, "s": 3}


def test_what_is_there_stays(maximal):
    found = flc.lmm(MAXIMAL, maximal).fit().step()
    assert "(c | s)" in found.formula or "(c || s)" in found.formula
    assert {"c:f", "c:f | s"} <= {one.left_out for one in found.steps}
    assert all(one.pvalue > 0.1 or math.isnan(one.pvalue) for one in found.steps if "|" in one.left_out)
    for one in found.steps:
        if "|" not in one.left_out:
            small = flc.lmm(one.formula, maximal.dropna()).fit(reml=False)
            assert one.aic == pytest.approx(small.aic, abs=1e-6) and one.aic_change < 0.0
    table = found.to_frame()
    assert list(table["formula"])[-1] == found.formula
    assert "Remaining: " in str(found) and "<table" in found.as_html()


def test_a_column_left_out_brings_no_rows_back(maximal):
    """Rows that lack a covariate stay away when it goes: the fits compared are of the same rows."""
    data = maximal.assign(f=maximal.f.mask(maximal.index == 7))
    found = flc.lmm("y ~ c + f + z + (1 | s) + (1 | i)", data).fit().step()
    assert [step.left_out for step in found.steps] == ["f"]
    assert found.result.nobs == 478


def test_nothing_to_leave_out():
    fit = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    found = fit.simplify()
    assert found.steps == () and found.result is fit and "Nothing was left out." in str(found)
    assert len(found.to_frame()) == 0


def test_the_boundary_is_respected():
    """Orthodont: the slope's p-value is that of the mixture, half way between one and two degrees of freedom."""
    fit = fits.fitted("distance ~ age + (age | Subject)", "orthodont")
    found = fit.simplify(alpha=1e-9)
    assert found.steps and found.steps[0].left_out == "correlations of (age | Subject)"
    second = found.steps[1]
    assert second.left_out == "age | Subject" and second.df == 1
    from scipy.stats import chi2

    assert second.pvalue == pytest.approx(0.5 * chi2.sf(second.statistic, 1), rel=1e-9)


def test_refused():
    data = flc.datasets.load("sleepstudy")
    arrays = flc.LinearMixedModel(data["Reaction"].to_numpy(), None, None, data["Subject"].to_numpy()).fit()
    with pytest.raises(flc.LMMError, match="simplify\\(\\) rewrites a formula"):
        arrays.simplify()
    with pytest.raises(flc.LMMError, match="alpha"):
        fits.fitted(fits.SLEEPSTUDY, "sleepstudy").step(alpha=2.0)
    structured = flc.lmm("Reaction ~ Days + (1 | Subject)", data, residual="ar1(Days | Subject)").fit()
    with pytest.raises(flc.LMMError, match="step\\(\\)"):
        structured.step()
    with pytest.raises(flc.LMMError, match="null"):
        fits.fitted(fits.SLEEPSTUDY, "sleepstudy").simplify(null="mixtures")
