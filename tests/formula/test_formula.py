"""Formula and table to arrays: formulaic, pandas and hand-made arrays are the oracles."""

from __future__ import annotations

import datetime
import decimal
import pickle
import subprocess
import sys

import formulaic
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlmm_core as flc
from fastlmm_core.errors import LMMError
from fastlmm_core.formula.specification import FormulaSpec, model_data
from fastlmm_core.tables.columns import Column, Table
from fastlmm_core.tables.labels import integer_codes

N = 24


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    return pd.DataFrame(
        {
            "y": rng.normal(size=N),
            "x": rng.normal(size=N),
            "t": np.arange(N) % 6,
            "u": rng.uniform(1, 2, N),
            "flag": rng.integers(0, 2, N).astype(bool),
            "a": np.resize(["lo", "hi", "mid"], N),
            "c": pd.Categorical(np.resize(["p", "q", "r", "q"], N), categories=["r", "q", "p", "unused"]),
            "g": np.resize([30, 10, 20], N),
            "h": np.repeat(["v", "u"], N // 2),
            "my col": rng.normal(size=N),
            "d.t": rng.uniform(1, 2, N),
        }
    )


def in_library(columns: dict, library: str):
    return {
        "pandas": pd.DataFrame,
        "polars": pl.DataFrame,
        "pyarrow": pa.table,
        "dict": dict,
        "lists": lambda d: {k: list(v) for k, v in d.items()},
    }[library](columns)


def oracle(formula: str, data: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    if "c" in data:
        data = data.assign(c=data["c"].cat.remove_unused_categories())
    made = formulaic.model_matrix(formula, data, na_action="raise", context={})
    return np.asarray(made, dtype=float), tuple(made.columns)


# --- the matrices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "fixed", "bar"),
    [
        ("y ~ x + (x | g)", "x", "x"),
        ("y~(1|g)", "1", "1"),
        ("y ~ 1 + (1|g)", "1", "1"),
        ("y ~ 0 + x + (0 + x | g)", "0 + x", "0 + x"),
        ("y ~ x - 1 + (x - 1 | g)", "x - 1", "x - 1"),
        ("y ~ (t|g) + x", "x", "t"),
        ("y ~ (t|g) - 1 + x", "-1 + x", "t"),
        ("y ~ u + (1|g) + x", "u + x", "1"),
        ("y ~ x*t + t:u + ((x:t | g))", "x*t + t:u", "x:t"),
        ("y ~ flag + t + x + x\n + ( t\n |\n g )", "flag + t + x", "t"),
        ("y ~ a*x + c + (a | g)", "a*x + c", "a"),
        ("y ~ 0 + a + (0 + c || g)", "0 + a", "0 + c"),
        (
            "y ~ np.log(u) + poly(t, 2) + C(a) + center(t) + (center(t) | g)",
            "np.log(u) + poly(t, 2) + C(a) + center(t)",
            "center(t)",
        ),
        ("y ~ C(t, contr.sum) + scale(x) + (1 | g)", "C(t, contr.sum) + scale(x)", "1"),
        (
            "y ~ `my col` + d.t + `my col`:d.t + np.exp(`my col`) + log(`d.t`) + (`my col` | g)",
            "`my col` + d.t + `my col`:d.t + np.exp(`my col`) + log(`d.t`)",
            "`my col`",
        ),
        (
            "y ~ I(flag | flag) + {x + (t * 2)} + (I((x + 1) * t) | g)",
            "I(flag | flag) + {x + (t * 2)}",
            "I((x + 1) * t)",
        ),
        ("y ~ bs(x, df=4) + (1 | g)", "bs(x, df=4)", "1"),
        ("y ~ a.str.len() + {a == 'lo'} + (1 | g)", "a.str.len() + {a == 'lo'}", "1"),
        ("y ~ (x + t)**2 + (1 | g)", "(x + t)**2", "1"),
        ("y ~ x + 2:t + (1 | g)", "x + 2:t", "1"),
    ],
)
def test_matrices_are_those_of_formulaic(frame, formula, fixed, bar):
    made = model_data(formula, frame)
    want_x, names_x = oracle(fixed, frame)
    want_z, names_z = oracle(bar, frame)
    np.testing.assert_allclose(made.X, want_x, rtol=1e-13)
    assert made.x_names == names_x
    (term,) = made.terms
    np.testing.assert_allclose(term.Z, want_z, rtol=1e-13)
    assert term.columns == names_z
    assert term.name == "g"
    assert term.structure == ("diagonal" if "||" in formula else "full")
    np.testing.assert_array_equal(made.y, frame["y"])
    np.testing.assert_array_equal(term.labels[term.codes], frame["g"])
    for array in (made.X, term.Z, made.y):
        assert array.dtype == np.float64 and array.flags.c_contiguous and array.flags.writeable
        assert not np.shares_memory(array, frame["y"].to_numpy())
    assert term.codes.dtype == np.intp
    assert (made.n_dropped, made.kept, made.weights, made.offset) == (0, None, None, None)


def test_equal_sides_share_one_matrix(frame):
    for formula in ("y ~ x + (x | g)", "y ~ x + (1 + x | g)", "y ~ a + (a | g)"):
        made = model_data(formula, frame)
        assert made.terms[0].Z is made.X
    made = model_data("y ~ x + t + (t + x | g) + (t + x | h)", frame)
    assert made.terms[0].Z is not made.X and made.terms[0].Z is made.terms[1].Z


names = st.sampled_from(["x", "t", "u", "flag", "`my col`", "d.t"])
product = st.lists(names, min_size=1, max_size=3).map(":".join)
plain = st.tuples(st.sampled_from(["", "1 + ", "0 + "]), st.lists(product, min_size=1, max_size=4)).map(
    lambda parts: parts[0] + " + ".join(parts[1])
)


@settings(max_examples=150, deadline=None)
@given(fixed=plain, bar=plain, lose=st.sets(st.integers(0, 11), max_size=4))
def test_direct_matrices_equal_those_of_formulaic(fixed, bar, lose):
    rng = np.random.default_rng(5)
    data = pd.DataFrame(rng.normal(size=(12, 6)), columns=["y", "x", "t", "u", "my col", "d.t"])
    data["t"] = rng.integers(-5, 5, 12)
    data["flag"] = rng.integers(0, 2, 12).astype(bool)
    data["g"] = rng.integers(0, 3, 12)
    data.loc[list(lose), "y"] = np.nan
    made = model_data(f"y ~ {fixed} + ({bar} | g)", data)
    kept = data.dropna().astype({"flag": float})  # formulaic multiplies two booleans to a boolean
    want_x, names_x = oracle(fixed, kept)
    want_z, names_z = oracle(bar, kept)
    assert made.spec.states == (None, None, None)
    np.testing.assert_allclose(made.X, want_x, rtol=1e-14)
    np.testing.assert_allclose(made.terms[0].Z, want_z, rtol=1e-14)
    assert (made.x_names, made.terms[0].columns) == (names_x, names_z)
    assert made.n_dropped == len(lose)
    new = data.drop(columns=["y", "g"])
    np.testing.assert_allclose(made.spec.fixed(new), oracle(fixed, new.astype({"flag": float}))[0], rtol=1e-14)


def test_wide_plain_matrix_is_filled_across_blocks():
    rng = np.random.default_rng(0)
    data = {f"x{j}": rng.normal(size=5000) for j in range(7)} | {"y": np.zeros(5000), "g": np.arange(5000) % 9}
    made = model_data("y ~ " + " + ".join(f"x{j}" for j in range(7)) + " + x0:x1 + (1 | g)", data)
    want = np.column_stack([np.ones(5000), *(data[f"x{j}"] for j in range(7)), data["x0"] * data["x1"]])
    np.testing.assert_array_equal(made.X, want)


@pytest.mark.parametrize(
    ("response", "want"),
    [("np.log(u)", np.log), ("I(u**2 + 1)", lambda u: u**2 + 1), ("`u`", lambda u: u), ("u ", lambda u: u)],
)
def test_response_transforms(frame, response, want):
    made = model_data(f"{response} ~ x + (1|g)", frame)
    np.testing.assert_allclose(made.y, want(frame["u"].to_numpy()))
    assert made.y.shape == (N,) and made.response == response.strip().strip("`")
    np.testing.assert_allclose(made.spec.response(frame.tail(3)), want(frame["u"].to_numpy()[-3:]))


# --- terms and groups -----------------------------------------------------------------------------------------------


def test_slash_and_colon(frame):
    made = model_data("y ~ x + (x || g/h) + (1 | h:g) + (0 + t | h / (g:t)) + (1 | g)", frame)
    assert [(t.name, t.columns, t.structure) for t in made.terms] == [
        ("g", ("Intercept", "x"), "diagonal"),
        ("g:h", ("Intercept", "x"), "diagonal"),
        ("h:g", ("Intercept",), "full"),
        ("h", ("t",), "full"),
        ("h:g:t", ("t",), "full"),
        ("g", ("Intercept",), "full"),
    ]
    assert made.terms[1].labels.tolist() == ["10:u", "10:v", "20:u", "20:v", "30:u", "30:v"]
    for term in made.terms[1:3]:
        joined = [":".join(str(frame[name][i]) for name in term.name.split(":")) for i in range(N)]
        assert term.labels[term.codes].tolist() == joined


def test_interaction_follows_the_order_of_its_factors_and_keeps_only_what_occurs():
    data = {"y": [1.0, 2, 3, 4], "a": [10, 9, 9, 10], "b": [2, 11, 2, 2]}
    (term,) = model_data("y ~ 1 + (1 | a:b)", data).terms
    assert term.labels.tolist() == ["9:2", "9:11", "10:2"]
    assert term.codes.tolist() == [2, 1, 0, 2]


LABELS = {
    "text": (["b", "a", "é", "B", "b", "a"], ["B", "a", "b", "é"]),
    "integer": ([7, -2, 7, 0, 12, 0], [-2, 0, 7, 12]),
    "dense": ([2, 1, 0, 0, 1, 2], [0, 1, 2]),
    "wide": ([10**15, -(10**15), 5, 5, 10**15, 5], [-(10**15), 5, 10**15]),
    "float": ([0.5, -1.0, 0.5, 2.0, 2.0, -1.0], [-1.0, 0.5, 2.0]),
    "bool": ([True, False, True, True, False, True], [False, True]),
    "day": (
        [datetime.datetime(2020, 1, d) for d in (3, 1, 3, 2, 1, 3)],
        [np.datetime64(f"2020-01-0{d}") for d in (1, 2, 3)],
    ),
}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict", "lists"])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind(kind, library):
    values, want = LABELS[kind]
    data = in_library({"y": np.arange(6.0), "g": values}, library)
    made = model_data("y ~ 1 + (1|g)", data)
    (term,) = made.terms
    assert len(term.labels) == len(want)
    if kind == "day" and library in ("dict", "lists"):
        want = [day.item() for day in np.array(want, dtype="datetime64[s]")]
    assert all(got == expected for got, expected in zip(term.labels, want, strict=True))
    order = sorted(set(values))
    assert term.codes.tolist() == [order.index(value) for value in values]
    assert sorted(set(term.codes.tolist())) == list(range(len(want)))
    np.testing.assert_array_equal(made.spec.group_labels(data)["g"], term.labels[term.codes])


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["b", None, "a", "b"], dtype=object),
        pd.Series(["b", np.nan, "a", "b"], dtype="str"),
        pd.Series(["b", pd.NA, "a", "b"], dtype="string"),
        pd.Series(["b", None, "a", "b"], dtype="string[pyarrow]"),
        pl.Series(["b", None, "a", "b"]),
        pl.Series(["b", None, "a", "b"], dtype=pl.Categorical),
        pa.array(["b", None, "a", "b"]),
        pa.chunked_array([["b", None], ["a", "b"]]),
        pa.array(["b", None, "a", "b"], type=pa.large_string()),
        ["b", None, "a", "b"],
        ["b", float("nan"), "a", "b"],
        np.array(["b", None, "a", "b"], dtype=object),
    ],
    ids=lambda c: f"{type(c).__module__.split('.')[0]}-{getattr(c, 'dtype', getattr(c, 'type', 'list'))}",
)
def test_missing_text_labels(column):
    made = model_data("y ~ 1 + (1|g)", {"y": np.arange(4.0), "g": column})
    assert made.terms[0].labels.tolist() == ["a", "b"]
    assert made.terms[0].codes.tolist() == [1, 0, 1]
    assert made.kept.tolist() == [0, 2, 3] and made.n_dropped == 1


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.Categorical(["lo", "hi", None, "lo"], categories=["lo", "never", "hi"])),
        pl.Series(["lo", "hi", None, "lo"], dtype=pl.Enum(["lo", "never", "hi"])),
        pa.DictionaryArray.from_arrays(pa.array([0, 2, None, 0]), pa.array(["lo", "never", "hi"]), ordered=True),
    ],
    ids=["pandas", "polars", "pyarrow"],
)
def test_categories_keep_their_order_and_lose_the_unused(column):
    made = model_data("y ~ 1 + (1|g)", {"y": np.arange(4.0), "g": column})
    assert made.terms[0].labels.tolist() == ["lo", "hi"]
    assert made.terms[0].codes.tolist() == [0, 1, 0]


