"""Tables of responses: columns are responses, rows are observations, names go through to every result.

The oracle is the fit of each response by itself, given as an array in the order of the rows used.
"""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc

GENES = ["BRCA1", "TP53", "EGFR", "MYC"]
FORMULA = "y ~ t + (1 | g)"


@pytest.fixture
def study(rng):
    """Samples with an index of their own, some without t, and four genes measured in all of them."""
    n = 40
    index = pd.Index([f"sample{i}" for i in rng.permutation(n)])
    data = pd.DataFrame(
        {"y": rng.standard_normal(n), "t": np.tile(np.arange(4.0), 10), "g": np.repeat(np.arange(10), 4)}, index=index
    )
    data.iloc[[5, 9], 1] = np.nan
    Y = pd.DataFrame(rng.standard_normal((n, 4)) + rng.standard_normal(10)[data.g, None], index=index, columns=GENES)
    return data, Y


def one_by_one(model, Y):
    return [model.refit(Y.loc[:, name].to_numpy()[model.rows_used]) for name in Y.columns]


def agrees(batch, fits):
    assert len(batch) == len(fits)
    np.testing.assert_allclose(batch.params, [fit.beta for fit in fits], rtol=1e-7)
    np.testing.assert_allclose(batch.criterion, [fit.criterion for fit in fits], rtol=1e-10)


def test_columns_are_responses_and_rows_are_aligned(study):
    data, Y = study
    model = flc.lmm(FORMULA, data)
    fits = one_by_one(model, Y)
    used = data.index[model.rows_used]
    for given in (Y, Y.loc[used], Y.sample(frac=1.0, random_state=1), pd.concat([Y, Y.rename("x{}".format)])):
        batch = model.fit_many(given)
        agrees(batch, fits)
        assert batch.labels.tolist() == GENES
    square = flc.lmm(FORMULA, data.reset_index(drop=True).dropna())
    wide = pd.DataFrame(np.random.default_rng(3).standard_normal((38, 38)), index=square.design.index)
    batch = square.fit_many(wide)
    for i in (0, 3, 37):  # not the row
        np.testing.assert_allclose(batch.params[i], square.refit(wide[i].to_numpy()).beta, rtol=1e-7)
        np.testing.assert_allclose(batch[i].beta, batch.params[i], rtol=1e-7)


def test_labels_go_through(study):
    data, Y = study
    batch = flc.lmm(FORMULA, data).fit_many(Y)
    assert batch["TP53"].criterion == pytest.approx(batch.criterion[1], rel=1e-10)
    assert batch["TP53"].resid.index.equals(data.dropna().index)
    assert batch[np.int64(1)].criterion == batch[1].criterion == batch["TP53"].criterion
    frame = batch.to_frame()
    assert frame.index.tolist() == GENES and frame.loc["EGFR", "t"] == batch.params[2, 1]
    assert batch.tidy().response.tolist() == list(np.repeat(GENES, 2))
    assert batch.test("t = 0").to_frame().index.tolist() == GENES
    np.testing.assert_array_equal(batch.random_effects("MYC"), batch.random_effects([3]))
    np.testing.assert_array_equal(batch.random_effects(["MYC", "TP53"]), batch.random_effects([3, 1]))
    again = pickle.loads(pickle.dumps(batch))
    assert again.labels.tolist() == GENES
    with pytest.raises(flc.LMMError, match=r"not part of a pickle; give them again by with_responses\(Y\)"):
        again["MYC"]
    assert again.with_responses(Y)["MYC"].criterion == batch["MYC"].criterion
    with pytest.raises(flc.LMMError, match=r"no response has the label 'BRCA'; did you mean 'BRCA1'\?"):
        batch["BRCA"]
    assert batch[1:3].labels.tolist() == GENES[1:3] and batch[["MYC", "TP53"]].labels.tolist() == ["MYC", "TP53"]
    plain = batch.model.fit_many(Y.to_numpy()[batch.model.rows_used].T)
    assert plain.labels is None and plain.to_frame().index.equals(pd.RangeIndex(4))
    with pytest.raises(flc.LMMError, match="the responses have no labels"):
        plain["TP53"]
    twice = batch.model.fit_many(pd.concat([Y, Y[["MYC"]]], axis=1))
    with pytest.raises(flc.LMMError, match=r"2 responses have the label 'MYC': give a position, e\.g\. 3"):
        twice["MYC"]
    numbered = batch.model.fit_many(Y.set_axis([672, 7157, 1956, 4609], axis=1))
    assert numbered.to_frame().index.tolist() == [672, 7157, 1956, 4609]
    assert numbered[1].criterion == batch[1].criterion  # integers are positions
    levels = batch.model.fit_many(Y.set_axis(pd.MultiIndex.from_product([["a", "b"], [1, 2]]), axis=1))
    assert levels[("b", 1)].criterion == batch[2].criterion


