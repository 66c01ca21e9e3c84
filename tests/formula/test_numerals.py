"""Numbers written as text are refused with the value and row that made them text; `C()` says that they are labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

N = 60
LIBRARIES = ["pandas", "pandas, objects", "polars", "pyarrow", "dict", "lists"]


def columns() -> dict:
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(12), 5)
    x = np.round(rng.standard_normal(N), 2)
    return {
        "y": x + rng.standard_normal(12)[g] + rng.standard_normal(N),
        "x": x,
        "g": g,
        "k": np.tile(np.arange(5), 12),
    }


def table(library: str, **text):
    """The table with some columns as text, given as lists (None where missing)."""
    data = columns()
    if library == "pandas":
        return pd.DataFrame(data | text)
    if library == "pandas, objects":
        return pd.DataFrame(data | {name: pd.Series(values, dtype=object) for name, values in text.items()})
    if library == "polars":
        return pl.DataFrame(data | {name: pl.Series(values, dtype=pl.String) for name, values in text.items()})
    if library == "pyarrow":
        return pa.table({**data, **{name: pa.array(values, pa.string()) for name, values in text.items()}})
    if library == "dict":
        return data | {name: np.array(values, dtype=object) for name, values in text.items()}
    return data | text


def written(how=str, **changed) -> list:
    out = [how(value) for value in columns()["x"].tolist()]
    for row, value in changed.items():
        out[int(row[1:])] = value
    return out


CASES = [
    (written(), r"holds numbers written as text; convert it to numbers"),
    (written("{:.3e}".format), r"holds numbers written as text; convert it to numbers"),
    (written(r7=None), r"holds numbers written as text; convert it to numbers"),
    (written(r7="."), r"but for '\.' at row 7 \(counting from 0\); mark that value as missing"),
    (written(r9="n/a ", r30="?"), r"but for 'n/a ' at row 9 \(counting from 0\); mark that value as missing"),
    (written(r3=None, r50="", r51="-"), r"but for '' at row 50 \(counting from 0\); mark that value as missing"),
    (written(r12="see note", r20="<0.5"), r"but for 'see note' at row 12 \(counting from 0\); mark .*, or correct it"),
    (
        written(lambda v: str(v).replace(".", ",")),
        r"but for '[-\d]+,\d+' at row 0 \(counting from 0\); read .*decimal=','",
    ),
    (written(r4="1,234.5"), r"but for '1,234\.5' at row 4 \(counting from 0\); read"),
    ([str(k) for k in range(12)] * 5, r"holds numbers written as text; convert it to numbers"),
    ([*map(str, range(8)), *[None] * 52], r"holds numbers written as text; convert it to numbers"),
    (["1", "2", "3", "."] * 15, r"but for '\.' at row 3 \(counting from 0\); mark"),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("values", "message"), CASES)
def test_numbers_as_text_are_refused(library, values, message):
    data = table(library, m=values)
    for formula, where in (
        ("y ~ m + (1 | g)", "the fixed part"), ("y ~ x*m + (1 | g)", "the fixed part"),
        ("y ~ x + np.exp(x) + m + (1 | g)", "the fixed part"), ("y ~ C(m) + (m | g)", r"the term \(m \| g\)"),
        ("y ~ x + (0 + m:x | g)", r"the term \(0 \+ m:x \| g\)"),
    ):  # fmt: skip
        with pytest.raises(LMMError, match=rf"^Column 'm' of `data`, which {where} uses, .*{message}.*write C\(m\)\.$"):
            flc.lmm(formula, data)


LABELS = [
    ["1", "2", "3", "control", "5"] * 12,  # one in five is none
    ["007", "012", "100"] * 20,  # identifiers
    ["3-5", "6-8", "9+"] * 20,
    ["2020-01-01", "2021-01-01"] * 30,
    ["a1", "a2", "b1"] * 20,
    ["True", "False"] * 30,
    ["NA", "-"] * 30,  # no numbers at all
    ["175", "185", "205"] * 20,  # a few doses, made text of
    [str(k) for k in range(10)] * 6,
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("values", LABELS)
def test_labels_are_taken_for_labels(library, values):
    model = flc.lmm("y ~ m + (1 | g)", table(library, m=values))
    assert len(model.exog_names) == len(set(values))
    assert model.exog_names[1] == f"m[T.{sorted(set(values))[1]}]"


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_that_are_meant(library):
    values = [str(k) for k in range(12)] * 5
    data = table(library, m=values, group=written())
    fit = flc.lmm("y ~ C(m) + (1 | group)", data).fit()  # labels of groups are never computed with
    assert list(fit.model.exog_names) == ["Intercept", *(f"C(m)[T.{level}]" for level in sorted(set(values))[1:])]
    assert flc.lmm("y ~ C(m, Sum) + I(m == '10') + (1 | g)", data).exog.shape == (N, 13)
    np.testing.assert_allclose(fit.predict(data), fit.marginal_mean, rtol=1e-12)


def test_declared_levels_are_meant():
    values = [str(k) for k in range(12)] * 5
    for data in (
        table("pandas").assign(m=pd.Categorical(values)),
        table("polars").with_columns(m=pl.Series(values, dtype=pl.Enum(values[:12]))),
        table("polars").with_columns(m=pl.Series(values, dtype=pl.Categorical)),
        table("pyarrow").append_column("m", pa.array(values).dictionary_encode()),
    ):
        assert flc.lmm("y ~ m + (1 | g)", data).exog.shape == (N, 12)


def test_names_in_backticks():
    data = table("pandas", **{"dose in mg": written(r2=".")})
    with pytest.raises(LMMError, match=r"'dose in mg'.*'\.' at row 2.*write C\(`dose in mg`\)\.$"):
        flc.lmm("y ~ `dose in mg` + (1 | g)", data)
    assert flc.lmm("y ~ C(`dose in mg`) + (1 | g)", data).exog.shape[1] > 30


def test_rows_are_those_of_the_table():
    data = table("pandas", m=written(r7="."))
    data.loc[[0, 2], "y"] = np.nan
    with pytest.raises(LMMError, match=r"'\.' at row 7 \(counting from 0\)"):
        flc.lmm("y ~ m + (1 | g)", data)


@pytest.mark.parametrize("library", ["pandas, objects", "dict", "lists"])
def test_numbers_and_text_in_one_column_of_objects(library):
    values = columns()["x"].tolist()
    values[5] = "."
    data = table(library, m=values)
    with pytest.raises(LMMError, match=r"but for '\.' at row 5 \(counting from 0\); mark"):
        flc.lmm("y ~ m + (1 | g)", data)
    with pytest.raises(
        LMMError, match=r"The response 'm' is not numeric .*: it holds '\.' at row 5 \(counting from 0\)"
    ):
        flc.lmm("m ~ x + (1 | g)", data)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (written(r3=None, r8="n/a"), r"it holds 'n/a' at row 8"),
        (written(lambda v: str(v).replace(".", ",")), r"it holds '[-\d]+,\d+' at row 0"),
        (written(), r"it holds numbers written as text, '[-.\d]+' at row 0"),
        (["high", "low"] * 30, r"it holds 'high' at row 0"),
    ],
)
def test_responses_weights_and_offsets_name_value_and_row(library, values, holds):
    data = table(library, m=values)
    with pytest.raises(LMMError, match=rf"^The response 'm' is not numeric .*{holds} \(counting from 0\)\. .* convert"):
        flc.lmm("m ~ x + (1 | g)", data)
    for argument in ("weights", "offset"):
        with pytest.raises(
            LMMError, match=rf"^Column 'm' of `data` must hold numbers, .*: {holds} \(counting from 0\)"
        ):
            flc.lmm("y ~ x + (1 | g)", data, **{argument: "m"})
    fit = flc.lmm("y ~ x + (1 | g)", data).fit()
    renamed = {"x": ["0.5" if value is None else value for value in values]}
    with pytest.raises(LMMError, match=rf"'x' of `data` holds values of type .*\({holds} \(counting from 0\)\)"):
        fit.predict(renamed)


def test_arrays_name_value_and_row():
    data = columns()
    for values, holds in ((written(r3="."), "'.' at row 3"), (written(), "numbers written as text, ")):
        for response in (values, np.array(values), pd.Series(values)):
            with pytest.raises(LMMError, match=rf"^y must hold numbers, not text .*\(it holds {holds}"):
                flc.LinearMixedModel(response, None, groups=data["g"])
