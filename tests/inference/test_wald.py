"""Degrees of freedom, adjusted covariances and F tests: R's references, and dense matrices."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import dense_inference
import fastlmm_core as flc
import oracle
from fastlmm_core.estimation.information import combined_df, moments, scaled_f
from fastlmm_core.inference import wald as inference
from fastlmm_core.inference.options import DDF
from fastlmm_core.support.distributions import chi2_tail, f_tail, quantile, two_sided_p

# What the references can be held to (see their README).
SATTERTHWAITE = 1e-5
KENWARD_ROGER = 1e-6
# Against dense algebra at the same parameters, where only rounding differs.
DENSE = 1e-8


def raw(name):
    return json.loads((oracle.REFERENCE / f"{name}.json").read_text())["reml"]


def in_order(ref, values):
    return np.array([values[c] for c in ref.coef_names])


def same(actual, desired, tolerance):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=0.0)


# ------------------------------------------------------------------------------------------------------------
# lmerTest and pbkrtest


@pytest.mark.parametrize("name", oracle.SINGLE_FACTOR)
def test_coefficients_against_r(name, fitted_reference):
    ref, expected = oracle.reference(name), raw(name)
    result = fitted_reference(name, True, "arrays")
    table = inference.coefficient_table(result)
    same(table["df"], in_order(ref, expected["satterthwaite"]["df"]), SATTERTHWAITE)
    same(table["statistic"], in_order(ref, expected["satterthwaite"]["t"]), 1e-5)
    # the tail multiplies the relative error of t by about t^2 / 2
    t = np.abs(table["statistic"])
    recorded = in_order(ref, expected["satterthwaite"]["p"])
    assert np.all(np.abs(table["p_value"] / recorded - 1.0) <= 1e-6 * (10.0 + t**2))

    expected = expected["kenward_roger"]
    table = inference.coefficient_table(result, "kenward-roger", "expected")
    same(table["df"], in_order(ref, expected["df"]), KENWARD_ROGER)
    same(table["std_error"], in_order(ref, expected["se"]), KENWARD_ROGER)
    adjusted = np.array(expected["vcov_adj"])
    size = np.sqrt(np.diag(adjusted))
    found = inference.covariance(result, "kenward-roger", "expected")
    assert np.max(np.abs(found - adjusted) / np.outer(size, size)) <= KENWARD_ROGER
    np.testing.assert_array_equal(found, found.T)


def type_three(ref, name):
    """Rows of lmerTest's type III hypotheses from cell means, for the factorial references."""
    if name == "cake":
        levels = [(r, t) for r in "ABC" for t in ("175", "185", "195", "205", "215", "225")]
        cells = np.array([
            [1.0]
            + [float(c == f"recipe{r}") for c in ref.coef_names[1:3]]
            + [float(c == f"temperature{t}") for c in ref.coef_names[3:8]]
            + [float(c == f"recipe{r}:temperature{t}") for c in ref.coef_names[8:]]
            for r, t in levels
        ]).reshape(3, 6, -1)  # fmt: skip
        recipe, temperature = cells.mean(axis=1), cells.mean(axis=0)
        crossed = cells - recipe[:, None] - temperature + cells.mean(axis=(0, 1))
        return {
            "recipe": recipe[1:] - recipe[0],
            "temperature": temperature[1:] - temperature[0],
            "recipe:temperature": crossed[1:, 1:].reshape(10, -1),
        }
    if name == "machines_q3":
        return {"Machine": np.eye(3)[1:]}
    if name.startswith("orthodont"):
        age, sex, both = (ref.coef_names.index(c) for c in ("age", "SexMale", "age:SexMale"))
        rows = np.zeros((3, 1, 4))
        rows[0, 0, [age, both]] = 1.0, 0.5
        rows[1, 0, sex] = 1.0
        rows[2, 0, both] = 1.0
        return dict(zip(("age", "Sex", "age:Sex"), rows, strict=True))
    return {}


