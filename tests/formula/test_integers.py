"""What a formula computes does not depend on how many bits its columns have."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc
from fastlmm_core.formula.specification import model_data
from fastlmm_core.formula.syntax import parse, sum_of_truths

N = 60
G = np.arange(N) % 6
AGE = np.arange(N) % 80 + 20


def design(right, **columns):
    """The fixed part of a formula on these columns."""
    data = {"y": np.linspace(0.0, 1.0, N), "g": G, **columns}
    return model_data(f"y ~ {right} + (1 | g)", data)


@pytest.mark.parametrize(
    "right",
    ["I(age**2)", "age:other", "I(age + other)", "np.square(age)", "poly(age, 2)", "I(-age)", "np.exp(age)",
     "age * other", "I(age * other - age)", "bs(age, df=4)", "within(age, g)", "C(g):I(age**3)", "center(age)"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32"])
def test_columns_do_not_wrap(right, kind):
    other = AGE[::-1].copy()
    expected = design(right, age=AGE.astype(float), other=other.astype(float)).X
    found = design(right, age=AGE.astype(kind), other=other.astype(kind)).X
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "table",
    [pd.DataFrame, pl.DataFrame, pa.table, lambda c: pd.DataFrame(c).astype({"age": "UInt8"})],
    ids=["pandas", "polars", "pyarrow", "nullable"],
)  # fmt: skip
def test_columns_of_tables_do_not_wrap(table):
    columns = {"y": np.sin(np.arange(N)), "g": G, "age": AGE.astype(np.uint8)}
    formula = "y ~ age + I(age**2) + (1 | g)"
    found = flc.lmm(formula, table(columns)).fit()
    expected = flc.lmm(formula, {**columns, "age": AGE.astype(float)}).fit()
    np.testing.assert_array_equal(np.asarray(found.fittedvalues), expected.fittedvalues)
    np.testing.assert_array_equal(
        found.predict({"age": np.array([90], dtype=np.uint8)}), expected.predict({"age": np.array([90.0])})
    )


def test_int64_does_not_wrap_either():
    stamp = 1_700_000_000_000 + AGE
    np.testing.assert_allclose(design("I(stamp**2)", stamp=stamp).X[:, 1], stamp.astype(float) ** 2, rtol=1e-15)


def test_truth_values_are_counted():
    a, b = AGE > 40, AGE % 2 == 0
    total = a.astype(float) + b
    assert 2.0 in total
    np.testing.assert_array_equal(design("I(a + b)", a=a, b=b).X[:, 1], total)
    np.testing.assert_array_equal(design("I(a - b)", a=a, b=b).X[:, 1], a.astype(float) - b)
    np.testing.assert_array_equal(design("a:b", a=a, b=b).X[:, 1], a & b)
    np.testing.assert_array_equal(design("I(~a * 2.0)", a=a).X[:, 1], 2.0 * ~a)
    np.testing.assert_array_equal(design("I((a & ~b) * 1)", a=a, b=b).X[:, 1], a & ~b)
    np.testing.assert_array_equal(design("np.where(a, 3, 4)", a=a).X[:, 1], np.where(a, 3, 4))
    for right in ("I((age > 40) + (age < 60))", "I(a + (age > 40)) + C(a)", "I(a + b) + I(~a) + I(~b)"):
        with pytest.raises(flc.LMMError, match=r"adds truth values in .* write 1 \* before each"):
            design(right, a=a, b=b, age=AGE)
    np.testing.assert_array_equal(
        design("I(1*(age > 40) + 1*(age < 60))", age=AGE).X[:, 1], 1.0 * (AGE > 40) + (AGE < 60)
    )


def test_sums_of_truths():
    truths = frozenset({"a", "a b"})
    assert sum_of_truths("I(x + a)", truths) is None
    assert sum_of_truths("I(`a b` + a)", truths) is not None
    assert sum_of_truths("I((x > 1) * (y > 2) + ~a)", truths) == "(x > 1) * (y > 2) + ~a"
    assert sum_of_truths("I((x > 1) * 2 + a)", truths) is None


def test_labels_stay_integers():
    """Names of levels do not become 3.0, whatever else the formula does with the column."""
    for right, use in (("C(day)", "day"), ("day + C(day)", "day"), ("C(day) + I(day**2)", "day")):
        names = design(right, day=(AGE % 4).astype(np.int8)).x_names
        assert f"C({use})[T.3]" in names
    large = np.where(AGE % 2 == 0, 100_000, 200_000)
    X = design("C(large):I(large**4)", large=large)
    assert X.X[:, -1].max() == 200_000.0**4
    side = parse("y ~ C(a) + I(b**2) + within(c, d) + np.where(e == 3, 1, 0) + f:h + (1 | g)").fixed
    assert side.labels == {"a", "d", "e"}
    assert side.numbers & set("abcdefh") == {"b", "c", "f", "h"}


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
@pytest.mark.parametrize("right", ["x", "I(x - 1)", "poly(x, 1)"])
def test_integers_that_float64_rounds_are_refused(right, kind):
    x = (2**53 + np.arange(N)).astype(kind)
    with pytest.raises(
        flc.LMMError, match=rf"'x' of `data` holds integers that a float64 would round \(first: {2**53 + 1} at row 1"
    ):
        design(right, x=x)
    exact = (2**53 + 2 * np.arange(N)).astype(kind)
    np.testing.assert_array_equal(design("x", x=exact).X[:, 1], exact.astype(float))
    top = np.where(G == 0, kind(np.iinfo(kind).max), kind(0))
    with pytest.raises(flc.LMMError, match=f"first: {np.iinfo(kind).max} at row 0"):
        design("x", x=top)
    # as labels they are what they are
    assert design("1", g=x).terms[0].labels.tolist() == x.tolist()
    assert design("C(top)", top=top).X.shape == (N, 2)


def test_large_python_integers():
    for x in ([2**70 + i for i in range(N)], [10**400] * N):
        with pytest.raises(flc.LMMError, match="'x' of `data`"):
            design("x", x=x)


def test_arrow_dictionaries_sort_their_levels():
    """As every text column does; one that declares an order keeps it."""
    values = np.array(["b", "c", "a"])[np.arange(N) % 3]
    columns = {"y": np.sin(np.arange(N)), "g": G}
    coded = pa.array(values).dictionary_encode()
    chunked = pa.chunked_array([pa.array(values[:20]).dictionary_encode(), pa.array(values[20:]).dictionary_encode()])
    expected = model_data("y ~ h + (1 | g) + (1 | h)", {**columns, "h": values})
    for h in (coded, chunked, pa.DictionaryArray.from_arrays(coded.indices, pa.array(["b", "c", "a", "unused"]))):
        found = model_data("y ~ h + (1 | g) + (1 | h)", pa.table({**columns, "h": h}))
        assert found.x_names == expected.x_names == ("Intercept", "h[T.b]", "h[T.c]")
        np.testing.assert_array_equal(found.X, expected.X)
        assert found.terms[1].labels.tolist() == ["a", "b", "c"]
    ordered = pa.DictionaryArray.from_arrays(coded.indices, pa.array(["b", "c", "a"]), ordered=True)
    assert model_data("y ~ h + (1 | g)", pa.table({**columns, "h": ordered})).x_names == (
        "Intercept",
        "h[T.c]",
        "h[T.a]",
    )
    holes = pa.array([None, *values[1:].tolist()]).dictionary_encode()
    assert model_data("y ~ h + (1 | g)", pa.table({**columns, "h": holes})).n_dropped == 1
    # an entry of the dictionary that is missing
    places, entries = np.array([0, 2, 3])[np.arange(N) % 3], pa.array(["b", None, "c", "a"])
    places[0] = 1
    for is_ordered in (False, True):
        h = pa.DictionaryArray.from_arrays(pa.array(places), entries, ordered=is_ordered)
        for column in (h, pa.chunked_array([h.slice(0, 20), h.slice(20)])):
            found = model_data("y ~ h + (1 | g)", pa.table({**columns, "h": column}))
            levels = ("h[T.c]", "h[T.a]") if is_ordered else ("h[T.b]", "h[T.c]")
            assert found.n_dropped == 1 and found.x_names[1:] == levels
    numbers = pa.array((np.arange(N) % 3 * 10)[::-1]).dictionary_encode()
    assert model_data("y ~ h + (1 | g)", pa.table({**columns, "h": numbers})).x_names == (
        "Intercept",
        "h[T.10]",
        "h[T.20]",
    )