def test_a_label_that_only_dropped_rows_have_is_gone():
    made = model_data("y ~ 1 + (1|g) + (1|h)", {"y": [1, None, 2, 3], "g": list("azbb"), "h": [4, 9, 4, 6]})
    assert made.terms[0].labels.tolist() == ["a", "b"]
    assert made.terms[1].labels.tolist() == [4, 6]


def test_large_nullable_identifiers_keep_every_digit():
    ids = [9007199254740993, None, 9007199254740992, 9007199254740993]
    for column in (pd.array(ids, dtype="Int64"), pl.Series(ids), pa.array(ids)):
        made = model_data("y ~ 1 + (1|g)", {"y": np.arange(4.0), "g": column})
        assert made.terms[0].labels.tolist() == [9007199254740992, 9007199254740993]
        assert made.terms[0].codes.tolist() == [1, 0, 1]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.uint64]).flatmap(
        lambda dtype: st.lists(
            st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) | st.integers(0, 5), min_size=1, max_size=30
        ).map(lambda values: np.array(values, dtype=dtype))
    )
)
def test_integer_codes_equal_unique(values):
    labels, codes = np.unique(values, return_inverse=True)
    got_codes, got_labels = integer_codes(values)
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_array_equal(got_labels, labels)
    assert got_labels.dtype == values.dtype and got_codes.dtype == np.intp
    assert not np.shares_memory(got_codes, values)


