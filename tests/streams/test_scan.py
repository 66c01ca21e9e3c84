"""Models of rows that are read in pieces: the numbers of rows in memory, whatever the pieces."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import fastlmm_core as flc
from streamed import FORMULA, close, cut, same_bits, simulated


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of one block, so that there are several of them."""
    monkeypatch.setattr("fastlmm_core.streams.reduce.TARGET", 1 << 12)


FORMULAS = [FORMULA, "y ~ x + (x | g)", "y ~ z + (1 | g)", "y ~ x + (x || g)", "y ~ 1 + (1 | g)"]


@pytest.mark.parametrize("size", [1, 999, 2048, 5000, 10_000])
@pytest.mark.parametrize(
    "formula", [FORMULA, "y ~ x + (x | g)", "y ~ z + (1 | g)", "y ~ x + (x || g)", "y ~ 1 + (1 | g)"]
)
def test_pieces_of_any_size_have_the_bits_of_memory(formula, size):
    data = simulated()
    if size == 1:
        data = data.iloc[:300]
    one = flc.lmm(formula, data).fit()
    other = flc.lmm(formula, flc.scan(cut(data, size))).fit()
    same_bits(one, other)
    assert other.model.design.passes == 1
    assert other.nobs == len(data)


@pytest.mark.parametrize("shuffled", [False, True])
def test_labels_that_are_text(shuffled):
    data = simulated(shuffled=shuffled)
    data["g"] = [f"id {label}" for label in data["g"]]
    other = flc.lmm(FORMULA, flc.scan([pa.Table.from_pandas(part) for part in cut(data, 900)])).fit()
    one = flc.lmm(FORMULA, data).fit()
    same_bits(one, other) if not shuffled else close(one, other)


def test_whole_numbers_do_not_depend_on_order():
    # products of whole numbers are exact, so that any order of additions gives the same sums
    data = simulated().assign(y=lambda d: np.round(d["y"]), x=lambda d: np.round(d["x"]), z=lambda d: np.round(d["z"]))
    plan = flc.plan(FORMULA, data)
    parts = [plan.reduce(part, key=i) for i, part in enumerate(cut(data, 1234))]
    same_bits(flc.lmm(FORMULA, data).fit(), flc.lmm(plan, flc.merge(parts[::-1])).fit())


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "glob", "directory", "list", "dataset"])
def test_files(tmp_path, kind):
    data = simulated(3000)
    suffix = kind if kind in ("arrow", "csv") else "parquet"
    write = {"parquet": pq.write_table, "arrow": pa.feather.write_feather, "csv": pa.csv.write_csv}[suffix]
    names = []
    for i, part in enumerate(cut(data, 1100)):
        names.append(str(tmp_path / f"part{i}.{suffix}"))
        write(pa.Table.from_pandas(part, preserve_index=False), names[-1])
    source = {"directory": tmp_path, "list": names}.get(kind, str(tmp_path / f"*.{suffix}"))
    if kind == "dataset":
        source = pa.dataset.dataset(names)
    scan = flc.scan(source)
    assert len(scan.keys) == 3
    same_bits(flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, scan).fit())


@pytest.mark.parametrize("kind", ["pandas", "polars", "lazy", "dict", "pyarrow", "factory", "iterator", "reader"])
def test_sources(kind):
    data = simulated(3000)
    table = pa.Table.from_pandas(data, preserve_index=False)
    source = {
        "pandas": lambda: data, "polars": lambda: pl.from_pandas(data), "lazy": lambda: pl.from_pandas(data).lazy(),
        "dict": lambda: {name: data[name].to_numpy() for name in data}, "pyarrow": lambda: table,
        "factory": lambda: lambda: iter(cut(data, 700)), "iterator": lambda: iter(cut(data, 700)),
        "reader": lambda: table.to_reader(max_chunksize=500),
    }[kind]()  # fmt: skip
    same_bits(flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, flc.scan(source)).fit())


def test_what_is_read_once_is_not_read_twice():
    data = simulated(3000)
    scan = flc.scan(iter(cut(data, 700)))
    with pytest.raises(flc.LMMError, match=r"read again, and an iterator gives its tables once.*levels="):
        flc.plan("y ~ arm + (1 | g)", scan)
    plan = flc.plan("y ~ arm + (1 | g)", iter(cut(data, 700)), levels={"arm": "abc"})
    total = plan.reduce(iter(cut(data, 700)), key="all")
    same_bits(flc.lmm("y ~ arm + (1 | g)", data).fit(), flc.lmm(plan, total).fit())


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ arm * z + (x | g)", "y ~ C(g9) + z + (1 | g)", "y ~ center(x) + (center(x) | g)", "y ~ scale(x) + (1 | g)",
        "y ~ within(x, g) + between(x, g) + within(z, g) + (1 | g)", "log(y + 100) ~ np.exp(z) + I(z**2) + (1 | g)",
        "y ~ poly(x, 3) * arm + (poly(x, 2) | g)", "y ~ between(x, g, arm) + (1 | g)", "y ~ flag * z + (1 | g)",
    ],
)  # fmt: skip
def test_formulas_that_have_to_see_all_rows_first(formula):
    data = simulated(5000).assign(g9=lambda d: d["g"] % 9, flag=lambda d: d["z"] > 0.3)
    # levels that come late
    data = data.sort_values("arm", ascending=False, kind="stable").reset_index(drop=True)
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 800))).fit()
    assert one.model.exog_names == other.model.exog_names
    close(one, other)
    new = data.iloc[:20]
    np.testing.assert_allclose(np.asarray(other.predict(new)), np.asarray(one.predict(new)), rtol=1e-8)


