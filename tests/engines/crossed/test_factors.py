"""Several grouping factors through the public face: dense matrices, invariances, edges, and what errors say."""

from __future__ import annotations

import pickle
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

import fastlmm_core as flc
import oracle
import oracle_factors
from fastlmm_core.errors import LMMError
from fastlmm_core.inference.profile.profile import confidence_limits

KINDS = ("nested", "nested3", "crossed", "partial", "three", "mixed", "slopes", "split", "mixed_slopes")
CASES = [(kind, weights) for kind in KINDS for weights in (False, True)]
RESIDUALS = ("conditional", "marginal", "pearson", "whitened", "studentized")


def close(found, expected, tolerance, scale=None) -> None:
    """|found - expected| <= tolerance * scale, the scale being the largest of the expected by default."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0) if scale is None else scale
    assert np.abs(found - expected).max(initial=0.0) <= tolerance * max(scale, 1e-300)


def relative(result) -> list[np.ndarray]:
    return [G / result.sigma2 for G in result.G.values()]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_every_estimate_against_dense_matrices(kind, weights, reml):
    design = oracle_factors.make(kind, 1, weights=weights)
    result = design.model.fit(reml=reml)
    assert result.converged
    names = list(design.factors)
    assert list(result.n_groups) == names
    assert list(result.n_groups.values()) == [len(design.terms[p[0]].levels) for p in design.factors.values()]
    Ghat = relative(result)
    for Lam, G in zip(design.lambdas(result.theta), Ghat, strict=True):
        close(Lam @ Lam.T, G, 1e-13)
    at = design.at(Ghat, reml)
    assert result.criterion == pytest.approx(at.value, rel=1e-12)
    assert result.llf == pytest.approx(-0.5 * at.value, rel=1e-12)
    assert result.sigma2 == pytest.approx(at.sigma2, rel=1e-11)
    se = np.sqrt(at.sigma2 * np.diag(at.unscaled))
    assert np.abs((result.params - at.beta) / se).max() < 1e-10
    close(result.bse / se, np.ones(len(se)), 1e-11)
    close(result.cov_params(), at.sigma2 * at.unscaled, 1e-11)
    # a minimum: no slope, and no other start does better
    scaled, turns = design.scaled()
    slope = scaled.gradient(design.turned(result.theta, turns), reml)
    assert np.abs(slope).max() < 1e-6
    least = design.least(reml, [result.theta, 3.0 * result.theta])
    assert result.criterion <= least + 1e-8
    # random effects
    sigma = np.sqrt(at.sigma2)
    for name, b in design.blups(Ghat, reml).items():
        close(result.random_effects[name], b, 1e-10, sigma)
        assert list(result.group_labels[name]) == list(design.terms[design.factors[name][0]].levels)
    for name, C in design.blup_covariances(Ghat, reml).items():
        close(result.random_effects_covariance()[name], C, 1e-10)
    close(result.fittedvalues, design.fitted(Ghat, reml), 1e-10, sigma)
    for kind_ in RESIDUALS:
        close(result.residuals(kind_), design.residuals(Ghat, reml, kind_), 1e-9, sigma if kind_ != "pearson" else 1.0)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_criterion_and_derivatives_at_any_theta(kind, weights, reml, rng):
    design = oracle_factors.make(kind, 2, weights=weights)
    model = design.model
    theta = rng.normal(size=model.structure.n_parameters)
    found = model.evaluate(theta, reml=reml, order=2)
    assert found.value == pytest.approx(design.criterion(theta, reml), rel=1e-12)
    close(found.gradient, design.gradient(theta, reml), 1e-9)
    step = 1e-5
    columns = [
        (design.gradient(theta + step * e, reml) - design.gradient(theta - step * e, reml)) / (2.0 * step)
        for e in np.eye(len(theta))
    ]
    close(found.hessian, np.array(columns), 1e-6)
    assert model.evaluate(0.0 * theta, reml=reml).value == pytest.approx(design.criterion(0.0 * theta, reml), rel=1e-12)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_degrees_of_freedom_against_dense_matrices(kind, weights, reml):
    design = oracle_factors.make(kind, 3, weights=weights, spread=1.5)
    result = design.model.fit(reml=reml)
    assert result.converged
    dense = oracle_factors.Inference(design, result)
    p = design.X.shape[1]
    pair, one = np.eye(p)[1:], np.array([[1.0, 2.0, 0.0]])
    if not result.singular:
        expected = [dense.satterthwaite(row) for row in np.eye(p)]
        np.testing.assert_allclose(result.tidy()["df"], expected, rtol=1e-7)
        found = result.test(pair)
        F, df = dense.fai_cornelius(pair, np.zeros(2))
        assert found.statistic == pytest.approx(F, rel=1e-8)
        assert found.df_denom == pytest.approx(df, rel=1e-7)
    for information in ("expected",) if result.singular else ("expected", "observed"):
        for L in (pair, one) if reml else ():
            found = result.test(L, ddf="kenward-roger", information=information)
            F, df = dense.kenward_roger(L, np.zeros(len(L)), information)
            assert found.statistic ** (3 - len(L)) == pytest.approx(F, rel=1e-7)
            assert found.df_denom == pytest.approx(df, rel=1e-7)


# ---- variance parameters ---------------------------------------------------------------------------------------------


def deviance(design, covariances, sigma2, reml):
    """-2 (restricted) log-likelihood at given covariances, beta at its best."""
    at = design.at([G / sigma2 for G in covariances], reml)
    n, p = design.X.shape
    nu = n - p if reml else n
    # undo the profiling of sigma2: the profiled value is that at sigma2 = at.sigma2
    return at.value - nu * (1.0 + np.log(at.sigma2)) + nu * (np.log(sigma2) + at.sigma2 / sigma2)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "seed"), [("nested", 20), ("partial", 19), ("split", 28), ("mixed_slopes", 10)])
def test_errors_of_variance_parameters_against_differences(kind, seed, reml):
    design = oracle_factors.make(kind, seed, spread=1.5)
    result = design.model.fit(reml=reml)
    assert result.converged
    assert not result.singular
    places = []
    for t, term in enumerate(design.terms):
        lower = [(i, j) for i in range(term.q) for j in range(i + 1) if i == j or term.structure == "full"]
        places += [(t, i, j) for i, j in lower]
    G = [g.copy() for g in result.G.values()]

    def at(x):
        changed = [np.zeros_like(g) for g in G]
        for value, (t, i, j) in zip(x[:-1], places, strict=True):
            changed[t][i, j] = changed[t][j, i] = value
        return deviance(design, changed, x[-1], reml)

    x = np.array([*(G[t][i, j] for t, i, j in places), result.sigma2])
    assert at(x) == pytest.approx(result.criterion, rel=1e-11)
    size = np.array([*(np.sqrt(G[t][i, i] * G[t][j, j]) for t, i, j in places), result.sigma2])

    def hessian(h):
        e = np.diag(h * size)
        k = len(x)
        return np.array(
            [
                [(at(x + e[a] + e[b]) - at(x + e[a] - e[b]) - at(x - e[a] + e[b]) + at(x - e[a] - e[b])) / 4.0
                 for b in range(k)]
                for a in range(k)
            ]
        ) / (h * h)  # fmt: skip

    H = (4.0 * hessian(2e-3) - hessian(4e-3)) / 3.0
    se = np.sqrt(np.diag(2.0 * np.linalg.inv(H))) * size
    table = result.variance_components()
    rows = {
        (g, "Observation" if g == "Residual" else t.removeprefix(f"{k}_").removesuffix(f"|{g}"), k): s
        for g, t, k, s in zip(table["group"], table["term"], table["kind"], table["std_error"], strict=True)
    }
    names = list(result.G)
    effects = [list(result.model.exog_re_names[b.start : b.stop]) for b in result.model.structure.blocks]
    for (t, i, j), expected in zip([*places], se[:-1], strict=True):
        label = effects[t][i] if i == j else f"{effects[t][j]}.{effects[t][i]}"
        other = label if i == j else f"{effects[t][i]}.{effects[t][j]}"
        kind_ = "var" if i == j else "cov"
        found = rows.get((names[t], label, kind_), rows.get((names[t], other, kind_)))
        assert found == pytest.approx(expected, rel=3e-4)
    assert rows["Residual", "Observation", "var"] == pytest.approx(se[-1], rel=3e-4)


def test_shares_of_the_variance():
    design = oracle_factors.make("slopes", 6)
    result = design.model.fit()
    random = {}
    for term, G in zip(design.terms, result.G.values(), strict=True):
        random[term.name] = np.mean(np.einsum("ij,jk,ik->i", term.Z, G, term.Z))
    total = sum(random.values()) + result.sigma2
    icc = result.icc()
    assert list(icc) == list(random)
    for name, value in random.items():
        assert icc[name] == pytest.approx(value / total, rel=1e-12)
    fixed = np.var(design.X @ result.params, ddof=1)
    r2 = result.r2()
    assert r2["marginal"] == pytest.approx(fixed / (fixed + total), rel=1e-12)
    assert r2["conditional"] == pytest.approx((fixed + total - result.sigma2) / (fixed + total), rel=1e-12)


# ---- one factor by both engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weights", [False, True])
def test_the_same_factor_twice_is_the_factor_with_two_terms(reml, weights, rng):
    design = oracle_factors.make("nested", 9, weights=weights)
    one, x = np.ones((60, 1)), rng.normal(size=(60, 2)) + 0.3
    groups = design.terms[0].groups
    y = design.y + (2.0 * rng.normal(size=12)[np.unique(groups, return_inverse=True)[1]] * x[:, 0])

    def fit(second, other):
        terms = [flc.RandomTerm(one, groups, name="g"), flc.RandomTerm(x, other, name=second)]
        model = flc.LinearMixedModel(y, design.X, terms=terms, weights=design.weights, offset=design.offset)
        assert len(model.factors) == (1 if second == "g" else 2)
        return model.fit(reml=reml)

    single, double = fit("g", groups), fit("h", np.char.add("z", groups))
    assert double.criterion == pytest.approx(single.criterion, rel=1e-12)
    close(double.theta, single.theta, 1e-7)
    close(double.params, single.params, 1e-9)
    close(double.bse, single.bse, 1e-8)
    close(double.fittedvalues, single.fittedvalues, 1e-8)
    close(np.column_stack([double.random_effects["g"], double.random_effects["h"]]), single.random_effects, 1e-7)
    close(double.random_effects_covariance()["h"], single.random_effects_covariance()[:, 1:, 1:], 1e-7)
    for ddf in ("satterthwaite", "kenward-roger") if reml else ("satterthwaite",):
        close(double.tidy(ddf=ddf)["df"], single.tidy(ddf=ddf)["df"], 1e-6)
    for kind in RESIDUALS:
        close(double.residuals(kind), single.residuals(kind), 1e-7)


# ---- invariances -----------------------------------------------------------------------------------------------------

FORMULA = "y ~ x + (1 | a) + (x | b) + (1 | b:c)"


def table(seed=1):
    """Crossed a and b, c within b."""
    rng = np.random.default_rng(seed)
    n = 120
    a, b, c = rng.integers(0, 12, n), rng.integers(0, 6, n), rng.integers(0, 4, n)
    x = rng.normal(size=n)
    y = 2.0 + x + rng.normal(size=12)[a] + (rng.normal(size=(6, 2)) * [2.0, 0.7])[b] @ [1.0, 0.0]
    y = y + 0.7 * rng.normal(size=6)[b] * x + rng.normal(size=(6, 4))[b, c] + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "a": a, "b": b, "c": c})


@pytest.fixture(scope="module")
def plain():
    result = flc.lmm(FORMULA, table()).fit()
    assert result.converged
    assert not result.singular
    assert list(result.n_groups) == ["b:c", "a", "b"]
    return result


def same(found, expected, tolerance=1e-7) -> None:
    assert found.converged
    assert list(found.G) == list(expected.G)
    assert found.criterion == pytest.approx(expected.criterion, rel=1e-11)
    close(found.theta, expected.theta, tolerance)
    close(found.params, expected.params, tolerance)
    close(found.bse, expected.bse, tolerance)
    close(found.tidy()["df"], expected.tidy()["df"], 1e-5)


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_order_of_terms_does_not_matter(plain, order):
    terms = ["(1 | a)", "(x | b)", "(1 | b:c)"]
    result = flc.lmm("y ~ x + " + " + ".join(terms[i] for i in order), table()).fit()
    same(result, plain)
    close(result.fittedvalues, plain.fittedvalues, 1e-7)


def test_order_of_rows_does_not_matter(plain, rng):
    order = rng.permutation(120)
    result = flc.lmm(FORMULA, table().iloc[order].reset_index(drop=True)).fit()
    same(result, plain)
    close(result.fittedvalues, plain.fittedvalues[order], 1e-7)


LABELS = {
    "text": lambda s: s.map(lambda k: f"level {99 - k}"),
    "large integers": lambda s: s.astype("int64") * 10**12 + 7,
    "negative": lambda s: -s,
    "floats": lambda s: s + 0.5,
    "booleans of text": lambda s: s.astype(str),
    "category": lambda s: s.astype("category"),
    "category with unused levels": lambda s: pd.Categorical(s, categories=[50, *range(30, -1, -1)]),
    "dates": lambda s: pd.Timestamp("2020-01-01") + pd.to_timedelta(s, "D"),
    "string dtype": lambda s: s.astype(str).astype("string"),
    "nullable integers": lambda s: s.astype("Int64"),
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_labels_do_not_matter(plain, kind):
    data = table()
    relabelled = data.assign(**{name: LABELS[kind](data[name]) for name in "abc"})
    result = flc.lmm(FORMULA, relabelled).fit()
    assert result.n_groups == plain.n_groups
    same(result, plain)
    close(result.fittedvalues, plain.fittedvalues, 1e-7)
    for name, effects in result.random_effects.items():
        close(np.sort(effects["Intercept"]), np.sort(plain.random_effects[name]["Intercept"]), 1e-6)


def test_levels_of_all_libraries(plain):
    data = table().astype({name: str for name in "abc"})
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    frames = [
        polars.from_pandas(data).with_columns(polars.col("a", "b", "c").cast(polars.Categorical)),
        polars.from_pandas(data).with_columns(polars.col("b").cast(polars.Enum([*"9876543210"]))),
        pyarrow.table({k: pyarrow.array(v).dictionary_encode() if k in "abc" else v for k, v in data.items()}),
        {name: data[name].to_numpy() for name in data},
    ]
    for frame in frames:
        result = flc.lmm(FORMULA, frame).fit()
        assert result.converged
        assert result.n_groups == plain.n_groups
        close(result.theta, plain.theta, 1e-7)
        close(oracle.values(result.params), plain.params, 1e-7)
        close(oracle.values(result.bse), plain.bse, 1e-7)
        close(result.fittedvalues, plain.fittedvalues, 1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_units_of_the_response(plain, scale):
    result = flc.lmm(FORMULA, table().assign(y=lambda d: d.y * scale)).fit()
    assert result.converged
    close(result.theta, plain.theta, 1e-7)
    close(result.params / scale, plain.params, 1e-7)
    close(result.bse / scale, plain.bse, 1e-7)
    close(result.fittedvalues / scale, plain.fittedvalues, 1e-7)
    assert result.criterion == pytest.approx(plain.criterion + 2.0 * 118 * np.log(scale), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e4, 1e9])
def test_units_of_a_covariate(plain, scale):
    result = flc.lmm(FORMULA, table().assign(x=lambda d: d.x * scale)).fit()
    assert result.converged
    close(result.params * [1.0, scale], plain.params, 1e-7)
    close(result.G["b"] * np.outer([1.0, scale], [1.0, scale]), plain.G["b"], 1e-6)
    close(result.fittedvalues, plain.fittedvalues, 1e-7)
    close(result.tidy()["df"], plain.tidy()["df"], 1e-5)


@pytest.mark.parametrize("origin", [1e3, -1e6])
def test_origin_of_time(plain, origin):
    result = flc.lmm(FORMULA, table().assign(x=lambda d: d.x + origin)).fit()
    assert result.converged
    assert result.criterion == pytest.approx(plain.criterion, rel=1e-9)
    turn = np.array([[1.0, origin], [0.0, 1.0]])
    close(turn @ result.params, plain.params, 1e-6)
    close(turn @ result.G["b"] @ turn.T, plain.G["b"], 1e-3 if abs(origin) > 1e4 else 1e-6)
    close(result.fittedvalues, plain.fittedvalues, 1e-6)
    assert result.tidy()["df"][1] == pytest.approx(plain.tidy()["df"][1], rel=1e-4)


def test_origin_and_size_of_the_response(plain):
    result = flc.lmm(FORMULA, table().assign(y=lambda d: d.y + 1e9)).fit()
    assert result.converged
    close(result.theta, plain.theta, 1e-4)
    close(result.fittedvalues - 1e9, plain.fittedvalues, 1e-5)


def test_weights_are_relative(plain):
    result = flc.lmm(FORMULA, table(), weights=np.full(120, 4.0)).fit()
    assert result.sigma2 == pytest.approx(4.0 * plain.sigma2, rel=1e-7)
    for name, G in result.G.items():
        close(G, plain.G[name], 1e-6)
    close(result.bse, plain.bse, 1e-7)


def test_nesting_may_be_implicit():
    data = table().assign(unique=lambda d: d.b * 10 + d.c)
    explicit = flc.lmm("y ~ x + (1 | b/c)", data).fit()
    for formula in ("y ~ x + (1 | b) + (1 | unique)", "y ~ x + (1 | unique) + (1 | b)", "y ~ x + (1 | b/unique)"):
        implicit = flc.lmm(formula, data).fit()
        close(implicit.theta, explicit.theta, 1e-9)
        assert implicit.criterion == pytest.approx(explicit.criterion, rel=1e-13)
        assert list(implicit.n_groups.values()) == list(explicit.n_groups.values())
        close(implicit.fittedvalues, explicit.fittedvalues, 1e-9)
    written_out = flc.lmm("y ~ x + (1 | b) + (1 | b:c)", data).fit()
    assert written_out.criterion == explicit.criterion


def test_chain_of_three():
    data = table().assign(d=lambda t: np.arange(120) % 2)
    one = flc.lmm("y ~ x + (1 | b/c/d)", data).fit()
    two = flc.lmm("y ~ x + (1 | b) + (1 | b:c) + (1 | b:c:d)", data).fit()
    assert list(one.n_groups) == ["b:c:d", "b:c", "b"]
    assert one.criterion == two.criterion
    np.testing.assert_array_equal(one.theta, two.theta)


# ---- edges -----------------------------------------------------------------------------------------------------------


def test_crossed_factors_with_one_observation_per_combination(rng):
    # additive two-way layout: REML is the analysis of variance
    rows, columns = 8, 6
    cells = 3.0 + 2.0 * rng.normal(size=(rows, 1)) + rng.normal(size=(1, columns)) + rng.normal(size=(rows, columns))
    data = pd.DataFrame({"y": cells.ravel(), "r": np.repeat(np.arange(rows), columns)})
    data["c"] = np.tile(np.arange(columns), rows)
    result = flc.lmm("y ~ 1 + (1 | r) + (1 | c)", data).fit()
    r, c = cells.mean(1, keepdims=True), cells.mean(0, keepdims=True)
    between_r, between_c = columns * r.var(ddof=1), rows * c.var(ddof=1)
    rest = np.sum((cells - r - c + cells.mean()) ** 2) / ((rows - 1) * (columns - 1))
    assert min(between_r, between_c) > rest
    assert result.sigma2 == pytest.approx(rest, rel=1e-10)
    assert result.G["r"][0, 0] == pytest.approx((between_r - rest) / columns, rel=1e-10)
    assert result.G["c"][0, 0] == pytest.approx((between_c - rest) / rows, rel=1e-10)


@pytest.mark.parametrize("reml", [True, False])
def test_a_factor_without_variance(reml):
    # b adds nothing: the fit is that of the model without it, and so are its tests
    rng = np.random.default_rng(4)
    n = 90
    data = pd.DataFrame({"a": rng.integers(0, 12, n), "b": np.arange(n) % 2, "x": rng.normal(size=n)})
    noise = rng.normal(size=n)
    data["y"] = data.x + 1.5 * rng.normal(size=12)[data.a] + noise - pd.Series(noise).groupby(data.b).transform("mean")
    both = flc.lmm("y ~ x + (1 | a) + (1 | b)", data).fit(reml=reml)
    one = flc.lmm("y ~ x + (1 | a)", data).fit(reml=reml)
    assert both.converged
    assert both.singular
    assert both.G["b"][0, 0] == 0.0
    assert both.singular_components == ("sd of Intercept | b is 0",)
    assert (both.random_effects["b"]["Intercept"] == 0.0).all()
    assert (both.random_effects_covariance()["b"] == 0.0).all()
    assert both.criterion == pytest.approx(one.criterion, rel=1e-12)
    assert both.n_parameters == one.n_parameters + 1
    close(both.theta[:1], one.theta, 1e-7)
    close(both.params, one.params, 1e-9)
    close(both.bse, one.bse, 1e-8)
    close(both.fittedvalues, one.fittedvalues, 1e-8)
    close(both.tidy()["df"], one.tidy()["df"], 1e-6)
    close(both.random_effects["a"]["Intercept"], one.random_effects["Intercept"], 1e-7)
    found, expected = both.variance_components(), one.variance_components()
    at = [i for i, g in enumerate(found["group"]) if g != "b"]
    close(np.asarray(found["std_error"])[at], expected["std_error"], 1e-5)
    assert "sd of Intercept | b is 0" in both.message
    assert both.icc()["b"] == 0.0


def test_a_correlation_of_one_in_one_of_the_terms():
    rng = np.random.default_rng(2)
    n = 120
    a, b, x = rng.integers(0, 10, n), rng.integers(0, 8, n), rng.normal(size=n)
    u, v = rng.normal(size=10), rng.normal(size=8)
    y = 3.0 * u[a] + 2.0 * u[a] * x + v[b] + 0.5 * rng.normal(size=n)
    result = flc.lmm("y ~ x + (x | a) + (1 | b)", {"y": y, "x": x, "a": a, "b": b}).fit()
    assert result.converged
    if result.singular:
        assert result.singular_components == ("correlation of Intercept and x | a is +1",)
    else:
        assert result.random_effects_corr["a"][0, 1] > 0.99
    design = oracle_factors.Design(
        y,
        np.column_stack([np.ones(n), x]),
        (
            oracle_factors.Term("a", np.column_stack([np.ones(n), x]), a),
            oracle_factors.Term("b", np.ones((n, 1)), b),
        ),
    )
    assert result.criterion <= design.least(True, [result.theta]) + 1e-8
    assert result.criterion == pytest.approx(design.criterion(result.theta, True), rel=1e-12)


@pytest.mark.parametrize("m", [2, 3])
def test_factors_with_few_levels(m):
    rng = np.random.default_rng(m)
    n = 40
    groups = {"a": np.arange(n) % m, "b": rng.integers(0, 2, n)}
    y = rng.normal(size=n) + 3.0 * rng.normal(size=m)[groups["a"]] + 2.0 * rng.normal(size=2)[groups["b"]]
    terms = tuple(oracle_factors.Term(k, np.ones((n, 1)), g) for k, g in groups.items())
    design = oracle_factors.Design(y, np.ones((n, 1)), terms)
    for reml in (True, False):
        result = design.model.fit(reml=reml)
        assert result.converged
        assert result.criterion <= design.least(reml, [result.theta]) + 1e-9


def test_one_observation_per_level_of_most():
    # 20 singletons and three pairs in the nested factor
    codes = np.array([*range(20), 20, 20, 21, 21, 22, 22])
    rng = np.random.default_rng(3)
    n = len(codes)
    y = rng.normal(size=23)[codes] + rng.normal(size=4)[codes % 4] + 0.5 * rng.normal(size=n)
    terms = (
        oracle_factors.Term("fine", np.ones((n, 1)), codes),
        oracle_factors.Term("coarse", np.ones((n, 1)), codes % 4),
    )
    design = oracle_factors.Design(y, np.ones((n, 1)), terms)
    result = design.model.fit()
    assert result.converged
    assert result.criterion <= design.least(True, [result.theta]) + 1e-9
    Ghat = relative(result)
    for name, b in design.blups(Ghat, True).items():
        close(result.random_effects[name], b, 1e-9, result.sigma)


def test_dropped_rows_leave_no_empty_levels():
    data = table()
    data.loc[data.a == 3, "x"] = np.nan
    result = flc.lmm(FORMULA, data).fit()
    expected = flc.lmm(FORMULA, table().query("a != 3").reset_index(drop=True)).fit()
    assert result.n_groups["a"] == 11
    assert result.criterion == expected.criterion
    assert 3 not in list(result.group_labels["a"])


def test_rank_deficient_fixed_part():
    data = table().assign(x2=lambda d: 2.0 * d.x - 1.0)
    result = flc.lmm("y ~ x + x2 + (1 | a) + (1 | b)", data).fit()
    expected = flc.lmm("y ~ x + (1 | a) + (1 | b)", data).fit()
    assert result.dropped_columns == ("x2",)
    assert np.isnan(result.params["x2"])
    assert result.criterion == pytest.approx(expected.criterion, rel=1e-12)
    close(result.params[:2], expected.params, 1e-9)


REFUSED = {
    "the same factor twice": (
        "(1 | a) + (1 | a)",
        r"\(Intercept \| a\) and \(Intercept \| a\) have a random effect in common.* leave one of the terms out",
    ),
    "an intercept in two terms": ("(1 | a) + (x | a) + (1 | b)", r"\(Intercept \| a\) and \(Intercept \+ x \| a\)"),
    "an intercept in independent effects": ("(1 | a) + (x || a)", r"\(Intercept \| a\) and \(Intercept \+ x \| a\)"),
    "the same groups": ("(1 | a) + (1 | twin)", r"'a' and 'twin' divide the observations alike into 12 groups"),
    "the same slope": ("(1 | b) + (0 + x | a) + (x | twin)", r"\(x \| a\) and \(Intercept \+ x \| twin\)"),
    "a multiple of the same slope": ("(0 + x | a) + (0 + three | twin)", r"\(x \| a\) and \(three \| twin\)"),
    "a slope within a span": ("(0 + shifted | a) + (x | a)", r"\(shifted \| a\) and \(Intercept \+ x \| a\)"),
    "one child per parent": ("(1 | a/twin)", r"'a' and 'a:twin' divide the observations alike"),
    "an interaction in both orders": ("(1 | a:b) + (1 | b:a)", r"'a:b' and 'b:a' divide the observations alike"),
    "one observation per level": ("(1 | a) + (1 | row)", "every level of 'row' has one observation"),
    "one observation per nested level": ("(1 | a/row)", "every level of 'a:row' has one observation"),
    "a slope and an intercept per observation": (
        "(1 | a) + (x | row)",
        r"every level of 'row' has one observation: the variance of 'Intercept' .* leave 'Intercept' out",
    ),
    "three that add up": (
        "(1 | a) + (1 | a:f) + (0 + f1 | a:f) + (0 + f2 | a:f) + (0 + f3 | a:f)",
        r"\(0 \+ f1 \| a:f\), .* and the variance of 'f3' in .* cannot be told apart.* leave one of these",
    ),
    "one level": ("(1 | a) + (1 | one)", "the grouping factor 'one' has one level"),
    "one level on top": ("(1 | one/a)", "the grouping factor 'one' has one level"),
    "a constant slope": (
        "(1 | a) + (1 + one || b)",
        r"the column 'one' of \(Intercept \+ one \| b\) is zero or a multiple",
    ),
    "a slope of zero": (
        "(1 | a) + (x + zero | b)",
        r"the column 'zero' of \(Intercept \+ x \+ zero \| b\) is zero or a",
    ),
    "a slope twice": (
        "(1 | a) + (x + three | b)",
        r"the column 'three' of \(Intercept \+ x \+ three \| b\) is zero or a",
    ),
    "an unknown column": ("(1 | a/zz)", r"no column 'zz', which the term \(1 \| a/zz\) uses"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_told_apart_is_refused(case):
    terms, message = REFUSED[case]
    data = table().assign(
        twin=lambda d: d.a.map(lambda k: f"t{7 * k % 12}"), one=1, row=np.arange(120), pair=np.arange(120) // 2,
        three=lambda d: 3.0 * d.x, zero=0.0, shifted=lambda d: d.x - 5.0, f=np.arange(120) % 3,
        f1=np.arange(120) % 3 == 0, f2=np.arange(120) % 3 == 1, f3=np.arange(120) % 3 == 2,
    )  # fmt: skip
    with pytest.raises(LMMError, match=message):
        flc.lmm(f"y ~ x + {terms}", data)


def test_what_looks_alike_but_is_not_is_fitted():
    data = table().assign(
        twin=lambda d: d.a.map(lambda k: f"t{7 * k % 12}"),
        when=lambda d: 1e6 + d.x,
        f=np.arange(120) % 3,
        tiny=lambda d: 1e-100 * d.x,
        pair=np.arange(120) // 2,
        row=np.arange(120),
    )
    formulas = [
        "y ~ x + (1 | a) + (0 + x | a) + (1 | b)",
        "y ~ x + (1 | a) + (0 + x | twin)",  # the same groups, another effect
        "y ~ x + (1 | a) + (0 + when | a)",  # nearly constant
        "y ~ x + (0 + C(f) || a) + (1 | a)",  # compound symmetry beside variances of their own
        "y ~ x + (1 | a) + (1 | a:b)",
        "y ~ x + (tiny | a) + (1 | b)",
        "y ~ x + (1 | a) + (0 + x | row)",  # a residual variance that depends on x
        "y ~ x + (1 | a) + (x || pair)",  # as many random effects as observations
    ]
    for formula in formulas:
        assert flc.lmm(formula, data).fit().converged


def test_errors_of_terms_from_arrays_name_the_term():
    y, g = table().y.to_numpy(), table().a.to_numpy()
    one = flc.RandomTerm(None, g, name="g")
    gap = np.where(np.arange(120) == 3, np.nan, 1.0)
    cases = [
        (one, r"terms is of type 'RandomTerm'; give a list"),
        ([], "terms is empty"),
        ([one, (None, g)], r"terms\[1\] is of type 'tuple'"),
        ([one, flc.RandomTerm(None, g[:-1], name="h")], r"terms\[1\]\.groups has 119 rows but y has 120"),
        ([one, flc.RandomTerm(np.ones((119, 1)), g, name="h")], r"terms\[1\]\.Z has 119 rows"),
        ([one, flc.RandomTerm(np.ones((120, 0)), g, name="h")], r"terms\[1\]\.Z has no columns"),
        ([one, flc.RandomTerm(gap[:, None], g, name="h")], r"terms\[1\]\.Z .*first: nan at row 3, column 0"),
        ([one, flc.RandomTerm(None, g * gap, name="h")], r"terms\[1\]: groups has missing labels \(first: row 3\)"),
        ([one, flc.RandomTerm(None, g[:, None], name="h")], r"terms\[1\]: groups must be one-dimensional"),
        ([one, flc.RandomTerm(None, g % 5, name="g")], r"terms\[1\] has the name 'g' of an earlier term but other"),
        ([one, flc.RandomTerm(None, g % 5, structure="arh1")], r"terms\[1\]: structure='arh1' is unknown"),
        ([one, flc.RandomTerm(None, g % 5, exog_names=["u", "v"])], r"terms\[1\]\.exog_names has 2 names for 1"),
        ([one, flc.RandomTerm(None, 5 - g)], r"'g' and 'group2' divide the observations alike into 12 groups"),
        ([one, flc.RandomTerm(None, np.zeros(120), name="h")], "the grouping factor 'h' has one level"),
    ]
    for terms, message in cases:
        with pytest.raises(LMMError, match=message):
            flc.LinearMixedModel(y, None, terms=terms)
    with pytest.raises(LMMError, match="exclude each other"):
        flc.LinearMixedModel(y, None, None, g, terms=[one])


# ---- comparisons -----------------------------------------------------------------------------------------------------


def half_chi2(statistic):
    return 0.5 * scipy.stats.chi2.sf(statistic, 1)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["nested", "partial", "three", "mixed"])
def test_a_factor_is_tested_by_leaving_it_out(kind, reml):
    design = oracle_factors.make(kind, 8)
    result = design.model.fit(reml=reml)
    found = result.random_effect_test()
    assert len(found.rows) == 1 + len(design.terms)
    for i, row in enumerate(found.rows[1:]):
        rest = tuple(t for j, t in enumerate(design.terms) if j != i)
        smaller = oracle_factors.Design(design.y, design.X, rest)
        least = smaller.least(reml, [])
        assert row.name == f"without z0 | {design.terms[i].name}"
        statistic = max(least - result.criterion, 0.0)
        assert row.statistic == pytest.approx(statistic, abs=1e-7)
        assert row.df == 1
        assert row.pvalue == pytest.approx(half_chi2(statistic) if statistic > 1e-7 else 1.0, rel=1e-4)
        # compare() says the same of the two models
        pair = flc.compare(smaller.model.fit(reml=reml), result)
        assert pair.rows[-1].statistic == pytest.approx(statistic, abs=1e-7)
        assert pair.rows[-1].pvalue == pytest.approx(row.pvalue, rel=1e-6)


@pytest.mark.parametrize("reml", [True, False])
def test_two_new_factors_are_tested_against_the_right_mixture(reml):
    # nested factors: the estimates of their variances are correlated, so that the weights are not 1/4, 1/2, 1/4
    rng = np.random.default_rng(12)
    n = 96
    fine, c, x = np.sort(rng.integers(0, 18, n)), rng.integers(0, 6, n), rng.normal(size=n)
    y = x + rng.normal(size=6)[c] + 0.4 * rng.normal(size=18)[fine] + 0.6 * rng.normal(size=5)[fine // 4]
    y = y + rng.normal(size=n)
    one, X = np.ones((n, 1)), np.column_stack([np.ones(n), x])
    terms = {
        "fine": oracle_factors.Term("fine", one, fine),
        "c": oracle_factors.Term("c", one, c),
        "coarse": oracle_factors.Term("coarse", one, fine // 4),
    }
    small = oracle_factors.Design(y, X, (terms["c"],)).model.fit(reml=reml)
    design = oracle_factors.Design(y, X, tuple(terms.values()))
    large = design.model.fit(reml=reml)
    row = flc.compare(small, large).rows[-1]
    # expected information at the smaller fit, in (fine, coarse, c, sigma2)
    V_k = [*(terms[k].spread(np.ones((1, 1))) for k in ("fine", "coarse", "c")), np.eye(n)]
    V = small.G["c"][0, 0] * V_k[2] + small.sigma2 * V_k[3]
    W = np.linalg.inv(V)
    if reml:
        W = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    information = 0.5 * np.array([[np.sum((W @ a) * (W @ b).T) for b in V_k] for a in V_k])
    covariance = np.linalg.inv(information)[:2, :2]
    rho = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    both = 0.25 + np.arcsin(rho) / (2.0 * np.pi)
    assert abs(both - 0.25) > 0.03
    statistic = small.criterion - large.criterion
    assert statistic > 0.1
    assert row.statistic == pytest.approx(statistic, rel=1e-9)
    expected = 0.5 * scipy.stats.chi2.sf(statistic, 1) + both * scipy.stats.chi2.sf(statistic, 2)
    assert row.pvalue == pytest.approx(expected, rel=1e-6)


def test_models_that_are_not_nested_are_not_tested():
    data = table()
    one = flc.lmm("y ~ x + (1 | a) + (1 | b)", data).fit(reml=False)
    other = flc.lmm("y ~ x + (1 | a) + (1 | b:c)", data).fit(reml=False)
    found = flc.compare(one, other)
    assert np.isnan(found.rows[-1].pvalue)


def test_fixed_effects_are_compared_by_the_ratio_of_likelihoods():
    data = table()
    small = flc.lmm("y ~ 1 + (1 | a) + (1 | b)", data).fit(reml=False)
    large = flc.lmm("y ~ x + (1 | b) + (1 | a)", data).fit(reml=False)
    row = flc.compare(small, large).rows[-1]
    assert row.statistic == pytest.approx(small.criterion - large.criterion, rel=1e-9)
    assert row.pvalue == pytest.approx(scipy.stats.chi2.sf(row.statistic, 1), rel=1e-9)


# ---- formulas --------------------------------------------------------------------------------------------------------

SAME_FORMULA = [
    ("(x | b/c)", "(x | b) + (x | b:c)"),
    ("(x || b/c)", "(x || b) + (x || b:c)"),
    ("(1 | b / c)", "(1|b)+(1|b:c)"),
    ("(1 | (b/c))", "(1 | b/c)"),
    ("(1 | a) + (1 | b/c)", "(1 | b/c) + (1 | a)"),
    ("(1 | a/b/c)", "(1 | a) + (1 | a:b) + (1 | a:b:c)"),
    ("(1 | b/`c`)", "(1 | b/c)"),
    ("(x | b) + (1 | a)", "(1 + x | b) + (1 | a)"),
    ("(0 + x | b) + (1 | a)", "(x - 1 | b) + (1 | a)"),
]


@pytest.mark.parametrize(("one", "other"), SAME_FORMULA)
def test_formulas_that_mean_the_same(one, other):
    found, expected = (flc.lmm(f"y ~ x + {terms}", table()) for terms in (one, other))
    assert [f.grouping.name for f in found.factors] == [f.grouping.name for f in expected.factors]
    assert found.structure == expected.structure
    theta = 0.5 + 0.1 * np.arange(found.structure.n_parameters)
    assert found.evaluate(theta).value == pytest.approx(expected.evaluate(theta).value, rel=1e-14)


def test_labels_of_interactions_follow_the_formula():
    model = flc.lmm("y ~ x + (1 | b/c)", table().assign(b=lambda d: d.b.map("b{}".format), c=lambda d: d.c))
    labels = model.factors[0].grouping.labels
    assert labels[0] == "b0:0"
    assert model.factors[0].grouping.name == "b:c"
    swapped = flc.lmm("y ~ x + (1 | c:b) + (1 | b)", table())
    assert swapped.factors[0].grouping.name == "c:b"


def test_prediction_adds_the_effects_of_known_levels():
    data = table().assign(b=lambda d: d.b.map("b{}".format))
    result = flc.lmm("y ~ x + (1 | a) + (x | b/c)", data).fit()
    close(result.predict(data, effects="all"), result.fittedvalues, 1e-12)
    close(result.predict(data.iloc[[7, 3]], effects="all"), result.fittedvalues[[7, 3]], 1e-12)
    new = data.iloc[[0]].assign(c=77)
    with pytest.raises(LMMError, match="b:c"):
        result.predict(new, effects="all")
    found = result.predict(new, effects="all", new_levels="population")[0]
    effects = {name: frame.set_index(name) for name, frame in result.random_effects.items()}
    row, beta = new.iloc[0], result.params
    expected = beta.iloc[0] + beta.iloc[1] * row.x + effects["a"].loc[row.a].iloc[0]
    expected += effects["b"].loc[row.b] @ np.array([1.0, row.x])
    assert found == pytest.approx(expected, rel=1e-12)


# ---- the rest of the face --------------------------------------------------------------------------------------------


def test_pickle(plain):
    copy = pickle.loads(pickle.dumps(plain))
    assert copy.criterion == plain.criterion
    np.testing.assert_array_equal(copy.theta, plain.theta)
    for name, effects in plain.random_effects.items():
        pd.testing.assert_frame_equal(copy.random_effects[name], effects)
    assert str(copy.summary()) == str(plain.summary())
    assert copy.model.fit().criterion == plain.criterion
    assert copy.model.evaluate(plain.theta).value == pytest.approx(plain.criterion, rel=1e-13)


def test_refit_and_fit_of_the_same_response(plain):
    model = plain.model
    again = model.refit(model.endog)
    assert again.criterion == plain.criterion
    other = model.refit(2.0 * model.endog)
    close(other.theta, plain.theta, 1e-8)


def test_summary_names_every_factor(plain):
    text = str(plain.summary())
    for piece in ("12 (a)", "6 (b)", "(b:c)", "ICC (a)", "ICC (b)", "ICC (b:c)"):
        assert piece in text
    html = plain.summary()._repr_html_()
    assert html.count("b:c") >= 2
    assert "12 levels of 'a'" in repr(plain.model)


def test_profiles_of_a_singular_fit():
    rng = np.random.default_rng(4)
    n = 90
    data = pd.DataFrame({"a": rng.integers(0, 12, n), "b": np.arange(n) % 3, "x": rng.normal(size=n)})
    noise = rng.normal(size=n)
    data["y"] = data.x + 1.5 * rng.normal(size=12)[data.a] + noise - pd.Series(noise).groupby(data.b).transform("mean")
    result = flc.lmm("y ~ x + (1 | a) + (1 | b)", data).fit(reml=False)
    assert result.singular
    limits = confidence_limits(result)
    low, high = limits["sd_Intercept|b"]
    assert low == 0.0
    assert high > 0.0
    X = np.column_stack([np.ones(n), data.x])
    one = np.ones((n, 1))
    terms = tuple(oracle_factors.Term(k, one, data[k].to_numpy()) for k in "ab")
    design = oracle_factors.Design(data.y.to_numpy(), X, terms)

    # the deviance with this standard deviation, minimised over the others
    def least(sd):
        return scipy.optimize.minimize(
            lambda v: deviance(design, [[[v[0] ** 2]], [[sd**2]]], np.exp(v[1]), False),
            [1.0, 0.0],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-11},
        ).fun

    assert least(high) - result.criterion == pytest.approx(scipy.stats.chi2.ppf(0.95, 1), abs=1e-5)


# ---- robustness ------------------------------------------------------------------------------------------------------


def small_problem(seed):
    """Few observations in bad units with variances that may be zero; None where the model is refused."""
    rng = np.random.default_rng([77, seed])
    n = int(rng.integers(16, 60))
    first, second = int(rng.integers(3, n // 3)), int(rng.integers(2, n // 4 + 1))
    a = rng.integers(0, first, n)
    chains = [[a, a % max(2, first // 3)], [a, rng.integers(0, second, n)], [a, a // 2, rng.integers(0, 3, n)]]
    codes = chains[rng.integers(3)]
    x = (rng.normal(size=n) + rng.choice([0.0, 1e3])) * 10.0 ** rng.integers(-8, 8)
    y = rng.normal(size=n)
    terms = []
    for i, c in enumerate(codes):
        slope = rng.random() < 0.25
        Z = np.column_stack([np.ones(n), x]) if slope else None
        terms.append(flc.RandomTerm(Z, c, name=f"g{i}", structure="full"))
        y = y + rng.choice([0.0, 0.0, 0.3, 1.0, 5.0]) * rng.normal(size=n)[c]
    X = np.column_stack([np.ones(n), x])
    y = (y + rng.choice([0.0, 1e4])) * 10.0 ** rng.integers(-8, 9)
    weights = rng.uniform(0.1, 5.0, n) if rng.random() < 0.25 else None
    try:
        return flc.LinearMixedModel(y, X, terms=terms, weights=weights)
    except LMMError:
        return None


def test_small_problems_in_bad_units_are_certified_and_not_improved():
    fitted = singular = 0
    for seed in range(60):
        model = small_problem(seed)
        if model is None:
            continue
        reml = seed % 3 > 0
        result = model.fit(reml=reml)
        assert result.converged, seed
        fitted += 1
        singular += result.singular
        rows, columns = model.structure.positions
        unit = 1.0 / np.sqrt(np.mean(model.exog_re**2, axis=0))[rows]

        def objective(t, model=model, unit=unit, reml=reml):
            found = model.evaluate(t * unit, reml=reml, order=1)
            return found.value, found.gradient * unit

        for size in (0.3, 3.0):
            start = np.where(rows == columns, size, 0.0)
            other = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B")
            assert result.criterion <= other.fun + 1e-7, seed
    assert fitted > 40
    assert 10 < singular < fitted


def nested_rows(n, seed=3):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 7, n)
    c = a * 4 + rng.integers(0, 4, n)
    b = rng.integers(0, 9, n)
    x = rng.standard_normal(n) + 1.0
    y = rng.standard_normal(7)[a] + rng.standard_normal(28)[c] + rng.standard_normal(9)[b] + rng.standard_normal(n)
    labels = {name: codes.astype(str) for name, codes in (("a", a), ("b", b), ("c", c))}
    return {"y": y, "x": x, "pooled": np.where(a < 2, 0, a).astype(str), **labels}


@pytest.mark.parametrize("n", [150, 2500])
@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ C(a) + (1 | a) + (1 | b)", r"\(1 \| a\): the random effect is explained .* every level of 'a'"),
        ("y ~ C(a) + (1 | a / c)", r"\(1 \| a\): "),
        ("y ~ C(c) + (1 | a / c)", r"\(1 \| "),
        ("y ~ C(a) + (x | a / c)", "'Intercept' is explained .* write"),
        ("y ~ C(b) + (1 | a / c) + (1 | b)", r"\(1 \| b\): "),
        ("y ~ C(b) + (x || b) + (1 | a)", "'Intercept' is explained"),
        ("y ~ C(c):x + C(b) + (x | a) + (1 | b)", r"explained .* every level of '[ab]'"),
    ],
)
def test_effects_that_the_fixed_effects_explain_are_refused(formula, message, n):
    with pytest.raises(LMMError, match=message):
        flc.lmm(formula, nested_rows(n))


@pytest.mark.parametrize("n", [150, 2500])
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ C(a) + (1 | c) + (1 | b)",
        "y ~ C(pooled) + (1 | a / c)",
        "y ~ C(a) + (0 + x | a) + (1 | c)",
        "y ~ C(b) + (1 | a / c)",
    ],
)
def test_effects_explained_in_part_are_estimated(formula, n):
    """Each variance changes the restricted likelihood of the error contrasts, and the fit finds its minimum."""
    data = nested_rows(n)
    model = flc.lmm(formula, data)
    result = model.fit()
    assert result.converged
    theta = np.asarray(result.theta)
    for j in range(len(theta)):
        for step in (-0.05, 0.05, 1.0):
            moved = theta.copy()
            moved[j] = abs(moved[j] + step)
            assert model.evaluate(moved).value > result.criterion + 1e-6


def few_rows(seed):
    """So few observations of two factors that their variances may be had in several ways."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(7, 25))
    a, b = rng.integers(0, rng.integers(3, 8), n), rng.integers(0, rng.integers(3, 7), n)
    x, size = rng.standard_normal(n), 10.0 ** rng.uniform(-1.0, 2.0)
    y = rng.standard_normal(n) + size * (rng.standard_normal(8)[a] + rng.standard_normal(8)[b])
    line = np.column_stack([np.ones(n), x])
    return y, line, {"a": (line if seed % 2 else line[:, :1], a), "b": (line[:, :1], b)}


