"""Pooling, design effects, effective sample sizes and the marginal covariance along a variable."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

import fastlmm_core as flc
import fits
from fastlmm_core.covariance.parameters import Block
from fastlmm_core.design.grouping import Codes, Factor, Grouping
from fastlmm_core.diagnostics.design_effect import design_effect, effective_sample_size
from fastlmm_core.diagnostics.marginal import icc_at, least_variance_time, marginal_covariance_at, random_rows
from fastlmm_core.diagnostics.pooling import pooling, population_map
from several import Study, covariance, noise


@pytest.fixture(scope="module")
def sleep():
    return fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


def ragged(rng, m=25, weights=True, structure="full", origin=0.0):
    """Groups of 1 to 8 rows with an intercept, a slope and a covariate of the group; the first has one row."""
    sizes = np.append([1, 2], rng.integers(1, 9, m - 2))
    g = rng.permutation(np.repeat(np.arange(m), sizes))
    n = len(g)
    t = rng.uniform(0.0, 4.0, n)
    h = rng.integers(0, 2, m)[g].astype(float)
    b = rng.multivariate_normal([0.0, 0.0], [[2.0, 0.6], [0.6, 1.0]], m)
    w = rng.uniform(0.5, 3.0, n) if weights else None
    e = rng.standard_normal(n) / (np.sqrt(w) if weights else 1.0)
    y = 3.0 + 1.5 * t + 2.0 * h + b[g, 0] + b[g, 1] * t + e
    X, Z = np.column_stack([np.ones(n), t + origin, h]), np.column_stack([np.ones(n), t + origin])
    return flc.LinearMixedModel(
        y, X, Z, g, weights=w, structure=structure, exog_names=["one", "t", "h"], exog_re_names=["one", "t"]
    )


def dense(result):
    """V of all rows."""
    model = result.model
    same = model.grouping.index[:, None] == model.grouping.index
    noise = np.ones(model.nobs) if model.weights is None else 1.0 / model.weights
    return (model.exog_re @ result.covariance @ model.exog_re.T) * same + result.sigma2 * np.diag(noise)


# ---- pooling -------------------------------------------------------------------------------------------------------


def test_random_intercept_in_closed_form():
    result = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")
    found = pooling(result)
    data = flc.datasets.load("dyestuff")
    means = data.groupby("Batch")["Yield"].mean().to_numpy()
    tau2, sigma2 = result.G["Batch"][0, 0], result.sigma2
    share = tau2 / (tau2 + sigma2 / 5.0)
    np.testing.assert_allclose(found.no_pooling[:, 0], means, rtol=1e-14)
    np.testing.assert_allclose(found.complete_pooling, [data["Yield"].mean()], rtol=1e-14)
    np.testing.assert_allclose(found.reliability[:, 0], share, rtol=1e-13)
    np.testing.assert_allclose(found.shrinkage[:, 0, 0], share, rtol=1e-13)
    np.testing.assert_allclose(found.average_reliability, share, rtol=1e-13)
    grand = result.params["Intercept"]
    np.testing.assert_allclose(found.partial_pooling[:, 0], grand + share * (means - grand), rtol=1e-13)
    assert found.n.tolist() == [5] * 6


def test_reliabilities_published_for_sleepstudy(sleep):
    """HLM 7 on these data (H. Doran and B. Mrozinski, R-sig-mixed-models, 29 January 2018): 0.730 and 0.815."""
    np.testing.assert_allclose(pooling(sleep).average_reliability, [0.730, 0.815], atol=5e-4)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_matrices_against_group_by_group(rng, weights, structure):
    result = ragged(rng, weights=weights, structure=structure).fit()
    model, found = result.model, pooling(result)
    beta = result.params
    G = result.G["group"]
    adjusted = model.endog - beta[2] * model.exog[:, 2]
    n_own = 0
    for i in range(len(found.labels)):
        rows = model.grouping.index == i
        w = np.ones(rows.sum()) if model.weights is None else model.weights[rows]
        Z = model.exog_re[rows] * np.sqrt(w)[:, None]
        A = Z.T @ Z
        if np.linalg.matrix_rank(Z) < 2:
            assert np.isnan(found.no_pooling[i]).all() and np.isnan(found.reliability[i]).all()
            continue
        n_own += 1
        own = np.linalg.lstsq(Z, adjusted[rows] * np.sqrt(w), rcond=None)[0]
        noise = result.sigma2 * np.linalg.inv(A)
        S = G @ np.linalg.inv(G + noise)
        np.testing.assert_allclose(found.no_pooling[i], own, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.shrinkage[i], S, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.reliability[i], np.diag(G) / (np.diag(G) + np.diag(noise)), rtol=1e-9)
        np.testing.assert_allclose(found.partial_pooling[i], S @ own + (np.eye(2) - S) @ beta[:2], rtol=1e-8)
    assert 5 < n_own < len(found.labels)
    np.testing.assert_allclose(found.average_reliability, np.nanmean(found.reliability, axis=0))
    assert np.isfinite(found.partial_pooling).all() and np.isfinite(found.shrinkage).all()
    np.testing.assert_array_equal(found.population, beta[:2])
    np.testing.assert_allclose(found.partial_pooling, beta[:2] + result.random_effects, rtol=1e-14)


def test_complete_pooling_is_least_squares_over_all_rows(rng):
    model = ragged(rng)
    root = np.sqrt(model.weights)
    expected = np.linalg.lstsq(model.exog * root[:, None], model.endog * root, rcond=None)[0]
    np.testing.assert_allclose(pooling(model.fit()).complete_pooling, expected[:2], rtol=1e-12)


def test_an_origin_far_away(rng):
    """A slope and its reliability do not depend on where the clock starts."""
    near, far = (pooling(ragged(np.random.default_rng(5), origin=at).fit()) for at in (0.0, 2e6))
    exists = np.isfinite(near.no_pooling[:, 1])
    np.testing.assert_array_equal(exists, np.isfinite(far.no_pooling[:, 1]))
    np.testing.assert_allclose(far.no_pooling[:, 1], near.no_pooling[:, 1], rtol=1e-6)
    np.testing.assert_allclose(far.partial_pooling[:, 1], near.partial_pooling[:, 1], rtol=1e-6)
    np.testing.assert_allclose(far.reliability[:, 1], near.reliability[:, 1], rtol=1e-6)


def test_offset_is_held(rng):
    model = ragged(rng, weights=False)
    offset = rng.standard_normal(model.nobs)
    args = model.exog, model.exog_re, model.grouping.index
    plain = pooling(flc.LinearMixedModel(model.endog, *args).fit())
    shifted = pooling(flc.LinearMixedModel(model.endog + offset, *args, offset=offset).fit())
    for name in ("no_pooling", "complete_pooling", "partial_pooling", "reliability"):
        np.testing.assert_allclose(getattr(shifted, name), getattr(plain, name), rtol=1e-9)


def test_cell_means_where_x_is_coded_by_contrasts():
    """Balanced: the population means of the machines, their complete pooling, and means of worker by machine."""
    data = flc.datasets.load("machines")
    found = pooling(flc.lmm("score ~ Machine + (0 + Machine | Worker)", data).fit())
    means = data.groupby("Machine")["score"].mean().to_numpy()
    np.testing.assert_allclose(found.population, means, rtol=1e-12)
    np.testing.assert_allclose(found.complete_pooling, means, rtol=1e-12)
    cells = data.groupby(["Worker", "Machine"])["score"].mean().unstack()
    np.testing.assert_allclose(found.no_pooling, cells.to_numpy(), rtol=1e-12)


def test_a_column_of_z_alone_has_population_coefficient_zero(rng):
    model = ragged(rng, weights=False)
    without = flc.LinearMixedModel(model.endog, model.exog[:, [0]], model.exog_re, model.grouping.index)
    np.testing.assert_array_equal(population_map(without), [[1.0], [0.0]])
    found = pooling(without.fit())
    assert found.population[1] == 0.0 and found.complete_pooling[1] == 0.0
    np.testing.assert_allclose(found.partial_pooling[:, 1], without.fit().random_effects[:, 1])


def test_a_dropped_column_counts_as_zero(rng):
    model = ragged(rng, weights=False)
    X = np.column_stack([model.exog, model.exog[:, 1] * 2.0])
    more = flc.LinearMixedModel(model.endog, X, model.exog_re, model.grouping.index).fit()
    assert more.dropped_columns
    np.testing.assert_allclose(pooling(more).partial_pooling, pooling(model.fit()).partial_pooling, rtol=1e-7)


def test_zero_variance_pools_completely():
    result = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff2")
    found = pooling(result)
    assert result.singular
    assert not found.reliability.any() and not found.shrinkage.any()
    np.testing.assert_array_equal(found.partial_pooling, np.full((6, 1), result.params["Intercept"]))
    np.testing.assert_allclose(found.complete_pooling, result.params["Intercept"], rtol=1e-14)


def test_one_term_of_several():
    data = flc.datasets.load("sleepstudy")
    result = flc.lmm("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)", data).fit()
    both, slope = pooling(result), pooling(result, result.model.term_names[1])
    assert both.names == ("Intercept", "Days") and slope.names == ("Days",)
    np.testing.assert_array_equal(slope.no_pooling, both.no_pooling[:, [1]])
    np.testing.assert_array_equal(slope.shrinkage, both.shrinkage[:, 1:, 1:])
    with pytest.raises(flc.LMMError, match=r"'Days' is not a random-effects term.*Subject"):
        pooling(result, "Days")


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
def test_frames(library):
    data = flc.datasets.load("sleepstudy", library)
    frame = pooling(flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()).to_frame()
    assert type(frame) is type(data)
    names = list(frame.column_names if library == "pyarrow" else frame.keys() if library == "dict" else frame.columns)
    assert names[:3] == ["Subject", "coefficient", "n"]
    assert names[3:] == ["no_pooling", "complete_pooling", "partial_pooling", "shrinkage", "reliability"]
    assert list(np.asarray(frame["coefficient"])[:2]) == ["Intercept", "Days"]
    assert len(np.asarray(frame["n"])) == 36


def test_arrays_and_text(rng):
    found = pooling(ragged(rng).fit())
    frame = found.to_frame()
    assert frame["group"].tolist()[:4] == [0, 0, 1, 1]
    np.testing.assert_array_equal(frame["no_pooling"].reshape(-1, 2), found.no_pooling)
    assert "Mean reliability: one 0." in repr(found)


# ---- design effects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [False, True])
def test_design_effects_against_dense_matrices(rng, weights):
    result = ragged(rng, weights=weights).fit()
    X, V = result.model.exog, dense(result)
    D = np.diag(V)
    found = design_effect(result)
    np.testing.assert_allclose(found.mean, V.sum() / D.sum(), rtol=1e-12)
    model = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    independent = np.linalg.inv(X.T @ (X / D[:, None]))
    np.testing.assert_allclose(found.fixed_effects, np.diag(model) / np.diag(independent), rtol=1e-9)
    R = V / np.sqrt(np.outer(D, D))
    np.testing.assert_allclose(found.effective_sample_size, np.linalg.solve(R, np.ones(len(R))).sum(), rtol=1e-10)
    assert found.icc["group"] == result.icc()
    assert found.effective_sample_size == effective_sample_size(result)


def test_kish_is_exact_where_it_should_be():
    result = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")
    found = design_effect(result)
    np.testing.assert_allclose(found.kish["Batch"], 1.0 + 4.0 * result.icc(), rtol=1e-14)
    np.testing.assert_allclose(found.mean, found.kish["Batch"], rtol=1e-12)
    np.testing.assert_allclose(found.fixed_effects["Intercept"], found.kish["Batch"], rtol=1e-12)
    np.testing.assert_allclose(found.effective_sample_size, 30.0 / found.kish["Batch"], rtol=1e-12)
    assert "Kish" in repr(found)


def test_no_variance_between_groups_has_no_effect():
    found = design_effect(fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff2"))
    np.testing.assert_allclose([found.mean, found.kish["Batch"], found.fixed_effects["Intercept"]], 1.0, rtol=1e-14)
    np.testing.assert_allclose(found.effective_sample_size, 30.0, rtol=1e-14)


def test_a_slope_within_groups_gains(sleep):
    fixed = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    found = design_effect(fixed).fixed_effects
    np.testing.assert_allclose(found["Days"], 1.0 - fixed.icc(), rtol=1e-12)
    assert design_effect(sleep).fixed_effects["Days"] > 1.0


# ---- covariance along a variable -----------------------------------------------------------------------------------


def test_covariance_of_a_subject(sleep):
    found = marginal_covariance_at(sleep, np.arange(10))
    np.testing.assert_allclose(found.covariance, sleep.marginal_covariance("308"), rtol=1e-12)
    np.testing.assert_allclose(found.correlation, sleep.marginal_correlation("308"), rtol=1e-12)
    np.testing.assert_allclose(found.variance, np.diag(found.covariance), rtol=1e-14)
    G = sleep.G["Subject"]
    t = np.arange(10)
    np.testing.assert_allclose(found.variance, G[0, 0] + 2 * G[0, 1] * t + G[1, 1] * t**2 + sleep.sigma2, rtol=1e-12)


def test_icc_along_the_slope(sleep):
    G, t = sleep.G["Subject"], np.array([0.0, 4.5, 9.0])
    random = G[0, 0] + 2 * G[0, 1] * t + G[1, 1] * t**2
    np.testing.assert_allclose(icc_at(sleep, t), random / (random + sleep.sigma2), rtol=1e-12)
    # the same quadratic form, summed in another order
    np.testing.assert_allclose(marginal_covariance_at(sleep, t).icc, icc_at(sleep, t), rtol=1e-14)
    constant = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    np.testing.assert_allclose(icc_at(constant, [[1.0]]), constant.icc(), rtol=1e-13)


def test_points_can_be_given_in_several_ways(sleep, rng):
    expected = np.column_stack([np.ones(3), [0.0, 1.0, 5.0]])
    np.testing.assert_array_equal(random_rows(sleep, [0, 1, 5]), expected)
    np.testing.assert_array_equal(random_rows(sleep, {"Days": np.array([0, 1, 5])}), expected)
    np.testing.assert_array_equal(random_rows(sleep, expected), expected)
    polars = pytest.importorskip("polars")
    np.testing.assert_array_equal(random_rows(sleep, polars.DataFrame({"Days": [0, 1, 5]})), expected)
    arrays = ragged(rng).fit()
    np.testing.assert_array_equal(random_rows(arrays, [0, 1, 5]), expected)
    np.testing.assert_array_equal(random_rows(arrays, expected), expected)
    curved = fits.fitted("Reaction ~ Days + (poly(Days, 2) | Subject)", "sleepstudy")
    rows = random_rows(curved, np.arange(10))
    np.testing.assert_allclose(rows, curved.model.exog_re[:10], rtol=1e-12)


def test_points_that_do_not_fit(sleep, rng):
    data = flc.datasets.load("sleepstudy")
    with pytest.raises(flc.LMMError, match="none but the intercept"):
        marginal_covariance_at(flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit(), [1.0, 2.0])
    with pytest.raises(flc.LMMError, match="2 columns of Z"):
        marginal_covariance_at(sleep, np.ones((2, 3)))
    arrays = ragged(rng).fit()
    with pytest.raises(flc.LMMError, match="not finite in row 1"):
        marginal_covariance_at(arrays, [1.0, np.nan])
    with pytest.raises(flc.LMMError, match="Days"):
        marginal_covariance_at(sleep, {"day": np.arange(3)})


@pytest.mark.parametrize(("direction", "shape"), [(1.0, "fan-out"), (-1.0, "fan-in")])
@pytest.mark.parametrize("origin", [0.0, 2000.0])
def test_least_variance(direction, shape, origin):
    """The lines of these data part with time; with time turned round they come together."""
    data = flc.datasets.load("sleepstudy").assign(t=lambda d: direction * d["Days"] + origin)
    result = flc.lmm("Reaction ~ t + (t | Subject)", data).fit()
    found = least_variance_time(result)
    G = result.G["Subject"]
    np.testing.assert_allclose(float(found), -G[0, 1] / G[1, 1], rtol=1e-9)
    assert found.shape == shape
    assert found.observed == (origin + min(0.0, 9.0 * direction), origin + max(0.0, 9.0 * direction))
    place = "below" if shape == "fan-out" else "above"
    assert "smallest at t = " in str(found) and f"{place} the observed range" in str(found)

    def variance(t):
        return float(marginal_covariance_at(result, [t]).variance[0])

    best = scipy.optimize.minimize_scalar(variance, bracket=(found.at - 5.0, found.at, found.at + 5.0))
    np.testing.assert_allclose(found.variance, best.fun, rtol=1e-9)


def test_lines_that_cross_in_the_data():
    rng = np.random.default_rng(3)
    g, t = np.repeat(np.arange(60), 5), np.tile(np.arange(5.0), 60)
    slope = rng.standard_normal(60)
    y = slope[g] * (t - 2.0) + 0.1 * rng.standard_normal(300)
    found = least_variance_time(
        flc.LinearMixedModel(y, np.column_stack([np.ones(300), t]), np.column_stack([np.ones(300), t]), g).fit()
    )
    assert found.shape == "both" and abs(found.at - 2.0) < 0.05
    assert "fan in, then out" in str(found) and "within the observed range" in str(found)


def test_a_slope_without_intercept_and_one_that_does_not_vary():
    data = flc.datasets.load("sleepstudy")
    assert least_variance_time(flc.lmm("Reaction ~ Days + (0 + Days | Subject)", data).fit()).at == 0.0
    assert least_variance_time(flc.lmm("Reaction ~ Days + (Days || Subject)", data).fit()).at == 0.0
    rng = np.random.default_rng(1)
    g, t = np.repeat(np.arange(20), 6), np.tile(np.arange(6.0), 20)
    y = 2.0 * rng.standard_normal(20)[g] + rng.standard_normal(120)
    model = flc.LinearMixedModel(
        y, np.column_stack([np.ones(120), t]), np.column_stack([np.ones(120), t]), g, structure="diagonal"
    )
    for seed in range(20):
        result = model.refit(2.0 * np.random.default_rng(seed).standard_normal(20)[g] + rng.standard_normal(120))
        if result.G["group"][1, 1] == 0.0:
            break
    found = least_variance_time(result)
    assert np.isnan(found.at) and found.shape == "parallel" and "parallel" in str(found)
    np.testing.assert_allclose(found.variance, result.G["group"][0, 0] + result.sigma2, rtol=1e-12)


def test_a_variance_needs_a_slope():
    data = flc.datasets.load("sleepstudy")
    with pytest.raises(flc.LMMError, match="slope of one variable"):
        least_variance_time(flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit())


# ---- several grouping factors --------------------------------------------------------------------------------------


class Crossed(SimpleNamespace):
    """A fit of crossed factors at given parameters, by dense matrices: one with a slope, one without."""

    @classmethod
    def made(cls, rng):
        n, a, b = 120, rng.integers(0, 12, 120), rng.integers(0, 5, 120)
        t = rng.uniform(0.0, 3.0, n)
        w = rng.uniform(0.5, 2.0, n)
        X, Z = np.column_stack([np.ones(n), t]), np.column_stack([np.ones(n), t, np.ones(n)])
        y = 1.0 + t + rng.standard_normal(12)[a] + rng.standard_normal(5)[b] + rng.standard_normal(n)
        relative = scipy.linalg.block_diag([[0.9, 0.2], [0.2, 0.4]], [[0.7]])
        groupings = [Grouping(Codes("a", a, 0, 12)), Grouping(Codes("b", b, 0, 5))]
        factors = (Factor(groupings[0], 0, 2), Factor(groupings[1], 2, 3))
        full = [np.zeros((n, 24)), np.zeros((n, 5))]
        full[0][np.arange(n), 2 * a], full[0][np.arange(n), 2 * a + 1] = 1.0, t
        full[1][np.arange(n), b] = 1.0
        parts = [np.kron(np.eye(12), relative[:2, :2]), np.kron(np.eye(5), relative[2:, 2:])]
        sigma2 = 1.3
        V = sigma2 * (np.diag(1.0 / w) + sum(f @ p @ f.T for f, p in zip(full, parts, strict=True)))
        cov = np.linalg.inv(X.T @ np.linalg.solve(V, X))
        beta = cov @ X.T @ np.linalg.solve(V, y)
        pull = np.linalg.solve(V, y - X @ beta)
        effects = [sigma2 * (p @ f.T @ pull) for f, p in zip(full, parts, strict=True)]
        resid = y - X @ beta - sum(f @ u for f, u in zip(full, effects, strict=True))
        blocks = (Block(0, 2, "full"), Block(2, 3, "full"))
        turn = np.diag([2.0, 0.5, 3.0])
        problem = SimpleNamespace(z_map=turn, conditioned_z=lambda rows: rows @ turn,
                                  x_map=np.array([[1.0, -1.5], [0.0, 1.0]]),
                                  beta_base=np.array([0.3, 0.1]))  # fmt: skip
        model = SimpleNamespace(
            needs_independent_residuals=lambda what: None, residual=None, streamed=False,
            exog=X, exog_re=Z, endog=y, has_response=True,
            weights=w, root_weights=np.sqrt(w), weighted=True, offset=None, nobs=n,
            factors=factors, grouping=groupings[0],
            structure=SimpleNamespace(blocks=blocks, q=3), term_names=("a", "b"), problem=problem, library="dict",
            labelled=lambda values: values,
            factor_of=lambda block: factors[blocks.index(block)],
        )  # fmt: skip
        factor = np.linalg.solve(problem.z_map, np.linalg.cholesky(relative))
        return cls(
            model=model, V=V, sigma2=sigma2, phi=np.zeros(0), rest=resid, beta=beta, cov=cov,
            covariance=sigma2 * relative,
            blups=(effects[0].reshape(12, 2), effects[1][:, None]), optimum=SimpleNamespace(factor=factor),
            effect_names=("one", "t", "one"),
        )  # fmt: skip


def test_several_factors_against_dense_matrices(rng):
    result = Crossed.made(rng)
    V, X = result.V, result.model.exog
    D = np.diag(V)
    found = design_effect(result)
    np.testing.assert_allclose(found.mean, V.sum() / D.sum(), rtol=1e-12)
    independent = np.linalg.inv(X.T @ (X / D[:, None]))
    np.testing.assert_allclose(found.fixed_effects, np.diag(result.cov) / np.diag(independent), rtol=1e-10)
    R = V / np.sqrt(np.outer(D, D))
    np.testing.assert_allclose(found.effective_sample_size, np.linalg.solve(R, np.ones(120)).sum(), rtol=1e-10)
    np.testing.assert_allclose(found.kish["b"], 1.0 + (24.0 - 1.0) * result.covariance[2, 2] / D.mean(), rtol=1e-12)


@pytest.mark.parametrize(("term", "at"), [(None, 0), ("a", 0), ("b", 1)])
def test_pooling_of_one_factor_of_several(rng, term, at):
    """BLUPs are the weighted average of a level's own least squares, the effects of the other factor held."""
    result = Crossed.made(rng)
    found = pooling(result, term)
    own = np.einsum("ijk,ik->ij", found.shrinkage, found.no_pooling - found.population)
    np.testing.assert_allclose(found.population + own, found.partial_pooling, rtol=1e-10)
    np.testing.assert_allclose(found.partial_pooling, found.population + result.blups[at], rtol=1e-14)
    root = np.sqrt(result.model.weights)
    whole = np.linalg.lstsq(result.model.exog * root[:, None], result.model.endog * root, rcond=None)[0]
    np.testing.assert_allclose(found.complete_pooling, whole[: len(found.names)], rtol=1e-10)


