"""The printed summary and the tidy tables: what they say, how it is laid out, and to which precision."""

from __future__ import annotations

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

SLEEPSTUDY = "Reaction ~ Days + (Days | Subject)"
MODELS = {
    "sleepstudy": SLEEPSTUDY,
    "cake": "angle ~ recipe * temperature + (1 | recipe:replicate)",
    "dyestuff2": "Yield ~ 1 + (1 | Batch)",
    "machines": "score ~ Machine + (0 + Machine | Worker)",
    "orthodont": "distance ~ age * Sex + (age | Subject)",
    "oxboys": "height ~ age + (age || Subject)",
}


@pytest.fixture(scope="module")
def fits():
    return {name: flc.lmm(formula, flc.datasets.load(name, "dict")).fit() for name, formula in MODELS.items()}


@pytest.fixture(scope="module")
def arrays():
    """q = 3, weights, an aliased column, markup in names, a long name; scales from 1e-6 to 1e9."""
    rng = np.random.default_rng(4)
    n, m = 600, 60
    g = rng.integers(0, m, n)
    x = rng.standard_normal((n, 2))
    X = np.column_stack([np.ones(n), x[:, 0], 1e-6 * x[:, 1], 1e9 * (np.arange(n) % 2), 2.0 * x[:, 0]])
    Z = np.column_stack([np.ones(n), x])
    y = X @ [1e4, 0.5, 2e5, 1e-9, 0.0] + (rng.standard_normal((m, 3))[g] * Z).sum(axis=1) + rng.standard_normal(n)
    model = flc.LinearMixedModel(
        y,
        X,
        Z,
        g,
        weights=rng.uniform(0.5, 2.0, n),
        exog_names=["Intercept", "<b>&\"x'", "a" * 60, "period", "twice x"],
        exog_re_names=["Intercept", "first", "second"],
        group_name="a & b",
    )
    return model.fit()


def lines_after(text: str, heading: str) -> list[str]:
    """Lines of the block under a heading."""
    lines = text.splitlines()
    start = lines.index(heading) + 1
    stop = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return lines[start:stop]


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_width(fits, name):
    lines = str(fits[name].summary()).splitlines()
    assert max(map(len, lines)) <= 87
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_plain_text_of_modest_precision(fits, name):
    text = str(fits[name].summary())
    assert text.isascii()
    for number in re.findall(r"\d+\.\d+", text):
        assert len(number) <= 10, number


def test_sleepstudy(fits):
    text = str(fits["sleepstudy"].summary())
    lines = text.splitlines()
    assert lines[:2] == ["Linear mixed model fit by REML", SLEEPSTUDY]
    assert re.search(r"^Observations: 180 +REML criterion: 1743\.628$", text, re.MULTILINE)
    assert re.search(r"^Groups: +18 \(Subject\) +Log-likelihood: -871\.814$", text, re.MULTILINE)
    assert re.search(r" AIC: +1755\.628$", text, re.MULTILINE)
    assert re.search(r" BIC: +1774\.786$", text, re.MULTILINE)
    random = [line.split() for line in lines_after(text, "Random effects")]
    assert random == [
        ["Group", "Name", "Variance", "Std.dev.", "Corr"],
        ["Subject", "Intercept", "612.09", "24.740"],
        ["Days", "35.072", "5.9221", "0.066"],
        ["Residual", "654.94", "25.592"],
    ]
    fixed = [line.split() for line in lines_after(text, "Fixed effects")]
    assert fixed == [
        ["Name", "Estimate", "SE", "df", "t", "p", "95%", "CI"],
        ["Intercept", "251.405", "6.825", "17.0", "36.84", "<0.001", "237.01", "265.80"],
        ["Days", "10.467", "1.546", "17.0", "6.77", "<0.001", "7.21", "13.73"],
    ]
    normal = str(fits["sleepstudy"].summary(ddf="normal"))
    assert [line.split() for line in lines_after(normal, "Fixed effects")] == [
        ["Name", "Estimate", "SE", "z", "p", "95%", "CI"],
        ["Intercept", "251.405", "6.825", "36.84", "<0.001", "238.03", "264.78"],
        ["Days", "10.467", "1.546", "6.77", "<0.001", "7.44", "13.50"],
    ]
    assert "z tests and intervals" in normal
    assert lines[-1].startswith("Optimum certified after ")
    assert "Singular" not in text
    assert "ropped" not in text


