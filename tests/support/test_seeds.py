"""Whatever starts a stream of random numbers, and whatever asks for threads."""

import os
from unittest import mock

import numpy as np
import pytest

import fastlmm_core as flc
import fits
from fastlmm_core.support.seeds import generator_of, key_of
from fastlmm_core.support.threads import processors, thread_count


@pytest.fixture(scope="module")
def fit():
    return fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


def test_seeds_of_every_kind():
    """Integers, sequences and SeedSequences stand for numpy's streams; equal seeds for equal ones."""
    for one, other in (
        (7, np.int64(7)),
        (7, np.random.SeedSequence(7)),
        ([1, 2], (1, 2)),
        ([1, 2], np.array([1, 2])),
        ([1, 2], np.random.SeedSequence([1, 2])),
        (2**80, np.random.SeedSequence(2**80)),
    ):
        np.testing.assert_array_equal(key_of(one), key_of(other))
        assert generator_of(one).random() == generator_of(other).random()
    np.testing.assert_array_equal(generator_of(7).random(3), np.random.default_rng(7).random(3))
    np.testing.assert_array_equal(generator_of([1, 2]).random(3), np.random.default_rng([1, 2]).random(3))
    assert key_of([1, 2]).tolist() != key_of([2, 1]).tolist()
    assert key_of(None).tolist() != key_of(None).tolist()
    # children of one sequence are independent; the sequence itself does not move on
    parent = np.random.SeedSequence(3)
    first, second = parent.spawn(2)
    assert len({tuple(key_of(s)) for s in (parent, first, second)}) == 3
    np.testing.assert_array_equal(key_of(first), key_of(first))
    # a generator does
    rng = np.random.default_rng(0)
    assert generator_of(rng) is rng
    assert key_of(rng).tolist() != key_of(rng).tolist()


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (np.random.RandomState(0), "RandomState, numpy's legacy generator; give"),
        (-1, "seed=-1 must not be negative"),
        ([3, -1], "seed=-1 must not be negative"),
        (1.5, "seed holds 1.5 of type 'float'"),
        ("7", "seed holds '7' of type 'str'"),
        (True, "seed holds True of type 'bool'"),
        ([], "seed is an empty sequence"),
        ([1, 2.0], "seed holds 2.0 of type 'float'"),
        (np.random.PCG64(0), "of type 'PCG64'"),
    ],
)
def test_what_is_no_seed_is_refused_everywhere(fit, seed, words):
    data = flc.datasets.load("sleepstudy")
    smaller = flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit()
    calls = [
        lambda: fit.simulate(1, seed), lambda: fit.simulate_fit(2, seed), lambda: fit.bootstrap(2, seed=seed),
        lambda: flc.power(fit, "Days", n_sim=2, seed=seed),
        lambda: flc.compare(smaller, fit, n_sim=100, seed=seed),
        lambda: flc.compare(smaller, fit, n_sim=100, null="bootstrap", seed=seed),
        lambda: fit.random_effect_test(n_sim=100, seed=seed),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(flc.LMMError) as error:
            call()
        assert words in str(error.value)


def test_seeds_reach_what_is_drawn(fit):
    for seed in (np.random.SeedSequence(5), [5, 6], (5, 6), np.array([5, 6])):
        np.testing.assert_array_equal(fit.simulate(3, seed), fit.simulate(3, seed))
        again = fit.model.fit_many(fit.simulate(3, seed))
        np.testing.assert_allclose(fit.simulate_fit(3, seed).params, again.params, rtol=1e-9)
        fit.bootstrap(2, seed=seed)
        flc.power(fit, "Days", n_sim=2, seed=seed)
    # an array of two integers is a seed, not a key
    pair = np.array([5, 6], dtype=np.uint64)
    np.testing.assert_array_equal(fit.simulate(1, pair), fit.simulate(1, [5, 6]))
    assert not np.array_equal(fit.simulate(1, pair), fit.simulate(1, pair[::-1]))


def test_threads_are_those_that_the_process_may_use():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors() == thread_count(None) == thread_count(-1) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert processors() == len(before)
    with mock.patch.object(os, "sched_getaffinity", return_value=set(range(5))):
        assert thread_count(-1) == thread_count(None) == 5
    assert thread_count(np.int64(3)) == 3


@pytest.mark.parametrize("n_jobs", [0, -2, 10**6, 2.0, "2", True, 1.5, [1]])
def test_numbers_of_threads_that_make_no_sense(fit, n_jobs):
    model = fit.model
    Y = np.vstack([model.endog] * 2)
    for call in (
        lambda: model.fit_many(Y, n_jobs=n_jobs), lambda: model.fit_many((y for y in Y), n_jobs=n_jobs),
        lambda: fit.simulate_fit(2, 0, n_jobs=n_jobs), lambda: fit.bootstrap(2, n_jobs=n_jobs),
        lambda: flc.power(fit, "Days", n_sim=2, n_jobs=n_jobs),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match="n_jobs"):
            call()


@pytest.mark.parametrize("n", [0, -1, 10**20, 2.5, "3", None, True])
def test_numbers_of_draws_that_make_no_sense(fit, n):
    for call in (
        lambda: fit.simulate(n), lambda: fit.simulate_fit(n), lambda: fit.bootstrap(n),
        lambda: flc.power(fit, "Days", n_sim=n),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=r"\bn\b|n_sim"):
            call()
    with pytest.raises(flc.LMMError, match="would take 144 GB; draw fewer, or fit them without storing them"):
        fit.simulate(10**8)