@pytest.mark.parametrize("kind", ["nested", "crossed", "mixed"])
def test_fits_of_several_factors(rng, kind):
    study = Study(rng, kind, True)
    rows = np.arange(150)
    result = study.model(rows).fit()
    part = study.part(rows)
    V = covariance(result, part, part) + np.diag(noise(result, part))
    D = np.diag(V)
    found = result.design_effect()
    np.testing.assert_allclose(found.mean, V.sum() / D.sum(), rtol=1e-9)
    independent = np.linalg.inv(study.X.T @ (study.X / D[:, None]))
    np.testing.assert_allclose(found.fixed_effects, np.diag(result.cov_params()) / np.diag(independent), rtol=1e-8)
    R = V / np.sqrt(np.outer(D, D))
    np.testing.assert_allclose(found.effective_sample_size, np.linalg.solve(R, np.ones(150)).sum(), rtol=1e-8)
    for term, factor in zip(result.model.term_names, result.model.factors, strict=True):
        pooled = result.pooling(term)
        own = np.einsum("ijk,ik->ij", pooled.shrinkage, np.nan_to_num(pooled.no_pooling - pooled.population))
        exists = np.isfinite(pooled.no_pooling[:, 0])
        np.testing.assert_allclose((pooled.population + own)[exists], pooled.partial_pooling[exists], atol=1e-7)
        b = result.random_effects[factor.grouping.name]
        np.testing.assert_allclose(pooled.partial_pooling, pooled.population + b, atol=1e-12)
        # least squares in the largest group, all else held
        label = factor.grouping.labels[np.argmax(np.bincount(factor.grouping.index))]
        mine = part["groups"][term] == label
        Z, w = part["Z"][term][mine], part["weights"][mine]
        rest = result.resid[mine] + Z @ b[factor.grouping.labels == label][0]
        ols = np.linalg.lstsq(Z * np.sqrt(w)[:, None], rest * np.sqrt(w), rcond=None)[0]
        np.testing.assert_allclose(
            pooled.no_pooling[factor.grouping.labels == label][0], pooled.population + ols, atol=1e-8
        )