@pytest.mark.parametrize("name", ["cake", "machines_q3", "orthodont_intercept", "orthodont_slope"])
@pytest.mark.parametrize(("ddf", "tolerance"), [("satterthwaite", SATTERTHWAITE), ("kenward-roger", KENWARD_ROGER)])
def test_f_tests_against_r(name, ddf, tolerance, fitted_reference):
    ref = oracle.reference(name)
    expected = raw(name)[f"anova_type3_{ddf.replace('-', '_')}"]
    hypotheses = type_three(ref, name)
    assert set(hypotheses) == set(expected)
    result = fitted_reference(name, True, "arrays")
    for term, L in hypotheses.items():
        found = inference.wald(result, L, None, ddf)
        assert found.df_num == expected[term]["num_df"]
        same(found.df_denom, expected[term]["den_df"], tolerance)
        statistic = found.statistic if found.distribution == "F" else found.statistic**2
        same(statistic, expected[term]["F"], tolerance)
        assert abs(found.pvalue / expected[term]["p"] - 1.0) <= tolerance * (10.0 + statistic)


def test_singular_fit_by_name(fitted_reference):
    # dyestuff2: variance 0, where Satterthwaite has all residual degrees of freedom and Kenward-Roger those of batches
    result = fitted_reference("dyestuff2", True, "arrays")
    assert result.singular
    same(inference.coefficient_df(result), [29.0], 1e-10)
    same(inference.coefficient_df(result, "kenward-roger", "expected"), [5.0], 1e-12)
    for information in ("auto", "observed"):
        same(inference.coefficient_df(result, "kenward-roger", information), [29.0], 1e-10)
    found = inference.test(result, "`(Intercept)` = 1500")
    assert found.left_out == result.singular_components
    assert "Taken for known, being at the boundary: sd of" in repr(found)
    assert moments(result, "kenward-roger").left_out == result.singular_components
    assert moments(result, "kenward-roger", "expected").left_out == ()


# ------------------------------------------------------------------------------------------------------------
# dense algebra


def problem(rng, q, structure="full", weights=False, offset=False, m=9, rank=None, p=4):
    """Unbalanced groups, with effects strong enough to stay off the boundary unless `rank` says otherwise."""
    groups = np.repeat(np.arange(m), rng.integers(q + 2, q + 8, m))
    n = len(groups)
    Z = rng.uniform(-1.0, 1.0, n)[:, None] ** np.arange(q)
    X = np.column_stack([np.ones(n), Z[:, 1:2], rng.standard_normal(n), rng.standard_normal(m)[groups], groups % 2])
    root = np.diag(rng.uniform(3.0, 6.0, q)) + rng.standard_normal((q, q))
    root = root if rank is None else root[:, :rank]
    b = rng.standard_normal((m, root.shape[1])) @ root.T
    w = rng.uniform(0.3, 3.0, n) if weights else None
    noise = rng.standard_normal(n) / (1.0 if w is None else np.sqrt(w))
    o = rng.standard_normal(n) if offset else None
    y = X[:, :p] @ np.arange(1.0, p + 1.0) + np.sum(Z * b[groups], axis=1) + noise + (0.0 if o is None else o)
    return flc.LinearMixedModel(y, X[:, :p], Z, groups, structure=structure, weights=w, offset=o)


def rank_factor(result):
    """F with G = F F' of full column rank, in natural units."""
    G = oracle.covariance_blocks(result)
    size = np.sqrt(np.where(np.diag(G) > 0.0, np.diag(G), 1.0))
    values, vectors = np.linalg.eigh(G / np.outer(size, size))
    keep = values > 1e-7
    return size[:, None] * vectors[:, keep] * np.sqrt(values[keep])


