"""Arrays that are not plain numbers: honoured or refused by name, never read as something else."""

from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp

import fastlmm_core as flc
from fastlmm_core.support.checks import float_array, number_array

N = 24
G = np.repeat(np.arange(6), 4)
Y = np.sin(np.arange(N) ** 1.5)
X = np.column_stack([np.ones(N), np.cos(np.arange(N))])
MASK = np.arange(N) == 5


def model(y=Y, x=X, z=None, g=G, **more):
    return flc.LinearMixedModel(y, x, z, g, **more)


def several(z=None, g=G):
    terms = [flc.RandomTerm(z, g, "g"), flc.RandomTerm(None, np.arange(N) % 3, "h")]
    return flc.LinearMixedModel(Y, X, terms=terms)


MASKED = np.ma.array(Y, mask=MASK)
TWO = np.ma.array(X, mask=np.column_stack([MASK, ~MASK & (G == 2)]))
NEW = {"X": X[:2], "Z": np.ones((2, 1)), "groups": np.array([0, 1])}
GAPS = NEW | {"groups": np.ma.array([0, 1], mask=[0, 1])}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("y", lambda: model(y=MASKED)),
        ("X", lambda: model(x=TWO)),
        ("Z", lambda: model(z=TWO)),
        ("groups", lambda: model(g=np.ma.array(G, mask=MASK))),
        ("weights", lambda: model(weights=np.ma.array(np.ones(N), mask=MASK))),
        ("offset", lambda: model(offset=MASKED)),
        ("terms[0].Z", lambda: several(z=MASKED)),
        ("terms[0]: groups", lambda: several(g=np.ma.array(G, mask=MASK))),
        ("y", lambda: model().refit(MASKED)),
        ("theta", lambda: model().evaluate(np.ma.array([0.5], mask=[True]))),
        ("start", lambda: model().fit(start=np.ma.array([0.5], mask=[True]))),
        ("data['X']", lambda: model().fit().predict({**NEW, "X": TWO[4:6]})),
        ("data['Z']", lambda: model().fit().predict({**NEW, "Z": TWO[4:6, :1]}, effects="all")),
        ("data['groups']", lambda: model().fit().predict(GAPS, effects="all")),
        ("time", lambda: model().fit().autocorrelation(time=np.ma.array(np.arange(N), mask=MASK))),
        ("x", lambda: flc.group_mean(MASKED, G)),
        ("x", lambda: flc.within(MASKED, G)),
        ("y", lambda: model(y=list(np.ma.array([MASKED] * 2)))),
    ],
)  # fmt: skip
def test_masked_values_are_missing(name, call):
    with pytest.raises(flc.LMMError) as error:
        call()
    assert str(error.value).startswith(f"{name} is masked at ")
    assert "masked values are missing" in str(error.value)


def test_masked_groups_of_a_mean():
    with pytest.raises(flc.LMMError, match="masked"):
        flc.group_mean(Y, np.ma.array(G, mask=MASK))


def test_masked_arrays_without_gaps_are_arrays():
    plain, masked = model().fit(), model(np.ma.array(Y), np.ma.array(X, mask=False), None, np.ma.array(G)).fit()
    np.testing.assert_array_equal(masked.params, plain.params)
    np.testing.assert_array_equal(flc.group_mean(np.ma.array(Y), np.ma.array(G)), flc.group_mean(Y, G))


def test_masked_columns_of_a_table_are_missing():
    data = {"y": Y, "x": np.ma.array(X[:, 1], mask=MASK), "g": G}
    result = flc.lmm("y ~ x + (1 | g)", data).fit()
    rest = ~MASK
    expected = flc.LinearMixedModel(Y[rest], X[rest], None, G[rest]).fit()
    assert result.model.n_dropped == 1
    np.testing.assert_allclose(result.fittedvalues, expected.fittedvalues, rtol=1e-10)


RECORDS = np.zeros(N, dtype=[("a", float), ("b", int)])


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.coo_array, sp.dia_matrix])
def test_sparse_matrices_are_written_out(make):
    expected = model().fit()
    for found in (model(x=make(X)), model(x=make(X), z=make(np.ones((N, 1))))):
        np.testing.assert_array_equal(found.exog, X)
        assert found.fit().criterion == expected.criterion
    with pytest.raises(flc.LMMError, match=rf"^groups is a sparse matrix \({make.__name__}\); give groups.toarray"):
        model(g=make(X))