@pytest.mark.parametrize(
    "make",
    [
        pl.from_pandas, lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
        lambda frame: {name: frame[name].to_numpy() for name in frame},
    ],
    ids=["polars", "pyarrow", "dict"],
)  # fmt: skip
def test_other_libraries(study, make):
    data, Y = study
    model = flc.lmm(FORMULA, make(data.reset_index(drop=True)))
    fits = one_by_one(model, Y)
    for given in (Y, Y.iloc[model.rows_used]):  # all rows of the data, or those used
        batch = model.fit_many(make(given.reset_index(drop=True)))
        agrees(batch, fits)
        assert batch["EGFR"].criterion == pytest.approx(fits[2].criterion, rel=1e-12)
        assert list(np.asarray(batch.to_frame()["response"])) == GENES
        assert list(np.asarray(batch.test("t = 0").to_frame()["response"])) == GENES
    with pytest.raises(flc.LMMError, match=r"^Y has 4 rows, and each column is a response of 38 .*transpose it"):
        model.fit_many(make(Y.T.reset_index(drop=True)))


def test_missing_values_of_every_kind_are_invalid(study):
    data, Y = study
    model = flc.lmm(FORMULA, data.dropna())
    Y = Y.loc[data.dropna().index]
    fits = one_by_one(model, Y)
    holes = Y.astype({"TP53": "Float64"})
    holes.iloc[3, 1] = pd.NA
    holes["count"] = pd.array(np.arange(len(Y)), dtype="Int64")
    for given in (holes, holes.astype(float)):
        batch = model.fit_many(given)
        assert batch.invalid.tolist() == [1]
        np.testing.assert_allclose(batch.params[[0, 2, 3]], [fits[i].beta for i in (0, 2, 3)], rtol=1e-7)
        assert batch.converged[4]
    free = flc.lmm(FORMULA, pl.from_pandas(data.dropna()))
    table = pl.from_pandas(holes.reset_index(drop=True))
    for given in (table, table.to_arrow(), dict(zip(table.columns, holes.astype(float).to_numpy().T, strict=True))):
        assert free.fit_many(given).invalid.tolist() == [1]
    masked = np.ma.array(holes["TP53"].to_numpy(float, na_value=-9999.0), mask=holes["TP53"].isna())
    assert free.fit_many({"a": Y["BRCA1"].to_numpy(), "b": masked}).invalid.tolist() == [1]


def test_streams_of_tables_and_single_series(study):
    data, Y = study
    model = flc.lmm(FORMULA, data)
    fits = one_by_one(model, Y)
    batch = model.fit_many(Y[chosen] for chosen in (GENES[:1], GENES[1:]))
    agrees(batch, fits)
    assert batch.to_frame().index.tolist() == GENES
    mixed = model.fit_many([Y[["BRCA1"]], Y.to_numpy()[model.rows_used].T[1:]])
    agrees(mixed, fits)
    assert mixed.labels is None
    agrees(model.fit_many(Y["TP53"].sample(frac=1.0, random_state=5)), fits[1:2])


