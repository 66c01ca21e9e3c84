"""Many responses, simulation, bootstrap and power where there are several grouping factors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

import fastlmm_core as flc
from fastlmm_core.batch_result import BatchResult
from fastlmm_core.design.replication import independent_units, levels_of, observations, subjects
from fastlmm_core.estimation.many import correlated_lanes
from fastlmm_core.estimation.many import pieces as batch_module
from fastlmm_core.estimation.many.several_factors import EXACT_UP_TO, HierarchyDesign
from fastlmm_core.inference import wald as inference
from fastlmm_core.inference.many import tests as batch_inference
from fastlmm_core.simulation.bootstrap import _residual
from fastlmm_core.simulation.draws import draws
from fastlmm_core.simulation.resampling import without_groups
from fastlmm_core.support.seeds import key_of, stream

RandomTerm = flc.RandomTerm

# A certified optimum is within 5e-9 of the minimum of the criterion; the estimates are that close in standard errors.
CRITERION = 1e-8
AGREE = 1e-6


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch):
    """What the lanes would take is left to single engines: these are their tests."""
    monkeypatch.setattr(correlated_lanes, "WORK_UP_TO", 0.0)


@pytest.fixture(autouse=True)
def _threads_for_little(monkeypatch):
    """Few responses are divided among threads too."""
    monkeypatch.setattr(batch_module, "WORTH_ONE", 1)


def nested(tops=8, mids=3, rows=5):
    top = np.repeat(np.arange(tops), mids * rows)
    mid = np.repeat(np.arange(tops * mids), rows)
    return top, mid


def made(rng, shape, p=3, weights=False, offset=False, deficient=False):
    """A design of some shape; what its response is does not matter."""
    if shape in ("crossed", "crossed slopes"):
        a, b = np.divmod(rng.permutation(9 * 7)[:56], 7)
    elif shape == "three":
        c, a = nested(5, 3, 6)
        b = rng.integers(0, 4, len(a))
    elif shape == "wide":
        a, b = rng.integers(0, 90, 700), rng.integers(0, 80, 700)
        a[:90], b[:80] = np.arange(90), np.arange(80)
    elif shape == "long":
        b, a = nested(50, 4, 11)
    else:
        b, a = nested()
        at = rng.permutation(len(a))[: len(a) - 7]
        a, b = np.unique(a[at], return_inverse=True)[1], b[at]
    n = len(a)
    t = rng.uniform(-1.0, 1.0, n)
    line = np.column_stack([np.ones(n), t])
    terms = {
        "nested": [RandomTerm(None, a, name="a"), RandomTerm(None, b, name="b")],
        "nested slopes": [
            RandomTerm(None, a, name="a"), RandomTerm(line, b, name="b", exog_names=["one", "t"]),
        ],
        "nested diagonal": [
            RandomTerm(None, a, name="a"), RandomTerm(line, b, name="b", structure="diagonal"),
        ],
        "crossed": [RandomTerm(None, a, name="a"), RandomTerm(None, b, name="b")],
        "crossed slopes": [RandomTerm(line, a, name="a"), RandomTerm(None, b, name="b")],
        "wide": [RandomTerm(None, a, name="a"), RandomTerm(None, b, name="b")],
        "long": [RandomTerm(line, a, name="a"), RandomTerm(None, b, name="b")],
    }  # fmt: skip
    if shape == "three":
        chosen = [RandomTerm(None, x, name=name) for x, name in ((a, "a"), (b, "b"), (c, "c"))]
    else:
        chosen = terms[shape]
    X = np.column_stack([np.ones(n), t, rng.standard_normal(n)])[:, :p]
    if deficient:
        X = np.column_stack([X, 2.0 * t - 1.0])
    return flc.LinearMixedModel(
        rng.standard_normal(n), X, terms=chosen,
        weights=rng.uniform(0.3, 3.0, n) if weights else None, offset=rng.standard_normal(n) if offset else None,
    )  # fmt: skip


def responses(rng, model, count, between=1.0, within=0.7):
    Y = within * rng.standard_normal((count, model.nobs))
    if model.weights is not None:
        Y /= np.sqrt(model.weights)
    for f in model.factors:
        b = between * rng.standard_normal((count, len(f.grouping.labels), f.stop - f.start))
        Y += np.einsum("rij,ij->ri", b[:, f.grouping.index], model.exog_re[:, f.columns])
    return Y


def agrees(batch, Y, reml, df=True):
    """Each response against the single fit; returns the single fits."""
    singles = [batch.model.refit(y, reml=reml) for y in Y]
    kept = batch.model.problem.kept
    for i, single in enumerate(singles):
        assert single.converged and batch.converged[i], i
        assert single.singular == batch.singular[i], i
        assert abs(single.criterion - batch.criterion[i]) < CRITERION, i
        se = np.sqrt(np.diag(single.cov))
        assert (np.abs(batch.params[i] - single.beta) < AGREE * se)[kept].all(), i
        np.testing.assert_allclose(batch.bse[i], se, rtol=AGREE)
        np.testing.assert_allclose(batch.sigma2[i], single.sigma2, rtol=AGREE)
        for name, G in single.G.items():
            size = np.sqrt(np.diag(G) + 1e-2 * single.sigma2)
            # a factor at the boundary is known to the root of the accuracy of the criterion only
            assert np.max(np.abs(batch.G[name][i] - G) / np.outer(size, size)) < (1e-4 if single.singular else 1e-5)
        if df:
            np.testing.assert_allclose(batch.df[i], inference.coefficient_df(single), rtol=1e-5)
    return singles


# ------------------------------------------------------------------------------------------------------------
# fits


SHAPES = ["nested", "nested slopes", "nested diagonal", "crossed", "crossed slopes", "three", "wide", "long"]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_fit_is_the_single_fit(rng, shape, reml):
    odd = SHAPES.index(shape) % 2 == 1
    model = made(rng, shape, weights=odd, offset=odd)
    assert model.problem.n_effects <= EXACT_UP_TO
    count = 4 if shape in ("wide", "long") else 12
    Y = np.concatenate([responses(rng, model, count, 1.0), responses(rng, model, count, 0.1)])
    batch = model.fit_many(Y, reml=reml, n_jobs=1)
    agrees(batch, Y, reml)
    assert not batch.alone.any()


def test_pure_noise_lies_on_the_boundary(rng):
    model = made(rng, "nested slopes")
    Y = responses(rng, model, 40, 0.0)
    batch = model.fit_many(Y)
    agrees(batch, Y, True)
    assert batch.singular.sum() > 20


@pytest.mark.parametrize("p", [0, 1])
def test_few_columns(rng, p):
    model = made(rng, "crossed", p=p)
    Y = responses(rng, model, 6)
    agrees(model.fit_many(Y), Y, True)


def test_dropped_columns_are_nan(rng):
    model = made(rng, "nested", deficient=True)
    Y = responses(rng, model, 6)
    batch = model.fit_many(Y)
    singles = agrees(batch, Y, True)
    dropped = np.isnan(singles[0].beta)
    assert dropped.sum() == 1
    assert np.isnan(batch.params[:, dropped]).all() and np.isnan(batch.df[:, dropped]).all()


@pytest.mark.parametrize(("origin", "scale"), [(1e6, 1.0), (0.0, 1e-12), (-1e9, 1e3), (0.0, 1e150)])
def test_units_of_the_responses(rng, origin, scale):
    model = made(rng, "crossed")
    Y = responses(rng, model, 5)
    plain = model.fit_many(Y)
    moved = model.fit_many(origin + scale * Y)
    assert moved.converged.all()
    digits = 1e-5 + 1e-14 * abs(origin) / scale
    np.testing.assert_allclose(moved.bse, scale * plain.bse, rtol=digits)
    nu = model.nobs - 3
    np.testing.assert_allclose(moved.criterion - 2.0 * nu * np.log(scale), plain.criterion, atol=10.0 * digits)


@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_nearly_all_variation_between_levels(rng, ratio):
    model = made(rng, "crossed")
    Y = responses(rng, model, 6, between=0.7 * ratio)
    batch = model.fit_many(Y)
    for i, y in enumerate(Y):
        single = model.refit(y)
        assert batch.converged[i] == single.converged
        # the residual sum of squares is what is left of a total that is ratio^2 as large
        rounding = 1e-15 * model.nobs * ratio**2
        assert abs(batch.criterion[i] - single.criterion) < CRITERION + rounding
        np.testing.assert_allclose(batch.df[i], inference.coefficient_df(single), rtol=1e-4)


def test_the_response_of_the_model_does_not_matter(rng):
    model = made(rng, "nested slopes", weights=True)
    Y = responses(rng, model, 10)
    first = model.fit_many(Y)
    # one that lies on the boundary, where no search can start
    other = model.refit(responses(rng, model, 1, 0.0)[0]).model
    second = other.fit_many(Y)
    np.testing.assert_allclose(second.criterion, first.criterion, atol=CRITERION)
    np.testing.assert_allclose(second.params, first.params, rtol=1e-6, atol=1e-9)


def test_responses_that_cannot_be_fitted(rng):
    model = made(rng, "nested", offset=False)
    Y = responses(rng, model, 8)
    Y[1], Y[3], Y[4] = 2.0, np.nan, model.exog @ [1.0, -2.0, 0.5]
    Y[6, 5] = np.inf
    batch = model.fit_many(Y)
    assert batch.invalid.tolist() == [1, 3, 4, 6]
    for values in (batch.params, batch.bse, batch.sigma2, batch.criterion, batch.df, batch.pvalues):
        assert np.isnan(values[batch.invalid]).all()
    assert not batch.converged[batch.invalid].any()
    good = np.setdiff1d(np.arange(8), batch.invalid)
    assert batch.converged[good].all()
    alone = model.fit_many(Y[good])
    np.testing.assert_array_equal(alone.params, batch.params[good])
    effects = batch.random_effects()
    assert np.isnan(effects["a"][batch.invalid]).all() and np.isfinite(effects["a"][good]).all()
    assert np.isnan(batch.test(np.eye(3)[1:]).pvalues[batch.invalid]).all()
    with pytest.raises(flc.LMMError):
        batch[1]


FIELDS = ("params", "bse", "sigma2", "criterion", "theta", "gradient_norm", "converged", "singular", "n_evaluations")


@pytest.mark.parametrize("shape", ["crossed slopes", "wide"])
def test_bits_do_not_depend_on_the_company(rng, shape):
    model = made(rng, shape, weights=True)
    few = shape == "wide"
    Y = np.concatenate([responses(rng, model, 3 if few else 40), responses(rng, model, 3 if few else 20, 0.05)])

    def same(found: BatchResult, rows):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(found, name), getattr(first, name)[rows], err_msg=name)
        np.testing.assert_array_equal(found.df, first.df[rows])

    first = model.fit_many(Y, n_jobs=1)
    everything = np.arange(len(Y))
    for options in ({"n_jobs": 2}, {"n_jobs": 3, "memory": 1e-3}, {"memory": 1e-6, "n_jobs": 1}):
        same(model.fit_many(Y, **options), everything)
    order = rng.permutation(len(Y))
    same(model.fit_many(Y[order]), order)
    for i in (0, len(Y) - 1):
        same(model.fit_many(Y[i]), [i])
    same(model.fit_many([Y[:1], Y[1:]]), everything)
    same(model.fit_many(np.asfortranarray(Y)), everything)


def test_one_response_in_full_and_its_effects(rng):
    model = made(rng, "crossed slopes", weights=True, offset=True)
    Y = responses(rng, model, 5)
    batch = model.fit_many(Y, reml=False)
    result = batch[3]
    assert not result.reml
    assert result.criterion == pytest.approx(batch.criterion[3], abs=CRITERION)
    found = batch.random_effects([3, 1])
    assert list(found) == ["a", "b"]
    for name, single in result.random_effects.items():
        assert found[name].shape == (2, *single.shape)
        np.testing.assert_allclose(found[name][0], single, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("library", ["dict", "pandas"])
def test_to_frame(rng, library):
    top, mid = nested()
    data = {
        "school": top.astype(str),
        "class": mid,
        "x": rng.standard_normal(len(top)),
        "y": rng.standard_normal(len(top)),
    }
    if library == "pandas":
        import pandas as pd

        data = pd.DataFrame(data)
    model = flc.lmm("y ~ x + (x | school / class)", data)
    batch = model.fit_many(responses(rng, model, 4))
    frame = batch.to_frame()
    assert list(frame) == [
        "Intercept", "x", "std_error_Intercept", "std_error_x", "sd_Intercept|school:class",
        "cor_Intercept.x|school:class", "sd_x|school:class", "sd_Intercept|school", "cor_Intercept.x|school",
        "sd_x|school", "sigma",
        "criterion", "converged", "singular",
    ]  # fmt: skip
    for i in range(4):
        sd = batch[i].random_effects_sd
        np.testing.assert_allclose(frame["sd_x|school"][i], sd["school"][1], rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------------------------------------------
# tests of fixed effects


@pytest.mark.parametrize(
    ("ddf", "information"),
    [(ddf, "auto") for ddf in batch_inference.DDF] + [("kenward-roger", "expected"), ("kenward-roger", "observed")],
)
@pytest.mark.parametrize("shape", ["nested slopes", "crossed", "wide"])
def test_hypotheses(rng, shape, ddf, information):
    model = made(rng, shape, weights=shape == "crossed", offset=shape == "crossed")
    Y = np.concatenate([responses(rng, model, 3), responses(rng, model, 3, 0.1)])
    batch = model.fit_many(Y)
    singles = [model.refit(y) for y in Y]
    L, rhs = np.array([[0.0, 1.0, -2.0], [0.3, 0.0, 1.0]]), np.array([0.1, -0.2])
    for rows, right in ((L, rhs), (L[:1], rhs[:1]), (np.eye(3)[1:2], rhs[:1])):
        found = batch.test(rows, right, ddf=ddf, information=information)
        for i, single in enumerate(singles):
            own = single.test(rows, right, ddf=ddf, information=information)
            np.testing.assert_allclose(found.statistic[i], own.statistic, rtol=1e-5)
            np.testing.assert_allclose(found.std_error[i], own.std_error, rtol=AGREE)
            np.testing.assert_allclose(found.df_denom[i], own.df_denom, rtol=1e-4)
            np.testing.assert_allclose(found.pvalues[i], own.pvalue, rtol=1e-4)
    whole = batch.tidy(0.9, ddf=ddf, information=information)
    for i, single in enumerate(singles):
        table, rows = single.tidy(level=0.9, ddf=ddf, information=information), whole["response"] == i
        assert list(whole) == ["response", *table]
        assert np.array_equal(np.array(whole["term"])[rows], table["term"])
        for name in ("estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"):
            np.testing.assert_allclose(whole[name][rows], table[name], rtol=1e-4)


def test_kenward_roger_needs_reml(rng):
    model = made(rng, "nested")
    batch = model.fit_many(responses(rng, model, 3), reml=False)
    with pytest.raises(flc.LMMError, match="REML"):
        batch.tidy(ddf="kenward-roger")


# ------------------------------------------------------------------------------------------------------------
# simulation


def test_simulate_fit_is_fit_many_of_the_draws(rng):
    model = made(rng, "three", offset=True)
    result = model.refit(responses(rng, model, 1)[0])
    batch = result.simulate_fit(20, seed=3, n_jobs=2)
    Y = result.simulate(20, seed=3)
    again = model.fit_many(Y)
    np.testing.assert_allclose(batch.criterion, again.criterion, atol=CRITERION)
    # drawn again where they are asked for
    assert batch[7].criterion == pytest.approx(batch.criterion[7], abs=CRITERION)
    np.testing.assert_allclose(batch.random_effects([7])["c"], again.random_effects([7])["c"], rtol=1e-4, atol=1e-6)
    assert batch.test([[0.0, 1.0, 1.0]]).pvalues.shape == (20,)


# ------------------------------------------------------------------------------------------------------------
# bootstrap


def balanced(rng, tops=8, mids=4, rows=3, sd=(3.0, 2.0, 1.0)):
    top, mid = nested(tops, mids, rows)
    y = 10.0 + sd[0] * rng.standard_normal(tops)[top] + sd[1] * rng.standard_normal(tops * mids)[mid]
    y += sd[2] * rng.standard_normal(len(top))
    return flc.LinearMixedModel(y, terms=[RandomTerm(None, mid, name="mid"), RandomTerm(None, top, name="top")]).fit()


def test_parametric_errors_are_those_of_the_model(rng):
    n = 2000
    result = balanced(rng)
    tau, inner = result.G["top"][0, 0], result.G["mid"][0, 0]
    boot = result.bootstrap(n, seed=1)
    assert boot.names == ("x0", "sd_z0|mid", "sd_z0|top", "sigma") or boot.names[0] in ("Intercept", "const", "x0")
    sd = np.sqrt(tau / 8 + inner / 32 + result.sigma2 / 96)
    assert boot.std_error[0] == pytest.approx(sd, rel=5.0 / np.sqrt(2.0 * n))
    # sigma^2 is the mean square within classes on 64 degrees of freedom, wherever no variance is zero
    squares = boot.replicates[~boot.singular, -1] ** 2
    assert squares.mean() == pytest.approx(result.sigma2, rel=5.0 * np.sqrt(2.0 / 64 / n) + 0.002)
    assert squares.std() == pytest.approx(result.sigma2 * np.sqrt(2.0 / 64), rel=0.1)


def test_conditional_errors_leave_out_the_variation_between_groups(rng):
    n = 1000
    result = balanced(rng)
    boot = result.bootstrap(n, "conditional", seed=2)
    assert boot.std_error[0] == pytest.approx(np.sqrt(result.sigma2 / 96), rel=5.0 / np.sqrt(2.0 * n))
    assert abs(boot.bias[0]) < 5.0 * boot.std_error[0] / np.sqrt(n)


def test_residual_draws_have_the_estimated_covariances(rng):
    model = made(rng, "crossed slopes", weights=True)
    result = model.refit(responses(rng, model, 1, 1.5)[0])
    assert not result.singular
    n = 20_000
    Y = np.concatenate([block() for block in draws(_residual(result), n, key_of(5))]) - result.marginal_mean
    root = np.sqrt(model.weights)
    second = Y.T @ Y / n
    expected = np.diag(result.sigma2 / model.weights)
    for f in model.factors:
        Z, level = model.exog_re[:, f.columns], f.grouping.index
        expected += (Z @ result.covariance[f.columns, f.columns] @ Z.T) * (level[:, None] == level)
    # resampled values have some kurtosis: eight standard errors of normal ones
    size = np.sqrt(np.diag(expected))
    assert np.max(np.abs(second - expected) / np.outer(size, size)) < 8.0 * np.sqrt(2.0 / n)
    assert np.max(np.abs(Y.mean(axis=0)) / size) < 6.0 / np.sqrt(n)
    assert root.shape == (model.nobs,)


def test_residual_draws_of_a_factor_without_variance(rng):
    model = made(rng, "nested")
    b = rng.standard_normal(8)[model.factors[1].grouping.index]
    found = (model.refit(2.0 * b + rng.standard_normal(model.nobs)) for _ in range(50))
    result = next(fit for fit in found if fit.G["a"][0, 0] == 0.0 and fit.G["b"][0, 0] > 0.5)
    Y = np.concatenate([block() for block in draws(_residual(result), 4000, key_of(5))]) - result.marginal_mean
    total = result.G["b"][0, 0] + result.sigma2
    assert np.mean(Y**2) == pytest.approx(total, rel=0.05)


def by_hand(result, counts):
    """A fit to the rows of top group i counts[i] times over, every copy with levels of its own."""
    model = result.model
    rows, tops, mids = [], [], []
    mid, top = (f.grouping.index for f in model.factors)
    for group, count in enumerate(counts):
        own = np.flatnonzero(top == group)
        for _ in range(count):
            tops += [len(rows)] * len(own)
            mids += [f"{len(rows)}/{m}" for m in mid[own]]
            rows.append(own)
    at = np.concatenate(rows)
    terms = [
        RandomTerm(model.exog_re[at][:, f.columns], labels, name=f.grouping.name)
        for f, labels in zip(model.factors, (mids, tops), strict=True)
    ]
    return flc.LinearMixedModel(
        model.endog[at], model.exog[at], terms=terms,
        weights=None if model.weights is None else model.weights[at],
        offset=None if model.offset is None else model.offset[at],
    ).fit(reml=result.reml)  # fmt: skip


@pytest.mark.parametrize("reml", [True, False])
def test_cases_are_fits_of_copied_rows(rng, reml):
    model = made(rng, "nested slopes", weights=True, offset=True)
    result = model.refit(responses(rng, model, 1, 1.5)[0], reml=reml)
    n = 12
    boot = result.bootstrap(n, "cases", seed=6)
    counts = stream(key_of(6), 0).multinomial(8, np.full(8, 1.0 / 8), size=n)
    interior = 0
    for i in range(n):
        single = by_hand(result, counts[i])
        assert boot.converged[i] == single.converged
        se = np.sqrt(np.diag(single.cov))
        np.testing.assert_allclose(boot.replicate_std_error[i, :3], se, rtol=AGREE)
        assert (np.abs(boot.replicates[i, :3] - single.beta) < AGREE * se).all()
        np.testing.assert_allclose(boot.replicates[i, -1], single.sigma, rtol=AGREE)
        if not single.singular:
            interior += 1
            np.testing.assert_allclose(boot.replicates[i, 3], np.sqrt(single.G["a"][0, 0]), rtol=1e-5)
    assert interior >= 3


def test_cases_vary_as_the_means_do(rng):
    # balanced: the mean of a resample of the top groups' means has their empirical variance
    result = balanced(rng, tops=20)
    boot = result.bootstrap(300, "cases", seed=9)
    means = result.model.endog.reshape(20, -1).mean(axis=1)
    assert boot.std_error[0] == pytest.approx(means.std() / np.sqrt(20), rel=5.0 / np.sqrt(600.0))


def test_bca_deletes_top_groups(rng):
    result = balanced(rng)
    boot = result.bootstrap(200, seed=1)
    deleted = without_groups(result)
    assert deleted.shape == (8, 4)
    for i in range(8):
        single = by_hand(result, 1 - np.eye(8, dtype=int)[i])
        np.testing.assert_allclose(deleted[i, 0], single.beta[0], rtol=1e-8)
        np.testing.assert_allclose(deleted[i, -1], single.sigma, rtol=1e-6)
    low, high = boot.conf_int(method="bca")[0]
    assert low < result.beta[0] < high


def test_crossed_factors_have_no_cases(rng):
    model = made(rng, "crossed")
    result = model.refit(responses(rng, model, 1)[0])
    with pytest.raises(flc.LMMError, match=r"kind='cases' needs independent groups.*'a' and 'b'.*kind='parametric'"):
        result.bootstrap(10, "cases")
    boot = result.bootstrap(10, seed=1)
    with pytest.raises(flc.LMMError, match=r"method='bca' needs .* independent groups.*'a' and 'b'"):
        boot.conf_int(method="bca")
    assert np.isfinite(boot.conf_int(method="studentized")[0]).all()


def test_seeds_and_threads(rng):
    model = made(rng, "nested")
    result = model.refit(responses(rng, model, 1)[0])
    for kind in ("parametric", "conditional", "residual", "cases"):
        first = result.bootstrap(15, kind, seed=1, n_jobs=1)
        np.testing.assert_array_equal(first.replicates, result.bootstrap(15, kind, seed=1, n_jobs=2).replicates)
        assert not (first.replicates[:, 0] == result.bootstrap(15, kind, seed=2).replicates[:, 0]).any()


def test_a_statistic_of_the_user(rng):
    model = made(rng, "crossed")
    result = model.refit(responses(rng, model, 1)[0])
    boot = result.bootstrap(5, statistic=lambda fit: fit.icc()["b"], seed=1)
    batch = result.simulate_fit(5, seed=1)
    G = batch.G
    np.testing.assert_allclose(
        boot.replicates[:, 0], (G["b"] / (G["a"] + G["b"] + batch.sigma2[:, None, None]))[:, 0, 0], rtol=1e-4, atol=1e-6
    )


# ------------------------------------------------------------------------------------------------------------
# copies of designs


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


def test_copies_of_top_groups(rng):
    model = made(rng, "three")
    # c is the top of a, and b crosses them: no independent groups
    with pytest.raises(flc.LMMError, match=r"this, but the crossed factors .* join all rows"):
        independent_units(model.design, "this")
    model = made(rng, "nested")
    rows, (a, b) = subjects(model.design)(20)
    index_a, index_b = (f.grouping.index for f in model.factors)
    assert len(set(b.tolist())) == b.max() + 1 == 20
    assert a.max() + 1 == len(set(a.tolist()))
    for top in range(20):
        own = b == top
        # all rows of one group, with their own levels below
        (old,) = set(index_b[rows[own]].tolist())
        assert sorted(rows[own].tolist()) == np.flatnonzero(index_b == old).tolist()
        assert same_partition(a[own], index_a[rows[own]])
        assert not set(a[own].tolist()) & set(a[~own].tolist())


def test_copies_of_a_crossed_factor(rng):
    model = made(rng, "crossed")
    index_a, index_b = (f.grouping.index for f in model.factors)
    rows, (a, b) = levels_of(model, "a")(15)
    assert len(set(a.tolist())) == a.max() + 1 == 15
    assert same_partition(b, index_b[rows])
    for level in range(15):
        (old,) = set(index_a[rows[a == level]].tolist())
        assert sorted(rows[a == level].tolist()) == np.flatnonzero(index_a == old).tolist()


def test_copies_of_a_nested_factor_stay_in_their_group(rng):
    top, mid = nested(4, 3, 2)
    model = flc.LinearMixedModel(
        rng.standard_normal(len(top)), terms=[RandomTerm(None, mid, name="mid"), RandomTerm(None, top, name="top")]
    )
    rows, (a, b) = levels_of(model, "mid")(5)
    assert same_partition(b, top[rows])
    assert a.max() + 1 == 20
    np.testing.assert_array_equal(np.bincount(b), 10)
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 20
    rows, (a, b) = levels_of(model, "top")(6)
    assert (a.max() + 1, b.max() + 1) == (18, 6)
    rows, (a, b) = observations(model)(1)
    assert (a.max() + 1, b.max() + 1, len(rows)) == (12, 4, 12)


# ------------------------------------------------------------------------------------------------------------
# power


def schools(m=12, classes=3, pupils=4, effect=1.0, G=(0.5, 0.4), sigma2=1.0):
    """Whole schools are treated or not: the test is the t test of the means of the schools."""
    school, cls = nested(m, classes, pupils)
    data = {"school": school, "class": cls, "treated": (school % 2).astype(float)}
    return flc.assume(
        "score ~ treated + (1 | school / class)", data, {"Intercept": 0.0, "treated": effect},
        {"school": G[0], "school:class": [[G[1]]]}, sigma2,
    )  # fmt: skip


def t_power(df, noncentrality):
    bound = special.stdtrit(df, 0.975)
    return 1.0 - special.nctdtr(df, noncentrality, bound) + special.nctdtr(df, noncentrality, -bound)


def exact(m, classes=3, pupils=4, effect=1.0, G=(0.5, 0.4), sigma2=1.0):
    variance = G[0] + G[1] / classes + sigma2 / (classes * pupils)
    return t_power(m - 2, effect / np.sqrt(4.0 * variance / m))


def near(result, power):
    assert result.n_converged == result.n_sim
    assert abs(result.power - power) < 4.5 * np.sqrt(power * (1.0 - power) / result.n_sim), (result, power)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_treated_schools(effect, ddf):
    # variances so large that hardly any estimate lies on the boundary, where the test is another
    G = (3.0, 2.0)
    result = flc.power(schools(effect=effect, G=G, sigma2=0.5), "treated", n_sim=1500, seed=1, ddf=ddf)
    near(result, exact(12, effect=effect, G=G, sigma2=0.5))
    assert result.singular_fraction < 0.05


def test_more_schools_classes_and_pupils():
    G = (3.0, 2.0)
    source = schools(effect=2.0, G=G, sigma2=0.5)
    for along, values, change in (
        ("subjects", [10, 30], "m"), ("school", [10, 30], "m"), ("school:class", [2, 6], "classes"),
        ("observations", [2, 4], "pupils"),
    ):  # fmt: skip
        curve = flc.power_curve(source, "treated", along, values, n_sim=500, seed=2)
        assert curve.along == along
        for value, result in zip(values, curve.results, strict=True):
            near(result, exact(**({"m": 12, "effect": 2.0, "G": G, "sigma2": 0.5} | {change: value})))
    frame = curve.to_frame()
    assert next(iter(frame)) == "observations"


def test_stated_covariances_reach_the_draws():
    source = schools(m=40, G=(2.0, 0.7), sigma2=0.3)
    assert {name: float(g[0, 0]) for name, g in source.G.items()} == pytest.approx({"school": 2.0, "school:class": 0.7})
    Y = source.simulate(4000, seed=1) - source.population_mean
    cells = Y.reshape(4000, 40, 3, 4)
    assert np.mean(cells[:, :, 0, 0] * cells[:, :, 1, 0]) == pytest.approx(2.0, rel=0.05)
    assert np.mean(cells[:, :, 0, 0] * cells[:, :, 0, 1]) == pytest.approx(2.7, rel=0.05)
    assert np.mean(cells**2) == pytest.approx(3.0, rel=0.05)
    for G, message in (
        ({"school": 1.0}, "G has the terms 'school'; this design has"),
        ({"school": 1.0, "school:class": np.eye(2)}, r"G\['school:class'\] must be a \(1, 1\) matrix"),
        (np.array([[1.0, 0.5], [0.5, 1.0]]), "G has covariances between random effects"),
    ):
        with pytest.raises(flc.LMMError, match=message):
            flc.assume(
                "y ~ 1 + (1 | school / class)", dict(zip(("school", "class"), nested(), strict=True)), [0.0], G, 1.0
            )


def items(n_subjects=10, n_items=8, effect=1.0):
    """Every subject sees every item, once: the test is the t test of the subjects' means between two arms."""
    s, i = np.divmod(np.arange(n_subjects * n_items), n_items)
    data = {"subject": s, "item": i, "arm": (s % 2).astype(float)}
    return flc.assume(
        "y ~ arm + (1 | subject) + (1 | item)", data, [0.0, effect], {"subject": 2.0, "item": 3.0}, 1.0
    )  # fmt: skip


