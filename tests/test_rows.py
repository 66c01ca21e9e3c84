"""Rows and their labels: each result stands beside the row that it belongs to, whatever the index of the data.

The oracle is the fit of the same rows as plain arrays, in the order of the data.
"""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc
from fastlmm_core.diagnostics.leverage import leverage
from fastlmm_core.diagnostics.studentized import studentized_residuals

FORMULA = "y ~ t + (1 | g)"

EXACT = 1e-10  # two routes to one fit


@pytest.fixture
def data(rng):
    """A filtered frame, shuffled, with missing values and labels that are not positions."""
    m, k = 12, 5
    g = np.repeat(np.arange(m), k)
    t = np.tile(np.arange(float(k)), m)
    y = 2.0 + 0.5 * t + rng.standard_normal(m)[g] + rng.standard_normal(m * k)
    frame = pd.DataFrame({"y": y, "t": t, "g": g}, index=np.arange(100, 100 + m * k))
    frame = frame[frame.t > 0].sample(frac=1.0, random_state=1)
    frame.loc[frame.index[[3, 20]], "t"] = np.nan
    return frame


def arrays_of(frame):
    used = frame.dropna()
    X = np.column_stack([np.ones(len(used)), used.t])
    return used.y.to_numpy(), X, None, used.g.to_numpy()


def same(found, index, expected):
    assert isinstance(found, (pd.Series, pd.DataFrame))
    assert found.index.equals(index)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=EXACT, atol=EXACT)


# ------------------------------------------------------------------------------------------------------------
# results


def test_series_have_the_index_of_the_rows_used(data):
    result, plain = flc.lmm(FORMULA, data).fit(), flc.LinearMixedModel(*arrays_of(data)).fit()
    used = data.dropna().index
    same(result.fittedvalues, used, plain.fittedvalues)
    same(result.resid, used, plain.resid)
    same(result.marginal_mean, used, plain.marginal_mean)
    for kind in ("conditional", "marginal", "pearson", "whitened", "studentized"):
        same(result.residuals(kind), used, plain.residuals(kind))
    same(studentized_residuals(result, external=True), used, studentized_residuals(plain, external=True))
    same(leverage(result), used, np.column_stack(list(leverage(plain).values())))
    assert data.iloc[result.rows_used].index.equals(used)
    assert result.model.rows_used.tolist() == result.rows_used.tolist()
    # beside the data: rows that were not used are NaN, the others have their own
    beside = data.assign(fit=result.fittedvalues, rest=result.resid)
    assert beside.index[beside.fit.isna()].tolist() == data.index[[3, 20]].tolist()
    np.testing.assert_allclose((beside.y - beside.fit - beside.rest).dropna(), 0.0, atol=1e-12)
    again = pickle.loads(pickle.dumps(result))
    pd.testing.assert_series_equal(again.fittedvalues, result.fittedvalues)


@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
@pytest.mark.parametrize("effects", ["population", "all"])
def test_predictions_have_the_index_of_their_rows(data, interval, effects):
    result, plain = flc.lmm(FORMULA, data).fit(), flc.LinearMixedModel(*arrays_of(data)).fit()
    new = data.dropna().iloc[[7, 2, 30]]
    X, g = arrays_of(new)[1::2]
    expected = plain.predict({"X": X, "groups": g}, effects, interval=interval)
    found = result.predict(new, effects, interval=interval)
    same(found, new.index, expected if interval is None else np.column_stack(list(expected.values())))
    used = data.dropna().index
    inside = result.predict(effects=effects, interval=interval)
    assert inside.index.equals(used)
    pd.testing.assert_index_equal(new.join(found).index, new.index)
    mean = inside if interval is None else inside["mean"]
    np.testing.assert_allclose(mean.loc[new.index], found if interval is None else found["mean"], rtol=EXACT)
    # rows without labels: those of a dict, in the library of the data of the fit
    free = result.predict({"t": new.t.to_numpy(), "g": new.g.to_numpy()}, effects, interval=interval)
    assert free.index.equals(pd.RangeIndex(3))


def test_influence_of_rows_names_their_labels(data):
    culprit = data.dropna().index[17]
    data.loc[culprit, "y"] += 50.0
    result = flc.lmm(FORMULA, data).fit()
    found = result.influence("observation")
    assert found.labels.tolist() == data.dropna().index.tolist()
    assert data.loc[found.labels[found.most_influential(1)]].index.tolist() == [culprit]
    assert str(culprit) in found.summary(1)
    frame = found.to_frame()
    assert frame.index.equals(data.dropna().index) and frame.cooks_distance.idxmax() == culprit
    positions = flc.lmm(FORMULA, pl.from_pandas(data)).fit().influence("observation")
    assert positions.labels.tolist() == result.rows_used.tolist()
    assert positions.to_frame()["row"].to_list() == result.rows_used.tolist()