def test_tables_that_do_not_fit_the_data(study):
    data, Y = study
    model = flc.lmm(FORMULA, data)
    for given, words in (
        (Y.iloc[1:7], r"^Y has another index than the data, and no value for 33 of its 38 rows"),
        (Y.reset_index(drop=True), r"^Y has another index than the data, and no value for 38"),
        (Y.T, r"^Y has the labels of the rows of the data as its columns; give Y\.T, one response per column"),
        (Y.assign(name="a"), r"^Y: column 'name' must hold numbers, not (str|object); drop or convert it"),
        (Y.assign(day=pd.Timestamp("2020-01-01")), r"^Y: column 'day' must hold numbers, not datetime64"),
    ):
        with pytest.raises(flc.LMMError, match=words):
            model.fit_many(given)
    with pytest.raises(flc.LMMError, match=r"not \(4, 40\); give Y\[:, model\.rows_used\]"):
        model.fit_many(Y.to_numpy().T)
    arrays = flc.LinearMixedModel(data.y.to_numpy(), None, None, data.g.to_numpy())
    with pytest.raises(flc.LMMError, match=r"^Y has an index of its own and the rows of the data have no labels"):
        arrays.fit_many(Y)
    agrees(arrays.fit_many(Y.reset_index(drop=True)), [arrays.refit(Y[name].to_numpy()) for name in GENES])


def spoil(values, how):
    {
        "one": lambda: values.__setitem__((2, 0), values[2, 0] + 1e-9), "scaled": lambda: values.__imul__(2.0),
        "shuffled": lambda: np.random.default_rng(1).permuted(values, axis=1, out=values),
    }[how]()  # fmt: skip


@pytest.mark.parametrize("how", ["one", "scaled", "shuffled"])
@pytest.mark.parametrize("kind", ["float64", "float32", "F", "dict", "crossed"])
def test_responses_that_change_after_the_fit_are_noticed(kind, how, rng):
    """What is asked of a batch later is of the responses that it was fitted to, or refused."""
    g, t = np.repeat(np.arange(10), 4), np.tile(np.arange(4.0), 10)
    X = np.column_stack([np.ones(40), t])
    terms = [flc.RandomTerm(None, g, "g")] + [flc.RandomTerm(None, np.arange(40) % 7, "h")] * (kind == "crossed")
    model = flc.LinearMixedModel(rng.standard_normal(40), X, terms=terms)
    Y = rng.standard_normal((4, 40)).astype("float32" if kind == "float32" else "float64")
    Y = np.asfortranarray(Y) if kind == "F" else Y
    if kind == "float32" and how == "one":
        Y[2, 0] = 1e-9  # a float32 next to it differs
    given = {f"r{i}": Y[i] for i in range(4)} if kind == "dict" else Y
    batch, expected = model.fit_many(given), model.fit_many(Y.copy())
    spoil(Y, how)
    np.testing.assert_array_equal(batch.params, expected.params)
    np.testing.assert_array_equal(batch.test("x1").pvalues, expected.test("x1").pvalues)
    for ask in (lambda: batch[2], lambda: batch.random_effects(), lambda: batch.test([[1.0, 1.0]])):
        with pytest.raises(flc.LMMError, match=r"^Y has been changed since it was fitted \(first: response [0-3]\)"):
            ask()
    if how == "one":  # the others are what they were
        assert batch[1].criterion == expected[1].criterion
        again, effects = batch.random_effects([0, 3]), expected.random_effects([0, 3])
        for name in ("g", "h") if kind == "crossed" else (slice(None),):
            np.testing.assert_array_equal(again[name], effects[name])


def test_drawn_responses_need_no_watching(study):
    data, Y = study
    model = flc.lmm(FORMULA, data)
    drawn = model.fit().simulate_fit(3, seed=1)
    assert drawn.seals is None and drawn[1].criterion == pytest.approx(drawn.criterion[1], rel=1e-10)
    fixed = Y.to_numpy()[model.rows_used].T.copy()
    fixed.flags.writeable = False
    assert model.fit_many(fixed).seals is None and model.fit_many(iter([fixed])).seals is None
    assert model.fit_many(Y).seals.shape == (4, 2)