def test_more_subjects_with_the_same_items():
    curve = flc.power_curve(items(effect=2.0), "arm", "subject", [10, 20], n_sim=800, seed=4)
    for m, result in zip((10, 20), curve.results, strict=True):
        near(result, t_power(m - 2, 2.0 / np.sqrt(4.0 * (2.0 + 1.0 / 8.0) / m)))
    # items drop out of the comparison of arms but for the number of answers
    curve = flc.power_curve(items(effect=2.0), "arm", "item", [4, 16], n_sim=800, seed=5)
    for k, result in zip((4, 16), curve.results, strict=True):
        near(result, t_power(8, 2.0 / np.sqrt(4.0 * (2.0 + 1.0 / k) / 10)))


def test_refused():
    with pytest.raises(
        flc.LMMError, match=r"along='subjects' needs independent groups.*along='subject' or along='item'"
    ):
        flc.power_curve(items(), "arm", values=[10], n_sim=10)
    with pytest.raises(flc.LMMError, match="along='pupil' is unknown: use 'subjects', 'observations', 'effect'"):
        flc.power_curve(items(), "arm", "pupil", values=[10], n_sim=10)
    with pytest.raises(flc.LMMError, match="values must be whole numbers of subject, at least 2"):
        flc.power_curve(items(), "arm", "subject", values=[1], n_sim=10)