def compare(result, tolerance=DENSE):
    dense = dense_inference.at_optimum(result)
    factor = rank_factor(result) if result.singular else None
    p = dense.X.shape[1]
    expected = [dense.satterthwaite(row, factor) for row in np.eye(p)]
    same(inference.coefficient_df(result), expected, tolerance)
    L = np.array([[1.0, 1.0, -2.0, 0.0], [0.0, 3.0, 1.0, 0.5]])[:, :p]
    rhs = np.array([0.3, -1.0])
    found = inference.wald(result, L, rhs)
    same(found.row_df, [dense.satterthwaite(row, factor) for row in L], tolerance)
    same(found.estimate, L @ dense.beta, 1e-7)
    if factor is None:
        F, df = dense.fai_cornelius(L, rhs)
        same(found.statistic, F, tolerance)
        same(found.df_denom, df, tolerance)
    if not result.reml:
        return
    for information in ("expected", "observed", "auto"):
        adjusted = dense.adjusted(information, factor)
        size = np.sqrt(np.diag(adjusted))
        error = inference.covariance(result, "kenward-roger", information) - adjusted
        assert np.max(np.abs(error) / np.outer(size, size)) <= tolerance, information
        if factor is not None and information == "observed":
            continue
        F, df = dense.kenward_roger(L, rhs, information, factor)
        found = inference.wald(result, L, rhs, "kenward-roger", information)
        same(found.statistic, F, tolerance)
        same(found.df_denom, df, 10 * tolerance)
        for i in range(2):
            F, df = dense.kenward_roger(L[i : i + 1], rhs[i : i + 1], information, factor)
            same(found.row_statistic[i] ** 2, F, tolerance)
            same(found.row_df[i], df, 10 * tolerance)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full"), (3, "diagonal")])
def test_against_dense_algebra(rng, q, structure, weights):
    model = problem(rng, q, structure, weights, offset=weights, m=9 if q < 3 else 16)
    for reml in (True, False):
        result = model.fit(reml=reml)
        assert not result.singular
        assert result.converged
        compare(result)


def test_several_blocks(rng):
    base = problem(rng, 3, "diagonal", m=14)
    data = {"y": base.endog, "a": base.exog[:, 2], "b": base.exog[:, 3], "g": base.grouping.index}
    data |= {"z1": base.exog_re[:, 1], "z2": base.exog_re[:, 2]}
    result = flc.lmm("y ~ z1 + a + b + (z1 | g) + (0 + z2 | g)", data).fit()
    assert len(result.model.structure.blocks) == 2
    assert not result.singular
    compare(result)


@pytest.mark.parametrize(("q", "rank"), [(2, 1), (3, 1), (3, 2)])
def test_singular_fits_against_dense_algebra(rng, q, rank):
    # along the matrices of the rank found, whatever the triangle of Lambda looks like
    seen = 0
    for _ in range(12):
        model = problem(rng, q, rank=rank, m=12)
        result = model.fit()
        if result.singular and result.converged:
            seen += 1
            # the gradient in G is known to about 1e-6 there, and enters the second derivatives
            compare(result, 1e-5)
    assert seen >= 3


def test_order_of_the_random_effects_does_not_matter_at_the_boundary(rng):
    seen = 0
    for _ in range(30):
        model = problem(rng, 2, rank=1, m=8)
        # an effect without variance first: the triangle of Lambda has a zero column before one that is not
        y = model.endog - np.sum(model.exog_re * 0.0, axis=1)
        fits = [
            flc.LinearMixedModel(y, model.exog, model.exog_re[:, order], model.grouping.index).fit()
            for order in ([0, 1], [1, 0])
        ]
        if fits[0].singular and fits[0].criterion == pytest.approx(fits[1].criterion, abs=1e-9):
            seen += 1
            same(inference.coefficient_df(fits[0]), inference.coefficient_df(fits[1]), 1e-5)
    assert seen >= 3


def test_diagonal_blocks_at_the_boundary(rng):
    for _ in range(20):
        base = problem(rng, 2, "diagonal")
        y = base.exog @ np.ones(4) + rng.standard_normal(base.nobs) + 2.0 * rng.standard_normal(9)[base.grouping.index]
        result = flc.LinearMixedModel(y, base.exog, base.exog_re, base.grouping.index, structure="diagonal").fit()
        if result.singular and result.random_effects_sd["group"][1] == 0.0:
            break
    else:
        pytest.fail("no singular fit")
    # the same as without the effect that has no variance
    alone = flc.LinearMixedModel(y, base.exog, None, base.grouping.index).fit()
    same(inference.coefficient_df(result), inference.coefficient_df(alone), 1e-7)
    for information in ("observed", "auto"):
        adjusted = inference.covariance(result, "kenward-roger", information)
        same(adjusted, inference.covariance(alone, "kenward-roger", information), 1e-7)
    same(
        inference.coefficient_df(result, "kenward-roger"),
        inference.coefficient_df(alone, "kenward-roger", "expected"),
        1e-7,
    )