# --- libraries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict", "lists"])
@pytest.mark.parametrize("formula", ["y ~ x + (x | g)", "y ~ x*flag + a + C(t) + (a | g:h)"])
def test_libraries_agree(frame, library, formula):
    want = model_data(formula, frame)
    plain = {name: frame[name].to_numpy() for name in ("y", "x", "t", "flag", "a", "g", "h")}
    got = model_data(formula, in_library(plain, library))
    np.testing.assert_array_equal(got.X, want.X)
    np.testing.assert_array_equal(got.terms[0].Z, want.terms[0].Z)
    np.testing.assert_array_equal(got.terms[0].codes, want.terms[0].codes)
    assert got.x_names == want.x_names and got.terms[0].labels.tolist() == want.terms[0].labels.tolist()
    assert got.spec.library == library.replace("lists", "dict")


def test_pandas_index_and_other_columns_do_not_matter(frame):
    odd = frame.set_index(pd.Index(np.resize([5, 5, 1], N)))
    odd["mess"] = [object()] * N
    for formula in ("y ~ x + (x|g)", "y ~ a + poly(x, 2) + (c|g)"):
        want, got = model_data(formula, frame), model_data(formula, odd)
        np.testing.assert_array_equal(got.X, want.X)
        np.testing.assert_array_equal(got.terms[0].Z, want.terms[0].Z)