def test_likelihood_ratio_agrees_with_single_fits():
    source = items()
    result = flc.power(source, "arm", n_sim=5, method="lrt", seed=3)
    X = source.model.exog
    for y, p in zip(source.simulate(5, 3), result.pvalues, strict=True):
        full = source.model.refit(y, reml=False)
        terms = [RandomTerm(None, f.grouping.index, name=f.grouping.name) for f in source.model.factors]
        null = flc.LinearMixedModel(y, X[:, :1], terms=terms).fit(reml=False)
        chi2 = max(null.criterion - full.criterion, 0.0)
        assert p == pytest.approx(special.chdtrc(1, chi2), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("shape", ["nested", "crossed", "crossed slopes"])
def test_responses_at_the_same_theta_do_not_share_their_state(rng, shape):
    """Zero variances, or a response and its mirror image: the covariances are the same, the effects are not."""
    model = made(rng, shape)
    noise = responses(rng, model, 40, 0.0)
    noise -= np.mean(noise[:, :1])
    batch = model.fit_many(noise)
    flat = np.flatnonzero((batch.theta == 0.0).all(axis=1))[:3]
    y = responses(rng, model, 1)
    Y = np.concatenate([noise[flat], y, -y, 3.0 * y + 5.0 * model.exog[:, 1]])
    assert len(flat) == 3 or shape == "crossed slopes"
    batch = model.fit_many(Y, n_jobs=1)
    L = np.eye(3)[1:]
    tests = batch.test(L)
    effects = batch.random_effects()
    for i, y in enumerate(Y):
        single = model.refit(y)
        alone = single.test(L)
        np.testing.assert_allclose(tests.statistic[i], alone.statistic, rtol=1e-5)
        np.testing.assert_allclose(tests.df_denom[i], alone.df_denom, rtol=1e-4)
        for name, b in single.random_effects.items():
            assert np.max(np.abs(effects[name][i] - b)) < 1e-5 * np.sqrt(single.sigma2)


def test_blas_threads_come_back():
    from threadpoolctl import ThreadpoolController

    from fastlmm_core.support.blas_threads import one_blas_thread

    def counts():
        return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]

    before = counts()
    assert before
    with one_blas_thread():
        with one_blas_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {1}
    assert counts() == before


