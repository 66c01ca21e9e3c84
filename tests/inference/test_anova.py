"""Analysis of variance against lmerTest, and hypotheses against their definitions."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.formula.coding import fixed_terms
from fastlmm_core.inference import wald as inference
from fastlmm_core.inference.anova import anova, hypotheses

# F and sums of squares follow theta, which the optimiser of the reference leaves uncertain by 1e-6 at most; those of
# terms with an F near zero most.
TOLERANCE = 1e-5
DDF = {"satterthwaite": "satterthwaite", "kenward_roger": "kenward-roger"}
REFERENCE = json.loads((oracle.REFERENCE / "unbalanced_tests.json").read_text())


@cache
def unbalanced() -> pd.DataFrame:
    return pd.read_csv(oracle.REFERENCE / "data" / "cake_unbalanced.csv", dtype={"temperature": str})


def without(data: pd.DataFrame, cell: dict[str, str]) -> pd.DataFrame:
    inside = np.logical_and.reduce([data[name] == level for name, level in cell.items()])
    return data[~inside]


@cache
def fitted(formula: str, weights: str | None = None, dropped: tuple[tuple[str, str], ...] = ()):
    data = unbalanced()
    return flc.lmm(formula, without(data, dict(dropped)) if dropped else data, weights=weights).fit()


CASES = [
    (name, key)
    for name, block in REFERENCE["anova"].items()
    for key in block
    # pbkrtest leaves weights out without a word
    if key.startswith("type") and not (name == "weighted" and key.endswith("kenward_roger"))
]


@pytest.mark.parametrize(("name", "key"), CASES, ids=[f"{name}-{key}" for name, key in CASES])
def test_agrees_with_lmertest(name, key):
    block = REFERENCE["anova"][name]
    result = fitted(block["formula"], block.get("weights"), tuple(block.get("dropped", {}).items()))
    kind, _, ddf = key.removeprefix("type").partition("_")
    table = anova(result, kind, DDF[ddf])
    expected = block[key]
    assert list(table.terms) == expected["term"]
    assert table.df_num.tolist() == expected["num_df"]
    for actual, column in (
        (table.sum_sq, "sum_sq"),
        (table.mean_sq, "mean_sq"),
        (table.df_denom, "den_df"),
        (table.statistic, "F"),
    ):
        np.testing.assert_allclose(actual, expected[column], rtol=TOLERANCE, err_msg=column)
    np.testing.assert_allclose(table.pvalues, expected["p"], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("ddf", list(DDF))
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("emmeans_cake", "angle ~ recipe * temperature + (1 | recipe:replicate)"),
        ("emmeans_machines_q3", "score ~ Machine + (0 + Machine | Worker)"),
        ("emmeans_machines_nested", "score ~ Machine + (1 | Worker/Machine)"),
    ],
)
def test_balanced_references(name, formula, ddf):
    ref = json.loads((oracle.REFERENCE / f"{name}.json").read_text())
    data = pd.read_csv(oracle.REFERENCE / ref["data"], dtype=dict.fromkeys(ref["factors"], str))
    table = anova(flc.lmm(formula, data).fit(), "III", DDF[ddf])
    for i, term in enumerate(table.terms):
        expected = ref[f"anova_type3_{ddf}"][term]
        # README of the references: 1e-6, degrees of freedom of Satterthwaite 1e-5
        assert table.sum_sq[i] == pytest.approx(expected["sum_sq"], rel=1e-6)
        assert table.mean_sq[i] == pytest.approx(expected["mean_sq"], rel=1e-6)
        assert table.df_num[i] == expected["num_df"]
        assert table.df_denom[i] == pytest.approx(expected["den_df"], rel=1e-5)
        assert table.statistic[i] == pytest.approx(expected["F"], rel=1e-6)
        assert table.pvalues[i] == pytest.approx(expected["p"], rel=1e-5)


CODINGS = ["{}", "C({}, contr.sum)", "C({}, contr.helmert)", "C({}, contr.poly)", "C({}, contr.treatment(base='mid'))"]


@pytest.mark.parametrize("coding", CODINGS[1:])
@pytest.mark.parametrize("dropped", [(), (("recipe", "B"), ("heat", "mid"))], ids=["all cells", "missing cell"])
def test_type_three_does_not_depend_on_contrasts(coding, dropped):
    recipe = "C(recipe, contr.sum)" if "base" in coding else coding.format("recipe")
    plain = anova(fitted("angle ~ recipe * heat + x + recipe:x + (1 | batch)", None, dropped))
    other = anova(fitted(f"angle ~ {recipe} * {coding.format('heat')} + x + {recipe}:x + (1 | batch)", None, dropped))
    np.testing.assert_array_equal(other.df_num, plain.df_num)
    np.testing.assert_allclose(other.statistic, plain.statistic, rtol=1e-7)
    np.testing.assert_allclose(other.df_denom, plain.df_denom, rtol=1e-6)


def test_type_three_with_sum_contrasts_is_the_test_of_the_coefficients():
    result = fitted("angle ~ C(recipe, contr.sum) * C(heat, contr.sum) * C(block, contr.sum) + x + (1 | batch)")
    table = anova(result)
    names = result.model.exog_names
    for i, term in enumerate(table.terms):
        wanted = sorted(part.split("[")[0] for part in term.split(":"))
        own = [j for j, n in enumerate(names) if sorted(part.split("[")[0] for part in n.split(":")) == wanted]
        test = inference.wald(result, np.eye(len(names))[own], None)
        f = test.statistic if len(own) > 1 else test.statistic**2
        assert table.statistic[i] == pytest.approx(f, rel=1e-8)


def test_nested_factor_is_tested_at_equal_weights():
    # recipe + recipe:heat spans what recipe * heat does; R's lmerTest does not see the containment, SAS does
    nested, crossed = (fitted(f"angle ~ {f} + (1 | batch)") for f in ("recipe + recipe:heat", "recipe * heat"))
    assert anova(nested).statistic[0] == pytest.approx(anova(crossed).statistic[0], rel=1e-8)
    assert anova(nested, "II").statistic[0] == pytest.approx(anova(nested, "I").statistic[0], rel=1e-8)


def test_a_slope_is_tested_at_equal_weights():
    # columns of x:recipe:heat need not involve both factors: x spans what is common to all
    data = unbalanced().assign(cell=lambda d: d["recipe"] + d["heat"])
    result = flc.lmm("angle ~ x + x:recipe:heat + (1 | batch)", data).fit()
    own = flc.lmm("angle ~ x:cell + (1 | batch)", data).fit()
    n_cells = data["cell"].nunique()
    np.testing.assert_allclose(own.fittedvalues, result.fittedvalues, rtol=1e-7)
    mean = own.test(np.concatenate([[0.0], np.full(n_cells, 1.0 / n_cells)]))
    table = anova(result)
    assert table.df_num.tolist() == [1, n_cells - 1]
    assert table.statistic[0] == pytest.approx(mean.statistic**2, rel=1e-7)


def test_type_one_is_what_is_gained_term_by_term():
    """Under independence the sums of squares of type I add up to those of least squares."""
    result = fitted("angle ~ recipe * heat + x + (1 | batch)")
    found, _ = hypotheses(result, "I")
    X, y = result.model.exog, result.model.endog
    beta, inverse = np.linalg.lstsq(X, y, rcond=None)[0], np.linalg.inv(X.T @ X)
    terms = [range(1, 3), range(3, 5), range(5, 6), range(6, 10)]
    columns = [0]
    before = float(((y - y.mean()) ** 2).sum())
    names = {tuple(result.model.exog_names[j] for j in term): term for term in terms}
    assert len(names) == 4
    for name, L in found.items():
        term = next(
            t
            for key, t in names.items()
            if sorted(key[0].split("[")[0].split(":")) == [name] or (":" in name and all(":" in k for k in key))
        )
        columns += list(term)
        rest = y - X[:, columns] @ np.linalg.lstsq(X[:, columns], y, rcond=None)[0]
        gained = before - float(rest @ rest)
        before = float(rest @ rest)
        estimate = L @ beta
        assert estimate @ np.linalg.solve(L @ inverse @ L.T, estimate) == pytest.approx(gained, rel=1e-9)


def test_missing_cell_says_so():
    table = anova(fitted("angle ~ recipe * heat + (1 | batch)", None, (("recipe", "B"), ("heat", "mid"))))
    assert table.df_num.tolist() == [2, 2, 3]
    text = str(table)
    assert "heat mid, recipe B" in text
    assert "recipe:heat: 3 of 4" in text


def test_confounded_factors():
    data = unbalanced().assign(copy=lambda d: d["recipe"].map({"A": "k", "B": "l", "C": "m"}))
    table = anova(flc.lmm("angle ~ recipe + copy + x + (1 | batch)", data).fit())
    assert table.df_num.tolist() == [0, 0, 1]
    assert np.isnan(table.statistic[:2]).all()
    assert np.isfinite(table.pvalues[2])
    assert any(note.startswith("recipe: none") for note in table.notes)


def test_single_numeric_columns_are_squared_t():
    result = fitted("angle ~ x + temp + (1 | batch)")
    table = anova(result, ddf="kenward-roger")
    test = inference.wald(result, np.eye(3)[1:], None, "kenward-roger")
    np.testing.assert_allclose(table.statistic, test.row_statistic**2, rtol=1e-12)
    np.testing.assert_allclose(table.df_denom, test.row_df, rtol=1e-12)
    np.testing.assert_allclose(table.pvalues, test.row_pvalues, rtol=1e-10)


def test_logical_column_is_a_factor():
    data = unbalanced().assign(flag=lambda d: d["block"] == "v")
    logical = anova(flc.lmm("angle ~ flag * recipe + x + (1 | batch)", data).fit())
    text = anova(flc.lmm("angle ~ block * recipe + x + (1 | batch)", data).fit())
    np.testing.assert_allclose(logical.statistic, text.statistic, rtol=1e-8)
    np.testing.assert_array_equal(logical.df_num, text.df_num)


def test_units_and_origin_of_a_covariate():
    data = unbalanced()
    for formula in ("angle ~ recipe + heat + x + (1 | batch)", "angle ~ recipe * heat + block:x + (1 | batch)"):
        plain = anova(flc.lmm(formula, data).fit())
        scaled = anova(flc.lmm(formula, data.assign(x=data["x"] * 1e-9)).fit())
        np.testing.assert_allclose(scaled.statistic, plain.statistic, rtol=1e-6)
        np.testing.assert_array_equal(scaled.df_num, plain.df_num)
    shifted = anova(flc.lmm("angle ~ recipe * heat + x + (1 | batch)", data.assign(x=data["x"] + 1e7)).fit())
    plain = anova(flc.lmm("angle ~ recipe * heat + x + (1 | batch)", data).fit())
    np.testing.assert_allclose(shifted.statistic, plain.statistic, rtol=1e-6)
    assert shifted.notes == ()


def test_model_from_arrays_has_a_row_per_column(rng):
    g = np.repeat(np.arange(12), 5)
    X = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    result = flc.LinearMixedModel(rng.normal(size=60) + rng.normal(size=12)[g], X, None, g).fit()
    for kind in ("I", "II", "III"):
        table = anova(result, kind)
        assert table.terms == ("x1", "x2")
        assert set(table.to_frame()) >= {"term", "statistic", "p_value"}
    test = inference.wald(result, np.eye(3)[1:], None)
    np.testing.assert_allclose(table.statistic, test.row_statistic**2)


def test_only_an_intercept():
    table = anova(fitted("angle ~ 1 + (1 | batch)"))
    assert table.terms == ()
    assert str(table).startswith("Type III")


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_frames_in_frames_out(library):
    data = unbalanced()
    columns = {name: data[name].to_numpy() for name in ("angle", "recipe", "heat", "batch")}
    table = columns
    if library != "dict":
        module = pytest.importorskip(library)
        table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    found = anova(flc.lmm("angle ~ recipe * heat + (1 | batch)", table).fit()).to_frame()
    assert type(found).__module__.split(".")[0] in (library, "builtins")
    assert str(found["term"][0]) == "recipe"


def test_normal_is_chi_square_over_its_df():
    result = fitted("angle ~ recipe * heat + (1 | batch)")
    table, exact = anova(result, ddf="normal"), anova(result)
    np.testing.assert_allclose(table.statistic, exact.statistic, rtol=1e-12)
    assert np.isinf(table.df_denom).all()


def test_display():
    table = anova(fitted("angle ~ recipe * heat + (1 | batch)"))
    lines = str(table).splitlines()
    assert lines[0] == "Type III analysis of variance, Satterthwaite's degrees of freedom"
    assert lines[2].split() == ["Sum", "Sq", "Mean", "Sq", "NumDF", "DenDF", "F", "p"]
    assert "<td" in table._repr_html_()


def test_refuses():
    result = fitted("angle ~ recipe * heat + (1 | batch)")
    with pytest.raises(flc.LMMError, match="type='IV'"):
        anova(result, "IV")
    with pytest.raises(flc.LMMError, match="ddf="):
        anova(result, ddf="between")
    assert anova(result, 2).type == "II"


def cake(order: list[str]) -> pd.DataFrame:
    data = pd.DataFrame(flc.datasets.load("cake"))
    return data.assign(
        temp=data["temperature"].astype(float), temperature=pd.Categorical(data["temperature"], categories=order)
    )


TEMPERATURES = ["175", "185", "195", "205", "215", "225"]


@pytest.mark.parametrize(
    "order", [TEMPERATURES, [*TEMPERATURES[5:], *TEMPERATURES[:5]], [*TEMPERATURES[::2], *TEMPERATURES[1::2]]]
)
@pytest.mark.parametrize("formula", ["recipe + temp + temperature", "temperature + temp + recipe"])
def test_type_two_of_a_factor_and_its_numeric_values(order, formula):
    """What is tested does not depend on the columns that are kept; the linear trend is 96.05 by lmerTest and car."""
    table = anova(flc.lmm(f"angle ~ {formula} + (1 | recipe:replicate)", cake(order)).fit(), "II")
    found = dict(zip(table.terms, zip(table.df_num, table.statistic, strict=True), strict=True))
    assert found["temp"] == (1, pytest.approx(96.05, abs=0.005))
    assert found["temperature"] == (4, pytest.approx(1.6312, abs=5e-4))
    assert found["recipe"] == (2, pytest.approx(0.2488, abs=5e-4))


@pytest.mark.parametrize(
    "fixed", ["x + recipe + twice", "recipe * temp + recipe * heat", "heat + temp + recipe:heat + x"]
)
@pytest.mark.parametrize("turned", [False, True], ids=["as given", "levels turned"])
def test_type_two_with_dependent_columns_against_projections(fixed, turned):
    """F of what the columns of a term add to those of all terms that do not contain it, from the means themselves."""
    data = unbalanced().assign(twice=lambda d: 2.0 * d["x"] + 1.0)
    data["temp"] = data["heat"].map({"low": 1.0, "mid": 2.0, "top": 4.0})
    if turned:
        for name in ("heat", "recipe"):
            data[name] = pd.Categorical(data[name], categories=sorted(set(data[name]))[::-1])
    result = flc.lmm(f"angle ~ {fixed} + (1 | batch)", data).fit()
    table = anova(result, "II", "normal")
    both = frozenset(("recipe", "heat"))
    above = {
        frozenset(("temp",)): [{"heat"}, {"recipe", "temp"}, both],
        frozenset(("heat",)): [both],
        # as in lmerTest, a slope within levels does not contain the levels
        frozenset(("recipe",)): [both],
        frozenset(("recipe", "temp")): [both],
    }
    columns = {term.name: list(term.columns) for term in fixed_terms(result.model)}
    X = result.model.exog
    covariance = X @ np.nan_to_num(result.cov_params()) @ X.T
    mean = X @ np.nan_to_num(np.asarray(result.params))
    for name, df, f in zip(table.terms, table.df_num, table.statistic, strict=True):
        out = [{*name.split(":")}, *above.get(frozenset(name.split(":")), ())]
        rest = [j for t, c in columns.items() if {*t.split(":")} not in out for j in c]
        own = X[:, columns[name]]
        added = own - X[:, rest] @ np.linalg.lstsq(X[:, rest], own, rcond=None)[0]
        left, size, _ = np.linalg.svd(added, full_matrices=False)
        basis = left[:, size > 1e-8]
        assert df == basis.shape[1]
        if df:
            estimate = basis.T @ mean
            expected = estimate @ np.linalg.solve(basis.T @ covariance @ basis, estimate) / df
            assert f == pytest.approx(expected, rel=1e-7)
    assert ("twice" in columns) == bool((table.df_num == 0).any())


def test_columns_that_are_each_others_combinations_are_not_tested(rng):
    g = np.repeat(np.arange(12), 5)
    x = rng.normal(size=(60, 2))
    X = np.column_stack([np.ones(60), x, x @ [1.0, -2.0], rng.normal(size=60)])
    result = flc.LinearMixedModel(rng.normal(size=60) + rng.normal(size=12)[g], X, None, g).fit()
    for kind in ("II", "III"):
        table = anova(result, kind)
        assert table.df_num.tolist() == [0, 0, 0, 1]
        assert np.isnan(table.statistic[:3]).all()
    assert anova(result, "I").df_num.tolist() == [1, 1, 0, 1]
