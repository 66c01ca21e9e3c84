"""Text to codes, against numpy's sorting."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import kernels
from fastlmm_core.tables.columns import Column

KINDS = {
    "numbered": [f"subject{i}" for i in range(5000)],
    "every length": ["x" * i for i in range(60)],
    "ends differ": ["x" * 40 + str(i) for i in range(300)],
    "beginnings differ": [str(i) + "x" * 40 for i in range(300)],
    "middles differ": ["x" * 20 + chr(97 + i) + "x" * 20 for i in range(26)],
    "zeros": ["a", "a\0", "a\0\0", "\0", "", "a\0b"],
    "not in ASCII": ["é", "e\u0301", "z", "𝒳", "\uffff", "名前", "名", "ß", "ss"],
    "numbers": [str(i) for i in range(-1500, 1500)],
    "bytes without odd ones": [str(i) for i in range(1000) if set(str(i)) <= set("02468")],
    "ends of unequal lengths": ["patient " + end for end in ("zz", "aaaa", "m", "kkk")],
    "one": ["same"],
    "empty": [""],
}


def utf8(values):
    encoded = [value.encode() for value in values]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_labels_are_those_of_sorting(rng, kind):
    values = rng.choice(np.array(KINDS[kind], dtype=object), 3000)
    expected = sorted(set(values))
    data, offsets = utf8(values)
    for codes, labels in (
        kernels.object_codes(values),
        kernels.text_codes(data, offsets.astype(np.int64)),
        kernels.text_codes(data, offsets.astype(np.int32)),
    ):
        assert labels.tolist() == expected
        assert all(type(label) is str for label in labels)
        np.testing.assert_array_equal(labels[codes], values)


def test_missing_text_has_no_label(rng):
    values = rng.choice(np.array(["b", "a", ""], dtype=object), 500)
    missing = rng.random(500) < 0.3
    codes, labels = kernels.text_codes(*utf8(values), missing)
    assert labels.tolist() == ["", "a", "b"]
    assert (codes[missing] == -1).all()
    np.testing.assert_array_equal(labels[codes[~missing]], values[~missing])
    codes, labels = kernels.text_codes(*utf8(values), np.ones(500, dtype=bool))
    assert len(labels) == 0
    assert (codes == -1).all()


def test_no_text():
    codes, labels = kernels.text_codes(np.empty(0, np.uint8), np.zeros(1, dtype=np.int32))
    assert len(codes) == len(labels) == 0


@pytest.mark.parametrize("other", [None, 1, np.nan, b"bytes", "\ud800"])
def test_objects_that_are_no_text_are_left_to_others(other):
    values = np.array(["a"] * 700 + [other] + ["b"] * 5, dtype=object)
    assert kernels.object_codes(values) is None


@pytest.mark.parametrize("kind", ["string", "large_string", "chunked", "sliced", "pandas", "pandas objects"])
def test_text_of_tables(rng, kind):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    values = rng.choice(np.array(KINDS["numbered"][:90], dtype=object), 400).tolist()
    values[7] = values[250] = None
    if kind == "sliced":
        raw = pa.array(["first", None, *values, "last"]).slice(2, 400)
    elif kind == "chunked":
        raw = pa.chunked_array([values[:100], values[100:101], values[101:]])
    elif kind == "pandas":
        raw = pd.Series(values, dtype=pd.StringDtype("pyarrow"))[::-1][::-1]
    elif kind == "pandas objects":
        raw = pd.Series(values, dtype=object)
    else:
        raw = pa.array(values, type=kind)
    column = Column("A column", raw)
    np.testing.assert_array_equal(np.flatnonzero(column.missing()), [7, 250])
    codes, labels = column.categories()
    known = {label for label in values if label is not None}
    assert labels.tolist() == sorted(known)
    assert [None if code < 0 else labels[code] for code in codes] == values


def test_labels_of_a_subclass_are_plain_text_and_those_of_text_are_the_objects():
    class Name(str):
        __slots__ = ()

    values = np.array([Name("b"), "a", "b", Name("a"), "a much longer label than others", "ü"], dtype=object)
    codes, labels = kernels.object_codes(values)
    assert labels.tolist() == ["a", "a much longer label than others", "b", "ü"]
    assert [type(label) for label in labels] == [str] * 4
    np.testing.assert_array_equal(codes, [2, 0, 2, 0, 1, 3])
    assert labels[0] is values[1] and labels[1] is values[4]


@pytest.mark.parametrize("shared", ["", "id", "patient "])
def test_many_labels_of_all_lengths(shared):
    rng = np.random.default_rng(len(shared))
    words = [shared + "".join(map(chr, rng.integers(1, 256, rng.integers(0, 19)))) for _ in range(3000)]
    values = np.array(words, dtype=object)[rng.integers(0, len(words), 20_000)]
    codes, labels = kernels.object_codes(values)
    found, back = np.unique(values, return_inverse=True)
    assert labels.tolist() == found.tolist()
    np.testing.assert_array_equal(codes, back)


def test_text_of_sixteen_bytes_that_looks_like_what_is_kept_of_shorter_text():
    # of sixteen bytes that end with a small one: what is kept of shorter text is its bytes and its length
    first, second = "abcdefgh", "ijklmno"
    words = [(first + second)[:length] for length in range(16)]
    words += [word.ljust(15, "\0") + chr(len(word)) for word in words] + [first + second + end for end in "\x10p"]
    words += ["\0" * length for length in (*range(1, 16), 17)]
    assert len(set(words)) == len(words) and sum(len(word.encode()) == 16 for word in words) == 18
    values = np.array(words, dtype=object)[np.random.default_rng(4).permutation(np.repeat(np.arange(len(words)), 9))]
    codes, labels = kernels.object_codes(values)
    assert labels.tolist() == sorted(words)
    assert labels[codes].tolist() == values.tolist()


@pytest.mark.parametrize("share", ["all", "runs", "none", "at first", "two for each label", "a subclass"])
def test_rows_that_share_objects(rng, share):
    class Name(str):
        __slots__ = ()

    words = [f"a label of {i} that is not short" for i in range(5000)]
    n = 150_000 if share in ("none", "at first") else 30_000
    which = rng.integers(0, 5000, n)
    if share == "runs":
        which.sort()
    values = np.array(words, dtype=object)[which]
    if share in ("none", "at first"):
        for i in range(0 if share == "none" else 70_000, n):
            values[i] = (words[which[i]] + "!")[:-1]
    elif share == "two for each label":
        values[::2] = np.array([(word + "!")[:-1] for word in words], dtype=object)[which[::2]]
    elif share == "a subclass":
        values[::3] = np.array([Name(word) for word in words], dtype=object)[which[::3]]
    codes, labels = kernels.object_codes(values)
    present, expected = np.unique(which, return_inverse=True)
    rank = np.argsort(np.argsort([words[i] for i in present]))
    assert labels.tolist() == sorted(words[i] for i in present)
    assert all(type(label) is str for label in labels)
    np.testing.assert_array_equal(codes, rank[expected])