# ------------------------------------------------------------------------------------------------------------
# closed forms and invariance


def test_balanced_one_way_has_the_degrees_of_freedom_of_the_groups(rng):
    groups = np.repeat(np.arange(12), 5)
    y = 3.0 * rng.standard_normal(12)[groups] + rng.standard_normal(60)
    result = flc.LinearMixedModel(y, None, None, groups).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        same(inference.coefficient_df(result, ddf), [11.0], 1e-8)
    mean = y.reshape(12, 5).mean(axis=1)
    same(np.sqrt(inference.covariance(result, "kenward-roger")), [[mean.std(ddof=1) / np.sqrt(12)]], 1e-10)


def test_split_plot_strata(rng):
    # whole plots by group, treatments within: the strata of a balanced split plot
    groups = np.repeat(np.arange(10), 4)
    treatment = np.tile(np.arange(4), 10)
    whole = groups % 2
    X = np.column_stack([np.ones(40), whole, *(treatment == k for k in (1, 2, 3))]).astype(float)
    y = rng.standard_normal(40) + 2.0 * rng.standard_normal(10)[groups]
    result = flc.LinearMixedModel(y, X, None, groups).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        same(inference.coefficient_df(result, ddf)[1:], [8.0, 27.0, 27.0, 27.0], 1e-7)
        found = inference.wald(result, np.eye(5)[2:], None, ddf)
        same(found.df_denom, 27.0, 1e-7)
        residual = y - y.reshape(10, 4).mean(axis=1)[groups]
        means = residual.reshape(10, 4).mean(axis=0)
        between = 10.0 * np.sum(means**2) / 3.0
        within = np.sum((residual.reshape(10, 4) - means) ** 2) / 27.0
        same(found.statistic, between / within, 1e-9)


def test_units_do_not_matter(fitted_reference):
    ref = oracle.reference("sleepstudy_slope")
    plain = fitted_reference("sleepstudy_slope", True, "arrays")
    scaled = flc.LinearMixedModel(ref.y * 1e-6, ref.X * [1.0, 1e6], ref.Z * [1.0, 1e6], ref.groups).fit()
    shifted = ref.X + np.outer(np.ones(180), [0.0, 2020.0])
    moved = flc.LinearMixedModel(ref.y + 1e6, shifted, shifted, ref.groups).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        for information in ("auto", "expected", "observed"):
            df = inference.coefficient_df(plain, ddf, information)
            same(inference.coefficient_df(scaled, ddf, information), df, 1e-9)
            # the slope stays; the intercept is another quantity
            same(inference.coefficient_df(moved, ddf, information)[1], df[1], 1e-8)
            factor = np.array([1e-6, 1e-12])
            cov = inference.covariance(plain, ddf, information)
            same(inference.covariance(scaled, ddf, information), cov * np.outer(factor, factor), 1e-8)
        rows = [inference.wald(r, np.eye(2), [251.0 * s, 10.0 * t], ddf) for r, s, t in (
            (plain, 1.0, 1.0), (scaled, 1e-6, 1e-12),
        )]  # fmt: skip
        same(rows[1].statistic, rows[0].statistic, 1e-8)
        assert rows[1].df_num == 2
        if ddf == "kenward-roger":
            same(rows[1].df_denom, rows[0].df_denom, 1e-8)


def test_f_does_not_depend_on_how_the_hypothesis_is_written(rng):
    result = problem(rng, 2).fit()
    L, mix = np.eye(4)[1:], rng.standard_normal((3, 3)) * [1.0, 100.0, 0.01]
    rhs = np.array([0.1, 0.2, 0.3])
    for ddf in DDF:
        plain = inference.wald(result, L, rhs, ddf)
        mixed = inference.wald(result, mix @ L, mix @ rhs, ddf)
        same(mixed.statistic, plain.statistic, 1e-9)
        if ddf != "satterthwaite":
            same(mixed.pvalue, plain.pvalue, 1e-8)
        # dependent rows add nothing
        more = inference.wald(result, np.vstack([L, L[0] + L[1]]), np.append(rhs, rhs[0] + rhs[1]), ddf)
        assert more.df_num == 3
        same(more.statistic, plain.statistic, 1e-9)
        tail = chi2_tail(more.statistic, 3) if ddf == "normal" else f_tail(more.statistic, 3, more.df_denom)
        same(more.pvalue, tail, 1e-12)
    with pytest.raises(flc.LMMError, match="contradicting"):
        inference.wald(result, np.vstack([L, L[0] + L[1]]), np.append(rhs, 7.0))


