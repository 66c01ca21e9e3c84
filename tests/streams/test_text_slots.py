"""Slots of labels that are text of Arrow, piece by piece, against a dictionary of Python."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.kernels.reading import TextTable
from fastlmm_core.tables.labels import arrow_text_slots

pa = pytest.importorskip("pyarrow")

WORDS = {
    "short": lambda i: f"id{i}",
    "eight and sixteen": lambda i: f"{i:08d}" * (1 + i % 2),
    "long": lambda i: f"a label of more than sixteen bytes {i * i}",
    "not ASCII": lambda i: "é" * (i % 5) + f"日本{i}",
    "ends alike": lambda i: f"{i}" + "x" * 20,
    "empty too": lambda i: "" if i == 3 else str(i),
}


@pytest.mark.parametrize("kind", list(WORDS))
@pytest.mark.parametrize("wide", [False, True])
def test_slots_are_those_of_a_dictionary(kind, wide, rng):
    table, known = TextTable(), {}
    for size in (1, 127, 128, 129, 3000, 0, 20_000):
        rows = [WORDS[kind](int(i)) for i in np.repeat(rng.integers(0, 4 * size + 1, size), 2)]
        text = pa.array(rows, pa.large_string() if wide else pa.string())
        # a slice, and a copy whose text is overwritten once it has been read
        found = arrow_text_slots(text.slice(size // 3), table, None)
        expected = [known.setdefault(word, len(known)) for word in rows[size // 3 :]]
        assert found.tolist() == expected
        assert table.n == len(known)
    del text
    words = list(known)
    assert table.labels().tolist() == words
    order = table.order()
    if order is not None:
        assert [words[i] for i in order] == sorted(words)


def test_text_is_kept_when_the_rows_are_gone():
    table = TextTable()
    words = [f"a label with more than sixteen bytes, {i}" for i in range(5000)]
    data = np.frombuffer("".join(words).encode(), np.uint8).copy()
    offsets = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)
    table.slots(data, offsets)
    data[:] = 0
    assert table.labels().tolist() == words
    again = np.frombuffer("".join(words).encode(), np.uint8)
    assert table.slots(again, offsets).tolist() == list(range(5000))


def test_rows_left_out_leave_no_label():
    table = TextTable()
    text = pa.array(["b", None, "a", "c", "a"])
    assert arrow_text_slots(text, table, np.array([2, 4])).tolist() == [0, 0]
    assert table.labels().tolist() == ["a"]
    assert arrow_text_slots(text, table, np.array([0, 2])).tolist() == [1, 0]


def test_entries_of_a_dictionary_that_no_row_has_leave_no_label():
    table = TextTable()
    words = pa.array(["c", "unused", "a", "b", "a"])  # entries may be the same
    text = pa.DictionaryArray.from_arrays(pa.array([3, None, 2, 0, 4], pa.int32()), words)
    assert arrow_text_slots(text, table, np.array([2, 4])).tolist() == [0, 0]
    assert table.labels().tolist() == ["a"]
    found = arrow_text_slots(text.slice(2), table, None).tolist()
    assert sorted(table.labels().tolist()) == ["a", "c"]
    assert [table.labels()[slot] for slot in found] == ["a", "c", "a"]


def test_labels_that_a_file_holds_in_dictionaries(tmp_path, rng):
    """Some only in rows that are left out, others in one part of the file; the numbers are those of memory."""
    pd, parquet = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    n = 4000
    g = np.sort(rng.integers(0, 300, n))
    frame = pd.DataFrame({"x": rng.normal(size=n), "g": [f"id {i}" for i in g], "arm": np.where(g % 2, "a", "b")})
    frame["y"] = frame["x"] + rng.normal(size=300)[g] + rng.normal(size=n)
    frame.loc[(g == 7) | (rng.random(n) < 0.01), "x"] = np.nan
    frame.loc[rng.random(n) < 0.01, "g"] = None
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pandas(frame), path, row_group_size=700)
    tables = list(flc.scan(path).tables(["g", "arm"]))
    assert len(tables) == 6 and all(table.column("g").raw.type.index_type == pa.int32() for table in tables)
    one = flc.lmm("y ~ x + arm + (1 | g)", frame).fit()
    other = flc.lmm("y ~ x + arm + (1 | g)", flc.scan(path)).fit()
    assert (other.criterion, other.nobs) == (one.criterion, one.nobs)
    assert other.beta.tolist() == one.beta.tolist()
    labels = other.model.factors[0].grouping.labels.tolist()
    assert labels == one.model.factors[0].grouping.labels.tolist() and "id 7" not in labels


@pytest.mark.parametrize("first", ["arrow", "pandas", "category"])
def test_text_of_several_kinds_is_one_factor(first, rng):
    pd = pytest.importorskip("pandas")
    n = 900
    g = np.array([f"g{i}" for i in rng.integers(0, 40, n)], dtype=object)
    x = rng.normal(size=n)
    y = x + rng.normal(size=40)[[int(word[1:]) for word in g]] + rng.normal(size=n)
    frame = pd.DataFrame({"y": y, "x": x, "g": g})
    parts = [frame[:300], frame[300:600], frame[600:]]
    makers = {
        "arrow": lambda part: pa.table({name: part[name].to_numpy() for name in part}),
        "pandas": lambda part: part,
        "category": lambda part: part.assign(g=pd.Categorical(part["g"], categories=sorted(set(g)))),
    }
    kinds = [first, *(kind for kind in makers if kind != first)]
    pieces = [makers[kind](part) for kind, part in zip(kinds, parts, strict=True)]
    found = flc.lmm("y ~ x + (1 | g)", flc.scan(pieces)).fit()
    expected = flc.lmm("y ~ x + (1 | g)", frame).fit()
    assert found.criterion == pytest.approx(expected.criterion, rel=1e-12)
    assert found.n_groups == expected.n_groups
    # the effects of each row's label
    np.testing.assert_allclose(np.asarray(found.predict(frame)), np.asarray(expected.predict(frame)), atol=1e-9)