def test_labels_may_repeat_or_have_several_levels(data):
    twice = data.set_axis([f"s{g}" for g in data.g])
    result = flc.lmm(FORMULA, twice).fit()
    assert result.resid.index.equals(twice.dropna().index)
    found = result.influence("observation")
    assert len(found.labels) == result.nobs and len(found.notes) == 0
    nested = data.set_index(["g", "t"], drop=False).rename_axis(["subject", "visit"])
    result = flc.lmm(FORMULA, nested).fit()
    used = nested.dropna()
    assert result.predict(interval="confidence").index.equals(used.index)
    # labels of levels that repeat are no labels of rows, but equal indices need none
    weights = pd.Series(1.0 + np.arange(len(twice)), index=twice.index)
    a, b = flc.lmm(FORMULA, twice, weights=weights).fit(), flc.lmm(FORMULA, twice, weights=weights.to_numpy()).fit()
    assert a.criterion == b.criterion
    with pytest.raises(flc.LMMError, match=r"^weights has another index than the data and repeats its labels .first: "):
        flc.lmm(FORMULA, data, weights=weights)


@pytest.mark.parametrize("make", [pl.from_pandas, pa.Table.from_pandas], ids=["polars", "pyarrow"])
def test_other_libraries_have_positions_where_rows_were_dropped(data, make):
    table = make(data.reset_index(drop=True))
    result = flc.lmm(FORMULA, table).fit()
    positions = np.flatnonzero(data.t.notna())
    assert result.rows_used.tolist() == positions.tolist()
    frame = result.predict(interval="confidence")
    names = frame.columns if isinstance(frame, pl.DataFrame) else frame.column_names
    assert list(names) == ["row", "mean", "std_error", "df", "conf_low", "conf_high"]
    assert np.asarray(frame["row"]).tolist() == positions.tolist()
    assert np.asarray(leverage(result)["row"]).tolist() == positions.tolist()
    complete = flc.lmm(FORMULA, make(data.dropna().reset_index(drop=True))).fit()
    assert "row" not in list(getattr(complete.predict(interval="confidence"), "column_names", [])) + list(
        getattr(complete.predict(interval="confidence"), "columns", [])
    )
    assert complete.rows_used.tolist() == list(range(len(positions)))


def test_values_for_each_row_by_label_or_for_all_rows(data):
    result, plain = flc.lmm(FORMULA, data).fit(), flc.LinearMixedModel(*arrays_of(data)).fit()
    day = pd.Series(np.arange(float(len(data))), index=data.index)
    used = day[data.t.notna()]
    expected = plain.autocorrelation(time=used.to_numpy())["autocorrelation"]
    every = (day, used, day.sample(frac=1.0, random_state=2), day.to_numpy(), used.to_numpy(), list(day))
    for time in every:
        np.testing.assert_allclose(result.autocorrelation(time=time)["autocorrelation"], expected, rtol=EXACT)
        assert result.residual_tests(time=time)["p_value"].notna().any()
    with pytest.raises(
        flc.LMMError, match=r"^time has another index than the data, and no value for 46 of its 46 rows"
    ):
        result.autocorrelation(time=day.reset_index(drop=True).set_axis(range(1000, 1048)))
    with pytest.raises(
        flc.LMMError, match=r"^time has 7 values for 46 rows used, which are 46 of the 48 rows of the data"
    ):
        result.autocorrelation(time=np.arange(7.0))


# ------------------------------------------------------------------------------------------------------------
# what is given


@pytest.mark.parametrize("argument", ["weights", "offset"])
def test_a_series_is_aligned_with_the_table(data, argument, rng):
    values = pd.Series(rng.uniform(0.5, 2.0, len(data)), index=data.index)
    expected = flc.lmm(FORMULA, data, **{argument: values.to_numpy()}).fit()
    whole = pd.concat([values, pd.Series(7.0, index=[1, 2, 3])])  # more rows than the filtered table
    for given in (values, values.sample(frac=1.0, random_state=3), whole.sort_index()):
        assert flc.lmm(FORMULA, data, **{argument: given}).fit().criterion == expected.criterion
    with pytest.raises(
        flc.LMMError, match=rf"^{argument} has another index than the data, and no value for 1 of its 48"
    ):
        flc.lmm(FORMULA, data, **{argument: values.iloc[1:]})
    with pytest.raises(flc.LMMError, match=rf"no value for 48 .*{argument}\.to_numpy\(\)"):
        flc.lmm(FORMULA, data, **{argument: values.reset_index(drop=True)})
    # in predictions too
    result = flc.lmm(FORMULA, data, offset=values).fit()
    new = data.dropna().iloc[:4]
    found = result.predict(new, offset=values.sample(frac=1.0, random_state=4))
    np.testing.assert_allclose(found, result.predict(new, offset=values.loc[new.index].to_numpy()), rtol=EXACT)
    np.testing.assert_allclose(result.predict(offset=values), result.predict(), rtol=EXACT)