def test_how_much_right_hand_sides_may_contradict(rng):
    # numbers rounded to a few digits contradict each other, those that arithmetic has rounded do not
    result = problem(rng, 2).fit()
    L = np.eye(4)[1:]
    L = np.vstack([L, L[0] + L[1]])
    for gap in (0.0, 1e-15, 1e-10, -1e-8):
        found = inference.wald(result, L, [0.1, 0.2, 0.3, 0.3 * (1.0 + gap)])
        assert found.df_num == 3
    for gap in (1e-4, -1e-3, 1e-2, 0.1):
        with pytest.raises(flc.LMMError, match="contradicting"):
            inference.wald(result, L, [0.1, 0.2, 0.3, 0.3 * (1.0 + gap)])


def test_one_row_is_a_coefficient(rng):
    result = problem(rng, 2).fit()
    for ddf in DDF:
        table = inference.coefficient_table(result, ddf)
        for j in range(4):
            found = inference.test(result, f"x{j}", ddf=ddf)
            assert found.distribution == ("z" if ddf == "normal" else "t")
            same(found.std_error[0], table["std_error"][j], 1e-12)
            same(found.statistic, table["statistic"][j], 1e-12)
            same(found.df_denom, table["df"][j], 1e-12)
            same(found.pvalue, table["p_value"][j], 1e-9)
    assert np.isinf(inference.coefficient_df(result, "normal")).all()
    assert (inference.coefficient_df(result, "residual") == result.nobs - 4).all()
    joint = inference.test(result, "x0 = x1 = 0", ddf="normal")
    z = np.asarray(result.params)[:2]
    same(joint.statistic, z @ np.linalg.solve(np.asarray(result.cov_params())[:2, :2], z), 1e-9)
    assert (joint.distribution, joint.df_num, joint.df_denom) == ("chi2", 2, np.inf)


# ------------------------------------------------------------------------------------------------------------
# rank-deficient X, no X, errors


def test_dropped_columns(rng):
    base = problem(rng, 2, p=3)
    x = base.exog
    X = np.column_stack([x, x[:, 1] - 2.0 * x[:, 2], x[:, 0]])
    names = ["one", "t", "v", "combined", "again"]
    full = flc.LinearMixedModel(base.endog, X, base.exog_re, base.grouping.index, exog_names=names).fit()
    plain = base.fit()
    assert full.dropped_columns == ("combined", "again")
    for ddf in ("satterthwaite", "kenward-roger", "residual", "normal"):
        table, expected = inference.coefficient_table(full, ddf), inference.coefficient_table(plain, ddf)
        for name, values in table.items():
            same(values[:3], expected[name], 1e-7)
            assert np.isnan(values[3:]).all()
        V = inference.covariance(full, ddf)
        assert np.isnan(V[3:]).all()
        assert np.isnan(V[:, 3:]).all()
        same(V[:3, :3], inference.covariance(plain, ddf), 1e-7)
    # rows in the row space of X may have dropped columns: a difference of means
    row = X[5] - X[7]
    assert row[3] != 0.0
    found = inference.wald(full, row)
    expected = inference.wald(plain, x[5] - x[7])
    same([found.estimate[0], found.df_denom], [expected.estimate[0], expected.df_denom], 1e-7)
    assert inference.estimable(full.model, np.array([row, np.eye(5)[0], np.eye(5)[3]])).tolist() == [True, False, False]
    same(inference.test(full, "t + combined").df_denom, inference.test(plain, "x1").df_denom, 1e-7)
    for hypothesis in ("combined", "t - combined = 0", "again - one"):
        with pytest.raises(flc.LMMError, match=r"not estimable.*dropped: combined, again"):
            inference.test(full, hypothesis)