NUMBERS = [
    pd.Series([1, None, 3], dtype="Int64"),
    pd.Series([1.0, None, 3.0], dtype="Float64"),
    pd.Series([1, None, 3], dtype="int64[pyarrow]"),
    pd.Series([1, None, 3], dtype="double[pyarrow]"),
    pd.Series([1, None, 3], dtype=object),
    pl.Series([1, None, 3]),
    pl.Series([1.0, float("nan"), 3.0]),
    pl.Series([decimal.Decimal("1.0"), None, decimal.Decimal("3.0")]),
    pa.array([1, None, 3]),
    pa.array([decimal.Decimal("1.0"), None, decimal.Decimal("3.0")]),
    [1, None, 3],
    (1.0, float("nan"), 3.0),
    np.array([1, np.nan, 3], dtype=np.float32),
    np.ma.masked_array([1, 2, 3], mask=[False, True, False]),
]


@pytest.mark.parametrize("column", NUMBERS, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'dtype', '')}")
@pytest.mark.parametrize("formula", ["y ~ x + (1|g)", "y ~ I(x + 0) + (1|g)"])
def test_missing_numbers_of_every_kind(column, formula):
    made = model_data(formula, {"y": [1.0, 2.0, 3.0], "x": column, "g": ["a", "b", "a"]})
    np.testing.assert_array_equal(made.X, [[1, 1], [1, 3]])
    assert made.kept.tolist() == [0, 2] and made.n_dropped == 1
    assert made.terms[0].labels.tolist() == ["a"]


def test_missing_booleans_and_dates():
    for flags in (pd.array([True, None, False], dtype="boolean"), pl.Series([True, None, False]), [True, None, False]):
        made = model_data("y ~ flag + (1|g)", {"y": [1.0, 2, 3], "flag": flags, "g": [1, 1, 2]})
        np.testing.assert_array_equal(made.X, [[1, 1], [1, 0]])
    days = pd.to_datetime(["2020-01-02", None, "2020-01-01"])
    made = model_data("y ~ 1 + (1|g)", pd.DataFrame({"y": [1.0, 2, 3], "g": days}))
    assert made.n_dropped == 1 and made.terms[0].codes.tolist() == [1, 0]
    zoned = days.tz_localize("Europe/Berlin")
    made = model_data("y ~ 1 + (1|g)", pd.DataFrame({"y": [1.0, 2, 3], "g": zoned}))
    assert made.terms[0].labels.tolist() == [zoned[2], zoned[0]]


def test_every_column_in_use_counts_as_missing(frame):
    frame = frame.astype({"g": float})
    frame["w"], frame["o"] = 2.0, np.arange(float(N))
    for row, name in enumerate(["y", "x", "t", "u", "g", "h", "w", "o"]):
        frame[name] = frame[name].astype(object if name == "h" else float)
        frame.loc[row, name] = None
    made = model_data("y ~ x + np.log(u) + center(t) + (t|g) + (1|h)", frame, weights="w", offset="o")
    kept = frame.iloc[8:]
    assert made.n_dropped == 8 and made.kept.tolist() == list(range(8, N))
    # A centre is that of the rows in the model, whatever else the column holds.
    want, _ = oracle("x + np.log(u) + center(t)", kept)
    np.testing.assert_allclose(made.X, want)
    np.testing.assert_array_equal(made.weights, np.full(N - 8, 2.0))
    np.testing.assert_array_equal(made.offset, np.arange(8.0, N))
    np.testing.assert_array_equal(made.y, kept["y"])