def test_a_series_for_a_table_without_labels(data):
    table = pl.from_pandas(data)
    weights = pd.Series(1.0 + np.arange(len(data)), index=data.index)
    with pytest.raises(flc.LMMError, match=r"^weights has an index of its own and the rows of the data have no labels"):
        flc.lmm(FORMULA, table, weights=weights)
    by_position = weights.reset_index(drop=True)
    assert (
        flc.lmm(FORMULA, table, weights=by_position).fit().criterion
        == flc.lmm(FORMULA, table, weights=weights.to_numpy()).fit().criterion
    )


def test_series_in_a_dict_have_one_index(data):
    plain = flc.lmm(FORMULA, data).fit()
    columns = dict(data.items())
    assert flc.lmm(FORMULA, columns).fit().criterion == plain.criterion
    columns["g"] = data.g.sample(frac=1.0, random_state=5)
    with pytest.raises(flc.LMMError, match=r"^Column 'g' of `data` and column 'y' of `data` have different indices"):
        flc.lmm(FORMULA, columns)
    with pytest.raises(flc.LMMError, match="different indices"):
        plain.predict({"t": data.t.dropna(), "g": columns["g"].loc[data.t.dropna().index[::-1]]}, "all")


def test_series_for_arrays_have_one_index(data):
    d = data.dropna()
    X = pd.DataFrame({"one": 1.0, "t": d.t})
    w = pd.Series(1.0, index=d.index)
    result = flc.LinearMixedModel(d.y, X, None, d.g, weights=w).fit()
    plain = flc.LinearMixedModel(*arrays_of(data)).fit()
    assert result.criterion == plain.criterion
    same(result.resid, d.index, plain.resid)
    assert list(result.params.index) == ["one", "t"]
    shuffled = d.sample(frac=1.0, random_state=6)
    for name, given in {
        "X": {"X": X.loc[shuffled.index]}, "groups": {"groups": shuffled.g},
        "weights": {"weights": w.loc[shuffled.index]}, "offset": {"offset": w.loc[shuffled.index]},
        "Z": {"Z": X.loc[shuffled.index]},
    }.items():  # fmt: skip
        with pytest.raises(flc.LMMError, match=rf"^{name} and y have different indices \(first: .* at row 0\); give"):
            flc.LinearMixedModel(**({"y": d.y, "X": X, "groups": d.g} | given))
    with pytest.raises(flc.LMMError, match=r"^terms\[0\]\.groups and y have different indices"):
        flc.LinearMixedModel(d.y, X, terms=[flc.RandomTerm(None, shuffled.g)])
    with pytest.raises(flc.LMMError, match=r"^groups and y have different indices \(46 and 5 rows\)"):
        flc.LinearMixedModel(d.y[:5], None, None, d.g)
    with pytest.raises(flc.LMMError, match=r"^data\['groups'\] and data\['X'\] have different indices"):
        result.predict({"X": X, "groups": shuffled.g}, "all")
    same(result.predict({"X": X, "groups": d.g}, "all"), d.index, plain.fittedvalues)


def test_group_means_of_series(data):
    d = data.dropna()
    means = flc.group_mean(d.t, d.g)
    assert means.index.equals(d.index)
    np.testing.assert_allclose(means, d.groupby("g").t.transform("mean"), rtol=EXACT)
    np.testing.assert_allclose(d.assign(rest=flc.within(d.t, d.g)).rest + means, d.t, rtol=EXACT)
    assert isinstance(flc.group_mean(d.t.to_numpy(), d.g.to_numpy()), np.ndarray)
    for call in (flc.group_mean, flc.within):
        with pytest.raises(flc.LMMError, match=r"^the groups and x have different indices"):
            call(d.t, d.g.sample(frac=1.0, random_state=8))


def test_another_response_is_aligned(data, rng):
    model = flc.lmm(FORMULA, data)
    other = pd.Series(rng.standard_normal(len(data)), index=data.index)
    used = other[data.t.notna()]
    expected = model.refit(used.to_numpy())
    for given in (other, used, other.sample(frac=1.0, random_state=7), other.to_numpy()):
        found = model.refit(given)
        assert found.criterion == expected.criterion
        same(found.resid, data.dropna().index, expected.resid)
    with pytest.raises(flc.LMMError, match=r"^y has another index than the data, and no value for 46"):
        model.refit(other.set_axis(range(len(other), 2 * len(other))).set_axis(range(5000, 5048)))
