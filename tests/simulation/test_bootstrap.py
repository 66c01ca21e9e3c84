"""The bootstrap: replicates against theory and brute force, intervals against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import fastlmm_core as flc
import fits
import oracle
from fastlmm_core.simulation.draws import STREAM, draws, parametric, stream_size
from fastlmm_core.simulation.resampling import rescaled
from fastlmm_core.support.seeds import key_of, stream

# Replicates and copied rows give sums in another order and stop where rounding ends the search (see many/).
AGREE = 1e-8


def one_way(rng, m=15, n_i=4, between=2.0, within=1.0):
    """Balanced groups around one mean: closed forms for everything."""
    groups = np.repeat(np.arange(m), n_i)
    y = 10.0 + between * rng.standard_normal(m)[groups] + within * rng.standard_normal(m * n_i)
    return flc.LinearMixedModel(y, None, None, groups)


def slopes(rng, m=14, structure="full", weights=False, offset=False, deficient=False, shift=0.0, p=2):
    """Unbalanced groups with random slopes, rows in any order."""
    groups = rng.permutation(np.repeat(np.arange(m), rng.integers(4, 9, m)))
    n = len(groups)
    x = shift + rng.uniform(-1.0, 1.0, n)
    X = np.column_stack([np.ones(n), x])
    # the lines vary about the middle of the data, wherever that is
    b = rng.standard_normal((m, 2)) * [1.5, 1.0]
    y = 3.0 + x + b[groups, 0] + b[groups, 1] * (x - shift)
    y += 0.6 * rng.standard_normal(n)
    return flc.LinearMixedModel(
        y, np.column_stack([X, 3.0 * x]) if deficient else X[:, :p], X, groups, structure=structure,
        weights=rng.uniform(0.4, 2.5, n) if weights else None, offset=rng.standard_normal(n) if offset else None,
    )  # fmt: skip


def statistics(result):
    """All parameters of one fit in the order of the names, by hand."""
    params = np.asarray(result.beta)[result.model.problem.kept]
    parts = [params]
    for G, block in zip(result.G.values(), result.model.structure.blocks, strict=True):
        sd = np.sqrt(np.diag(G))
        for a in range(len(sd)):
            parts.append([sd[a]])
            for b in range(a + 1, len(sd)):
                if block.structure == "full":
                    with np.errstate(invalid="ignore", divide="ignore"):
                        parts.append([G[a, b] / (sd[a] * sd[b])])
    return np.concatenate([*parts, [result.sigma]])


def copied(result, counts):
    """A fit to the rows of group i counts[i] times over, every copy a group of its own."""
    model = result.model
    rows, labels = [], []
    for group, count in enumerate(counts):
        own = np.flatnonzero(model.grouping.index == group)
        for _ in range(count):
            rows.append(own)
            labels.append(np.full(len(own), len(labels)))
    at = np.concatenate(rows)
    blocks = model.structure.blocks
    assert len(blocks) == 1
    other = flc.LinearMixedModel(
        model.endog[at], model.exog[at], model.exog_re[at], np.concatenate(labels), structure=blocks[0].structure,
        weights=None if model.weights is None else model.weights[at],
        offset=None if model.offset is None else model.offset[at],
    )  # fmt: skip
    return other.fit(reml=result.reml)


def resamples(result, n, seed):
    """How often each group is drawn in each replicate of kind="cases"."""
    m = result.model.problem.m
    return stream(key_of(seed), 0).multinomial(m, np.full(m, 1.0 / m), size=n)


# ------------------------------------------------------------------------------------------------------------
# against theory


def test_parametric_errors_are_those_of_the_model(rng):
    m, n_i, n = 15, 4, 8000
    result = one_way(rng, m, n_i, between=4.0).fit()
    tau2, sigma2 = oracle.covariance_blocks(result)[0, 0], result.sigma2
    boot = result.bootstrap(n, seed=1)
    # the estimate of the mean is the mean of all
    sd = np.sqrt((tau2 + sigma2 / n_i) / m)
    assert boot.std_error[0] == pytest.approx(sd, rel=5.0 / np.sqrt(2.0 * n))
    assert abs(boot.bias[0]) < 5.0 * sd / np.sqrt(n)
    assert boot.kind == "parametric"
    # sigma^2 is the mean square within where the variance between is not zero
    assert boot.singular_fraction == 0.0
    df = m * (n_i - 1)
    squares = boot.replicates[:, boot.names.index("sigma")] ** 2
    assert squares.mean() == pytest.approx(sigma2, rel=5.0 * np.sqrt(2.0 / df / n))
    assert squares.std() == pytest.approx(sigma2 * np.sqrt(2.0 / df), rel=5.0 * np.sqrt((0.5 + 3.0 / df) / n))
    # a percentile interval of normal replicates
    width = np.diff(boot.conf_int(0.9, "percentile")[0])[0]
    assert width == pytest.approx(2.0 * norm.ppf(0.95) * sd, rel=0.05)


@pytest.mark.parametrize("reml", [True, False])
def test_conditional_errors_leave_out_the_variation_between_groups(rng, reml):
    n = 8000
    result = one_way(rng).fit(reml=reml)
    boot = result.bootstrap(n, "conditional", seed=2)
    sd = np.sqrt(result.sigma2 / result.nobs)
    assert boot.std_error[0] == pytest.approx(sd, rel=5.0 / np.sqrt(2.0 * n))
    low, high = boot.conf_int(0.95)[0]
    assert high - low == pytest.approx(2.0 * norm.ppf(0.975) * sd, rel=0.05)
    # the mean of all fitted values is the estimate
    assert abs(boot.bias[0]) < 5.0 * sd / np.sqrt(n)
    assert boot.std_error[0] < 0.5 * result.bootstrap(500, seed=2).std_error[0]


def test_conditional_errors_of_slopes():
    # balanced and X = Z: beta is least squares, so given the groups its covariance is sigma^2 (X'X)^-1
    result = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    X, n = result.model.exog, 8000
    boot = result.bootstrap(n, "conditional", seed=3)
    expected = np.sqrt(result.sigma2 * np.diag(np.linalg.inv(X.T @ X)))
    np.testing.assert_allclose(boot.std_error[:2], expected, rtol=5.0 / np.sqrt(2.0 * n))


def drawn(result, n, kind, seed):
    """The responses that a bootstrap fits, by its own account."""
    return result.bootstrap(n, kind, statistic=lambda fit: fit.model.endog, seed=seed).replicates


def test_conditional_draws_have_the_variance_of_each_row(rng):
    n = 3000
    groups = np.repeat(np.arange(8), 4)
    w = np.tile([0.1, 0.5, 2.0, 9.0], 8)
    y = rng.standard_normal(8)[groups] + rng.standard_normal(32) / np.sqrt(w)
    result = flc.LinearMixedModel(y + groups, None, None, groups, weights=w, offset=groups.astype(float)).fit()
    Y = drawn(result, n, "conditional", 3)
    variance = result.sigma2 / w
    fitted = oracle.fitted(
        y + groups, np.ones((32, 1)), np.ones((32, 1)), groups, oracle.covariance_blocks(result) / result.sigma2, w,
        groups.astype(float),
    )  # fmt: skip
    assert np.all(np.abs(Y.mean(axis=0) - fitted) < 5.0 * np.sqrt(variance / n))
    np.testing.assert_allclose(Y.var(axis=0), variance, rtol=5.0 * np.sqrt(2.0 / n))
    corr = np.corrcoef(Y.T) - np.eye(32)
    assert np.abs(corr).max() < 5.5 / np.sqrt(n)


@pytest.mark.parametrize("weighted", [False, True])
def test_residual_draws_are_centred_and_scaled_effects_and_residuals(rng, weighted):
    # few groups and rows, so that every value of a draw is an effect and a residual from lists in closed form
    m, n_i = 5, 3
    groups = np.repeat(np.arange(m), n_i)
    w = rng.uniform(0.5, 2.0, m * n_i) if weighted else np.ones(m * n_i)
    y = 10.0 + 2.0 * rng.standard_normal(m)[groups] + rng.standard_normal(m * n_i) / np.sqrt(w)
    result = flc.LinearMixedModel(y, None, None, groups, weights=w if weighted else None).fit()
    G, sigma2 = oracle.covariance_blocks(result), result.sigma2
    assert G[0, 0] > 0.0
    one = np.ones((m * n_i, 1))
    b = oracle.blups(y, one, one, groups, G / sigma2, w)[:, 0]
    e = np.sqrt(w) * (y - oracle.fitted(y, one, one, groups, G / sigma2, w))
    # of mean zero and, as lists, of exactly the estimated variances
    b, e = b - b.mean(), e - e.mean()
    b *= np.sqrt(G[0, 0] / np.mean(b**2))
    e *= np.sqrt(sigma2 / np.mean(e**2))
    Y = (drawn(result, 200, "residual", 1) - result.marginal_mean) * np.sqrt(w)
    for i in range(m * n_i):
        values = np.sqrt(w[i]) * b[:, None] + e
        gap = np.abs(Y[:, i, None, None] - values).min(axis=(1, 2))
        assert gap.max() < 1e-6 * np.abs(values).max()


def residual_draws(result, n, seed):
    from fastlmm_core.simulation.bootstrap import _residual

    return np.concatenate([block() for block in draws(_residual(result), n, key_of(seed))])


def moments_by_group(result, Y):
    """Mean and covariance of the groups' own coefficients around the marginal mean, and the mean square they leave."""
    model = result.model
    total, outer, square, count, df = 0.0, 0.0, 0.0, 0, 0
    expected = 0.0
    weights = np.ones(model.nobs) if model.weights is None else model.weights
    for group in range(model.problem.m):
        at = np.flatnonzero(model.grouping.index == group)
        root = np.sqrt(weights[at])
        Z = model.exog_re[at] * root[:, None]
        r = (Y[:, at] - result.marginal_mean[at]) * root
        inverse = np.linalg.inv(Z.T @ Z)
        b = r @ Z @ inverse
        total = total + b.sum(axis=0)
        outer = outer + b.T @ b
        square += np.sum((r - b @ Z.T) ** 2)
        expected = expected + len(Y) * inverse
        count += len(Y)
        df += len(Y) * (len(at) - Z.shape[1])
    return total / count, outer / count, square / df, expected / count