def test_weights_and_offset_as_arrays(frame):
    weights = np.linspace(1, 2, N)
    offset = pd.Series(np.arange(float(N)))
    offset.iloc[4] = np.nan
    made = model_data("y ~ x + (1|g)", frame, weights=weights, offset=offset)
    assert made.n_dropped == 1
    np.testing.assert_array_equal(made.weights, np.delete(weights, 4))
    np.testing.assert_array_equal(made.offset, np.delete(np.arange(float(N)), 4))
    assert made.spec.offset(frame) is None
    assert not np.shares_memory(model_data("y ~ x + (1|g)", frame, weights=weights).weights, weights)
    named = model_data("y ~ x + (1|g)", frame, offset="t")
    np.testing.assert_array_equal(named.spec.offset({"t": [5, 6]}), [5.0, 6.0])


# --- new data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_new_data_is_coded_as_in_the_fit(frame, library):
    formula = "y ~ a*center(t) + poly(x, 2) + c + C(g, contr.sum) + (scale(u) | h)"
    made = model_data(formula, frame)
    spec = pickle.loads(pickle.dumps(made.spec))
    assert isinstance(spec, FormulaSpec)
    rows = [5, 3, 20]
    part = frame.iloc[rows].reset_index(drop=True)
    columns = {name: part[name].to_numpy() for name in ("a", "t", "x", "g", "u", "h")}
    new = in_library(columns | {"c": np.asarray(part["c"], dtype=object)}, library)
    np.testing.assert_allclose(spec.fixed(new), made.X[rows], rtol=1e-12)
    (z,) = spec.random(new)
    np.testing.assert_allclose(z, made.terms[0].Z[rows], rtol=1e-12)
    assert spec.group_labels(new)["h"].tolist() == part["h"].tolist()
    np.testing.assert_array_equal(made.spec.response(frame), made.y)


def test_fixed_needs_neither_response_nor_groups(frame):
    made = model_data("np.log(u) ~ x + (t | g)", frame)
    np.testing.assert_array_equal(made.spec.fixed({"x": [1.0, 2.0]}), [[1, 1], [1, 2]])
    np.testing.assert_array_equal(made.spec.random({"t": [0, 3]})[0], [[1, 0], [1, 3]])
    with pytest.raises(LMMError, match=r"`new_data` has no column 'g', which the term \(t \| g\) uses"):
        made.spec.group_labels({"x": [1.0], "t": [0]})
    assert model_data("y ~ 1 + (1|g)", frame).spec.fixed({"anything": ["a", "b"]}).shape == (2, 1)


def test_new_groups_are_passed_on_and_integers_stay_integers(frame):
    spec = model_data("y ~ x + (1 | g) + (1 | g:h)", frame).spec
    new = pd.DataFrame({"x": [1.0, 2.0], "g": [10.0, 99.0], "h": ["u", "zz"]})
    single, nested = spec.group_labels(new).values()
    assert single.tolist() == [10, 99] and single.dtype.kind == "i"
    assert nested.tolist() == ["10:u", "99:zz"]
    assert list(spec.group_labels(new, ["g:h"])) == ["g:h"]


def test_terms_of_other_factors_are_left_out(frame):
    spec = model_data("y ~ x + (x | g) + (t | h) + (0 + u | g)", frame).spec
    assert spec.random_variables == ("x", "t", "u")
    first, second, third = spec.random(frame[["x", "u"]], ["g"])
    assert second is None
    np.testing.assert_array_equal(first, np.column_stack([np.ones(len(frame)), frame["x"]]))
    np.testing.assert_array_equal(third[:, 0], frame["u"])


