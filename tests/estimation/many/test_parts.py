"""Parts of batches, batches put together, and pickles: the same fits, without fitting again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc


@pytest.fixture
def model(rng):
    groups = np.repeat(np.arange(12), 5)
    t = np.tile(np.linspace(-1.0, 1.0, 5), 12)
    X = np.column_stack([np.ones(60), t])
    return flc.LinearMixedModel(rng.standard_normal(60), X, X, groups)


@pytest.fixture
def Y(rng, model):
    b = rng.standard_normal((9, 12, 2))
    return np.einsum("rij,ij->ri", b[:, model.grouping.index], model.exog_re) + rng.standard_normal((9, 60))


ARRAYS = ("params", "bse", "sigma2", "criterion", "converged", "singular", "theta", "covariance", "df", "aic", "bic")


def equal(one, other, rows):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[rows], err_msg=name)


@pytest.mark.parametrize(
    "which",
    [slice(3, 5), slice(None, None, -2), [4, 0, 4], np.arange(9) % 3 == 0, np.array([7, -1]), [], np.zeros(9, bool)],
)
def test_parts(model, Y, which):
    batch = model.fit_many(Y)
    rows = np.arange(9)[which] if len(np.shape(which)) == 0 or len(which) else np.arange(0)
    part = batch[which]
    assert len(part) == len(rows)
    equal(part, batch, rows)
    for k, i in enumerate(rows):
        assert part[k].criterion == batch[int(i)].criterion == model.refit(Y[i]).criterion
    if len(rows):
        np.testing.assert_array_equal(part.random_effects(), batch.random_effects()[rows])
        L = [[1.0, 2.0]]  # takes the responses
        np.testing.assert_array_equal(part.test(L).pvalues, batch.test(L).pvalues[rows])
        again = part[::-1]
        equal(again, batch, rows[::-1])
        np.testing.assert_array_equal(again.random_effects(), batch.random_effects()[rows[::-1]])


def test_what_is_no_index(model, Y):
    batch = model.fit_many(Y)
    for which in ([[1, 2], [3]], [[1, 2]], [9], [0.5], np.ones(4, bool)):
        with pytest.raises(flc.LMMError, match="which must be positions below 9"):
            batch[which]
        with pytest.raises(flc.LMMError, match="which must be positions below 9"):
            batch.random_effects(which)


def test_criteria_intervals_and_covariances(model, Y):
    for reml in (True, False):
        batch = model.fit_many(Y, reml=reml)
        limits, covariances = batch.conf_int(0.9), batch.cov_params()
        for i in range(9):
            one = batch[i]
            np.testing.assert_allclose([batch.aic[i], batch.bic[i]], [one.aic, one.bic], rtol=1e-9)
            np.testing.assert_allclose(covariances[i], one.cov_params(), rtol=1e-6)
            np.testing.assert_allclose(limits[i], one.conf_int(0.9), rtol=1e-6)
    kr = model.fit_many(Y).conf_int(ddf="kenward-roger")
    np.testing.assert_allclose(kr[2], model.refit(Y[2]).conf_int(ddf="kenward-roger"), rtol=1e-6)


def test_covariances_without_estimates(model, Y):
    X = np.column_stack([model.exog, model.exog[:, 1]])
    wide = flc.LinearMixedModel(Y[0], X, model.exog_re, model.grouping.index)
    Y[3] = 2.0
    found = wide.fit_many(Y).cov_params()
    np.testing.assert_allclose(found[[0, 8], :2, :2], model.fit_many(Y).cov_params()[[0, 8]], rtol=1e-6)
    assert np.isnan(found[0, 2]).all() and np.isnan(found[0, :, 2]).all() and np.isnan(found[3]).all()


def test_put_together(model, Y):
    whole, batches = model.fit_many(Y), [model.fit_many(Y[:4]), model.fit_many(Y[4:5]), model.fit_many(Y[5:])]
    joined = type(whole).concat(batches)
    equal(joined, whole, np.arange(9))
    np.testing.assert_array_equal(joined.random_effects([8, 0, 4]), whole.random_effects([8, 0, 4]))
    assert joined[4].criterion == whole[4].criterion
    # a stream has no responses, and so has not what it is part of
    half = type(whole).concat([model.fit_many(iter([Y[:4]])), batches[1]])
    equal(half, whole, np.arange(5))
    with pytest.raises(flc.LMMError, match="given as a stream"):
        half[0]
    drawn = model.fit().simulate_fit(6, seed=1)
    mixed = type(whole).concat([drawn, batches[0]])
    assert mixed[2].criterion == drawn[2].criterion and mixed[7].criterion == whole[1].criterion
    Y[1] += 1.0
    with pytest.raises(flc.LMMError, match="Y has been changed"):
        joined[1]
    with pytest.raises(flc.LMMError, match="by ML and batches"):
        type(whole).concat([whole, model.fit_many(Y, reml=False)])
    with pytest.raises(flc.LMMError, match="at least one"):
        type(whole).concat([])
    other = flc.LinearMixedModel(Y[0], model.exog[:, :1], model.exog_re, model.grouping.index)
    with pytest.raises(flc.LMMError, match="another design"):
        type(whole).concat([whole, other.fit_many(Y)])
    # of as much weight in all, which leaves columns conditioned as they were
    ones, groups, weights = np.ones((60, 1)), model.grouping.index, np.tile([1.0, 2.0], 30)
    one = flc.LinearMixedModel(Y[0], ones, None, groups, weights=weights)
    for more in ({"weights": weights[::-1]}, {"weights": weights, "offset": weights}):
        with pytest.raises(flc.LMMError, match="another design"):
            type(whole).concat(
                [m.fit_many(Y) for m in (one, flc.LinearMixedModel(Y[0], np.ones((60, 1)), None, groups, **more))]
            )
    same = flc.LinearMixedModel(Y[0], model.exog.copy(), model.exog_re, model.grouping.index)
    assert len(type(whole).concat([whole, same.fit_many(Y)])) == 18


def test_pickles_leave_responses_out(model, Y):
    many = np.tile(Y, (200, 1))
    batch = model.fit_many(many)
    data = pickle.dumps(batch)
    assert len(data) < many.nbytes
    again = pickle.loads(data)
    equal(again, batch, np.arange(len(batch)))
    with pytest.raises(flc.LMMError, match="not part of a pickle"):
        again.random_effects()
    with pytest.raises(flc.LMMError, match="not part of a pickle"):
        again.test([[1.0, 2.0]])
    with pytest.raises(flc.LMMError, match="not part of a pickle"):
        again[:2].test("x1", vcov="robust")
    back = again.with_responses(many)
    np.testing.assert_array_equal(back.random_effects([3]), batch.random_effects([3]))
    with pytest.raises(flc.LMMError, match="Y has been changed"):
        again.with_responses(many + 1.0)[0]
    with pytest.raises(flc.LMMError, match=r"of shape \(1800, 60\)"):
        again.with_responses(Y)
    # draws are made again
    drawn = model.fit().simulate_fit(5, seed=2)
    assert pickle.loads(pickle.dumps(drawn))[3].criterion == drawn[3].criterion


def test_what_a_stream_gave_before_an_error_is_kept(rng):
    g = np.repeat(np.arange(12), 5)
    Y = rng.standard_normal((70, 12))[:, g] + rng.standard_normal((70, 60))
    model = flc.LinearMixedModel(Y[0], None, None, g)
    for count in (1, 2, 7):

        def blocks(count=count):
            for k in range(count):
                yield Y[10 * k : 10 * k + 10]
            raise RuntimeError("the disk is gone")

        for jobs in (1, 2):
            with pytest.raises(RuntimeError) as caught:
                model.fit_many(blocks(), n_jobs=jobs)
            kept = caught.value.batch
            assert len(kept) == 10 * count
            np.testing.assert_array_equal(kept.params, model.fit_many(Y[: 10 * count]).params)