def test_model_without_fixed_effects(rng):
    base = problem(rng, 2, p=1)
    empty = flc.LinearMixedModel(base.endog - 1.0, np.empty((base.nobs, 0)), base.exog_re, base.grouping.index).fit()
    for ddf in DDF:
        assert inference.coefficient_df(empty, ddf).shape == (0,)
        assert inference.covariance(empty, ddf).shape == (0, 0)


def test_refusals(rng):
    result = problem(rng, 1).fit()
    with pytest.raises(flc.LMMError, match="ddf='kr' is unknown: use 'satterthwaite'"):
        inference.coefficient_df(result, "kr")
    with pytest.raises(flc.LMMError, match="information='both' is unknown: use 'auto', 'expected' or 'observed'"):
        inference.wald(result, np.eye(4), None, "kenward-roger", "both")
    ml = result.model.fit(reml=False)
    for call in (inference.coefficient_df, inference.covariance, inference.coefficient_table):
        with pytest.raises(flc.LMMError, match="fit with reml=True"):
            call(ml, "kenward-roger")
    with pytest.raises(flc.LMMError, match="no coefficient 'x9'"):
        inference.test(result, "x9")


def test_one_evaluation_serves_all_tests(rng, monkeypatch):
    result = problem(rng, 2).fit()
    made = []
    problem_type = type(result.model.problem)
    original = problem_type.criterion
    monkeypatch.setattr(problem_type, "criterion", lambda self, *args: made.append(1) or original(self, *args))
    inference.coefficient_table(result)
    inference.test(result, "x1 = x2 = 0")
    inference.coefficient_df(result)
    assert len(made) == 1
    inference.test(result, "x1 = x2 = 0", ddf="kenward-roger")
    inference.covariance(result, "kenward-roger")
    assert len(made) == 1
    # and what was found travels with the result
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(inference.coefficient_df(again), inference.coefficient_df(result))
    assert len(made) == 1


def test_presentation(fitted_reference):
    result = fitted_reference("cake", True, "formula")
    found = inference.test(result, "recipe[T.B] = recipe[T.C] = 0")
    text = str(found)
    assert text.startswith("Wald test, Satterthwaite's degrees of freedom")
    assert "recipe[T.B] = 0" in text
    assert "Jointly: F(2, " in text
    frame = found.to_frame()
    assert list(frame.columns) == ["hypothesis", "estimate", "rhs", "std_error", "df", "statistic", "p_value"]
    assert frame["hypothesis"].tolist() == ["recipe[T.B]", "recipe[T.C]"]
    plain = inference.wald(fitted_reference("cake", True, "arrays"), np.eye(18)[1]).to_frame()
    assert isinstance(plain["df"], np.ndarray)


# ------------------------------------------------------------------------------------------------------------
# distributions and small formulas


def test_distributions():
    from scipy import stats

    same(f_tail([1.0, 2.5], [2, 3], [7.3, np.inf]), [stats.f.sf(1.0, 2, 7.3), stats.chi2.sf(7.5, 3)], 1e-12)
    same(chi2_tail(3.3, 2), stats.chi2.sf(3.3, 2), 1e-12)
    same(two_sided_p([2.0, -2.0], [5.5, np.inf]), [2 * stats.t.sf(2.0, 5.5), 2 * stats.norm.sf(2.0)], 1e-12)
    same(two_sided_p([2.0, -0.5], None), 2 * stats.norm.sf([2.0, 0.5]), 1e-12)
    same(quantile(0.9, [5.5, np.inf]), [stats.t.ppf(0.9, 5.5), stats.norm.ppf(0.9)], 1e-10)
    assert np.isnan(two_sided_p([np.nan, 1.0], [3.0, np.nan])).all()


def test_combined_df():
    same(combined_df(np.array([5.0, 5.0])), 5.0, 1e-15)
    same(combined_df(np.array([7.5])), 7.5, 1e-15)
    df = np.array([[4.0, 10.0, 30.0], [3.0, 1.9, 50.0], [1e9, 2e9, 3e9]])
    E = np.sum(df[0] / (df[0] - 2.0))
    same(combined_df(df)[:2], [2.0 * E / (E - 3.0), 2.0], 1e-12)
    # harmonic mean far out, where E - m would cancel
    same(combined_df(df)[2], 3.0 / np.sum(1.0 / df[2]), 1e-6)


