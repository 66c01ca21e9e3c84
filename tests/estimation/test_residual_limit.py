"""Designs whose fixed and random effects span all rows: optima of the restricted likelihood, or none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

import fastlmm_core as flc
import oracle
from fastlmm_core import LMMError


def pairs(seed, m=20, p=2):
    """Two rows a group, an intercept and a slope of times that differ: as many random effects as rows."""
    rng = np.random.default_rng(seed)
    m, noise = (m, 0.5) if seed % 2 == 0 else (m // 2, 0.03)
    groups = np.repeat(np.arange(m), 2)
    Z = np.column_stack([np.ones(2 * m), rng.uniform(-1.0, 1.0, 2 * m)])
    X = np.column_stack([Z[:, :1], rng.normal(size=(2 * m, p - 1))])
    y = X.sum(axis=1) + np.sum(Z * rng.normal(size=(m, 2))[groups], axis=1) + noise * rng.normal(size=2 * m)
    return y, X, Z, groups


def spread(groups, Z, L):
    return (groups[:, None] == groups) * (Z @ L @ L.T @ Z.T)


def profile(y, X, Z, groups, residual):
    """The restricted criterion of G + residual I by contrasts of y, with sigma^2 profiled out; it is free of scale."""
    K = scipy.linalg.null_space(X.T)
    nu, q = K.shape[1], Z.shape[1]
    constant = np.linalg.slogdet(X.T @ X)[1] + nu * (1.0 + np.log(2.0 * np.pi / nu))

    def value(theta):
        V = K.T @ (spread(groups, Z, oracle.lambda_from_theta(theta, q)) + residual * np.eye(len(y))) @ K
        sign, log_det = np.linalg.slogdet(V)
        return np.inf if sign <= 0 else log_det + nu * np.log(y @ K @ np.linalg.solve(V, K.T @ y)) + constant

    return value


def lowest(value, size, rng, count=12):
    found = [
        scipy.optimize.minimize(value, rng.normal(size=size) * 10.0 ** rng.uniform(-1, 1.5), method="BFGS")
        for _ in range(count)
    ]
    return min(f.fun for f in found)


@pytest.mark.parametrize("seed", range(8))
def test_the_optimum_is_found_or_the_limit_told(seed):
    y, X, Z, groups = pairs(seed)
    model = flc.LinearMixedModel(y, X, Z, groups)
    rng = np.random.default_rng(seed)
    regular = lowest(profile(y, X, Z, groups, 1.0), 3, rng)
    limit = lowest(profile(y, X, Z, groups, 0.0), 3, rng)
    if limit < regular:
        with pytest.raises(LMMError, match="restricted likelihood has no maximum with a positive residual variance"):
            model.fit()
        return
    result = model.fit()
    assert result.converged
    assert result.criterion == pytest.approx(regular, abs=1e-6)
    assert result.sigma2 == pytest.approx(
        oracle.sigma2(y, X, Z, groups, result.relative_factor @ result.relative_factor.T, True), rel=1e-6
    )


def test_both_outcomes_occur():
    outcomes = []
    for seed in range(8):
        try:
            outcomes.append(flc.LinearMixedModel(*pairs(seed)).fit().converged)
        except LMMError:
            outcomes.append(None)
    assert True in outcomes and None in outcomes


def test_the_full_likelihood_where_z_spans_all_rows():
    y, X, Z, groups = pairs(0)
    result = flc.LinearMixedModel(y, X, Z, groups).fit(reml=False)
    found = oracle.criterion(y, X, Z, groups, result.relative_factor @ result.relative_factor.T, False)
    assert result.converged and result.criterion == pytest.approx(found, abs=1e-7)


def test_an_unbounded_full_likelihood_is_refused():
    # two groups of four rows with two random effects, and columns of X that take the four dimensions that are left
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(8), 3)
    Z = np.column_stack([np.ones(24), rng.normal(size=24)])
    X = rng.normal(size=(24, 8))
    y = rng.normal(size=24)
    members = [(groups[:, None] == np.arange(8)) * z[:, None] for z in Z.T]
    assert np.linalg.matrix_rank(np.column_stack([X, *members])) == 24
    model = flc.LinearMixedModel(y, X, Z, groups)
    with pytest.raises(LMMError, match=r"full likelihood has no maximum: it grows without bound.*use reml=True"):
        model.fit(reml=False)
    # as sigma goes to zero
    values = [model.evaluate(size * np.array([1.0, 0.0, 1.0]), reml=False).value for size in (1e3, 1e5, 1e7)]
    np.testing.assert_allclose(np.diff(values), (16 - 24) * np.log(1e4), rtol=1e-2)
    try:
        assert model.fit().converged
    except LMMError as error:
        assert "restricted likelihood has no maximum" in str(error)


def test_y_in_the_span_of_the_random_effects_alone_is_refused():
    groups = np.repeat(np.arange(10), 4)
    with pytest.raises(LMMError, match="reproduced exactly within every group"):
        flc.LinearMixedModel(np.arange(10.0)[groups] ** 2, None, None, groups)


def test_batches_agree_with_single_fits():
    y, X, Z, groups = pairs(0)
    model = flc.LinearMixedModel(y, X, Z, groups)
    Y = np.array([pairs(2 * seed)[0] for seed in range(6)])
    batch = model.fit_many(Y)
    for i, response in enumerate(Y):
        try:
            single = model.refit(response)
        except LMMError:
            assert i in batch.invalid and np.isnan(batch.criterion[i])
            continue
        assert batch.criterion[i] == pytest.approx(single.criterion, abs=1e-9)
        np.testing.assert_allclose(batch.params[i], single.params, rtol=1e-9)


def test_deletions_and_resamples_are_those_of_the_rows():
    y, X, Z, groups = pairs(0, m=12)
    result = flc.LinearMixedModel(y, X, Z, groups).fit()
    found = result.influence("group")
    for i in range(12):
        keep = groups != i
        try:
            expected = flc.LinearMixedModel(y[keep], X[keep], Z[keep], groups[keep]).fit()
        except LMMError:
            assert np.isnan(found.params[i]).all() and "no maximum" in found.notes[i]
            continue
        np.testing.assert_allclose(found.params[i], expected.params, rtol=1e-5, atol=1e-7)
    boot = result.bootstrap(10, "cases", seed=1)
    assert len(boot) == 10 and boot.converged.any()


def test_nested_factors_whose_coarse_slope_spans_the_finest_levels():
    # two rows of each finest level, which have an intercept only: the slope of the coarse levels leaves them one each
    rng = np.random.default_rng(5)
    fine = np.repeat(np.arange(1200), 2)
    coarse = fine // 12
    x = rng.normal(size=2400)
    Z = np.column_stack([np.ones(2400), x])
    y = 1.0 + rng.normal(size=100)[coarse] + 0.7 * x * rng.normal(size=100)[coarse] + rng.normal(size=1200)[fine]
    y += 0.5 * rng.normal(size=2400)
    terms = [flc.RandomTerm(Z, coarse, "coarse"), flc.RandomTerm(None, fine, "fine")]
    result = flc.LinearMixedModel(y, Z, terms=terms).fit()
    assert result.converged and not result.singular
    assert result.sigma2 == pytest.approx(0.25, rel=0.15)
    V = result.sigma2 * np.eye(2400)
    for term in terms:
        G = np.asarray(result.G[term.name])
        V += (term.groups[:, None] == term.groups) * (
            (np.ones((2400, 1)) if term.Z is None else term.Z)
            @ G
            @ (np.ones((1, 2400)) if term.Z is None else term.Z.T)
        )
    inverse = np.linalg.inv(V)
    gram = Z.T @ inverse @ Z
    rest = y - Z @ np.linalg.solve(gram, Z.T @ inverse @ y)
    dense = np.linalg.slogdet(V)[1] + np.linalg.slogdet(gram)[1] + rest @ inverse @ rest + 2398 * np.log(2.0 * np.pi)
    assert result.criterion == pytest.approx(dense, abs=1e-6)


def test_nested_factors_as_many_as_rows():
    """Intercepts and slopes of coarse and fine levels, two rows of the fine ones: nothing is left to the residual."""
    rng = np.random.default_rng(6)
    fine = np.repeat(np.arange(1000), 2)
    coarse = fine // 10
    Z = np.column_stack([np.ones(2000), rng.uniform(-1.0, 1.0, 2000)])
    y = np.sum(Z * rng.normal(size=(100, 2))[coarse], axis=1) + np.sum(Z * rng.normal(size=(1000, 2))[fine], axis=1)
    terms = [flc.RandomTerm(Z, coarse, "coarse"), flc.RandomTerm(Z, fine, "fine")]
    result = flc.LinearMixedModel(y + 0.5 * rng.normal(size=2000), Z, terms=terms).fit()
    assert result.model.problem.saturated and result.converged
    assert result.sigma2 == pytest.approx(0.25, rel=0.3)
    with pytest.raises(LMMError, match=r"residual variance .*use fewer random effects"):
        flc.LinearMixedModel(y, Z, terms=terms).fit()


def test_an_unbounded_full_likelihood_of_crossed_factors_is_refused():
    rng = np.random.default_rng(0)
    codes = [np.arange(24) // 2, np.arange(24) % 8]
    X = np.column_stack([np.ones(24), rng.normal(size=(24, 8))])
    members = [c[:, None] == np.arange(c.max() + 1) for c in codes]
    assert np.linalg.matrix_rank(np.column_stack([X, *members])) == 24
    assert np.linalg.matrix_rank(np.column_stack(members)) < 24
    y = rng.normal(size=24)
    model = flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(None, c) for c in codes])
    with pytest.raises(LMMError, match=r"full likelihood has no maximum: it grows without bound.*use reml=True"):
        model.fit(reml=False)
    np.testing.assert_array_equal(model.fit_many(y[None], reml=False).invalid, [0])
    values = [model.evaluate(np.array([size, size]), reml=False).value for size in (1e2, 1e3, 1e4)]
    assert (np.diff(values) < -10.0).all()


@pytest.mark.parametrize(("a", "b", "rows"), [(4, 3, 5), (4, 3, 7), (5, 5, 8), (6, 6, 40)])
def test_what_crossed_factors_and_fixed_effects_span(a, b, rows):
    rng = np.random.default_rng(rows)
    first, second = rng.permutation(np.arange(rows) % a), rng.permutation(np.arange(rows) % b)
    X = np.column_stack([np.ones(rows), rng.normal(size=rows)])
    terms = [flc.RandomTerm(None, first, "a"), flc.RandomTerm(None, second, "b")]
    model = flc.LinearMixedModel(rng.normal(size=rows), X, terms=terms)
    Z = np.column_stack([first[:, None] == np.arange(a), second[:, None] == np.arange(b)]).astype(float)
    spans = bool(np.linalg.matrix_rank(np.column_stack([X, Z])) == rows)
    assert model.problem.saturated is spans
    assert model.problem.outside == (rows - np.linalg.matrix_rank(Z) if spans else 0)


def test_a_point_without_residual_variance_on_other_axes_is_refused():
    """Slopes of crossed factors, levels of one row; a search on axes of its own ends where rounding leaves nothing."""
    rng = np.random.default_rng(969)
    codes = [np.concatenate([np.arange(12).repeat(3), np.arange(12, 24)]), rng.permutation(np.arange(48) % 7)]
    x, w = rng.uniform(-1.0, 1.0, (2, 48))
    Z = np.column_stack([np.ones(48), x])
    y = rng.standard_t(1.5, 48)
    for code in codes:
        y += np.sum(Z * (rng.normal(size=(code.max() + 1, 2)) * 10.0 ** rng.uniform(-2.0, 1.0, 2))[code], axis=1)
    terms = [flc.RandomTerm(Z, code, name) for code, name in zip(codes, "gh", strict=True)]
    model = flc.LinearMixedModel(y, np.column_stack([Z, w]), terms=terms)
    with pytest.raises(LMMError, match=r"full likelihood has no maximum .*use fewer random effects"):
        model.fit(reml=False)
