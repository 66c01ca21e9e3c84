"""The command line and the reading of files."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.__main__ import main
from fastlmm_core.commands import parser as parser_module
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
        return fit(self, method="Nelder-Mead", start=[3.0, 0.0, 3.0], options={"maxiter": 2}, **arguments)

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
        ([SLEEPSTUDY, "DATA"], "the file comes first, fit FILE FORMULA"),
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


# --- other commands -------------------------------------------------------------------------------------------------

GROWTH = "distance ~ age * Sex + (age | Subject)"


@pytest.fixture(scope="module")
def growth():
    return flc.lmm(GROWTH, flc.datasets.load("orthodont", "dict")).fit()


def said(capsys, *arguments, status=0):
    assert main(list(arguments)) == status
    return capsys.readouterr().out


def test_built_in_data_by_name(sleepstudy, capsys, tmp_path, monkeypatch):
    assert said(capsys, "fit", "sleepstudy", SLEEPSTUDY) == said(capsys, "fit", sleepstudy, SLEEPSTUDY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sleepstudy").write_text("a file of this name comes first", encoding="utf-8")
    assert main(["fit", "sleepstudy", SLEEPSTUDY]) == 2


def test_standard_input_and_packed_files(sleepstudy, capsys, tmp_path, monkeypatch):
    expected = said(capsys, "fit", sleepstudy, SLEEPSTUDY)
    text = Path(sleepstudy).read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff" + text))
    assert said(capsys, "fit", "-", SLEEPSTUDY) == expected
    packed = tmp_path / "data.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert said(capsys, "fit", str(packed), SLEEPSTUDY) == expected
    assert main(["fit", str(tmp_path / "data.parquet.gz"), SLEEPSTUDY]) == 2
    assert "CSV or Parquet" in capsys.readouterr().err


def test_decimal_commas_and_codes_for_gaps(capsys, tmp_path):
    data = flc.datasets.load("sleepstudy", "dict")
    columns = {name: [str(value).replace(".", ",") for value in values] for name, values in data.items()}
    columns["Reaction"][3], columns["Days"][4] = ".", "-99"
    path = write(tmp_path / "data.csv", columns, ";")
    record = json.loads(said(capsys, "fit", path, SLEEPSTUDY, "--decimal", ",", "--na", ".", "--na=-99", "--json"))
    kept = np.delete(np.arange(180), [3, 4])
    fit = flc.lmm(SLEEPSTUDY, {name: values[kept] for name, values in data.items()}).fit()
    assert record["n_dropped"] == 2 and record["criterion"] == pytest.approx(fit.criterion, rel=1e-12)
    assert main(["fit", path, SLEEPSTUDY, "--decimal", ",", "--na=-99"]) == 2


@pytest.mark.parametrize("library", ["pyarrow", "polars", "pandas"])
def test_every_library_reads_commas_and_packed_files(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    text = "a;b;c\n" + "".join(f"{k},5;x{k};{'-99' if k == 3 else k}\n" for k in range(9))
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    expected = tables.read_table(path, ",", ["-99"])
    assert expected["a"].tolist() == [k + 0.5 for k in range(9)] and np.isnan(expected["c"][3])
    monkeypatch.setattr(tables, "_SMALL", 0)
    monkeypatch.setattr(tables, "_CSV_READERS", {library: tables._CSV_READERS[library]})
    found = tables.read_table(path, ",", ["-99"])
    assert type(found).__module__.partition(".")[0] == library
    from fastlmm_core.tables.columns import Table

    table = Table(found)
    np.testing.assert_array_equal(table.column("a").number, expected["a"])
    np.testing.assert_array_equal(np.flatnonzero(table.column("c").missing()), [3])


def test_anova_and_compare(growth, capsys):
    assert said(capsys, "anova", "orthodont", GROWTH, "--type", "II") == f"{growth.anova('II')}\n"
    record = json.loads(said(capsys, "anova", "orthodont", GROWTH, "--ddf", "kenward-roger", "--json"))
    rows = record["rows"]
    table = growth.anova(ddf="kenward-roger")
    assert [row["term"] for row in rows] == list(table.terms)
    np.testing.assert_allclose([row["statistic"] for row in rows], table.statistic)
    assert record["notes"] == list(table.notes) and record["type"] == "III" and record["title"] == table.title
    assert record["fit"]["formula"] == GROWTH and record["fit"]["ddf"] == "kenward-roger"
    small = "distance ~ age * Sex + (1 | Subject)"
    found = said(capsys, "compare", "orthodont", small, GROWTH)
    data = flc.datasets.load("orthodont", "dict")
    assert found == f"{flc.compare(flc.lmm(small, data).fit(), growth)}\n"
    record = json.loads(said(capsys, "compare", "orthodont", small, GROWTH, "--ml", "--json"))
    rows = record["rows"]
    fits = [flc.lmm(formula, data).fit(reml=False) for formula in (small, GROWTH)]
    assert record["notes"] == list(flc.compare(*fits).notes)
    assert [fit["criterion"] for fit in record["fits"]] == pytest.approx([fit.criterion for fit in fits])
    assert rows[1]["aic"] == pytest.approx(flc.lmm(GROWTH, data).fit(reml=False).aic)
    assert main(["compare", "orthodont", small]) == 2


def test_emmeans(growth, capsys):
    options = ["Sex", "--at", "age=8,14", "--by", "age", "--contrasts", "pairwise", "--level", "0.9"]
    means = growth.emmeans("Sex", by="age", at={"age": [8.0, 14.0]}, contrasts="pairwise", level=0.9)
    assert said(capsys, "emmeans", "orthodont", GROWTH, *options) == f"{means}\n"
    found = json.loads(said(capsys, "emmeans", "orthodont", GROWTH, *options, "--json"))
    np.testing.assert_allclose([row["estimate"] for row in found["means"]["rows"]], means.estimate)
    np.testing.assert_allclose([row["p_value"] for row in found["contrasts"]["rows"]], means.comparison.pvalues)
    assert found["means"]["notes"] == list(means.notes)
    assert found["contrasts"]["notes"] == list(means.comparison.notes) and found["fit"]["level"] == 0.9
    chosen = json.loads(said(capsys, "emmeans", "orthodont", GROWTH, "Sex", "--at", "Sex=Male", "--json"))
    assert chosen["means"]["notes"] == list(growth.emmeans("Sex", at={"Sex": ["Male"]}).notes) != []
    assert [row["Sex"] for row in chosen["means"]["rows"]] == ["Male"]
    assert main(["emmeans", "orthodont", GROWTH, "Sex", "--at", "age"]) == 2


def test_predict(sleepstudy, capsys, tmp_path):
    fit = flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy", "dict")).fit()
    new = write(tmp_path / "new.csv", {"Days": [10, 11], "Subject": ["308", "new"]})
    lines = said(capsys, "predict", "sleepstudy", SLEEPSTUDY, "--new", new, "--effects", "all").split()
    expected = fit.predict({"Days": [10, 11], "Subject": ["308", "new"]}, "all", "population")
    assert lines[0] == "mean"
    np.testing.assert_allclose([float(line) for line in lines[1:]], expected)
    record = json.loads(said(capsys, "predict", "sleepstudy", SLEEPSTUDY, "--interval", "confidence", "--json"))
    limits = fit.predict(interval="confidence")
    np.testing.assert_allclose([row["conf_low"] for row in record["rows"]], limits["conf_low"])
    assert record["interval"] == "confidence" and record["effects"] == "population" and record["notes"] == []
    assert record["fit"]["criterion"] == pytest.approx(fit.criterion)


def test_predict_tells_of_rows_that_cannot_be_estimated(capsys, tmp_path):
    x = [0.0, 1.0, 2.0, 3.0] * 4
    columns = {"x": x, "twice": [2.0 * v for v in x], "g": [i // 4 for i in range(16)],
               "y": [1.0, 2.0, 3.5, 4.0, 2.0, 3.0, 4.2, 5.0, 1.5, 2.4, 3.0, 4.1, 0.0, 1.2, 2.0, 3.3]}  # fmt: skip
    path, new = write(tmp_path / "d.csv", columns), write(tmp_path / "new.csv", {"x": [1.0, 1.0], "twice": [2.0, 50.0]})
    asked = ("predict", path, "y ~ x + twice + (1 | g)", "--new", new)
    record = json.loads(said(capsys, *asked, "--json"))
    assert record["rows"][1]["mean"] is None and "row 1 " in record["notes"][0]
    assert main(list(asked)) == 0
    printed = capsys.readouterr()
    assert "row 1 " in printed.err and printed.out.startswith("mean\n")


def test_plot_and_save(capsys, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    picture, saved = tmp_path / "fit.png", tmp_path / "fit.lmm"
    assert said(capsys, "plot", "sleepstudy", SLEEPSTUDY, "--output", str(picture)).strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "sleepstudy", SLEEPSTUDY, "-o", str(tmp_path / "nothere" / "fit.png")]) == 2
    said(capsys, "fit", "sleepstudy", SLEEPSTUDY, "--save", str(saved))
    assert flc.load(saved).criterion == pytest.approx(1743.6283, abs=1e-4)


def test_a_known_residual_standard_deviation(tmp_path, capsys):
    effect, variance = [0.1, 0.5, -0.2, 0.9, 0.4], [0.02, 0.05, 0.04, 0.03, 0.1]
    path = write(tmp_path / "trials.csv", {"y": effect, "w": [1.0 / v for v in variance], "trial": list("abcde")})
    asked = ["fit", path, "y ~ 1 + (1 | trial)", "--weights", "w", "--sigma", "1"]
    record = json.loads(said(capsys, *asked, "--json"))
    data = {"y": effect, "w": 1.0 / np.array(variance), "trial": list("abcde")}
    fit = flc.lmm("y ~ 1 + (1 | trial)", data, weights="w", sigma=1.0).fit()
    assert record["sigma_known"] is True and record["sigma2"] == 1.0
    assert record["params"]["Intercept"] == pytest.approx(fit.beta[0])
    assert "Residual (known)" in said(capsys, *asked)


def test_json_has_what_a_fit_knows(growth, capsys):
    record = json.loads(said(capsys, "fit", "orthodont", GROWTH, "--json"), parse_constant=pytest.fail)
    assert record["icc"] == pytest.approx(growth.icc()) and record["r2"] == pytest.approx(growth.r2())
    np.testing.assert_allclose(record["cov_params"], growth.cov)
    effects = record["random_effects"]["Subject"]
    np.testing.assert_allclose([effects[label] for label in growth.group_labels], growth.blups[0])
    assert record["variance_components"][0]["term"] == "sd_Intercept|Subject"
    errors = np.sqrt(np.diagonal(growth.random_effects_covariance(), axis1=1, axis2=2))
    np.testing.assert_allclose(record["random_effects_std_error"]["Subject"], errors)
    assert record["random_effects_rank"] == {"Subject": 2} and record["residual_parameters"] is None
    assert [row["term"] for row in record["anova"]] == list(growth.anova().terms)
    assert record["information_criteria"][0]["convention"] == "lme4" and record["n_parameters"] == growth.n_parameters
    assert record["optima"][0]["value"] == pytest.approx(growth.criterion) and record["df_resid"] == growth.df_resid
    visits = "FEV1 ~ ARMCD * AVISIT"
    record = json.loads(said(capsys, "fit", "fev", visits, "--residual", "us(AVISIT | USUBJID)", "--json"))
    assert record["residual"] == "us(AVISIT | USUBJID)" and len(record["residual_parameters"]) == 10
    assert "no random effects" in record["icc"]["error"]


@pytest.mark.parametrize("command", ["fit", "anova", "emmeans", "compare", "predict", "plot"])
def test_every_command_has_an_example_that_runs(command, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out.replace("\n", " ")
    example = next(line for line in parser_module._EXAMPLES[command].splitlines() if "{prog}" in line)
    assert "example" in text and "exit status: 0 certified" in text
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new.csv", {"Days": [10], "Subject": ["308"]})
    assert main(shlex.split(example.replace("{prog}", ""))) == 0


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