def test_a_sparse_matrix_that_there_is_no_room_for_is_refused():
    wide = sp.csr_array((N, 2**50))
    with pytest.raises(MemoryError, match="X, a sparse matrix that is written out"):
        model(x=wide)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RECORDS, "holds records with the fields a, b; give one of them"),
        (np.array(["1.5"] * N, dtype=np.dtypes.StringDType()), r"must hold numbers, not text \(StringDType\(\)\)"),
        (np.array(["1.5"] * N, dtype=object), r"must hold numbers, not text \(object\)"),
        (["1.5"] * N, r"must hold numbers, not text"),
        ([10**400] * N, "holds integers that a float64 would round .first: an integer of 1329 binary digits"),
        ([2**80 + 1] * N, "holds integers that a float64 would round .first: 1208925819614629174706177"),
        (2**53 + np.arange(N), "holds integers that a float64 would round .first: 9007199254740993 at row 1"),
        ([[1.0]] * 5 + [[1.0, 2.0]], "must be an array, but its rows have different lengths"),
        ({"a": 1}, "must hold numbers, not dict"),
        (iter(Y), "must hold numbers, not "),
        (np.full(N, 1j), "must hold numbers, not complex128"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_named(values, words):
    for call in (lambda: model(y=values), lambda: model().refit(values), lambda: float_array(values, "y", 1)):
        with pytest.raises(flc.LMMError, match="^y " + words):
            call()
    with pytest.raises(flc.LMMError, match="^G " + words):
        number_array(values, "G")


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), ("y", "str")])
def test_what_is_no_array_is_named(value, kind):
    for call in (lambda: float_array(value, "y", 1), lambda: number_array(value, "y")):
        with pytest.raises(flc.LMMError, match=f"^y must hold numbers, not {kind}"):
            call()
    with pytest.raises(flc.LMMError, match=r"y must hold numbers, not the text 'y ~ x'; formulas are for lmm\("):
        model(y="y ~ x")


def test_numbers_of_every_kind_are_numbers():
    for values in (
        [1, 2.5], (True, 2.5), [Fraction(1), 2.5], np.array([1, 2.5], dtype=np.float16),
        np.array([1, 2.5], dtype=object),
        pd.Series([1, 2.5]), pl.Series([1.0, 2.5]), pd.array([1, 2.5], dtype="Float64"),
        np.array([1, 2.5]).astype(">f8"),
    ):  # fmt: skip
        np.testing.assert_array_equal(float_array(values, "y", 1), [1.0, 2.5])
    np.testing.assert_array_equal(float_array([2**80, 0], "y", 1), [2.0**80, 0.0])


def test_labels_of_text_of_any_length():
    labels = np.array([f"s{i}" for i in G], dtype=np.dtypes.StringDType())
    np.testing.assert_array_equal(model(g=labels).fit().params, model().fit().params)
    missing = np.array([*labels[:-1].tolist(), None], dtype=np.dtypes.StringDType(na_object=None))
    with pytest.raises(flc.LMMError, match=r"groups has missing labels .first: row 23"):
        model(g=missing)
    with pytest.raises(flc.LMMError, match="groups holds records"):
        model(g=RECORDS)
    with pytest.raises(flc.LMMError, match="groups must be an array, but its rows have different lengths"):
        model(g=[[1], [1, 2]])


def test_masked_responses_are_invalid():
    """The mask is missing data, as NaN is; never the number below it."""
    Y2 = np.vstack([Y, Y[::-1], Y])
    masked = np.ma.array(Y2, mask=False)
    masked[1, 3] = np.ma.masked
    for given in (masked, iter([masked]), (row for row in masked)):
        batch = model().fit_many(given)
        assert batch.invalid.tolist() == [1]
        np.testing.assert_allclose(batch.params[0], model().fit().params, rtol=1e-8)
    assert not len(model().fit_many(np.ma.array(Y2)).invalid)
    # sums of sparse responses are taken in another order
    sparse = model().fit_many(sp.csr_matrix(Y2))
    np.testing.assert_allclose(sparse.params, model().fit_many(Y2).params, rtol=1e-13)