def test_a_source_that_changes():
    data = simulated(3000).assign(w=lambda d: 2.0 * d["x"] - d["z"])
    reads = []

    def source():
        reads.append(0)
        return iter(cut(data if len(reads) < 4 else data.iloc[:2000], 700))

    with pytest.raises(flc.LMMError, match="3000 complete rows when it was first read, and 2000"):
        flc.lmm("y ~ x + z + w + (1 | g)", flc.scan(source))


@pytest.mark.parametrize("term", ["np.cumsum(x)", "I(x - max(x))", "I(x / sum(x))"])
def test_functions_of_whole_columns_are_refused(term):
    with pytest.raises(flc.LMMError, match="depends on other rows"):
        flc.lmm(f"y ~ {term} + (1 | g)", flc.scan(cut(simulated(5000), 800)))


@pytest.mark.parametrize("term", ["poly(x, x)", "poly(log(x), 2)", "bs(x, df=4)", "lag(x)", "center(log(x))"])
def test_states_that_a_scan_does_not_find_are_refused(term):
    with pytest.raises(flc.LMMError, match="remembers something of all rows that a scan does not find"):
        flc.lmm(f"y ~ {term} + (1 | g)", flc.scan(cut(simulated(5000), 800)))


def test_missing_rows_are_counted_by_reason():
    data = simulated(4000)
    data.loc[[3, 7, 900, 2500], "y"] = np.nan
    data.loc[[7, 901], "x"] = np.nan
    data.loc[1600:1699, "z"] = np.nan  # a whole piece
    one, other = flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, flc.scan(cut(data, 100))).fit()
    same_bits(one, other)
    assert other.model.n_dropped == one.model.n_dropped == 105
    assert dict(other.model.spec.gaps) == dict(one.model.spec.gaps) == {"y": 4, "x": 2, "z": 100}
    with pytest.raises(flc.LMMError, match="Values are missing"):
        flc.lmm(FORMULA, flc.scan(cut(data, 100)), missing="raise")


def test_weights_and_offset():
    data = simulated(4000).assign(w=lambda d: np.abs(d["z"]) + 0.5, o=lambda d: d["x"] * 0.1)
    one = flc.lmm(FORMULA, data, weights="w", offset="o").fit()
    other = flc.lmm(FORMULA, flc.scan(cut(data, 300)), weights="w", offset="o").fit()
    same_bits(one, other)
    data.loc[3001, "w"] = 0.0
    with pytest.raises(flc.LMMError, match=r"`weights` must be positive.* row 1 "):
        flc.lmm(FORMULA, flc.scan(cut(data, 300)), weights="w", offset="o")


def test_dictionaries_that_differ():
    data = simulated(3000).sort_values("arm", kind="stable").reset_index(drop=True)
    data["g"] = [f"id {label}" for label in data["g"]]
    parts = [
        pa.table({name: pa.array(part[name]).dictionary_encode() if name in ("g", "arm") else pa.array(part[name])
                  for name in part}) for part in cut(data, 777)
    ]  # fmt: skip
    formula = "y ~ arm + x + (x | g)"
    assert parts[0]["g"].type != pa.string()
    same_bits(flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(parts)).fit())


def test_float32_and_empty_pieces():
    data = simulated(3000)
    data = data.astype({"y": np.float32, "x": np.float32, "z": np.float32})
    parts = cut(data, 500)
    parts[2:2] = [data.iloc[:0]] * 2
    same_bits(flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, flc.scan([data.iloc[:0], *parts])).fit())


@pytest.mark.parametrize("labels", ["wide", "negative", "huge"])
def test_labels_that_are_whole_numbers(labels):
    data = simulated(3000)
    step = {"wide": 10**6 + 7, "negative": -5, "huge": 2**53 // 20 + 1}[labels]
    data["g"] = (data["g"] // 3) * step + (2**60 if labels == "huge" else 0)
    one, other = flc.lmm(FORMULA, data).fit(), flc.lmm(FORMULA, flc.scan(cut(data, 311))).fit()
    assert other.model.factors[0].grouping.labels.tolist() == one.model.factors[0].grouping.labels.tolist()
    close(one, other)


@pytest.mark.parametrize("text", [False, True])
def test_groups_of_several_columns(text):
    data = simulated(3000).assign(h=lambda d: np.arange(len(d)) % 13)
    if text:
        data["h"] = [f"ä{h}" for h in data["h"]]
    data = data.sort_values(["g", "h"], kind="stable").reset_index(drop=True)
    formula = "y ~ x + (1 | g:h)"
    same_bits(flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 311))).fit())
    plan = flc.plan(formula, data)
    parts = [plan.reduce(part, key=i) for i, part in enumerate(cut(data, 311))]
    result = flc.lmm(plan, flc.merge(parts)).fit()
    close(result, flc.lmm(formula, data).fit())
    assert sum(table.num_rows for table in result.augment(data)) == len(data)