def test_marginal_covariance_of_several_factors():
    data = flc.datasets.load("pastes")
    data["x"] = np.random.default_rng(1).standard_normal(60)
    data["strength"] += 2.0 * data["x"] * (data["batch"].astype("category").cat.codes % 3)
    # the random design of a table is in the order of the model (batch:cask first), not of the formula
    result = flc.lmm("strength ~ x + (x | batch) + (1 | batch:cask)", data).fit()
    points = np.array([-1.0, 0.0, 2.0])
    rows = np.column_stack([np.ones(3), points])
    expected = rows @ result.G["batch"] @ rows.T + result.G["batch:cask"]
    for at in (points, {"x": points}):
        found = result.marginal_covariance_at(at)
        np.testing.assert_allclose(found.random, expected, rtol=1e-10)
    np.testing.assert_allclose(result.icc_at(points), np.diag(expected) / (np.diag(expected) + result.sigma2))


def test_one_slope_in_several_factors(rng):
    study = Study(rng, "nested")
    result = study.model(np.arange(150)).fit()
    points = np.array([-1.0, 0.0, 2.0])
    rows = np.column_stack([np.ones(3), points])
    G = sum(result.G.values())
    for at in (points, np.hstack([rows, rows])):
        found = result.marginal_covariance_at(at)
        np.testing.assert_allclose(found.random, rows @ G @ rows.T, rtol=1e-10)
    least = result.least_variance_time()
    np.testing.assert_allclose(least.at, -G[0, 1] / G[1, 1], rtol=1e-9)
    np.testing.assert_allclose(least.variance, G[0, 0] - G[0, 1] ** 2 / G[1, 1] + result.sigma2, rtol=1e-9)
    study.terms["school"] = (np.column_stack([np.ones(150), study.X[:, 2]]), study.terms["school"][1])
    with pytest.raises(flc.LMMError, match="slope of one variable"):
        study.model(np.arange(150)).fit().least_variance_time()
