"""Marginal means, slopes and comparisons against R's emmeans and against averages of predictions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.special import ndtr

import dense_inference
import fastlmm_core as flc
import oracle
from fastlmm_core.inference import wald as inference
from fastlmm_core.inference.anova import anova
from fastlmm_core.inference.means.contrasts import polynomial_weights
from fastlmm_core.inference.means.grid import ReferenceGrid
from fastlmm_core.inference.means.means import emmeans, slopes

REFERENCE = json.loads((oracle.REFERENCE / "unbalanced_tests.json").read_text())["emmeans"]
DDF = {"satterthwaite": "satterthwaite", "kenward_roger": "kenward-roger"}
LIMITS = {"lower": "conf_low", "upper": "conf_high"}
FORMULAS = {
    "emmeans_cake": "angle ~ recipe * temperature + (1 | recipe:replicate)",
    "emmeans_machines_q3": "score ~ Machine + (0 + Machine | Worker)",
    "emmeans_machines_nested": "score ~ Machine + (1 | Worker/Machine)",
}


@cache
def unbalanced() -> pd.DataFrame:
    return pd.read_csv(oracle.REFERENCE / "data" / "cake_unbalanced.csv", dtype={"temperature": str})


@cache
def fitted(formula: str):
    return flc.lmm(formula, unbalanced()).fit()


@cache
def balanced(name: str):
    ref = json.loads((oracle.REFERENCE / f"{name}.json").read_text())
    data = pd.read_csv(oracle.REFERENCE / ref["data"], dtype=dict.fromkeys(ref["factors"], str))
    return flc.lmm(FORMULAS[name], data).fit(), ref


def column(rows, name):
    return np.array([row[name] for row in rows], dtype=float)


# ---- balanced references -----------------------------------------------------------------------


def check_rows(found, rows, n_means=0) -> None:
    """README of the references: 1e-6 relative, degrees of freedom of Satterthwaite 1e-5."""
    tukey = n_means > 0
    np.testing.assert_allclose(found.std_error, column(rows, "se"), rtol=1e-6)
    np.testing.assert_allclose(found.df, column(rows, "df"), rtol=1e-5)
    for name in ("estimate", "lower", "upper"):
        # R's qtukey is solved to 1e-4 only, which here leaves an error below 1e-5 of the limit
        wide = 1e-5 if tukey and name != "estimate" else 1e-6
        gap = np.abs(getattr(found, LIMITS.get(name, name)) - column(rows, name))
        assert gap.max() < wide * np.abs(column(rows, "upper")).max()
    if "t" in rows[0]:
        np.testing.assert_allclose(found.statistic, column(rows, "t"), rtol=1e-6, atol=1e-6)
        p = column(rows, "p")
        if tukey:
            # R's ptukey is off by 3e-7 for 5 degrees of freedom; scipy's is not
            q, df = np.sqrt(2.0) * np.abs(column(rows, "t")), column(rows, "df")
            exact = scipy.stats.studentized_range.sf(q, n_means, df)
            np.testing.assert_allclose(p, exact, rtol=0, atol=5e-7)
            p = exact
        np.testing.assert_allclose(found.pvalues, p, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("ddf", list(DDF))
@pytest.mark.parametrize(
    ("name", "block"),
    [(n, b) for n, b in [("emmeans_cake", "recipe"), ("emmeans_cake", "temperature"),
                         ("emmeans_cake", "recipe_temperature"), ("emmeans_machines_q3", "Machine"),
                         ("emmeans_machines_nested", "Machine")]],
)  # fmt: skip
def test_balanced_references(name, block, ddf):
    result, ref = balanced(name)
    expected = ref[f"emmeans_{block}"][ddf]
    means = emmeans(result, block.split("_"), ddf=DDF[ddf])
    for variable in block.split("_"):
        assert means.labels[variable] == [row[variable] for row in expected["emmeans"]]
    check_rows(means, expected["emmeans"])
    order = [ref_name(n) for n in result.model.exog_names]
    linear = np.array(expected["linfct"]["rows"])
    where = [order.index(n) for n in expected["linfct"]["columns"]]
    np.testing.assert_allclose(means.L[:, where], linear, atol=1e-13)
    vcov = means.L @ inference.covariance(result, DDF[ddf]) @ means.L.T
    scale = np.sqrt(np.outer(np.diag(vcov), np.diag(vcov)))
    assert np.abs((vcov - np.array(expected["vcov"])) / scale).max() < 2e-6
    if "pairs_tukey" not in expected:
        return
    pairs = emmeans(result, block, contrasts="pairwise", ddf=DDF[ddf]).comparison
    assert pairs.adjust == "tukey"
    check_rows(pairs, expected["pairs_tukey"], len(means.estimate))
    check_rows(means.contrast("pairwise", "none"), expected["pairs_unadjusted"])
    for method in ("holm", "bonferroni"):
        np.testing.assert_allclose(means.contrast("pairwise", method).pvalues, expected[f"pairs_{method}_p"], rtol=1e-5)


def ref_name(name: str) -> str:
    return name.replace("[T.", "").replace("]", "").replace("Intercept", "(Intercept)")


@pytest.mark.parametrize("name", list(FORMULAS))
def test_joint_tests_of_balanced_references(name):
    result, ref = balanced(name)
    block = ref["emmeans_Machine" if "machines" in name else "emmeans_recipe"]["satterthwaite"]["joint_tests"]
    factors = ["Machine"] if "machines" in name else ["recipe", "temperature"]
    found = emmeans(result, factors).joint_test()
    assert found.labels["term"] == [row["term"] for row in block]
    # rounded to three decimals by R; p follows the F before rounding
    np.testing.assert_allclose(found.statistic, column(block, "F"), atol=5.1e-4)
    np.testing.assert_allclose(found.df_num, column(block, "df1"))
    np.testing.assert_allclose(found.df_denom, column(block, "df2"), rtol=1e-5)
    np.testing.assert_allclose(found.pvalues, column(block, "p"), rtol=1e-5)


# ---- unbalanced data ---------------------------------------------------------------------------


def check(found, expected) -> None:
    """Against a table of R, stored by columns; both fits are good to about 1e-8 here."""
    key = next(name for name in expected if name in ("emmean", "estimate") or name.endswith(".trend"))
    estimate = np.array(expected[key], dtype=float)
    np.testing.assert_array_equal(np.isnan(found.estimate), np.isnan(estimate))
    live = ~np.isnan(estimate)
    se = np.array(expected["SE"], dtype=float)[live]
    np.testing.assert_allclose(found.std_error[live], se, rtol=1e-6)
    np.testing.assert_allclose(found.df[live], np.array(expected["df"], dtype=float)[live], rtol=1e-6)
    assert np.abs((found.estimate[live] - estimate[live]) / se).max() < 1e-6
    if "lower.CL" in expected:
        for actual, name in ((found.conf_low, "lower.CL"), (found.conf_high, "upper.CL")):
            assert np.abs((actual[live] - np.array(expected[name], dtype=float)[live]) / se).max() < 1e-6
    if "p.value" in expected:
        values = np.array(expected["p.value"], dtype=float)[live]
        np.testing.assert_allclose(found.pvalues[live], values, rtol=1e-5, atol=1e-9)


THREE = REFERENCE["three"]


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("heat", {"factors": "heat"}),
        ("heat_by_block", {"factors": "heat", "by": "block"}),
        ("recipe_heat", {"factors": "recipe:heat"}),
        ("heat_at_x", {"factors": "heat", "at": {"x": 4}}),
        ("x_grid", {"factors": "x", "at": {"x": [5, 15]}}),
        ("heat_bonferroni", {"factors": "heat", "adjust": "bonferroni"}),
        ("heat_sidak", {"factors": "heat", "adjust": "sidak"}),
    ],
)
def test_means(block, options):
    means = emmeans(fitted(THREE["formula"]), **options)
    check(means, THREE[block])
    for name, values in means.labels.items():
        assert [str(v) for v in values] == [str(type(values[0])(v)) for v in THREE[block][name]]


@pytest.mark.parametrize("adjust", ["tukey", "holm", "bonferroni", "sidak", "fdr", "none", "scheffe"])
def test_adjusted_pairs(adjust):
    pairs = emmeans(fitted(THREE["formula"]), "heat", contrasts="pairwise", adjust=adjust).comparison
    assert pairs.labels["contrast"] == THREE["pairs"][adjust]["contrast"]
    check(pairs, THREE["pairs"][adjust])


def test_pairs_within_levels():
    pairs = emmeans(fitted(THREE["formula"]), "heat", by="block", contrasts="pairwise").comparison
    assert pairs.labels["block"] == THREE["pairs_by_block"]["block"]
    check(pairs, THREE["pairs_by_block"])


def test_pairs_of_combinations():
    pairs = emmeans(fitted(THREE["formula"]), ["recipe", "heat"], contrasts="pairwise").comparison
    assert pairs.labels["contrast"] == THREE["pairs_recipe_heat"]["contrast"]
    check(pairs, THREE["pairs_recipe_heat"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("trt.vs.ctrl", "reference"),
        ("consec", "sequential"),
        ("eff", "effects"),
        ("poly", "polynomial"),
        ("revpairwise", "revpairwise"),
    ],
)
def test_kinds_of_contrasts(theirs, ours):
    found = emmeans(fitted(THREE["formula"]), "heat", contrasts=ours, adjust="none").comparison
    assert found.labels["contrast"] == THREE["contrasts"][theirs]["contrast"]
    check(found, THREE["contrasts"][theirs])


@pytest.mark.parametrize("by", [None, "block"])
def test_joint_tests(by):
    result = fitted(THREE["formula"])
    block = THREE["joint_tests_by_block" if by else "joint_tests"]
    factors = ["recipe", "heat"] if by else ["recipe", "heat", "block"]
    found = emmeans(result, factors, by=by).joint_test()
    keys = list(zip(block["model term"], block.get("block", [""] * 99), strict=False))
    for i, term in enumerate(found.labels["term"]):
        j = keys.index((term, found.labels["block"][i] if by else ""))
        assert found.df_num[i] == block["df1"][j]
        # three decimals; their denominator is the least of those of the contrasts, so that p is not compared
        assert found.statistic[i] == pytest.approx(block["F.ratio"][j], abs=5.1e-4)
    if not by:
        table = anova(result)
        own = [table.terms.index(term) for term in found.labels["term"]]
        np.testing.assert_allclose(found.statistic, table.statistic[own], rtol=1e-9)


def test_interaction_with_a_covariate():
    block = REFERENCE["covariate"]
    result = fitted(block["formula"])
    check(emmeans(result, "recipe"), block["recipe"])
    check(emmeans(result, ["recipe", "x"], at={"x": [5, 10, 15]}), block["recipe_at"])
    trends = slopes(result, "x", "recipe", contrasts="pairwise")
    check(trends, block["trends"])
    check(trends.comparison, block["trend_pairs"])
    names = result.model.exog_names
    first = slopes(result, "x", "recipe", at={"recipe": ["A"]})
    assert first.estimate[0] == pytest.approx(result.beta[names.index("x")], rel=1e-9)


def test_transforms_are_those_of_the_fit():
    block = REFERENCE["poly"]
    result = fitted(block["formula"])
    check(emmeans(result, "recipe"), block["recipe"])
    check(emmeans(result, ["recipe", "temp"], at={"temp": [180, 220]}), block["at"])
    # a parabola: the central difference is exact
    at = [emmeans(result, "temp", at={"temp": [t - 5.0, t + 5.0]}).estimate for t in (190.0, 210.0)]
    slope = slopes(result, "temp", "temp", at={"temp": [190.0, 210.0]})
    np.testing.assert_allclose(slope.estimate, [(b - a) / 10.0 for a, b in at], rtol=1e-8)


def test_missing_cell():
    block = REFERENCE["missing_cell"]
    data = unbalanced()
    result = flc.lmm(block["formula"], data[~((data["recipe"] == "B") & (data["heat"] == "mid"))]).fit()
    with pytest.warns(UserWarning, match="1 of 9 estimates cannot be estimated and are NaN"):
        cells = emmeans(result, ["recipe", "heat"])
    check(cells, block["cells"])
    with pytest.warns(UserWarning, match="cannot be estimated and are NaN: .*'recipe.T.B.:heat.T.mid.'") as said:
        means = emmeans(result, "recipe", contrasts="pairwise")
    assert {Path(one.filename).name for one in said} == {"test_means.py"}
    check(means, block["recipe"])
    assert "nan: not estimable; the data do not determine what depends on 'recipe[T.B]:heat[T.mid]'" in str(means)
    pairs = means.comparison
    live = np.array([v is not None for v in block["pairs"]["estimate"]])
    np.testing.assert_array_equal(np.isnan(pairs.estimate), ~live)
    # one comparison is left, which needs no adjustment (emmeans adjusts for those that cannot be made)
    with pytest.warns(UserWarning, match="2 of 3 estimates cannot be estimated and are NaN"):
        alone = means.contrast("pairwise", "none")
    assert pairs.pvalues[1] == pytest.approx(alone.pvalues[1], rel=1e-12)
    joint = cells.joint_test()
    # emmeans::joint_tests
    assert joint.df_num.tolist() == [1, 1, 3]
    np.testing.assert_allclose(joint.statistic, [0.103, 47.904, 0.477], atol=5.1e-4)
    np.testing.assert_allclose(joint.df_denom[:2], [34.91, 87.65], atol=5.1e-3)
    assert joint.notes


def test_offset():
    data = unbalanced()
    formula = "angle ~ recipe * heat + (1 | batch)"
    result = flc.lmm(formula, data, offset=0.5 * data["x"].to_numpy()).fit()
    means = emmeans(result, "recipe", contrasts="pairwise")
    check(means, REFERENCE["offset"]["recipe"])
    # comparisons do not contain it
    L = means.comparison.L
    np.testing.assert_allclose(means.comparison.estimate, L @ result.beta, rtol=1e-12)


def test_slopes_are_free_of_the_offset():
    data = unbalanced()
    result = flc.lmm("angle ~ recipe * x + (1 | batch)", data, offset=0.5 * data["x"].to_numpy()).fit()
    beta = dict(zip(result.model.exog_names, result.beta, strict=True))
    own = [beta["x"], beta["x"] + beta["recipe[T.B]:x"], beta["x"] + beta["recipe[T.C]:x"]]
    found = slopes(result, "x", "recipe", contrasts="pairwise")
    np.testing.assert_allclose(found.estimate, own, rtol=1e-9)
    np.testing.assert_allclose(
        found.comparison.estimate, [own[0] - own[1], own[0] - own[2], own[1] - own[2]], rtol=1e-9
    )
    np.testing.assert_allclose(found.statistic, np.array(own) / found.std_error, rtol=1e-9)
    # the fit to what the offset leaves
    plain = flc.lmm("angle ~ recipe * x + (1 | batch)", data.assign(angle=data["angle"] - 0.5 * data["x"])).fit()
    np.testing.assert_allclose(found.estimate, slopes(plain, "x", "recipe").estimate, rtol=1e-7)


def test_contrasts_with_an_offset_are_combinations_of_the_means():
    # weights that do not add to zero take their share of the offset, in every family
    data = unbalanced()
    result = flc.lmm("angle ~ recipe * heat * block + (1 | batch)", data, offset=50.0 + data["x"].to_numpy()).fit()
    weights = {"first": [1.0, 0.0, 0.0], "a - b": [1.0, -1.0, 0.0], "twice": [0.0, 1.0, 1.0]}
    means = emmeans(result, "heat", by="block", contrasts=weights)
    W = np.array(list(weights.values()))
    assert means.labels["block"] == ["u"] * 3 + ["v"] * 3
    expected = np.concatenate([W @ means.estimate[:3], W @ means.estimate[3:]])
    np.testing.assert_allclose(means.comparison.estimate, expected, rtol=1e-9)
    assert means.comparison.labels["contrast"] == list(weights) * 2
    assert means.comparison.labels["block"] == ["u"] * 3 + ["v"] * 3


def correlation(covariance) -> float:
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def max_t_of_two(x: float, df: float, rho: float) -> float:
    """P(max(|t_1|, |t_2|) > x) by sums over the first normal and the scale."""
    z, step = np.linspace(-9.0, 9.0, 3001, retstep=True)
    weight = scipy.stats.norm.pdf(z) * step
    s, thin = np.linspace(1e-6, 6.0, 3001, retstep=True)
    density = scipy.stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df) * thin
    s, density = s[density > 1e-18], density[density > 1e-18]
    limit, rest = x * s[:, None], np.sqrt(1.0 - rho * rho)
    inside = ndtr((limit - rho * z) / rest) - ndtr((-limit - rho * z) / rest)
    return 1.0 - float(density @ (np.where(np.abs(z) <= limit, inside, 0.0) @ weight))


def test_multivariate_t_takes_the_covariance_that_the_errors_are_of():
    # Kenward and Roger's adjusted covariance has other correlations than the one that it adjusts
    data = unbalanced().iloc[:40]
    result = flc.lmm("angle ~ heat + x + (x | batch)", data).fit()
    Phi = dense_inference.at_optimum(result).Phi
    adjusted = dense_inference.at_optimum(result).adjusted("expected")
    pairs = emmeans(result, "heat", contrasts="reference", ddf="kenward-roger", information="expected").comparison
    assert pairs.adjust == "mvt"
    rho, plain = (correlation(pairs.L @ C @ pairs.L.T) for C in (adjusted, Phi))
    expected = [max_t_of_two(abs(t), df, rho) for t, df in zip(pairs.statistic, pairs.df, strict=True)]
    naive = [max_t_of_two(abs(t), df, plain) for t, df in zip(pairs.statistic, pairs.df, strict=True)]
    np.testing.assert_allclose(pairs.pvalues, expected, rtol=0, atol=5e-6)
    assert np.abs(np.subtract(naive, expected)).max() > 5e-5


# ---- definitions -------------------------------------------------------------------------------


def test_means_are_averages_of_predictions():
    result = fitted("angle ~ recipe * heat * x + block + C(temperature) + log(temp) + (1 | batch)")
    data = unbalanced()
    grid = pd.MultiIndex.from_product(
        [["A", "B", "C"], ["low", "mid", "top"], ["u", "v"], sorted(data["temperature"].unique())],
        names=["recipe", "heat", "block", "temperature"],
    ).to_frame(index=False)
    grid["x"], grid["temp"] = data["x"].mean(), data["temp"].mean()
    design = result.model.spec.fixed(grid)
    expected = {key: design[grid["recipe"] == key].mean(axis=0) for key in ("A", "B", "C")}
    found = ReferenceGrid(result.model).functions(["recipe"])
    np.testing.assert_allclose(found, np.array(list(expected.values())), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["category", "integer", "logical", "ordered"])
def test_types_of_factors(kind):
    data = unbalanced()
    plain = emmeans(flc.lmm("angle ~ block * x + (1 | batch)", data).fit(), "block", contrasts="pairwise")
    codes = (data["block"] == "v").astype(int)
    values = {
        "category": data["block"].astype(pd.CategoricalDtype(["u", "v", "never"])),
        "ordered": data["block"].astype(pd.CategoricalDtype(["v", "u"], ordered=True)),
        "integer": codes,
        "logical": codes.astype(bool),
    }[kind]
    term = "C(f)" if kind == "integer" else "f"
    result = flc.lmm(f"angle ~ {term} * x + (1 | batch)", data.assign(f=values)).fit()
    found = emmeans(result, "f", contrasts="pairwise")
    turn = slice(None, None, -1) if kind == "ordered" else slice(None)
    np.testing.assert_allclose(found.estimate[turn], plain.estimate, rtol=1e-8)
    np.testing.assert_allclose(found.df[turn], plain.df, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.comparison.estimate), np.abs(plain.comparison.estimate), rtol=1e-7)
    expected = {"category": ["u", "v"], "ordered": ["v", "u"], "integer": [0, 1], "logical": [False, True]}
    assert found.labels["f"] == expected[kind]


def test_levels_and_means_come_from_the_rows_in_use():
    data = unbalanced().copy()
    whole = emmeans(flc.lmm("angle ~ recipe * x + (1 | batch)", data).fit(), "recipe")
    extra = data.iloc[:3].assign(recipe="Z", angle=np.nan, x=1e6)
    more = flc.lmm("angle ~ recipe * x + (1 | batch)", pd.concat([extra, data])).fit()
    found = emmeans(more, "recipe")
    assert found.labels["recipe"] == ["A", "B", "C"]
    np.testing.assert_allclose(found.estimate, whole.estimate, rtol=1e-10)


def test_many_factors_do_not_make_a_large_grid(rng):
    n = 400
    data = {f"f{i}": rng.choice(list("abcd"), n) for i in range(16)}
    data |= {"y": rng.normal(size=n), "g": rng.integers(0, 20, n)}
    result = flc.lmm("y ~ " + " + ".join(f"f{i}" for i in range(16)) + " + (1 | g)", data).fit()
    found = emmeans(result, "f3")  # of a grid of 4**16 rows
    assert found.L.sum(axis=1) == pytest.approx(1.0 + 15 * 0.75 + np.array([0.0, 1.0, 1.0, 1.0]))


def test_intercept_alone_and_numeric_models():
    result = fitted("angle ~ x + temp + (1 | batch)")
    found = emmeans(result, ["x", "temp"], at={"x": [0.0, 2.0], "temp": 180.0})
    beta = dict(zip(result.model.exog_names, result.beta, strict=True))
    expected = [beta["Intercept"] + x * beta["x"] + 180.0 * beta["temp"] for x in (0.0, 2.0)]
    np.testing.assert_allclose(found.estimate, expected, rtol=1e-12)
    np.testing.assert_allclose(slopes(result, "x").estimate, beta["x"], rtol=1e-9)


def test_large_offsets_of_a_covariate():
    data = unbalanced()
    plain = fitted("angle ~ recipe * x + (1 | batch)")
    shifted = flc.lmm("angle ~ recipe * x + (1 | batch)", data.assign(x=data["x"] + 1e6)).fit()
    for result in (emmeans(shifted, "recipe", contrasts="pairwise"),):
        expected = emmeans(plain, "recipe", contrasts="pairwise")
        np.testing.assert_allclose(result.std_error, expected.std_error, rtol=1e-6)
        np.testing.assert_allclose(result.estimate, expected.estimate, rtol=1e-6)
        np.testing.assert_allclose(result.comparison.df, expected.comparison.df, rtol=1e-5)


def test_weights_of_contrasts():
    result = fitted("angle ~ recipe * heat + (1 | batch)")
    means = emmeans(result, "heat", contrasts={"ends": [-1, 0, 1], "bend": [1, -2, 1]}, ddf="kenward-roger")
    found = means.comparison
    assert found.labels["contrast"] == ["ends", "bend"]
    assert found.adjust == "none"
    np.testing.assert_allclose(found.estimate, np.array([[-1, 0, 1], [1, -2, 1]]) @ means.estimate, rtol=1e-10)
    last = emmeans(result, "heat").contrast("reference", ref="top")
    assert last.labels["contrast"] == ["low - top", "mid - top"]
    assert last.adjust == "mvt"
    raw = emmeans(result, "heat").contrast("reference", "none", ref="top")
    assert (last.pvalues > raw.pvalues).all()
    assert (last.pvalues < 2.0 * raw.pvalues + 1e-12).all()
    assert (last.conf_high - last.conf_low > raw.conf_high - raw.conf_low).all()


def test_polynomials_are_those_of_the_tables():
    five, six = polynomial_weights(5), polynomial_weights(6)
    assert five["quartic"].tolist() == [1, -4, 6, -4, 1]
    assert five["cubic"].tolist() == [-1, 2, 0, -2, 1]
    assert six["linear"].tolist() == [-5, -3, -1, 1, 3, 5]
    assert six["quadratic"].tolist() == [5, -1, -4, -4, -1, 5]
    assert six["cubic"].tolist() == [-5, 7, 4, -4, -7, 5]
    assert six["degree 5"].tolist() == [-1, 5, -10, 10, -5, 1]
    assert len(polynomial_weights(12)) == 6


def test_known_variances_give_z_tests():
    means = emmeans(fitted("angle ~ recipe * heat + (1 | batch)"), "heat", contrasts="pairwise", ddf="normal")
    assert np.isinf(means.df).all()
    assert any(line.split()[-2:] == ["z", "p"] for line in str(means).splitlines())
    np.testing.assert_allclose(means.conf_high - means.estimate, 1.959963984540054 * means.std_error, rtol=1e-12)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_frames_in_frames_out(library):
    data = unbalanced()
    table = {name: data[name].to_numpy() for name in ("angle", "recipe", "heat", "batch")}
    if library != "dict":
        module = pytest.importorskip(library)
        table = module.table(table) if library == "pyarrow" else module.DataFrame(table)
    means = emmeans(flc.lmm("angle ~ recipe * heat + (1 | batch)", table).fit(), "heat", contrasts="pairwise")
    for frame in (means.to_frame(), means.contrasts, means.joint_test().to_frame()):
        assert type(frame).__module__.split(".")[0] in (library, "builtins")
    np.testing.assert_allclose(np.asarray(means.to_frame()["estimate"]), means.estimate)
    assert means.joint_test().labels["term"] == ["heat"]


def test_display():
    means = emmeans(fitted("angle ~ recipe * heat + (1 | batch)"), "heat", by="recipe", contrasts="pairwise")
    text = str(means)
    assert text.splitlines()[0].split() == ["heat", "recipe", "Estimate", "SE", "df", "95%", "CI"]
    assert "Tukey's method for comparing 3 means" in text
    html = means._repr_html_()
    assert html.count("<table>") == 2
    assert html.count("<tr>") == 2 + 9 + 9
    assert emmeans(fitted("angle ~ recipe * heat + (1 | batch)"), "heat").contrasts is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": "oven"}, "factors: 'oven' is not a variable"),
        ({"factors": "x"}, r"say at which values to predict, e.g. at=\{'x'"),
        ({"factors": "heat", "by": "heat"}, "name it once"),
        ({"factors": []}, "factors is empty"),
        ({"factors": 3}, "factors"),
        ({"factors": "heat", "at": {"heat": ["hot"]}}, "no level 'hot'"),
        ({"factors": "heat", "at": {"x": "warm"}}, "'x' is numeric"),
        ({"factors": "heat", "at": {"x": []}}, "no values"),
        ({"factors": "heat", "at": {"x": np.nan}}, "not finite"),
        ({"factors": "heat", "at": {"y": 1}}, "at: 'y'"),
        ({"factors": "heat", "contrasts": "all"}, "contrasts='all'"),
        ({"factors": "heat", "contrasts": {"a": [1, -1]}}, "3 finite weights"),
        ({"factors": "heat", "contrasts": {"a": "abc"}}, "not numbers"),
        ({"factors": "heat", "contrasts": "reference", "adjust": "tukey"}, "all pairs"),
        ({"factors": "heat", "adjust": "tukey"}, "comparisons"),
        ({"factors": "heat", "contrasts": "pairwise", "adjust": "lsd"}, "adjust='lsd'"),
        ({"factors": "heat", "at": {"heat": "low"}, "contrasts": "pairwise"}, "at least two means"),
        ({"factors": "heat", "level": 95}, "level"),
        ({"factors": "heat", "ddf": "t"}, "ddf"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(flc.LMMError, match=message):
        emmeans(fitted("angle ~ recipe * heat + x + (1 | batch)"), **options)


def test_joint_test_needs_means():
    result = fitted("angle ~ recipe * x + (1 | batch)")
    with pytest.raises(flc.LMMError, match="at least two means"):
        slopes(result, "x").joint_test()
    trends = slopes(result, "x", "recipe").joint_test()
    table = anova(result)
    assert trends.statistic[0] == pytest.approx(table.statistic[table.terms.index("recipe:x")], rel=1e-8)


def test_refuses_arrays_and_other_slopes(rng):
    g = np.repeat(np.arange(10), 4)
    arrays = flc.LinearMixedModel(rng.normal(size=40), None, None, g).fit()
    with pytest.raises(flc.LMMError, match="need a model from a formula"):
        emmeans(arrays, "x")
    with pytest.raises(flc.LMMError, match=r"'heat' is not a numeric .*by emmeans\('heat'\), or choose one of 'x'"):
        slopes(fitted("angle ~ recipe * heat + x + (1 | batch)"), "heat")
    for formula, variable, message in (
        ("angle ~ recipe * heat + x + (1 | batch)", "y", r"'y' is not a numeric .*choose one of 'x'"),
        ("angle ~ recipe + x + (temp | batch)", "temp", r"'temp' is not a numeric .*add it there"),
        ("angle ~ recipe + (1 | batch)", "recipe", r"compare its levels by emmeans\('recipe'\)$"),
        ("angle ~ recipe + (1 | batch)", ["x"], r"add one to the formula"),
    ):
        with pytest.raises(flc.LMMError, match=message):
            slopes(fitted(formula), variable)
    constant = flc.lmm("angle ~ 0 + x + (1 | batch)", unbalanced().assign(x=2.5)).fit()
    with pytest.raises(flc.LMMError, match=r"'x' is 2\.5 in all rows and has no slope"):
        slopes(constant, "x")
    with pytest.raises(flc.LMMError, match="ref='hot'"):
        emmeans(fitted("angle ~ recipe * heat + x + (1 | batch)"), "heat").contrast("reference", ref="hot")


def test_marginaleffects():
    me = pytest.importorskip("marginaleffects")
    formula = "angle ~ recipe * heat + x + (1 | batch)"
    for ddf, offset in (("normal", None), ("kenward-roger", "temp")):
        result = flc.lmm(formula, unbalanced(), offset=offset).fit()
        model = flc.marginaleffects_model(result, unbalanced(), ddf)
        grid = me.datagrid(model=model, recipe=["A", "B", "C"], heat=["low", "mid", "top"])
        found = me.predictions(model, newdata=grid).sort("heat", "recipe")
        expected = emmeans(result, ["recipe", "heat"], ddf=ddf)
        np.testing.assert_allclose(found["estimate"], expected.estimate, rtol=1e-5)
        np.testing.assert_allclose(found["std_error"], expected.std_error, rtol=1e-4)
    with pytest.raises(flc.LMMError, match="ddf="):
        flc.marginaleffects_model(result, unbalanced(), "satterthwaite")
    trends = fitted("angle ~ recipe * x + (1 | batch)")
    found = me.avg_slopes(flc.marginaleffects_model(trends), variables="x", by="recipe").sort("recipe")
    expected = slopes(trends, "x", "recipe", ddf="normal")
    np.testing.assert_allclose(found["estimate"], expected.estimate, rtol=1e-5)
    # its slopes are differences of predictions
    np.testing.assert_allclose(found["std_error"], expected.std_error, rtol=2e-3)


# ---- contrasts of contrasts --------------------------------------------------------------------


def test_contrasts_of_contrasts_are_differences_of_differences():
    result = fitted("angle ~ recipe * heat + (1 | batch)")
    means = emmeans(result, ["recipe", "heat"])
    cell = {(a, b): i for i, (a, b) in enumerate(zip(means.labels["recipe"], means.labels["heat"], strict=True))}
    found = means.contrast({"heat": "consecutive", "recipe": "pairwise"})
    assert found.adjust == "none"
    assert list(found.labels) == ["recipe", "heat"]
    assert found.labels["recipe"] == ["A - B", "A - C", "B - C"] * 2
    assert found.labels["heat"] == ["mid - low"] * 3 + ["top - mid"] * 3
    expected = np.zeros((6, means.L.shape[1]))
    for row, (recipe, heat) in enumerate(zip(found.labels["recipe"], found.labels["heat"], strict=True)):
        (a, b), (c, d) = recipe.split(" - "), heat.split(" - ")
        signed = ((a, c, 1.0), (b, c, -1.0), (a, d, -1.0), (b, d, 1.0))
        expected[row] = sum(sign * means.L[cell[x, y]] for x, y, sign in signed)
    np.testing.assert_allclose(found.L, expected, atol=1e-12)
    Phi = dense_inference.at_optimum(result).Phi
    np.testing.assert_allclose(found.std_error, np.sqrt(np.diag(expected @ Phi @ expected.T)), rtol=1e-8)


def test_contrasts_of_contrasts_within_levels_with_references_and_weights():
    result = fitted("angle ~ recipe * heat * block + (1 | batch)")
    means = emmeans(result, "recipe:heat", by="block")
    found = means.contrast({"recipe": "reference", "heat": {"bend": [1, -2, 1]}}, "bonferroni", ref={"recipe": "B"})
    assert found.labels["block"] == ["u", "u", "v", "v"]
    assert found.labels["recipe"] == ["A - B", "C - B"] * 2
    assert found.labels["heat"] == ["bend"] * 4
    in_u = means.estimate[:9].reshape(3, 3)  # heat by recipe
    bends = np.array([1.0, -2.0, 1.0]) @ in_u
    np.testing.assert_allclose(found.estimate[:2], [bends[0] - bends[1], bends[2] - bends[1]], rtol=1e-8)
    raw = means.contrast({"recipe": "reference", "heat": {"bend": [1, -2, 1]}}, ref={"recipe": "B"})
    np.testing.assert_allclose(found.pvalues, np.minimum(1.0, 2.0 * raw.pvalues), rtol=1e-10)


def test_all_contrasts_of_contrasts_are_the_interaction():
    # of a saturated two-way table: their joint F test is that of the interaction
    result = fitted("angle ~ recipe * heat + (1 | batch)")
    found = emmeans(result, ["recipe", "heat"], contrasts={"recipe": "sequential", "heat": "sequential"}).comparison
    test = result.test(found.L)
    table = anova(result, 3)
    np.testing.assert_allclose(test.statistic, table.statistic[table.terms.index("recipe:heat")], rtol=1e-8)


@pytest.mark.parametrize(
    ("contrasts", "options", "message"),
    [
        ({"recipe": "pairwise"}, {}, "the factor 'heat' has no comparison"),
        ({"recipe": "pairwise", "oven": "pairwise"}, {}, "'oven' is not one of the factors"),
        ({"recipe": "pairwise", "heat": "all"}, {}, "'all' is unknown.*factor 'heat'"),
        ({"recipe": "reference", "heat": "pairwise"}, {"ref": "A"}, "mapping of factors to levels"),
        ({"recipe": "reference", "heat": "pairwise"}, {"ref": {"recipe": "Z"}}, "'Z'.*factor 'recipe'"),
        ({"recipe": "pairwise", "heat": "pairwise"}, {"adjust": "tukey"}, "all pairs"),
    ],
)
def test_refuses_contrasts_of_contrasts(contrasts, options, message):
    with pytest.raises(flc.LMMError, match=message):
        emmeans(fitted("angle ~ recipe * heat + (1 | batch)"), ["recipe", "heat"], contrasts=contrasts, **options)
