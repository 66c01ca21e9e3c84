"""Lazy frames, relations of databases and streams: the same models as from tables, of the columns in use only."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc
from fastlmm_core.tables.lazy import collected

FORMULA = "Reaction ~ np.log(Days + 1) + (1 | Subject)"


class Stream:
    """Anything that exports a stream of Arrow batches, once."""

    def __init__(self, table):
        self.reader = table.to_reader()

    def __arrow_c_stream__(self, requested_schema=None):
        reader, self.reader = self.reader, None
        return reader.__arrow_c_stream__(requested_schema)


class DuckDBPyRelation:
    """What a relation of DuckDB is asked for."""

    def __init__(self, table, asked):
        self.table, self.asked, self.columns = table, asked, table.column_names

    def project(self, text):
        names = [name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")*)"', text)]
        self.asked.append(names)
        return DuckDBPyRelation(self.table.select(names), self.asked)

    def limit(self, count):
        return DuckDBPyRelation(self.table.slice(0, count), self.asked)

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.fixture(scope="module")
def table():
    data = flc.datasets.load("sleepstudy", "dict")
    return pa.table({**data, 'a "quoted", column': np.arange(180.0)})


def test_the_same_fit(table):
    expected = flc.lmm(FORMULA, table).fit().criterion
    asked = []
    for given, library in (
        (pl.from_arrow(table).lazy(), "polars"), (DuckDBPyRelation(table, asked), "pyarrow"),
        (Stream(table), "pyarrow"), (table.to_reader(), "pyarrow"),
    ):  # fmt: skip
        model = flc.lmm(FORMULA, given)
        assert model.fit().criterion == pytest.approx(expected, rel=1e-12)
        assert model.library == library
        changed = model.update(". ~ . + I(Days ** 2)")
        assert changed.exog.shape == (180, 3)
    assert asked[0] == ["Reaction", "Days", "Subject"]


def test_only_the_columns_in_use_are_read(table, monkeypatch):
    seen = []
    collect = pl.LazyFrame.collect

    def watched(self, *args, **kwargs):
        found = collect(self, *args, **kwargs)
        seen.append(found.columns)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", watched)
    frame = pl.from_arrow(table).with_columns(w=pl.lit(1.0), v=pl.lit(2.0), id=pl.col("Subject")).lazy()
    flc.lmm("Reaction ~ Days + (1 | Subject)", frame, weights="w", residual="ar1(Days | id)", variance="power(v)")
    assert set(seen[0]) == {"Reaction", "Days", "Subject", "w", "id", "v"}
    fit = flc.lmm("Reaction ~ Days + (1 | Subject)", frame).fit()
    np.testing.assert_allclose(fit.predict(frame, effects="all"), fit.fittedvalues)


def test_what_is_not_there_is_named(table):
    for given in (pl.from_arrow(table).lazy(), DuckDBPyRelation(table, [])):
        with pytest.raises(
            flc.LMMError, match=r"no column 'Reactions', which the response uses. Did you mean 'Reaction'"
        ):
            flc.lmm("Reactions ~ Days + (1 | Subject)", given)
    assert collected(table) is table
    quoted = flc.lmm('Reaction ~ `a "quoted", column` + (1 | Subject)', DuckDBPyRelation(table, []))
    assert quoted.exog[-1, 1] == 179.0


def test_a_real_relation(table):
    duckdb = pytest.importorskip("duckdb")
    relation = duckdb.from_arrow(table)
    found = flc.lmm(FORMULA, relation).fit()
    assert found.criterion == pytest.approx(flc.lmm(FORMULA, table).fit().criterion, rel=1e-12)
    assert found.update(". ~ . - np.log(Days + 1)").params["Intercept"] == pytest.approx(298.5, abs=0.1)