def test_scaled_f_is_exact_for_hotelling():
    # one-sample Hotelling T^2 with m responses, nu degrees of freedom of the covariance matrix: A1 = A2 m / ... known,
    # and F has m and nu - m + 1 degrees of freedom with scale (nu - m + 1) / nu
    for m, nu in ((2, 5.0), (2, 20.0), (3, 17.0)):
        a1, a2 = 2.0 * m / nu, m * (m + 1.0) / nu
        scale, df = scaled_f(m, a1, a2)
        same([scale, df], [(nu - m + 1.0) / nu, nu - m + 1.0], 1e-12)
    for m, nu in ((2, 9.0), (5, 40.0)):
        # and for an F statistic proper
        scale, df = scaled_f(m, 2.0 * m * m / nu, 2.0 * m / nu)
        same([scale, df], [1.0, nu], 1e-12)
    assert scaled_f(1, 0.5, 0.5)[1] == 4.0


def tiny(seed):
    """Few groups of few rows, without much between them: the joint F of Kenward and Roger may not exist."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(3, 7), rng.integers(2, 5)
    g = np.repeat(np.arange(m), n)
    X = np.column_stack([np.ones(m * n), rng.standard_normal((m * n, 2))])
    Z = np.column_stack([np.ones(m * n), X[:, 1]]) if seed % 2 and n > 2 else None
    y = rng.standard_normal(m * n) + rng.standard_normal(m)[g] * rng.choice([0, 0.3, 1])
    return flc.LinearMixedModel(y, X, Z, g)


@pytest.mark.parametrize(
    ("seed", "information"),
    [(23, "expected"), (69, "expected"), (81, "expected"), (117, "expected"), (827, "observed")],
)
def test_a_joint_test_that_kenward_and_roger_do_not_have(seed, information):
    """Moments that ask for a scale and degrees of freedom below zero: Satterthwaite's test, and the result says so."""
    result = tiny(seed).fit()
    L = np.eye(3)[1:]
    test = result.test(L, ddf="kenward-roger", information=information)
    other = result.test(L, ddf="satterthwaite")
    assert (test.ddf, test.joint_ddf) == ("kenward-roger", "satterthwaite")
    assert (test.statistic, test.df_denom, test.pvalue) == (other.statistic, other.df_denom, other.pvalue)
    assert test.statistic > 0.0 and test.df_denom > 0.0
    assert "The joint test is by Satterthwaite's degrees of freedom: Kenward and Roger's method has none" in str(test)
    # each row has its own, and so has one row alone
    single = result.test(L[:1], ddf="kenward-roger", information=information)
    assert single.df_denom == pytest.approx(test.row_df[0], rel=1e-12) and single.joint_ddf == "kenward-roger"
    batch = result.model.fit_many(np.vstack([result.model.endog, result.model.endog + 1.0]))
    many = batch.test(L, ddf="kenward-roger", information=information)
    np.testing.assert_allclose(many.statistic, test.statistic, rtol=1e-5)
    np.testing.assert_allclose(many.df_denom, test.df_denom, rtol=1e-5)
    if information == "expected":
        gone = result.model.fit_many(iter([result.model.endog]))
        assert np.isnan(gone.test(L, ddf="kenward-roger", information="expected").pvalues).all()


def test_no_joint_test_has_a_negative_denominator():
    for seed in range(150):
        for information in ("auto", "expected", "observed"):
            try:
                test = tiny(seed).fit().test(np.eye(3)[1:], ddf="kenward-roger", information=information)
            except flc.LMMError:
                continue
            assert test.statistic >= 0.0 and test.df_denom > 0.0 and 0.0 <= test.pvalue <= 1.0


def test_moments_that_no_f_has_are_nan():
    """The solution of Kenward and Roger (1997) for these A_1, A_2 is (-0.81, -0.36): its F would be negative."""
    scale, df = scaled_f(2, np.array([11.754108751726271, 0.1]), np.array([12.665943923431227, 0.05]))
    assert np.isnan([scale[0], df[0]]).all()
    assert scale[1] > 0.0 and df[1] > 0.0
