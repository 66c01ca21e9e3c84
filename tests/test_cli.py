"""The command line and the reading of files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.__main__ import main
from fastlmm_core.tables import files as tables

SLEEPSTUDY = "Reaction ~ Days + (Days | Subject)"


def write(path, columns, separator=","):
    rows = zip(*columns.values(), strict=True)
    path.write_text(
        "\n".join(separator.join(map(str, row)) for row in [tuple(columns), *rows]) + "\n", encoding="utf-8"
    )
    return str(path)


@pytest.fixture
def sleepstudy(tmp_path):
    return write(tmp_path / "sleepstudy.csv", flc.datasets.load("sleepstudy", "dict"))


# --- commands -------------------------------------------------------------------------------------------------------


def test_without_arguments_it_shows_what_it_does(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    first, blank, *rest = out.splitlines()
    assert "sleepstudy" in first
    assert SLEEPSTUDY in first
    assert blank == ""
    assert rest[0] == "Linear mixed model fit by REML"
    assert "1743.628" in out
    assert err == ""


def test_fit_prints_the_summary(sleepstudy, capsys):
    assert main(["fit", sleepstudy, SLEEPSTUDY]) == 0
    # labels are numbers in the file; everything but their type is as in the library
    expected = flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy", "dict")).fit().summary()
    assert capsys.readouterr().out == f"{expected}\n"


def test_maximum_likelihood_and_level(sleepstudy, capsys):
    assert main(["fit", sleepstudy, SLEEPSTUDY, "--ml", "--level", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "maximum likelihood" in out
    assert "1751.939" in out
    assert "80% CI" in out


def test_json(tmp_path, capsys):
    data = flc.datasets.load("sleepstudy", "dict")
    data["twice"] = 2 * data["Days"]
    data["w"] = np.linspace(0.5, 1.5, 180)
    data["o"] = np.arange(180.0)
    formula = "Reaction ~ Days + twice + (Days | Subject)"
    path = write(tmp_path / "data.csv", data)
    options = ["--ml", "--weights", "w", "--offset", "o", "--level", "0.9", "--ddf", "residual"]
    assert main(["fit", path, formula, "--json", *options]) == 0
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    result = flc.lmm(formula, data, weights="w", offset="o").fit(reml=False)
    assert record["params"] == {**result.params, "twice": None}
    assert record["bse"]["twice"] is None
    assert record["bse"]["Days"] == result.bse["Days"]
    limits = result.conf_int(level=0.9, ddf="residual")
    assert record["conf_int"]["Days"] == [limits[k][1] for k in ("conf_low", "conf_high")]
    assert record["conf_int"]["twice"] == [None, None]
    assert (record["ddf"], record["df"]["Days"], record["df"]["twice"]) == ("residual", 178.0, None)
    assert record["theta"] == result.theta.tolist()
    assert record["G"] == {"Subject": result.G["Subject"].tolist()}
    assert record["random_effects_names"] == {"Subject": ["Intercept", "Days"]}
    for name in ("sigma2", "criterion", "llf", "aic", "bic", "nobs", "n_groups", "converged", "singular", "message"):
        assert record[name] == getattr(result, name), name
    assert record["reml"] is False
    assert record["dropped_columns"] == ["twice"]


def test_exit_status_of_a_fit_that_is_not_certified(sleepstudy, capsys, monkeypatch):
    fit = flc.LinearMixedModel.fit

    def stopped(self, **arguments):
        return fit(self, method="Nelder-Mead", options={"maxiter": 2}, **arguments)

    monkeypatch.setattr(flc.LinearMixedModel, "fit", stopped)
    assert main(["fit", sleepstudy, SLEEPSTUDY]) == 1
    assert "NOT certified" in capsys.readouterr().out
    assert main(["fit", sleepstudy, SLEEPSTUDY, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["converged"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothere.csv", SLEEPSTUDY], "nothere.csv"),
        (["nothere.parquet", SLEEPSTUDY], "nothere.parquet"),
        (["data.xlsx", SLEEPSTUDY], "CSV or Parquet"),
        (["DATA", "Reaction ~ Day + (1 | Subject)"], "Days"),
        (["DATA", "Reaction ~ Days"], "random-effects term"),
        (["DATA", SLEEPSTUDY, "--weights", "w"], "`weights`"),
        (["DATA", SLEEPSTUDY, "--level", "95"], "--level 95"),
    ],
)
def test_errors_go_to_stderr(arguments, words, sleepstudy, capsys):
    assert main(["fit", *(sleepstudy if word == "DATA" else word for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err


def test_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit"])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"fastlmm_core {flc.__version__}"


def run(*arguments):
    command = [sys.executable, "-m", "fastlmm_core", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_as_a_process(sleepstudy):
    done = run("fit", sleepstudy, SLEEPSTUDY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1743.628" in done.stdout
    failed = run("fit", sleepstudy, "Reaction ~ nothing + (1 | Subject)")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1


def test_a_small_file_needs_no_frame_library(tmp_path):
    # each of them takes longer to import than the fit to run
    data = flc.datasets.load("sleepstudy", "dict")
    data["Subject"] = [f"s{label}" for label in data["Subject"]]
    path = write(tmp_path / "data.csv", data)
    code = (
        "import sys; from fastlmm_core.__main__ import main; "
        f"main(['fit', {path!r}, {SLEEPSTUDY!r}]); "
        "print(sorted({'pandas', 'polars', 'pyarrow', 'formulaic', 'narwhals', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- files ----------------------------------------------------------------------------------------------------------


def test_types_of_columns():
    lines = (
        'i,f,text,gap_i,gap_text,under,"a ""name"", too"',
        "1,1.5,x,1,p,1_0,1",
        '-2,2,"y, z",,NA,2_0,2',
        "3,1e-3,w,3,q,3_0,3",
    )
    data = tables.parse_csv("\n".join(lines))
    assert list(data) == ["i", "f", "text", "gap_i", "gap_text", "under", 'a "name", too']
    assert data["i"].dtype == np.int64
    assert data["i"].tolist() == [1, -2, 3]
    assert data["f"].dtype == np.float64
    assert data["f"].tolist() == [1.5, 2.0, 0.001]
    assert data["text"].tolist() == ["x", "y, z", "w"]
    np.testing.assert_array_equal(data["gap_i"], [1.0, np.nan, 3.0])
    assert data["gap_text"].tolist() == ["p", None, "q"]
    assert data["under"].tolist() == ["1_0", "2_0", "3_0"]
    assert data["text"].dtype.kind == data["under"].dtype.kind == "U"  # which can be grouped without pandas


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_separators_and_line_ends(separator, ending):
    text = ending.join(separator.join(row) for row in (("a", "b"), ("1", "x"), ("2", "y"))) + ending + ending
    data = tables.parse_csv(text)
    assert {name: column.tolist() for name, column in data.items()} == {"a": [1, 2], "b": ["x", "y"]}


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("é,b\n1,2\n".encode("utf-8-sig"))
    assert list(tables.read_table(path)) == ["é", "b"]


def test_long_text_does_not_widen_every_row():
    data = tables.parse_csv("a,b\n" + "x,1\n" * 999 + "y" * 100_000 + ",2\n")
    assert data["a"].nbytes < 100_000
    assert data["a"][-1] == "y" * 100_000


def test_whole_numbers_beyond_64_bits_are_numbers():
    assert tables.parse_csv(f"a\n{2**70}\n1\n")["a"].tolist() == [float(2**70), 1.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n1,2,3\n", r"3 cells in line 3 for 2"),
        ("a,b,a\n1,2,3\n", "more than one column 'a'"),
    ],
)
def test_files_that_are_not_tables(text, words, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(flc.LMMError, match=words) as caught:
        tables.read_table(path)
    assert "data.csv" in str(caught.value)


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(flc.LMMError, match="UTF-8"):
        tables.read_table(path)


@pytest.mark.parametrize("library", ["pyarrow", "polars", "pandas"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_library_reads_the_same(library, kind, tmp_path, monkeypatch):
    """Large CSV files and Parquet, with each library as if it were the only one."""
    pytest.importorskip(library)
    frame = flc.datasets.load("sleepstudy", "pandas")
    frame["Days"] = frame["Days"].astype(float)
    frame.loc[[3, 50], "Days"] = np.nan
    frame.loc[7, "Subject"] = None
    frame["Subject"] = "s" + frame["Subject"]
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False, sep=";", na_rep="NA")
        expected = tables.read_table(path)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
        expected = frame
    monkeypatch.setattr(tables, "_SMALL", 0)
    for name in ("_CSV_READERS", "_PARQUET_READERS"):
        monkeypatch.setattr(tables, name, {library: getattr(tables, name)[library]})
    found = tables.read_table(path)
    assert type(found).__module__.partition(".")[0] == library
    models = [flc.lmm(SLEEPSTUDY, data) for data in (expected, found)]
    assert [model.n_dropped for model in models] == [3, 3]
    np.testing.assert_array_equal(models[0].endog, models[1].endog)
    np.testing.assert_array_equal(models[0].exog, models[1].exog)
    assert models[0].grouping.labels.tolist() == models[1].grouping.labels.tolist()


def test_without_any_library_the_message_names_them(tmp_path, monkeypatch):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(tables, "_PARQUET_READERS", {"no_such_library": None})
    with pytest.raises(flc.LMMError, match=r"no_such_library.*pip install"):
        tables.read_table(path)


def test_a_damaged_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    path.write_bytes(b"this is not Parquet")
    with pytest.raises(flc.LMMError, match=r"data\.parquet"):
        tables.read_table(path)