def test_new_data_that_cannot_be_used(frame):
    made = model_data("y ~ a + C(t) + x + (c | g)", frame)
    good = frame.head(3)
    for column, value, message in [
        (
            "a",
            "huge",
            r"Column 'a' of `new_data`, which the fixed part uses, has the level 'huge' that the fit",
        ),
        ("t", 77, r"Column 't' of `new_data`.* has the level 77 that"),
    ]:
        bad = good.copy()
        bad.loc[1, column] = value
        with pytest.raises(LMMError, match=message):
            made.spec.fixed(bad)
    with pytest.raises(LMMError, match=r"Column 'c' of `new_data`, which the term \(c \| g\) uses, has the levels 's'"):
        made.spec.random(good.assign(c=["p", "s", "z"]))
    with pytest.raises(LMMError, match=r"Values are missing\. Column 'x' of `new_data` at row 2 \(counting from 0\)"):
        made.spec.fixed(good.assign(x=[1.0, 2.0, np.nan]))
    with pytest.raises(LMMError, match=r"Column 'g' of `new_data` at row 0"):
        made.spec.group_labels(good.assign(g=[None, 10, 20]))
    plain_spec = model_data("y ~ x + (1 | g)", frame).spec
    with pytest.raises(
        LMMError, match=r"Column 'x' of `new_data` holds values of type (str|object), but in the fit it held"
    ):
        plain_spec.fixed(good.assign(x=["1", "2", "3"]))
    with pytest.raises(LMMError, match=r"`new_data` must be a pandas or polars DataFrame"):
        plain_spec.fixed([1, 2])
    computed = model_data("y ~ C(a.str.upper()) + (1 | g)", frame).spec
    with pytest.raises(LMMError, match=r"categorical term in the fixed part .* meets levels that"):
        computed.fixed(good.assign(a=["lo", "hi", "new"]))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (3, r"`formula` must be a string such as .*, not 'int'"),
        ("x + (1|g)", r"has no '~' outside parentheses; write the response"),
        ("y ~ x ~ (1|g)", r"has 2 '~' outside parentheses"),
        (" ~ x + (1|g)", r"names no response; write it to the left of '~'"),
        ("y ~ x", r"'y ~ x' has no random-effects term; add one such as \(1 \| g\)"),
        ("y ~ x | g", r"stands outside parentheses; write it as \(1 \| g\)"),
        ("y ~ x + (1 | g", r"The '\(' at character 8 of .* is not closed; balance"),
        ("y ~ x + 1 | g)", r"The '\)' at character 13 of .* closes nothing"),
        ("y ~ np.log(x] + (1|g)", r"The '\]' at character 12 of .* closes nothing"),
        ("y ~ `x + (1|g)", r"The quote ` at character 4 of .* is not closed"),
        ("y ~ x + (|g)", r"term \(\|g\) of the formula has nothing to the left of its bar"),
        ("y ~ x + (1| )", r"term \(1\|\) of the formula has nothing to the right of its bar"),
        ("y ~ x + (1|g|h)", r"\(1\|g\|h\) of the formula must hold one bar"),
        ("y ~ x + (1|||g)", r"must hold one bar, as in \(x \| g\) or \(x \|\| g\)"),
        ("y ~ x + ((1|g)|h)", r"must hold one bar"),
        ("y ~ x*(1|g)", r"term \(1\|g\) of the formula must stand by itself; join it"),
        ("y ~ x - (1|g)", r"must stand by itself"),
        ("y ~ (1|g) x", r"must stand by itself"),
        ("y ~ (x + (1|g))", r"must hold one bar"),
        ("y ~ x + (1|g + h)", r"has 'g \+ h' to the right of its bar, where only a column, a:b or a/b"),
        ("y ~ x + (1|factor(g))", r"to the right of its bar, where only a column"),
        ("y ~ x + (0|g)", r"term \(0\|g\) has no columns on its left side; write e\.g\. \(1 \| g\)"),
        ("y ~ x + + * t + (1|g)", r"The fixed part of the formula, 'x \+ \+ \* t', cannot be read: "),
        ("y ~ x + 'text' + (1|g)", r"The fixed part of the formula, .*, cannot be read: String literals"),
        ("y ~ {x +} + (1|g)", r"The fixed part of the formula, '\{x \+\}', cannot be read: invalid syntax"),
        (
            "y ~ shout(x) + (1|g)",
            r"fixed part of the formula uses 'shout', which is neither a column of `data`",
        ),
        ("y ~ . + (1|g)", r"The fixed part of the formula, '\.', uses '\.'; name the columns instead"),
        ("0 ~ x + (1|g)", r"The response '0' makes 0 columns; it must be one"),
        ("y + x ~ t + (1|g)", r"The response 'y \+ x' makes 2 columns; it must be one\. Write arithmetic inside I\(\)"),
        ("y ~ x + (poly(t) * | g)", r"The term \(poly\(t\) \* \| g\) of the formula, 'poly\(t\) \*', cannot be read"),
        ("y ~ X + (1|g)", r"`data` has no column 'X', which the fixed part uses\. Did you mean 'x'\?"),
        ("y ~ np.log(uu) + (1|g)", r"`data` has no column 'uu', which the fixed part uses\. Did you mean 'u'"),
        ("z123456 ~ x + (1|g)", r"no column 'z123456', which the response uses\. The columns are: 'y', 'x', 't'"),
        ("y ~ x + (1|gg)", r"no column 'gg', which the term \(1\|gg\) uses\. Did you mean 'g'"),
        ("a ~ x + (1|g)", r"'a' is not numeric \(its type is (str|object)\): it holds 'lo' at row 0 .*\. .*convert"),
        ("c ~ x + (1|g)", r"The response 'c' is not numeric \(its type is category\): it holds 'p' at row 0"),
        ("C(t) ~ x + (1|g)", r"The response 'C\(t\)' is not numeric \(its type is categorical\)"),
        ("y ~ x.nothing + (1|g)", r"The fixed part of the formula, 'x\.nothing', cannot|no column 'x\.nothing'"),
        ("y ~ I(x + 0*1j) + (1|g)", r"The fixed part of the formula, .*, cannot be evaluated: Casting complex"),
        ("y ~ scale(a) + (1|g)", r"The fixed part of the formula, 'scale\(a\)', cannot be evaluated: "),
        ("y ~ C(a, levels=['lo', 'hi']) + (1|g)", r"meets levels that its levels= or the fit does not know"),
    ],
)
def test_formulas_that_are_refused(frame, formula, message):
    with pytest.raises(LMMError, match=message):
        model_data(formula, frame)


