"""Missing values: rows of new data that are NaN in predictions, rows of the fit that are NaN in its results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

import fastlmm_core as flc
import fits

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def holes():
    data = flc.datasets.load("sleepstudy", "pandas")
    data.index = [f"row {k}" for k in range(180)]
    data.loc["row 3", "Reaction"] = np.nan
    data.loc["row 20", "Days"] = np.nan
    data.loc["row 21", "Subject"] = None
    return data


@pytest.mark.parametrize("effects", ["population", "all"])
@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
def test_rows_with_gaps_are_nan(holes, effects, interval):
    fit = fits.fitted(FORMULA, "sleepstudy")
    lost = {20} if effects == "population" and interval != "prediction" else {20, 21}
    kept = [k for k in range(180) if k not in lost]
    found = fit.predict(holes, effects, interval=interval, missing="nan")
    expected = fit.predict(holes.iloc[kept], effects, interval=interval)
    assert list(found.index) == list(holes.index)
    pd.testing.assert_index_equal(found.iloc[kept].index, expected.index)
    np.testing.assert_array_equal(found.iloc[kept], expected)
    assert np.isnan(np.asarray(found.iloc[sorted(lost)], dtype=float)).all()
    other = fit.predict(pl.from_pandas(holes.reset_index(drop=True)), effects, interval=interval, missing="nan")
    ours = other["mean"].to_numpy() if interval else other
    np.testing.assert_array_equal(ours, found["mean"] if interval else found)
    with pytest.raises(flc.LMMError, match=r"(?i)missing"):
        fit.predict(holes, effects, interval=interval)


def test_offsets_and_weights_are_of_all_rows(holes):
    data = flc.datasets.load("sleepstudy", "pandas").assign(o=1.0)
    fit = flc.lmm(FORMULA, data, offset="o").fit()
    holes = holes.assign(o=1.0)
    given = pd.Series(np.arange(180.0), index=holes.index)
    found = fit.predict(holes, offset=given, missing="nan")
    plain = fit.predict(holes, offset=np.zeros(180), missing="nan")
    np.testing.assert_allclose((found - plain).dropna(), np.delete(np.arange(180.0), 20))
    named = fit.predict(holes.assign(o=[np.nan, *[2.0] * 179]), missing="nan")
    assert list(np.flatnonzero(named.isna())) == [0, 20]


def test_refused(holes):
    fit = fits.fitted(FORMULA, "sleepstudy")
    with pytest.raises(flc.LMMError, match="use 'raise' or 'nan'"):
        fit.predict(holes, missing="drop")
    with pytest.raises(flc.LMMError, match="Every row has a missing value"):
        fit.predict(holes.iloc[[20]], missing="nan")
    arrays = flc.LinearMixedModel(np.arange(8.0) % 3, None, None, np.arange(8) // 2).fit()
    with pytest.raises(flc.LMMError, match="needs a model from a formula"):
        arrays.predict({"X": np.ones((2, 1))}, missing="nan")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_results_are_padded(holes, library, tmp_path):
    """As with na.exclude: everything by row has the length of the table, with gaps where rows were left out."""
    data = holes if library == "pandas" else pl.from_pandas(holes.reset_index(drop=True))
    plain, fit = flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, data, missing="pad").fit()
    assert fit.nobs == 177 and fit.criterion == plain.criterion
    kept = np.delete(np.arange(180), [3, 20, 21])
    fit.save(tmp_path / "fit.lmm")
    for one in (fit, flc.load(tmp_path / "fit.lmm"), fit.update("log(.) ~ .").update("np.exp(.) ~ .")):
        for name in ("fittedvalues", "resid", "marginal_mean"):
            found, expected = np.asarray(getattr(one, name)), np.asarray(getattr(plain, name))
            assert len(found) == 180 and np.isnan(found[[3, 20, 21]]).all()
            if one is not fit:
                continue
            np.testing.assert_array_equal(found[kept], expected)
    assert len(fit.residuals("studentized")) == 180
    assert len(fit.predict(interval="confidence")) == 180 and len(fit.augment()) == 180
    if library == "pandas":
        assert list(fit.resid.index) == list(holes.index)
        assert holes.assign(r=fit.resid)["r"].isna().sum() == 3
    with pytest.raises(flc.LMMError, match="missing"):
        flc.lmm(FORMULA, data, missing="fill")