def test_few_responses_are_not_worth_a_thread(rng, monkeypatch):
    asked = []
    kept = batch_module.in_threads
    monkeypatch.setattr(batch_module, "in_threads", lambda *task: (asked.append(task[2]), kept(*task)))
    monkeypatch.setattr(batch_module, "WORTH_ONE", 8)
    model = made(rng, "crossed slopes")
    Y = responses(rng, model, 17)
    for count, jobs in ((7, 1), (17, 2)):
        model.fit_many(Y[:count], n_jobs=3)
        assert asked.pop() == jobs


def test_an_effect_is_not_set_to_zero_where_that_is_no_minimum():
    """At zero the gradient in theta vanishes whatever the effect is: its variance must not want to grow."""
    rng = np.random.default_rng(12)
    a, b = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    y = rng.standard_normal(96) + 2.0 * rng.standard_normal(12)[a] + 2.0 * rng.standard_normal(8)[b]
    one = np.ones((96, 1))
    model = flc.LinearMixedModel(y, one, terms=[flc.RandomTerm(one, a, name="a"), flc.RandomTerm(one, b, name="b")])
    design = HierarchyDesign(model)
    responses, _ = design.condition(y[None])
    worker = design.worker()
    worker.take(responses.cross[0], True)
    # whatever is higher than anything else
    assert design._at_zero(worker, np.array([1.0, 0.0]), 1e9) is None
    still = y - np.array([y[b == level].mean() for level in range(8)])[b]
    responses, _ = design.condition(still[None])
    worker.take(responses.cross[0], True)
    found = design._at_zero(worker, np.array([1.0, 0.0]), 1e9)
    assert found is not None and found[3]
