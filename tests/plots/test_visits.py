"""The plot of the covariance of structured residuals."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from fastlmm_core import plots  # noqa: E402


@pytest.fixture(scope="module")
def fev():
    return flc.datasets.load("fev")


def test_correlations_and_deviations(fev):
    fit = flc.lmm("FEV1 ~ ARMCD * AVISIT", fev, residual="us(AVISIT | USUBJID)").fit()
    S = fit.residual_covariance()
    table = plots.residual_covariance(fit, data=True)
    assert len(table) == 16
    for row, column, correlation, covariance in table[["row", "column", "correlation", "covariance"]].to_numpy():
        assert covariance == pytest.approx(S.loc[row, column], rel=1e-12)
        assert correlation == pytest.approx(covariance / np.sqrt(S.loc[row, row] * S.loc[column, column]), rel=1e-12)
    ax = plots.residual_covariance(fit)
    words = [text.get_text() for text in ax.texts]
    assert f"{np.sqrt(S.iloc[3, 3]):.3g}" in words
    assert f"{S.iloc[1, 0] / np.sqrt(S.iloc[0, 0] * S.iloc[1, 1]):.2f}" in words and len(words) == 10
    drawn = ax.collections[0].get_array()
    assert drawn.mask.sum() == 10 and drawn[1, 0] == pytest.approx(S.iloc[1, 0] / np.sqrt(S.iloc[0, 0] * S.iloc[1, 1]))
    assert ax.get_title() == "us(AVISIT | USUBJID)"


def test_levels_and_refusals(fev):
    fit = flc.lmm("FEV1 ~ ARMCD * AVISIT", fev, residual="ar1h(AVISIT | USUBJID, by=ARMCD)").fit()
    both = fit.residual_covariance()
    for level in ("PBO", "TRT"):
        table = plots.residual_covariance(fit, level, data=True)
        np.testing.assert_allclose(table["covariance"].to_numpy().reshape(4, 4), both[level], rtol=1e-12)
    assert "ARMCD PBO" in plots.residual_covariance(fit).get_title()
    with pytest.raises(flc.LMMError, match="level='none' is not a level of 'ARMCD'"):
        plots.residual_covariance(fit, "none")
    with pytest.raises(flc.LMMError, match="independent"):
        plots.residual_covariance(flc.lmm("FEV1 ~ ARMCD + (1 | USUBJID)", fev).fit())
    line = flc.lmm("FEV1 ~ ARMCD", fev, residual="car1(VISITN | USUBJID)").fit()
    with pytest.raises(flc.LMMError, match="coordinates"):
        plots.residual_covariance(line)
    plain = flc.lmm("FEV1 ~ ARMCD", fev, residual="cs(AVISIT | USUBJID)").fit()
    with pytest.raises(flc.LMMError, match="no by"):
        plots.residual_covariance(plain, "PBO")