@pytest.mark.parametrize("name", MODELS)
def test_columns_are_aligned(fits, name):
    rows = lines_after(str(fits[name].summary()), "Fixed effects")[1:]
    assert len(rows) == len(fits[name].params)
    # the decimal points of the estimates stand one below the other, the last columns end together
    assert len({re.search(r"\.\d", row[30 if name == "cake" else 14 :]).start() for row in rows}) == 1
    assert len({row.rindex(".") for row in rows}) == 1


def test_maximum_likelihood_and_t_tests():
    result = flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy", "dict")).fit(reml=False)
    text = str(result.summary(level=0.9, ddf="residual"))
    assert text.startswith("Linear mixed model fit by maximum likelihood\n")
    assert "Deviance:" in text
    assert "REML" not in text
    header = lines_after(text, "Fixed effects")[0].split()
    assert header == ["Name", "Estimate", "SE", "df", "t", "p", "90%", "CI"]
    assert [line.split()[3] for line in lines_after(text, "Fixed effects")[1:3]] == ["178", "178"]
    assert "t tests and intervals with residual degrees of freedom." in text
    limits = result.conf_int(level=0.9, ddf="residual")["conf_low"]
    assert f"{limits[1]:.2f}" in lines_after(text, "Fixed effects")[2]


def test_singular_components_are_named(fits):
    result = fits["dyestuff2"]
    text = str(result.summary())
    assert result.singular
    assert "Singular fit: sd of Intercept | Batch is 0." in text
    assert "certified after" in text  # being singular is no failure
    assert lines_after(text, "Random effects")[1].split() == ["Batch", "Intercept", "0", "0"]


def test_not_certified_is_said():
    result = flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy", "dict")).fit(
        method="Nelder-Mead", start=[3.0, 0.0, 3.0], options={"maxiter": 2}
    )
    assert not result.converged
    last = " ".join(str(result.summary()).splitlines()[-2:])
    assert "Optimum NOT certified after" in last
    assert " ".join(result.optimum.message.removeprefix("not certified: ").split()) in " ".join(last.split())


def test_dropped_rows_weights_and_offset():
    data = flc.datasets.load("sleepstudy", "dict")
    data["Days"] = data["Days"].astype(float)
    data["Days"][[3, 40]] = np.nan
    data["w"] = np.ones(180)
    text = str(flc.lmm(SLEEPSTUDY, data, weights="w", offset=np.ones(180)).fit().summary())
    assert "Observations: 178 (weighted, with offset)" in text
    assert "Rows dropped: 2 (missing values)" in text


def test_arrays_long_names_and_dropped_columns(arrays):
    text = str(arrays.summary())
    assert text.splitlines()[1] == ""  # no formula
    assert "60 (a & b)" in text
    assert "Dropped, being combinations of the columns before them: twice x." in text
    rows = lines_after(text, "Fixed effects")
    assert rows[3] == "a" * 60  # a line of its own, its numbers below
    assert rows[4].startswith("  ")
    assert not any(row.startswith("twice") for row in rows)
    numbers = [row for row in rows if not row.startswith("a" * 60)]
    assert all(len(row) <= 87 for row in numbers)
    random = [line.split() for line in lines_after(text, "Random effects")]
    assert [row[-4:-2] for row in random[1:2]] == [["b", "Intercept"]]
    assert [len(row) for row in random[2:4]] == [4, 5]  # one correlation, then two


def test_many_correlations_move_below():
    rng = np.random.default_rng(3)
    n, m, q = 2000, 60, 9
    g = rng.integers(0, m, n)
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1))])
    y = (rng.standard_normal((m, q))[g] * Z).sum(axis=1) + rng.standard_normal(n)
    names = [f"a_longer_name_{i}" for i in range(q)]
    result = flc.LinearMixedModel(y, None, Z, g, exog_re_names=names).fit()
    text = str(result.summary())
    assert max(map(len, text.splitlines())) <= 80
    corr = result.random_effects_corr["group"]
    shown = [float(x) for x in re.findall(r"(?<= )-?[01]\.\d{3}(?!\d)", text[text.index("Corr") : text.index("Fixed")])]
    lower = corr[np.tril_indices(q, -1)]
    assert sorted(shown) == pytest.approx(sorted(lower), abs=5e-4)