@pytest.mark.parametrize("seed", [211, 289, 1903, 2776, 3035, 3169, 3983, 4060])
def test_the_lowest_of_several_minima_is_found(seed):
    """The lowest value from many starts of another optimiser on dense matrices; moments lead to a higher minimum."""
    y, X, terms = few_rows(seed)
    n, p = X.shape
    model = flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(Z, g, name=name) for name, (Z, g) in terms.items()])
    result = model.fit()
    assert result.converged
    kept = np.linalg.svd(X)[0][:, p:]
    members = [(kept.T @ ((g[:, None] == np.arange(8)) * z[:, None])) for Z, g in terms.values() for z in Z.T]
    contrasts = kept.T @ y
    slopes = terms["a"][0].shape[1] == 2

    # column k of the factors has theta[j] times member i
    parts = [(0, 0, 0), (0, 1, 1), (1, 2, 1), (2, 3, 2)] if slopes else [(0, 0, 0), (1, 1, 1)]

    def value_and_slope(theta):
        columns = [sum(theta[j] * members[i] for k, j, i in parts if k == own) for own in range(parts[-1][0] + 1)]
        V = np.eye(n - p) + sum(c @ c.T for c in columns)
        inverse = np.linalg.inv(V)
        u = inverse @ contrasts
        r2 = contrasts @ u
        value = np.linalg.slogdet(V)[1] + (n - p) * (1.0 + np.log(2.0 * np.pi * r2 / (n - p)))
        # trace(W dV), of which dV = C dC' + dC C'
        W = inverse - (n - p) / r2 * np.outer(u, u)
        turned = [2.0 * W @ c for c in columns]
        return value, np.array([np.sum(turned[k] * members[i]) for k, _, i in parts])

    constant = np.linalg.slogdet(X.T @ X)[1]
    assert result.criterion == pytest.approx(value_and_slope(result.theta)[0] + constant, abs=1e-7)
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(len(result.theta)) * 10.0 ** rng.uniform(-1.5, 2.5) for _ in range(40)]
    ends = (scipy.optimize.minimize(value_and_slope, start, jac=True, method="BFGS") for start in starts)
    found = [end.fun + constant for end in ends]
    assert min(found) > result.criterion - 1e-6
    # there are others indeed
    assert max(found) > result.criterion + 1e-3


def test_batches_find_the_lowest_minimum_too():
    y, X, terms = few_rows(2776)
    model = flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(Z, g, name=name) for name, (Z, g) in terms.items()])
    assert model.fit_many(y[None]).criterion[0] == pytest.approx(model.fit().criterion, abs=1e-7)


@pytest.mark.parametrize("seed", [42, 176])
def test_a_residual_variance_that_runs_to_zero_is_told(seed):
    y, X, terms = few_rows(seed)
    members = [(g[:, None] == np.arange(8)) * z[:, None] for Z, g in terms.values() for z in Z.T]
    assert np.linalg.matrix_rank(np.column_stack([X, *members])) == len(y)
    # whether a search ends before all digits of r^2 are lost depends on rounding
    for order in (np.arange(len(y)), *(np.random.default_rng(k).permutation(len(y)) for k in range(1, 8))):
        random = [flc.RandomTerm(Z[order], g[order], name=name) for name, (Z, g) in terms.items()]
        model = flc.LinearMixedModel(y[order], X[order], terms=random)
        with pytest.raises(LMMError, match="restricted likelihood has no maximum with a positive residual variance"):
            model.fit()
