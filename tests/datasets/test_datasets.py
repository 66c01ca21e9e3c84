"""The bundled data sets: types, rows, descriptions, and that loading one imports nothing it need not."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest

import oracle
from fastlmm_core import datasets

ROWS = {
    "cake": 270,
    "dyestuff": 30,
    "dyestuff2": 30,
    "fev": 800,
    "machines": 54,
    "orthodont": 108,
    "oxboys": 234,
    "pastes": 60,
    "penicillin": 144,
    "sleepstudy": 180,
}
LEVELS = {"cake": 15, "dyestuff": 6, "dyestuff2": 6, "machines": 6, "orthodont": 27, "oxboys": 26, "sleepstudy": 18}
MISSING = {"FEV1"}
KINDS = {"label": "U", "integer": "i", "number": "f"}


def test_names():
    assert datasets.names() == sorted(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_dict(name):
    data = datasets.load(name, frame="dict")
    about = datasets.describe(name)
    assert list(data) == list(about.columns)
    assert about.n_rows == ROWS[name]
    for column, x in data.items():
        assert x.shape == (ROWS[name],)
        assert x.dtype.kind == KINDS[about.columns[column].kind]
        assert x.dtype.kind == "U" or x.dtype.itemsize == 8
        assert x.dtype.kind == "U" or column in MISSING or np.all(np.isfinite(x))
    group = list(data)[-1]
    if name in LEVELS:
        assert len(np.unique(data[group])) == LEVELS[name]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_frames_hold_the_same(name, library):
    module = pytest.importorskip(library)
    frame = datasets.load(name, frame=library)
    assert isinstance(frame, module.Table if library == "pyarrow" else module.DataFrame)
    expected = datasets.load(name, frame="dict")
    columns = frame.column_names if library == "pyarrow" else list(frame.columns)
    assert columns == list(expected)
    for column, x in expected.items():
        got = frame[column].to_pylist() if library == "pyarrow" else frame[column].to_list()
        np.testing.assert_array_equal(np.array(got, dtype=x.dtype), x)
        assert type(got[0]) is type(x.tolist()[0])


def test_pandas_is_the_default():
    pd = pytest.importorskip("pandas")
    frame = datasets.load("sleepstudy")
    assert isinstance(frame, pd.DataFrame)
    assert frame["Reaction"].dtype == np.float64
    assert frame["Days"].dtype == np.int64
    assert pd.api.types.is_string_dtype(frame["Subject"])


@pytest.mark.parametrize("name", [n for n in oracle.SINGLE_FACTOR if "_" not in n])
def test_same_data_as_the_references(name):
    data = datasets.load(name, frame="dict")
    for column, x in oracle.reference(name).columns.items():
        np.testing.assert_array_equal(data[column], x)


def test_describe():
    about = datasets.describe("sleepstudy")
    assert "Belenky" in about.citation
    assert about.columns["Reaction"].unit == "ms"
    page = str(about)
    for word in ("sleepstudy", "180 rows", "Reaction", "[ms]", "lme4", "Belenky"):
        assert word in page


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_set_is_described(name):
    about = datasets.describe(name)
    assert about.name == name
    assert about.title.endswith(".")
    assert about.source
    assert about.citation
    assert about.formula.split("~")[0].strip() in about.columns
    assert all(column.meaning for column in about.columns.values())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"sleepstudi.*choose one of .*sleepstudy"):
        datasets.load("sleepstudi")
    with pytest.raises(ValueError, match="choose one of"):
        datasets.describe("../secrets")
    with pytest.raises(ValueError, match=r"modin.*'pandas'"):
        datasets.load("sleepstudy", frame="modin")


def test_two_loads_share_nothing():
    first = datasets.load("dyestuff", frame="dict")
    first["Yield"][:] = 0.0
    assert datasets.load("dyestuff", frame="dict")["Yield"][0] == 1545.0


def test_a_dict_needs_no_frame_library():
    code = (
        "import sys, fastlmm_core.datasets as d; d.load('sleepstudy', frame='dict'); "
        "print(sorted({'pandas', 'polars', 'pyarrow', 'formulaic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_examples_in_the_docstrings():
    assert doctest.testmod(datasets).failed == 0