def test_joined_labels_that_are_the_same():
    data = simulated(3000)
    data = data.assign(g=np.where(data["z"] > 0, "a", "a:1"), h=np.where(data["z"] > 0, "1:2", "2"))
    with pytest.raises(flc.LMMError, match="ambiguous"):
        flc.lmm("y ~ x + (1 | g:h)", flc.scan(cut(data.assign(h=data["h"].where(data.index > 9, "4")), 700)))


def test_columns_that_depend_on_others_take_another_pass():
    data = simulated(5000).assign(w=lambda d: 2.0 * d["x"] - d["z"], v=lambda d: d["x"] * 1e6 + d["z"])
    for formula, dropped in (("y ~ x + z + w + (1 | g)", ("w",)), ("y ~ x + v + z + (x | g)", ("z",))):
        one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 700))).fit()
        assert other.dropped_columns == one.dropped_columns == dropped
        same_bits(one, other)
        assert other.model.design.passes > 1
        np.testing.assert_allclose(other.test("x").pvalue, one.test("x").pvalue, rtol=1e-6)


def test_a_column_that_is_constant_at_first():
    data = simulated(6000).assign(late=lambda d: np.where(np.arange(len(d)) < 3000, 1.0, d["z"]))
    one, other = (
        flc.lmm("y ~ 0 + late + (1 | g)", data).fit(),
        flc.lmm("y ~ 0 + late + (1 | g)", flc.scan(cut(data, 700))).fit(),
    )
    same_bits(one, other)
    assert other.model.design.passes == 2


def test_effects_that_the_fixed_part_explains_are_refused_as_in_memory():
    data = simulated(3000)
    for formula in ("y ~ C(g) + (1 | g)", "y ~ x + (0 + x + w | g)"):
        data["w"] = 2.0 * data["x"]
        with pytest.raises(flc.LMMError) as one:
            flc.lmm(formula, data).fit()
        with pytest.raises(flc.LMMError) as other:
            flc.lmm(formula, flc.scan(cut(data, 700))).fit()
        assert ("explained" in str(one.value)) == ("explained" in str(other.value))


def test_y_between_groups_only_is_summed_again():
    data = simulated(3000)
    data["y"] = 1e4 * data["g"] + data["y"] * 1e-5
    data = data.iloc[::-1].reset_index(drop=True)  # groups come in another order than that of their labels
    one, other = flc.lmm("y ~ x + (1 | g)", data).fit(), flc.lmm("y ~ x + (1 | g)", flc.scan(cut(data, 700))).fit()
    same_bits(one, other)
    assert other.model.design.passes == 2


class OneAtATime:
    """A stream as those of engines that give no second one while the first is open."""

    def __init__(self, table):
        self.table, self.open = table, False

    def __arrow_c_stream__(self, schema=None):
        if self.open:
            raise RuntimeError("the connection has an open result")
        self.open = True

        def batches():
            try:
                yield from self.table.to_batches(700)
            finally:
                self.open = False

        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.table.schema, batches()).__arrow_c_stream__(schema)


def test_streams_are_closed_before_others_are_opened():
    pa = pytest.importorskip("pyarrow")
    data = simulated(3000)
    source = OneAtATime(pa.Table.from_pandas(data, preserve_index=False))
    for formula in (FORMULA, "y ~ center(x) * arm + (1 | g)"):
        same_bits(flc.lmm(formula, flc.scan(source)).fit(), flc.lmm(formula, flc.scan([data])).fit())


def test_names_and_files_that_mislead_are_refused(tmp_path):
    data = simulated(300)
    path = tmp_path / "a.parquet"
    data.to_parquet(path)
    with pytest.raises(flc.LMMError, match=r"a.parquet` has no column 'w'. The columns are: 'y', 'x', 'z', 'g', 'arm'"):
        flc.lmm("y ~ w + (1 | g)", flc.scan(path))
    data.to_csv(tmp_path / "a.csv")
    with pytest.raises(flc.LMMError, match=r"holds files of several kinds \(.csv, .parquet\), which may be the same"):
        flc.scan(tmp_path)
    with pytest.raises(flc.LMMError, match=r"give scan\(path\)"):
        flc.lmm(FORMULA, str(path))
    with pytest.raises(flc.LMMError, match="the source has no rows"):
        flc.lmm(FORMULA, flc.scan([data.iloc[:0]]))


@pytest.mark.parametrize("right", ["x + arm", "x"])
def test_numbers_that_become_text_are_named(right):
    data = simulated(600)
    parts = [data.iloc[:300], data.iloc[300:].assign(x="a")]
    with pytest.raises(flc.LMMError, match=r"Column 'x' of .* (holds values of type .*held numbers|must hold numbers)"):
        flc.lmm(f"y ~ {right} + (1 | g)", flc.scan(parts))