@pytest.mark.parametrize(
    ("formula", "change", "message"),
    [
        ("y ~ x + (1|g)", {"x": {3: np.inf, 7: -np.inf}}, r"Column 'x' of `data` is infinite at rows 3, 7 \(counting"),
        ("y ~ 1 + (1|x)", {"x": {3: np.inf}}, r"Column 'x' of `data` is infinite at row 3 \(counting"),
        (
            "y ~ np.log(x) + (1|g)",
            {"x": {5: -1.0}},
            r"'np.log\(x\)' in the fixed part of the formula has no finite value at",
        ),
        (
            "y ~ 1 + (I(1/x) | g)",
            {"x": {5: 0.0}},
            r"'I\(1 / x\)' in the term \(I\(1/x\) \| g\) of the formula has no finite",
        ),
        (
            "y ~ x:u + (1|g)",
            {"x": {5: 1e200}, "u": {5: 1e200}},
            r"'x:u' in the fixed part of the formula has no finite",
        ),
        (
            "y ~ x + (1|g)",
            {"y": dict.fromkeys(range(N), np.nan)},
            r"Every row has a missing value \(Column 'y' of `data`\)",
        ),
    ],
)
def test_values_that_are_refused(frame, formula, change, message):
    frame["x"] = 1.0 + np.arange(N)
    for name, cells in change.items():
        for row, value in cells.items():
            frame.loc[row, name] = value
    with pytest.raises(LMMError, match=message):
        model_data(formula, frame)


def test_the_row_of_a_bad_transform_is_the_row_of_the_table(frame):
    frame["x"] = 1.0 + np.arange(N)
    frame.loc[0, "y"], frame.loc[[8, 9], "x"] = np.nan, -1.0
    with pytest.raises(LMMError, match=r"no finite value at rows 8, 9 \(counting from 0\)"):
        model_data("y ~ np.log(x) + (1|g)", frame)


def test_missing_may_be_refused(frame):
    frame.loc[[2, 5], "x"] = np.nan
    frame.loc[range(10, 20), "y"] = np.nan
    with pytest.raises(
        LMMError,
        match=r"Values are missing\. Column 'y' of `data` at rows 10, 11, 12, 13, 14 and 5 more .*; Column 'x' of"
        r" `data` at rows 2, 5 \(counting from 0\)\. Fill them in or drop",
    ):
        model_data("y ~ x + (1|g)", frame, missing="raise")
    assert model_data("y ~ t + (1|g)", frame.head(9), missing="raise").n_dropped == 0
    with pytest.raises(LMMError, match=r"`missing` must be 'drop' or 'raise', not 'omit'"):
        model_data("y ~ x + (1|g)", frame, missing="omit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": np.ones(3)}, r"`weights` has 3 values, but `data` has 24 rows"),
        ({"offset": "oo"}, r"`data` has no column 'oo', which `offset` uses"),
        ({"weights": "a"}, r"Column 'a' of `data` must hold numbers, but its type is (str|object)"),
        ({"offset": ["x"] * N}, r"`offset` must hold numbers, but its type is object"),
        (
            {"weights": np.r_[np.ones(N - 2), 0.0, -1.0]},
            r"`weights` must be positive, which they are not at rows 22",
        ),
        ({"weights": np.r_[np.inf, np.ones(N - 1)]}, r"`weights` is infinite at row 0"),
        ({"offset": 1.0}, r"`offset` is a float; give a one-dimensional array or list"),
        ({"offset": np.ones((N, 1))}, r"`offset` has 2 dimensions; give a one-dimensional array"),
    ],
)
def test_weights_and_offsets_that_are_refused(frame, arguments, message):
    with pytest.raises(LMMError, match=message):
        model_data("y ~ x + (1|g)", frame, **arguments)


