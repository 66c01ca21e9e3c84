"""Levels: those that no row has, those that the fit never saw, and columns that have one only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

N = 120
LIBRARIES = ["pandas", "polars", "pyarrow", "pyarrow, ordered"]


def text() -> dict:
    """A table whose column h has the levels a, b, c, d; as text."""
    rng = np.random.default_rng(21)
    g = np.repeat(np.arange(12), 10)
    h = np.array(list("abcd"))[rng.integers(0, 4, N)]
    x = rng.standard_normal(N)
    effect = rng.standard_normal((12, 4))[g, np.searchsorted(list("abcd"), h)]
    y = x + 0.5 * np.searchsorted(list("abcd"), h) + effect + 0.7 * rng.standard_normal(N)
    return {"y": y, "x": x, "h": h, "g": np.array([f"s{k:02d}" for k in g])}


def declared(columns: dict, library: str, h=tuple("abcd"), g=tuple(f"s{k:02d}" for k in range(12))):
    """The table with h and g declared categorical, their levels in the order given."""
    if library == "pandas":
        frame = pd.DataFrame(columns)
        return frame.assign(h=pd.Categorical(frame["h"], h), g=pd.Categorical(frame["g"], g))
    if library == "polars":
        return pl.DataFrame(columns).with_columns(pl.col("h").cast(pl.Enum(h)), pl.col("g").cast(pl.Enum(g)))
    made = {name: pa.array(values) for name, values in columns.items()}
    for name, levels in (("h", h), ("g", g)):
        codes = pa.array([levels.index(value) for value in columns[name]], pa.int32())
        made[name] = pa.DictionaryArray.from_arrays(codes, list(levels), ordered=library.endswith("ordered"))
    return pa.table(made)


def without(library: str, *levels: str, last_groups: int = 2):
    """The table as a filter leaves it, and the same rows as text."""
    columns = text()
    keep = ~np.isin(columns["h"], levels) & (columns["g"] < f"s{12 - last_groups:02d}")
    whole = declared(columns, library)
    rows = np.flatnonzero(keep)
    taken = whole.iloc[rows] if library == "pandas" else whole[rows] if library == "polars" else whole.take(rows)
    return taken, pd.DataFrame(columns)[keep]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("gone", ["b", "a", "d", "ac"])
def test_levels_that_no_row_has_are_left_out_of_both_parts(library, gone):
    data, plain = without(library, *gone)
    formula = "y ~ h*x + (h | g)"
    found, wanted = flc.lmm(formula, data), flc.lmm(formula, plain)
    assert found.exog_names == wanted.exog_names and found.exog_re_names == wanted.exog_re_names
    np.testing.assert_array_equal(found.exog, wanted.exog)
    np.testing.assert_array_equal(found.exog_re, wanted.exog_re)
    fit = found.fit()
    assert fit.n_groups == {"g": 10}
    first = min(set("abcd") - set(gone))
    assert f"h[T.{first}]" not in found.exog_names and not fit.dropped_columns
    note = str(fit.summary())
    named = ", ".join(gone)
    assert f"Levels without rows, left out: {len(gone)} of h ({named}); 2 of g (s10, s11)." in note
    assert "Levels without rows" in fit.summary()._repr_html_()
    assert "Levels without rows" not in str(wanted.fit().summary())


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow, ordered"])
def test_the_declared_order_stays(library):
    columns = text()
    keep = columns["h"] != "c"
    kept = {name: values[keep] for name, values in columns.items()}
    model = flc.lmm("y ~ h + (1 | g)", declared(kept, library, h=("d", "c", "b", "a")))
    assert model.exog_names == ("Intercept", "h[T.b]", "h[T.a]")
    np.testing.assert_array_equal(model.exog[:, 1:], [[v == "b", v == "a"] for v in kept["h"]])


def test_levels_of_dropped_rows_only_are_left_out_too():
    data = declared(text(), "pandas")
    data.loc[data.h == "b", "x"] = np.nan
    fit = flc.lmm("y ~ x + h + (h | g)", data).fit()
    assert fit.model.exog_names == ("Intercept", "x", "h[T.c]", "h[T.d]")
    assert "1 of h (b)." in str(fit.summary())


def test_missing_values_are_counted_by_column():
    data = pd.DataFrame(text())
    data.loc[[1, 5, 7], "x"] = np.nan
    data.loc[[5, 9], "h"] = None
    data["w"] = 1.0
    data.loc[20, "w"] = np.nan
    fit = flc.lmm("y ~ x + h + (1 | g)", data, weights="w").fit()
    text_of = str(fit.summary())
    assert "Rows dropped: 5 (missing values)" in text_of and "Values missing: 3 in x, 2 in h, 1 in weights." in text_of
    assert "Values missing" not in str(flc.lmm("y ~ x + (1 | g)", text()).fit().summary())


def test_many_levels_without_rows_are_counted():
    data = declared(text(), "pandas", g=tuple(f"s{k:02d}" for k in range(100)))
    assert "Levels without rows, left out: 88 of g." in str(flc.lmm("y ~ x + (1 | g)", data).fit().summary())


@pytest.mark.parametrize("library", LIBRARIES)
def test_levels_that_the_fit_never_saw_are_refused(library):
    data, _ = without(library, "b")
    fit = flc.lmm("y ~ h + (h | g)", data).fit()
    new = declared(
        {name: values[:3] for name, values in (text() | {"h": np.array(["a", "b", "c"] * 40)}).items()}, library
    )
    for effects in ("population", "all"):
        with pytest.raises(LMMError, match=r"Column 'h' of `data`.* has the level 'b' that the fit has not seen"):
            fit.predict(new, effects=effects)
    with pytest.raises(LMMError, match=r"'b'"):
        fit.emmeans("h", at={"h": ["a", "b"]})
    # a level that new data declare but do not have does no harm
    np.testing.assert_allclose(fit.predict(data)[:5], fit.marginal_mean[:5], rtol=1e-12)


@pytest.mark.parametrize(
    "formula", ["y ~ x + h + (1 | g)", "y ~ x*C(h) + (1 | g)", "y ~ x + (h | g)", "y ~ 0 + h + (1 | g)"]
)
@pytest.mark.parametrize("library", ["dict", *LIBRARIES])
def test_a_factor_of_one_level_is_refused(library, formula):
    columns = text()
    one = {name: values[columns["h"] == "c"] for name, values in columns.items()}
    data = one if library == "dict" else declared(one, library)
    with pytest.raises(
        LMMError, match=r"h\)?' in the .* of the formula has one level, 'c', in the rows used; leave it"
    ):
        flc.lmm(formula, data)
