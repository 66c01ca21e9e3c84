"""Tests of terms left out: against fits of the formulas without them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    n = 240
    frame = pd.DataFrame(
        {
            "arm": np.array(["a", "b", "c"])[rng.integers(0, 3, n)],
            "sex": np.array(["f", "m"])[rng.integers(0, 2, n)],
            "x": rng.normal(size=n),
            "who": np.repeat(np.arange(24), 10),
        }
    )
    frame["y"] = 0.3 * frame["x"] + rng.normal(size=24)[frame["who"]] + rng.normal(size=n)
    return frame


@pytest.mark.parametrize(
    ("fixed", "without"),
    [
        ("arm + sex + x", {"arm": "sex + x", "sex": "arm + x", "x": "arm + sex"}),
        ("arm * sex + x", {"x": "arm * sex", "arm:sex": "arm + sex + x"}),
        ("C(arm, Sum) * x + sex", {"sex": "arm * x", "C(arm, Sum):x": "arm + x + sex"}),
        ("x + np.log1p(x ** 2)", {"x": "np.log1p(x ** 2)", "np.log1p(x ** 2)": "x"}),
        ("0 + arm + sex", {"arm": "0 + sex", "sex": "0 + arm"}),
        ("0 + arm + x", {"arm": "0 + x", "x": "0 + arm"}),
    ],
)
@pytest.mark.parametrize("reml", [True, False])
def test_terms_are_those_of_formulas_without_them(fixed, without, reml):
    result = flc.lmm(f"y ~ {fixed} + (x | who)", data()).fit(reml=reml)
    found = result.drop1()
    assert [row.name for row in found.rows] == ["all terms", *(f"without {name}" for name in without)]
    for row, formula in zip(found.rows[1:], without.values(), strict=True):
        smaller = flc.lmm(f"y ~ {formula} + (x | who)", data()).fit(reml=False)
        small, large = flc.compare(smaller, result).rows
        assert row.n_parameters == small.n_parameters
        assert row.llf == pytest.approx(small.llf, abs=1e-6)
        assert row.aic == pytest.approx(small.aic, abs=1e-6)
        assert row.df == large.df
        assert row.statistic == pytest.approx(large.statistic, abs=1e-6)
        assert row.pvalue == pytest.approx(large.pvalue, abs=1e-6)
    assert bool(found.notes and "Refitted" in found.notes[0]) == reml
    assert not found.reml


def test_structured_residuals_and_arrays(rng):
    fev = flc.datasets.load("fev")
    result = flc.lmm("FEV1 ~ RACE + SEX + ARMCD * AVISIT", fev, residual="cs(AVISIT | USUBJID)").fit()
    row = result.drop1("ARMCD:AVISIT").rows[1]
    smaller = flc.lmm("FEV1 ~ RACE + SEX + ARMCD + AVISIT", fev, residual="cs(AVISIT | USUBJID)").fit(reml=False)
    assert row.llf == pytest.approx(smaller.llf, abs=1e-6)
    assert row.df == 3
    X = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    groups = np.repeat(np.arange(12), 5)
    y = rng.normal(size=60) + rng.normal(size=12)[groups]
    arrays = flc.LinearMixedModel(y, X, np.ones((60, 1)), groups).fit()
    found = arrays.drop1()
    assert len(found.rows) == 3
    smaller = flc.LinearMixedModel(y, X[:, :2], np.ones((60, 1)), groups).fit(reml=False)
    assert found.rows[2].llf == pytest.approx(smaller.llf, abs=1e-7)


def test_bootstrap_draws_from_the_fit_without_the_term():
    result = flc.lmm("y ~ arm + x + (1 | who)", data()).fit()
    row = result.drop1("arm", null="bootstrap", n_sim=400, seed=1).rows[1]
    assert "bootstrap" in row.null
    assert row.pvalue == pytest.approx(result.drop1("arm").rows[1].pvalue, abs=0.1)


def test_refuses():
    result = flc.lmm("y ~ arm * sex + x + (1 | who)", data()).fit()
    with pytest.raises(flc.LMMError, match="'arm' is part of 'arm:sex'"):
        result.drop1("arm")
    with pytest.raises(flc.LMMError, match="'z' is not a term of the fixed part that can be left out"):
        result.drop1("z")
    assert result.drop1("sex:arm").rows[1].name == "without arm:sex"
    alone = flc.lmm("y ~ 1 + (1 | who)", data()).fit()
    with pytest.raises(flc.LMMError, match="no term that could be left out"):
        alone.drop1()