@pytest.mark.parametrize("factor", [np.diag([2.0, 3.0]), [[2.0, 0.0], [1.0, 0.5]], [[2.0, 0.0], [1.0, 0.0]]])
def test_resampled_effects_have_the_covariance_that_is_theirs(factor, rng):
    # Carpenter, Goldstein and Rasbash 2003, section 3.2: centred and rescaled before they are drawn from
    factor = np.array(factor)
    u = rng.standard_normal((30, 2)) @ [[1.0, 0.3], [0.0, 0.4]] + [1.0, -2.0]
    b = rescaled(u, factor)
    np.testing.assert_allclose(b.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(b.T @ b / len(b), factor @ factor.T, atol=1e-13)


def check_residual_moments(result, n=4000):
    Y = residual_draws(result, n, 5)
    mean, second, within, inverse = moments_by_group(result, Y)
    G, sigma2 = oracle.covariance_blocks(result), result.sigma2
    expected = G + sigma2 * inverse
    count = n * result.model.problem.m
    sd = np.sqrt(np.diag(expected))
    # resampled values have some kurtosis, at most a few: ten standard errors of normal ones
    assert np.all(np.abs(mean) < 10.0 * sd / np.sqrt(count))
    assert np.max(np.abs(second - expected) / np.outer(sd, sd)) < 15.0 / np.sqrt(count)
    assert within == pytest.approx(sigma2, rel=15.0 / np.sqrt(n * result.nobs))


@pytest.mark.parametrize("options", [{}, {"structure": "diagonal"}, {"weights": True, "offset": True}])
def test_residual_draws_have_the_estimated_covariances(rng, options):
    check_residual_moments(slopes(rng, m=30, **options).fit())


def test_residual_draws_of_the_effects_are_exact(rng):
    # what is drawn from has the estimated covariances exactly: with one row a group would see b + e alone
    result = one_way(rng, m=20, n_i=3).fit()
    Y = residual_draws(result, 3000, 1)
    values = Y - result.marginal_mean
    total = oracle.covariance_blocks(result)[0, 0] + result.sigma2
    assert values.var() == pytest.approx(total, rel=0.02)
    # twenty effects and sixty residuals make at most 1,200 values
    assert len(np.unique(np.round(values, 9))) <= 20 * 60


def test_residual_draws_of_a_singular_fit(rng):
    model = slopes(rng, m=40)
    # effects on one line: correlation one
    b = rng.standard_normal(40)[model.grouping.index]
    y = model.exog @ [1.0, 2.0] + 1.5 * b * (model.exog @ [1.0, 0.8]) + 0.5 * rng.standard_normal(model.nobs)
    for _ in range(50):
        result = model.refit(y)
        if result.singular and np.diag(oracle.covariance_blocks(result)).min() > 0.1:
            break
        y = y + 0.5 * rng.standard_normal(model.nobs)
    assert result.singular and np.diag(oracle.covariance_blocks(result)).min() > 0.1
    check_residual_moments(result)


def test_residual_draws_of_slopes_per_microsecond(rng):
    base = slopes(rng, m=30)
    X = base.exog * [1.0, 1e6]
    result = flc.LinearMixedModel(base.endog, X, X, base.grouping.index).fit()
    check_residual_moments(result)
    # the units of x change nothing but the units of the slope
    expected = base.fit().bootstrap(300, "residual", seed=1).std_error * [1.0, 1e-6, 1.0, 1.0, 1e-6, 1.0]
    np.testing.assert_allclose(result.bootstrap(300, "residual", seed=1).std_error, expected, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------
# replicates


@pytest.mark.parametrize("kind", ["parametric", "conditional", "residual"])
@pytest.mark.parametrize("reml", [True, False])
def test_replicates_are_fits_of_the_draws(rng, reml, kind):
    from fastlmm_core.simulation import bootstrap as module

    result = slopes(rng, weights=True, offset=True).fit(reml=reml)
    n = STREAM + 20
    boot = result.bootstrap(n, kind, seed=4)
    maker = parametric if kind == "parametric" else getattr(module, f"_{kind}")
    draw = maker(result)
    Y = np.concatenate([block() for block in draws(draw, n, key_of(4), stream_size(draw, result.nobs))])
    assert len(boot) == n
    assert boot.replicates.shape == (n, 6)
    for i in range(0, n, 9):
        single = result.model.refit(Y[i], reml=reml)
        assert boot.converged[i] == single.converged
        assert boot.singular[i] == single.singular
        se = np.sqrt(np.diag(single.cov))
        np.testing.assert_allclose(boot.replicate_std_error[i, :2], se, rtol=AGREE)
        if not single.singular:
            # standard deviations near zero are known to the root of what variances are known to
            np.testing.assert_allclose(boot.replicates[i], statistics(single), rtol=10.0 * AGREE, atol=AGREE)
    assert np.isnan(boot.replicate_std_error[:, 2:]).all()
    np.testing.assert_allclose(boot.fit_std_error[:2], np.sqrt(np.diag(result.cov)), rtol=1e-14)
    np.testing.assert_allclose(boot.estimate, statistics(result), rtol=1e-13)


CASES = {
    "plain": {},
    "diagonal": {"structure": "diagonal"},
    "weights and offset": {"weights": True, "offset": True},
    "rank-deficient": {"deficient": True},
    "years": {"shift": 2000.0},
    "no fixed effects": {"p": 0},
}


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("options", list(CASES.values()), ids=list(CASES))
def test_cases_are_fits_of_copied_rows(rng, options, reml):
    result = slopes(rng, **options).fit(reml=reml)
    n = 25
    boot = result.bootstrap(n, "cases", seed=6)
    counts = resamples(result, n, 6)
    assert (counts.sum(axis=1) == result.model.problem.m).all()
    kept = len(result.model.problem.kept)
    interior = 0
    for i in range(n):
        single = copied(result, counts[i])
        assert boot.converged[i] == single.converged
        assert boot.singular[i] == single.singular
        se = np.sqrt(np.diag(single.cov))[result.model.problem.kept]
        np.testing.assert_allclose(boot.replicate_std_error[i, :kept], se, rtol=AGREE)
        own = statistics(single)
        floor = AGREE * np.max(se, initial=0.0)
        np.testing.assert_allclose(boot.replicates[i, :kept], own[:kept], rtol=AGREE, atol=floor)
        if not single.singular:
            np.testing.assert_allclose(boot.replicates[i], own, rtol=10.0 * AGREE, atol=AGREE)
            interior += 1
    assert interior >= 5


@pytest.mark.parametrize("ratio", [1e3, 1e5])
def test_cases_of_nearly_all_variation_between_groups(rng, ratio):
    result = one_way(rng, between=ratio).fit()
    boot = result.bootstrap(20, "cases", seed=6)
    for replicate, counts in zip(boot.replicates, resamples(result, 20, 6), strict=True):
        np.testing.assert_allclose(replicate, statistics(copied(result, counts)), rtol=AGREE)


def test_cases_that_cannot_be_fitted_are_nan(rng):
    # a covariate of two groups out of twelve, which some resamples miss
    groups = np.repeat(np.arange(12), 4)
    X = np.column_stack([np.ones(48), groups < 2])
    result = flc.LinearMixedModel(rng.standard_normal(12)[groups] + rng.standard_normal(48), X, None, groups).fit()
    boot = result.bootstrap(80, "cases", seed=1)
    counts = resamples(result, 80, 1)
    missed = (counts[:, :2].sum(axis=1) == 0) | (counts[:, 2:].sum(axis=1) == 0)
    assert 2 < missed.sum() < 40
    np.testing.assert_array_equal(np.isnan(boot.replicates).any(axis=1), missed)
    assert not boot.converged[missed].any()
    assert boot.converged[~missed].all()
    assert np.isfinite(boot.conf_int()).all()
    assert np.isfinite(boot.std_error).all()
    assert f"{missed.sum()} not certified" in repr(boot)


def test_cases_without_a_variance_within_are_nan(rng):
    # eight groups of one and two of five: in a resample of groups of one nothing tells the two variances apart
    groups = np.repeat(np.arange(10), [1, 1, 1, 1, 1, 1, 1, 1, 5, 5])
    result = flc.LinearMixedModel(rng.standard_normal(18), None, None, groups).fit()
    boot = result.bootstrap(100, "cases", seed=1)
    alone = resamples(result, 100, 1)[:, 8:].sum(axis=1) == 0
    assert 2 < alone.sum() < 40
    with pytest.raises(flc.LMMError, match="one observation"):
        copied(result, resamples(result, 100, 1)[alone][0])
    np.testing.assert_array_equal(np.isnan(boot.replicates).any(axis=1), alone)
    assert not boot.converged[alone].any()


def test_cases_vary_as_the_parameters_do(rng):
    # one-way, balanced: the mean of a resample of group means has their empirical variance
    m = 40
    result = one_way(rng, m=m).fit()
    boot = result.bootstrap(2000, "cases", seed=9)
    means = result.model.endog.reshape(m, -1).mean(axis=1)
    assert boot.std_error[0] == pytest.approx(means.std() / np.sqrt(m), rel=5.0 / np.sqrt(4000.0))
    assert abs(boot.bias[0]) < 5.0 * boot.std_error[0] / np.sqrt(2000.0)


# ------------------------------------------------------------------------------------------------------------
# intervals


@pytest.fixture(scope="module", params=["parametric", "cases"])
def sample(request):
    """A bootstrap that has a little of everything, and its result."""
    result = slopes(np.random.default_rng(31), m=11).fit()
    return result, result.bootstrap(400, request.param, seed=12)


def test_errors_and_bias(sample):
    result, boot = sample
    values = boot.replicates
    assert np.isfinite(values[:, [0, 1, 2, 3, 5]]).all()
    np.testing.assert_allclose(boot.std_error, [np.std(v[np.isfinite(v)], ddof=1) for v in values.T], rtol=1e-12)
    bias = [np.mean(v[np.isfinite(v)]) - e for v, e in zip(values.T, statistics(result), strict=True)]
    np.testing.assert_allclose(boot.bias, bias, rtol=1e-9, atol=1e-12)
    assert boot.singular_fraction == np.mean(boot.singular)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_intervals(sample, level):
    result, boot = sample
    values, own = boot.replicates, statistics(result)
    finite = [v[np.isfinite(v)] for v in values.T]
    a = (1.0 - level) / 2.0
    low, high = (np.array([np.quantile(v, share) for v in finite]) for share in (a, 1.0 - a))
    np.testing.assert_allclose(boot.conf_int(level, "percentile"), np.column_stack([low, high]), rtol=1e-12)
    basic = np.column_stack([2.0 * own - high, 2.0 * own - low])
    for names, at in (("fixed", [0, 1]), ("sigma", [5]), (["sigma", "x1"], [5, 1])):
        np.testing.assert_allclose(boot.conf_int(level, "basic", names), basic[at], rtol=1e-11, atol=1e-12)
    mean, sd = np.array([v.mean() for v in finite]), np.array([v.std(ddof=1) for v in finite])
    z = norm.ppf(1.0 - a)
    centre = own - (mean - own)
    np.testing.assert_allclose(
        boot.conf_int(level, "normal"), np.column_stack([centre - z * sd, centre + z * sd]), rtol=1e-11, atol=1e-12
    )
    studentized = boot.conf_int(level, "studentized")
    for j in range(2):
        t = (values[:, j] - own[j]) / boot.replicate_std_error[:, j]
        se = np.sqrt(result.cov[j, j])
        expected = [own[j] - np.quantile(t, 1.0 - a) * se, own[j] - np.quantile(t, a) * se]
        np.testing.assert_allclose(studentized[j], expected, rtol=1e-11)
    assert np.isnan(studentized[2:]).all()
    # the default: studentised, BCa for standard deviations, percentiles for the correlation
    auto, bca = boot.conf_int(level), boot.conf_int(level, "bca")
    np.testing.assert_array_equal(auto[:2], studentized[:2])
    np.testing.assert_array_equal(auto[[2, 4, 5]], bca[[2, 4, 5]])
    np.testing.assert_allclose(auto[3], [low[3], high[3]], rtol=1e-12)
    assert list(boot.interval_methods.values()) == ["studentized", "studentized", "bca", "percentile", "bca", "bca"]


def test_basic_intervals_of_what_is_bounded_are_refused(sample):
    _, boot = sample
    for names in (None, "random", ["x0", "cor_z0.z1|group"]):
        with pytest.raises(
            flc.LMMError, match=r"method='basic'.*(sd_z0|cor_z0.z1)\|group.*profile\(\), or names='fixed'"
        ):
            boot.conf_int(0.95, "basic", names)
    with pytest.raises(flc.LMMError, match=r"names: there is no 'tau'; use 'fixed', 'random' or some of x0"):
        boot.conf_int(names="tau")


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_intervals(sample, level):
    result, boot = sample
    m = result.model.problem.m
    deleted = np.array([statistics(copied(result, 1 - np.eye(m, dtype=int)[i])) for i in range(m)])
    found = boot.conf_int(level, "bca")
    own = statistics(result)
    a = (1.0 - level) / 2.0
    for j, values in enumerate(boot.replicates.T):
        values = values[np.isfinite(values)]
        jackknife = deleted[np.isfinite(deleted[:, j]), j]
        u = jackknife.mean() - jackknife
        acceleration = np.sum(u**3) / (6.0 * np.sum(u**2) ** 1.5)
        z0 = norm.ppf(np.mean(values < own[j]) + 0.5 * np.mean(values == own[j]))
        ends = []
        for share in (a, 1.0 - a):
            z = z0 + norm.ppf(share)
            ends.append(np.quantile(values, norm.cdf(z0 + z / (1.0 - acceleration * z))))
        # the acceleration is a ratio of deletions that agree to 1e-8 with those from copied rows
        np.testing.assert_allclose(found[j], ends, rtol=1e-6, atol=1e-7)


def test_intervals_do_not_move_with_units(rng):
    base = one_way(rng)
    a = base.fit().bootstrap(300, seed=1)
    b = base.refit(1e3 * base.endog).bootstrap(300, seed=1)
    for method in ("auto", "percentile", "normal", "bca", "studentized"):
        np.testing.assert_allclose(b.conf_int(method=method), 1e3 * a.conf_int(method=method), rtol=1e-6)


def test_variances_of_zero(rng):
    # a singular fit: the estimate of the deviation is 0 and ties with many replicates
    groups = np.repeat(np.arange(8), 4)
    for _ in range(200):
        result = flc.LinearMixedModel(rng.standard_normal(32), None, None, groups).fit()
        if result.singular:
            break
    assert result.singular
    boot = result.bootstrap(400, seed=2)
    assert 0.3 < boot.singular_fraction < 0.9
    assert boot.estimate[1] == 0.0
    for method in ("auto", "percentile", "normal"):
        limits = boot.conf_int(method=method)
        assert np.isfinite(limits).all()
        assert (limits[:, 0] <= limits[:, 1]).all()
    assert boot.conf_int()[1, 0] == 0.0
    assert boot.interval_methods == {"Intercept": "studentized", "sd_Intercept|group": "percentile", "sigma": "bca"}
    share = 100.0 * np.mean(boot.replicates[:, 1] == 0.0)
    said = rf"no BCa interval: sd_Intercept\|group, the estimate, 0, lies on the boundary, as {share:.0f} % of the"
    with pytest.warns(RuntimeWarning, match=said):
        limits = boot.conf_int(method="bca")
    assert np.isnan(limits[1]).all() and np.isfinite(limits[[0, 2]]).all()


def test_without_independent_groups_percentiles_take_the_place_of_bca(rng):
    a, b = (part.ravel() for part in np.meshgrid(np.arange(6), np.arange(5), indexing="ij"))
    y = rng.standard_normal(6)[a] + rng.standard_normal(5)[b] + 0.5 * rng.standard_normal(30)
    boot = flc.lmm("y ~ 1 + (1 | a) + (1 | b)", {"y": y, "a": a, "b": b}).fit().bootstrap(60, seed=1)
    assert set(boot.interval_methods.values()) == {"studentized", "percentile"}
    np.testing.assert_allclose(
        np.asarray(boot.conf_int(names="random")["conf_low"]),
        np.quantile(boot.replicates[:, 1:], 0.025, axis=0),
        rtol=1e-14,
    )
    with pytest.raises(flc.LMMError, match="method='bca' needs deletions of independent groups"):
        boot.conf_int(method="bca")


# ------------------------------------------------------------------------------------------------------------
# options and results


def test_a_statistic_of_the_user(rng):
    result = slopes(rng).fit()
    n = 40
    boot = result.bootstrap(n, statistic=lambda r: [r.icc(), r.params[1], r.llf], seed=3)
    Y = np.concatenate([block() for block in draws(parametric(result), n, key_of(3))])
    fits = [result.model.refit(y) for y in Y]
    np.testing.assert_array_equal(boot.replicates, [[f.icc(), f.params[1], f.llf] for f in fits])
    np.testing.assert_array_equal(boot.estimate, [result.icc(), result.params[1], result.llf])
    np.testing.assert_array_equal(boot.singular, [f.singular for f in fits])
    assert len(boot.names) == 3
    # the same replicates as without a statistic
    plain = result.bootstrap(n, seed=3)
    np.testing.assert_allclose(boot.replicates[:, 1], plain.replicates[:, 1], rtol=1e-7, atol=1e-8)
    assert np.isfinite(boot.conf_int()).all()
    one = result.bootstrap(10, statistic=lambda r: r.sigma2, seed=3)
    assert one.replicates.shape == (10, 1)
    with pytest.raises(flc.LMMError, match="standard errors"):
        boot.conf_int(method="studentized")
    with pytest.raises(flc.LMMError, match="bca"):
        boot.conf_int(method="bca")
    ml = result.model.fit(reml=False).bootstrap(5, statistic=lambda r: float(r.reml), seed=1)
    np.testing.assert_array_equal(ml.replicates, 0.0)


@pytest.mark.parametrize("kind", ["conditional", "residual"])
def test_a_statistic_with_other_kinds(rng, kind):
    result = slopes(rng).fit()
    boot = result.bootstrap(20, kind, statistic=lambda r: r.params, seed=3)
    np.testing.assert_allclose(
        boot.replicates, result.bootstrap(20, kind, seed=3).replicates[:, :2], rtol=1e-7, atol=1e-8
    )


def test_names():
    data = flc.datasets.load("sleepstudy")
    expected = {
        "(Days | Subject)": [
            "Intercept",
            "Days",
            "sd_Intercept|Subject",
            "cor_Intercept.Days|Subject",
            "sd_Days|Subject",
            "sigma",
        ],
        "(Days || Subject)": ["Intercept", "Days", "sd_Intercept|Subject", "sd_Days|Subject", "sigma"],
        "(1 | Subject)": ["Intercept", "Days", "sd_Intercept|Subject", "sigma"],
    }
    for bar, names in expected.items():
        result = flc.lmm(f"Reaction ~ Days + {bar}", data).fit()
        boot = result.bootstrap(20, seed=1)
        assert [name.replace("Subject.1", "Subject") for name in boot.names] == names
        assert len(set(boot.names)) == len(names)
        np.testing.assert_allclose(boot.estimate, statistics(result), rtol=1e-12)
        assert boot.conf_int().shape == (len(names), 2)
        tidy = result.tidy("ran_pars")
        np.testing.assert_allclose(tidy["estimate"], boot.estimate[2:], rtol=1e-12)
        assert tuple(tidy["term"]) == boot.names[2:] == result.profile(level=0.5).names[2:]
        assert tuple(result.variance_components()["term"][: len(tidy)]) == boot.names[2:]
        assert [name for name in result.model.fit_many(result.simulate(2, 1)).to_frame() if name in boot.names] == [
            *boot.names
        ]


def test_dropped_columns_have_no_statistic(rng):
    result = slopes(rng, deficient=True).fit()
    for kind in ("parametric", "cases", "residual", "conditional"):
        boot = result.bootstrap(20, kind, seed=1)
        assert boot.names[:3] == ("x0", "x1", "sd_z0|group")
        assert np.isfinite(boot.replicates).all()
        assert np.isfinite(boot.conf_int(method="bca")).all()
        assert np.isfinite(boot.conf_int(method="studentized")[:2]).all()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict", "arrays"])
def test_to_frame(library):
    data = flc.datasets.load("sleepstudy")
    if library == "arrays":
        model = flc.LinearMixedModel(*oracle.reference("sleepstudy_slope").arrays)
    else:
        if library == "polars":
            data = pytest.importorskip("polars").from_pandas(data)
        elif library == "pyarrow":
            data = pytest.importorskip("pyarrow").Table.from_pandas(data)
        elif library == "dict":
            data = {name: data[name].to_numpy() for name in data.columns}
        model = flc.lmm("Reaction ~ Days + (Days | Subject)", data)
    boot = model.fit().bootstrap(12, seed=1)
    frame = boot.to_frame()
    assert type(frame) is (dict if library in ("dict", "arrays") else type(data))
    columns = list(frame) if isinstance(frame, dict) else frame.column_names if library == "pyarrow" else frame.columns
    assert tuple(columns) == boot.names
    for j, name in enumerate(boot.names):
        np.testing.assert_array_equal(np.asarray(frame[name], dtype=float), boot.replicates[:, j])
    limits = boot.conf_int(0.8, "percentile")
    expected = np.quantile(boot.replicates, [0.1, 0.9], axis=0)
    if library == "arrays":
        np.testing.assert_allclose(limits, expected.T, rtol=1e-12)
        return
    assert type(limits) is (dict if library == "dict" else type(data))
    names = limits.index if library == "pandas" else limits["term"]
    assert [str(name) for name in names] == [*boot.names]
    for column, values in zip(("conf_low", "conf_high"), expected, strict=True):
        np.testing.assert_allclose(np.asarray(limits[column], dtype=float), values, rtol=1e-12)


@pytest.mark.parametrize("kind", ["parametric", "conditional", "residual", "cases"])
def test_seeds_and_threads(rng, kind):
    result = slopes(rng).fit()
    n = STREAM + 30
    first = result.bootstrap(n, kind, seed=1, n_jobs=1)
    for n_jobs in (2, 3, None):
        again = result.bootstrap(n, kind, seed=1, n_jobs=n_jobs)
        np.testing.assert_array_equal(first.replicates, again.replicates)
        np.testing.assert_array_equal(first.replicate_std_error, again.replicate_std_error)
    other = result.bootstrap(n, kind, seed=2)
    assert not np.any(first.replicates[:, 0] == other.replicates[:, 0])
    assert not np.any(result.bootstrap(n, kind).replicates[:, 0] == result.bootstrap(n, kind).replicates[:, 0])
    a = result.bootstrap(n, kind, seed=np.random.default_rng(5))
    b = result.bootstrap(n, kind, seed=np.random.default_rng(5))
    np.testing.assert_array_equal(a.replicates, b.replicates)


def test_errors(rng):
    result = one_way(rng).fit()
    for n in (1, 0, -3):
        with pytest.raises(flc.LMMError, match=f"n={n}"):
            result.bootstrap(n)
    with pytest.raises(flc.LMMError, match="kind='wild'"):
        result.bootstrap(10, kind="wild")
    with pytest.raises(flc.LMMError, match="statistic"):
        result.bootstrap(10, kind="cases", statistic=lambda r: r.sigma2)
    for kind in ("parametric", "residual", "conditional", "cases"):
        with pytest.raises(flc.LMMError, match="n_jobs=0"):
            result.bootstrap(10, kind, n_jobs=0)
    boot = result.bootstrap(20, seed=1)
    for level in (0.0, 1.0, 95.0, -0.1, float("nan")):
        with pytest.raises(flc.LMMError, match="level="):
            boot.conf_int(level)
    with pytest.raises(flc.LMMError, match="method='exact'"):
        boot.conf_int(method="exact")


def test_repr(rng):
    boot = one_way(rng).fit().bootstrap(30, "residual", seed=1)
    share = 100.0 * boot.singular_fraction
    first = repr(boot).split("\n")[0]
    assert first == f"Residual bootstrap: 30 replicates, {share:.1f} % singular, 0 not certified"
    assert [line.split()[0] for line in repr(boot).split("\n")[3:]] == list(boot.names)