def test_weights_are_counted_in_rows_of_the_table(frame):
    frame.loc[0, "y"] = np.nan
    with pytest.raises(LMMError, match=r"`weights` must be positive, which they are not at row 5 \("):
        model_data("y ~ x + (1|g)", frame, weights=np.where(np.arange(N) == 5, 0.0, 1.0))
    # A weight in a row that is left out anyway does no harm.
    assert model_data("y ~ x + (1|g)", frame, weights=np.where(np.arange(N) == 0, 0.0, 1.0)).n_dropped == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[1, 2]], r"`data` must be a pandas or polars DataFrame, a pyarrow Table or a dict .*, not 'list'"),
        (pl.LazyFrame({"z": [1.0]}), r"`data` has no column 'y', which the response uses. The columns are: 'z'"),
        ({}, r"`data` has no column 'y', which the response uses"),
        (pd.DataFrame({"y": [], "x": [], "g": []}, dtype=float), r"has no rows; give it at least one"),
        ({"y": [1.0, 2.0], "x": [1.0], "g": [1, 2]}, r"Column 'x' of `data` has 1 values where other columns have 2"),
        ({"y": [1.0, 2.0], "x": np.ones((2, 2)), "g": [1, 2]}, r"Column 'x' of `data` has 2 dimensions"),
        ({"y": [1.0, 2.0], "x": 3.0, "g": [1, 2]}, r"Column 'x' of `data` is a float; give a one-dimensional array"),
        ({"y": [1.0, 2.0], "x": [[1], [1, 2]], "g": [1, 2]}, r"Column 'x' of `data` is not a one-dimensional array"),
        ({"y": [1.0, 2.0], "x": [1.0, 2.0], "g": ["a", 1]}, r"Column 'g' of `data` mixes labels of different types"),
        ({"y": [1.0, 2.0], "x": [1.0, 2.0], "g": pd.Series([[1], [2]])}, r"Column 'g' .* cannot serve as labels"),
        (
            pd.DataFrame([[1.0, 2.0, 3.0, 1]], columns=["y", "x", "x", "g"]),
            r"`data` has more than one column 'x'; rename",
        ),
        (
            pa.Table.from_arrays([pa.array([1.0])] * 4, names=["y", "x", "x", "g"]),
            r"`data` has more than one column 'x'; rename",
        ),
        (
            {"y": [1.0, 2.0], "x": pd.to_datetime(["2020-01-01", "2020-01-02"]), "g": [1, 2]},
            r"Column 'x' in the fixed part of the formula holds dates or times; make it a number",
        ),
        ({"y": [1.0, 2.0], "x": [1j, 2.0], "g": [1, 2]}, r"Column 'x' of `data` holds complex numbers"),
    ],
)
def test_tables_that_are_refused(data, message):
    with pytest.raises(LMMError, match=message):
        model_data("y ~ x + (1|g)", data)


def test_ambiguous_interaction_labels_are_refused():
    data = {"y": [1.0, 2.0], "a": ["p:q", "p"], "b": ["r", "q:r"]}
    with pytest.raises(LMMError, match=r"Labels of the grouping factor 'a:b' are ambiguous"):
        model_data("y ~ 1 + (1 | a:b)", data)


def test_table_of_no_columns():
    with pytest.raises(LMMError, match=r"`data` has no columns"):
        _ = Table({}).n_rows


def test_column_of_a_mask_keeps_its_integers():
    column = Column("it", np.ma.masked_array([4, 5], mask=[False, True])).settle()
    assert column.number is not None and column.number.dtype == np.int64
    assert column.missing().tolist() == [False, True]


def test_neither_formulaic_nor_pandas_is_imported_for_plain_arrays():
    code = (
        "import sys, types, importlib.util, numpy as np\n"
        "import fastlmm_core.formula.specification as f\n"
        "assert not {'pandas', 'formulaic'} & set(sys.modules), 'at import'\n"
        "m = f.model_data('y ~ x + (x | g)', {'y': np.arange(4.), 'x': np.ones(4), 'g': np.array([1, 1, 2, 2])})\n"
        "assert m.X.shape == (4, 2)\n"
        "assert not {'pandas', 'formulaic'} & set(sys.modules), 'at use'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_null_and_nan_in_one_column_are_both_missing(library):
    n = 24
    x = [float(i) for i in range(n)]
    x[3], x[10] = None, float("nan")
    columns = {"y": [float(i % 7) for i in range(n)], "x": x, "g": [i % 6 for i in range(n)]}
    module = pytest.importorskip(library)
    table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns, strict=False)
    found = model_data("y ~ x + (1 | g)", table)
    assert found.n_dropped == 2 and len(found.y) == n - 2
    np.testing.assert_array_equal(np.setdiff1d(np.arange(n), found.kept), [3, 10])


@pytest.mark.parametrize(
    ("random", "criterion"),
    [
        ("(1 | Worker) + (0 + I(Machine == 'B') | Worker)", 249.145294817),
        ("(0 + Machine || Worker)", 217.651078576),
        ("(0 + C(Machine) || Worker)", 217.651078576),
    ],
)
def test_indicators_of_levels_as_random_effects(random, criterion):
    """REML criteria of lme4 1.1-31 with dummy(Machine, "B"), one or each of its levels in a term of its own."""
    result = flc.lmm(f"score ~ Machine + {random}", flc.datasets.load("machines")).fit()
    assert result.criterion == pytest.approx(criterion, abs=1e-7)