def maximal(names=("condition", "frequency_band")):
    """Two crossed factors with six random effects each; the words vary in one direction only."""
    rng = np.random.default_rng(5)
    d = pd.DataFrame([(s, i) for s in range(24) for i in range(20)], columns=["subject", "item"])
    condition = (d["subject"] + d["item"]).to_numpy() % 2
    d[names[0]] = np.where(condition, "incongruent", "congruent")
    d[names[1]] = np.array(["high", "low", "mid"])[(d["item"] + d["subject"] // 2) % 3]
    d["rt"] = (
        600 + 30 * condition + rng.normal(0, 40, 24)[d["subject"]] + rng.normal(0, 15, 24)[d["subject"]] * condition
        + rng.normal(0, 25, 20)[d["item"]] + rng.normal(0, 60, len(d))
    )  # fmt: skip
    a, b = names
    return flc.lmm(f"rt ~ {a}*{b} + ({a}*{b} | subject) + ({a}*{b} | item)", d).fit()


@pytest.mark.parametrize("names", [("condition", "frequency_band"), ("c", "f")])
def test_one_table_for_each_grouping_factor(names):
    result = maximal(names)
    text = str(result.summary())
    assert max(map(len, text.splitlines())) <= 87
    parts = re.split(r"^Random effects of (\w+)$", text, flags=re.MULTILINE)
    assert parts[1::2] == ["subject", "item"]
    for factor, part in zip(parts[1::2], parts[2::2], strict=True):
        variances, _, part = part.partition("Residual variance")[0].partition("Corr")
        corr = result.random_effects_corr[factor]
        # variances and standard deviations, by the number within the factor
        rows = {int(m[1]): m[2].split() for m in re.finditer(r"^(\d) +(\S+ +[\d.]+ +[\d.]+)$", variances, re.MULTILINE)}
        assert [row[0] for row in rows.values()] == list(result.model.exog_re_names[:6])
        np.testing.assert_allclose([float(row[1]) for row in rows.values()], np.diag(result.G[factor]), rtol=1e-4)
        # each correlation stands below the number of its column and beside that of its row
        head, *lines = part.strip().splitlines()
        columns = [int(number) for number in head.split()]
        assert columns == [1, 2, 3, 4, 5]
        for line in lines:
            row = int(line.split()[0])
            shown = [float(cell) for cell in line.split() if re.fullmatch(r"-?[01]\.\d{3}", cell)]
            np.testing.assert_allclose(shown, corr[row - 1, : row - 1], atol=5.1e-4)
    assert re.search(r"^Residual variance 3122\.6, standard deviation 55\.880$", text, re.MULTILINE)
    html_text = result.summary()._repr_html_()
    assert html_text.count("Random effects of") == 2 and "Residual variance 3122.6" in html_text


def test_rank_and_principal_components_of_a_singular_fit():
    result = maximal()
    text = " ".join(str(result.summary()).split())
    assert "Principal components of the correlations, share of the variance" in text
    for factor in ("subject", "item"):
        values = np.sort(np.linalg.eigvalsh(result.random_effects_corr[factor]))[::-1]
        rank = int((values > 1e-9).sum())
        shares = " ".join(f"{v:.3f}" for v in values[:rank] / 6.0)
        assert f"{factor} rank {rank} of 6: {shares} {' '.join('0' * (6 - rank))}" in text
        assert f"covariance of 6 effects | {factor} has rank {rank} of 6" in text
    assert 'The page "Singular: what now?" of the documentation says' in text
    page = Path(__file__).parents[2] / "docs" / "guide" / "singular.md"
    if page.parents[1].exists():  # the tests stand without the rest of the tree
        assert "# Singular: what now?" in page.read_text(encoding="utf-8")
    assert "rank 3 of 6" not in str(flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy")).fit().summary())


def test_terms_of_one_factor_are_numbered_together():
    rng = np.random.default_rng(8)
    n, m = 1200, 40
    g = rng.integers(0, m, n)
    names = [f"covariate_with_a_long_name_{k}" for k in range(6)]
    data = {name: rng.standard_normal(n) for name in names}
    data["y"] = sum(rng.standard_normal(m)[g] * data[name] for name in names) + rng.standard_normal(n)
    terms = f"({names[0]} + {names[1]} + {names[2]} | g) + (0 + {' + '.join(names[3:])} | g)"
    result = flc.lmm(f"y ~ 1 + {terms}", data | {"g": g}).fit()
    part = str(result.summary()).partition("Random effects of g")[2].partition("Residual variance")[0]
    assert f"{names[3]} (g.1)" in part and f"{names[2]} (g)" in part
    second = result.random_effects_corr["g.1"]
    last = next(line for line in part[part.index("Corr") :].splitlines() if line.startswith("7"))
    # beside the seventh effect stand the correlations with the fifth and sixth, under these numbers
    assert [float(cell) for cell in last.split()[1:]] == pytest.approx(second[2, :2], abs=5.1e-4)
    head = part[part.index("Corr") :].splitlines()[0]
    assert head.index("5") < last.rindex(".") and head.split()[-1] == "6"


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
def test_units_far_from_one_stay_readable(factor):
    data = flc.datasets.load("sleepstudy", "dict")
    data["Reaction"] = data["Reaction"] * factor
    result = flc.lmm(SLEEPSTUDY, data).fit()
    text = str(result.summary())
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, re.findall(r"[\d.]+", text))) <= 13
    _, estimate, error, _, t, *_ = lines_after(text, "Fixed effects")[2].split()
    assert float(estimate) == pytest.approx(10.46729 * factor, rel=1e-3)
    assert float(error) == pytest.approx(1.545790 * factor, rel=1e-3)
    assert t == "6.77"
    variance = lines_after(text, "Random effects")[1].split()[2]
    assert float(variance) == pytest.approx(612.0899 * factor**2, rel=1e-3)


def test_a_large_offset_is_not_printed_to_the_last_bit():
    data = flc.datasets.load("sleepstudy", "dict")
    data["Reaction"] = data["Reaction"] + 1e12
    row = lines_after(str(flc.lmm(SLEEPSTUDY, data).fit().summary()), "Fixed effects")[1]
    assert max(len(re.sub(r"\D", "", number.partition("e")[0])) for number in row.split()) <= 9


# --- plain data and HTML --------------------------------------------------------------------------------------------


def test_it_is_frozen_plain_data(fits):
    result = fits["sleepstudy"]
    summary = result.summary()
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.nobs = 1
    assert summary == result.summary()
    assert summary != result.summary(level=0.9)
    assert repr(summary) == str(summary)
    days = summary.coefficients[1]
    assert (days.name, days.estimate) == ("Days", result.params["Days"])
    assert summary.random.components[-1].variance == result.sigma2
    assert summary.random.components[1].correlations == (result.random_effects_corr["Subject"][1, 0],)


class _Checker(HTMLParser):
    """Collects the text and proves that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_html(arrays, fits):
    for result in (arrays, *fits.values()):
        page = result._repr_html_()
        checker = _Checker()
        checker.feed(page)
        checker.close()
        assert checker.open == []
        for word in ("Linear mixed model fit by REML", "Fixed effects", "Residual"):
            assert word in checker.words
    page = arrays._repr_html_()
    assert "<b>" not in page
    assert html.escape("<b>&\"x'") in page
    assert "a &amp; b" in page


# --- tidy -----------------------------------------------------------------------------------------------------------


def test_tidy_fixed(fits):
    result = fits["orthodont"]
    table = result.tidy(level=0.9, ddf="residual")
    assert list(table) == ["term", "estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"]
    assert table["term"].tolist() == list(result.params)
    np.testing.assert_array_equal(table["estimate"], list(result.params.values()))
    np.testing.assert_array_equal(table["std_error"], list(result.bse.values()))
    np.testing.assert_array_equal(table["statistic"], list(result.tvalues.values()))
    limits = result.conf_int(level=0.9, ddf="residual")
    np.testing.assert_array_equal(table["conf_low"], limits["conf_low"])
    np.testing.assert_array_equal(table["conf_high"], limits["conf_high"])
    # t has heavier tails than z
    assert (table["p_value"] >= result.tidy(ddf="normal")["p_value"]).all()


def test_tidy_variances(fits):
    table = fits["machines"].tidy("ran_pars")
    assert table["term"].tolist() == [
        "sd_Machine[A]|Worker",
        "cor_Machine[A].Machine[B]|Worker",
        "cor_Machine[A].Machine[C]|Worker",
        "sd_Machine[B]|Worker",
        "cor_Machine[B].Machine[C]|Worker",
        "sd_Machine[C]|Worker",
        "sigma",
    ]
    assert table["group"].tolist() == ["Worker"] * 6 + ["Residual"]
    G = fits["machines"].G["Worker"]
    sd = np.sqrt(np.diag(G))
    corr = G / np.outer(sd, sd)
    expected = [sd[0], corr[0, 1], corr[0, 2], sd[1], corr[1, 2], sd[2], fits["machines"].sigma]
    np.testing.assert_allclose(table["estimate"], expected, rtol=1e-12)


def test_tidy_variances_of_independent_effects(fits):
    assert fits["oxboys"].tidy("ran_pars")["term"].tolist() == ["sd_Intercept|Subject", "sd_age|Subject", "sigma"]


def test_tidy_effects(fits):
    result = fits["sleepstudy"]
    table = result.tidy("ran_vals")
    assert list(table) == ["group", "level", "term", "estimate", "std_error"]
    assert table["level"][:3].tolist() == ["308", "308", "309"]
    assert table["term"][:3].tolist() == ["Intercept", "Days", "Intercept"]
    assert set(table["group"].tolist()) == {"Subject"}
    np.testing.assert_array_equal(table["estimate"][::2], result.random_effects["Intercept"])
    np.testing.assert_array_equal(table["estimate"][1::2], result.random_effects["Days"])
    np.testing.assert_allclose(table["std_error"][1::2] ** 2, result.random_effects_covariance()[:, 1, 1])


def test_tidy_of_a_singular_fit(fits):
    table = fits["dyestuff2"].tidy("ran_vals")
    np.testing.assert_array_equal(table["std_error"], 0.0)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_tidy_comes_in_the_library_of_the_data(library):
    module = pytest.importorskip(library)
    result = flc.lmm(SLEEPSTUDY, flc.datasets.load("sleepstudy", library)).fit()
    for effects, rows in (("fixed", 2), ("ran_pars", 4), ("ran_vals", 36)):
        table = result.tidy(effects)
        assert isinstance(table, module.Table if library == "pyarrow" else module.DataFrame)
        assert len(table) == rows


def test_two_terms_of_one_factor():
    formula = "Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)"
    result = flc.lmm(formula, flc.datasets.load("sleepstudy", "dict")).fit()
    assert result.tidy("ran_pars")["group"].tolist() == ["Subject", "Subject.1", "Residual"]
    assert result.tidy("ran_vals")["group"][:3].tolist() == ["Subject", "Subject.1", "Subject"]
    random = [line.split() for line in lines_after(str(result.summary()), "Random effects")]
    assert [row[:2] for row in random[1:3]] == [["Subject", "Intercept"], ["Subject.1", "Days"]]


def test_bad_arguments_are_refused(fits):
    result = fits["sleepstudy"]
    with pytest.raises(flc.LMMError, match=r"ran_val'.*'ran_vals'"):
        result.tidy("ran_val")
    for call in (result.summary, result.tidy):
        with pytest.raises(flc.LMMError, match="level"):
            call(level=95)
        with pytest.raises(flc.LMMError, match="ddf"):
            call(ddf="kenward")


def test_cells_of_p_values():
    from fastlmm_core.support.text_tables import p_value_cell

    values = {0.0: "<0.001", 0.00099: "<0.001", 0.001: "0.001", 0.0051: "0.005", 0.25: "0.250", 1.0: "1.000"}
    assert {value: p_value_cell(value) for value in values} == values
    assert p_value_cell(float("nan")) == "nan"
