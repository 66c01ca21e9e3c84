"""Runs that are broken off and go on, and estimates written to arrays of the caller's."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.estimation.many import policy
from fastlmm_core.estimation.many.parts import FIELDS
from fastlmm_core.estimation.many.progress import UNREACHED


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(8), 5)
    return flc.lmm("y ~ x + (x | g)", {"y": rng.normal(size=40), "x": rng.normal(size=40), "g": g})


@pytest.fixture(scope="module")
def Y(model):
    rng = np.random.default_rng(2)
    return rng.normal(size=(64, 40)) + rng.normal(size=(64, 8))[:, model.grouping.index]


class Breaks:
    """Responses of which some cannot be read, the first time."""

    ndim = 2

    def __init__(self, values, where, error):
        self.values, self.shape, self.dtype, self.where, self.error = values, values.shape, values.dtype, where, error

    def __getitem__(self, at):
        if self.error is not None and at.start <= self.where < at.stop:
            error, self.error = self.error, None
            raise error
        return self.values[at]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full"), MemoryError()])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_run_goes_on(model, Y, error, jobs, monkeypatch):
    monkeypatch.setattr(policy, "WORTH_A_THREAD", 1)
    given = Breaks(Y, 40, error)
    with pytest.raises(type(error)) as raised:
        model.fit_many(given, n_jobs=jobs, memory=0.01)
    left = raised.value.batch
    reached = left.status != UNREACHED
    assert 0 < reached.sum() < 64 and not reached[40]
    whole = model.fit_many(Y)
    np.testing.assert_array_equal(left.params[reached], whole.params[reached])
    assert np.isnan(left.params[~reached]).all() and not left.converged[~reached].any()
    fitted = []
    original = policy._alone

    def watch(model, responses, into, part):
        fitted.append(part.stop - part.start)
        original(model, responses, into, part)

    monkeypatch.setattr(policy, "_alone", watch)
    again = model.fit_many(given, n_jobs=jobs, memory=0.01, resume=left)
    assert 0 < sum(fitted) < 64
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)
    np.testing.assert_array_equal(again[41].model.endog, Y[41])
    # a block of which a part is there is fitted
    again = model.fit_many(Y, n_jobs=1, memory=1.0, resume=left)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)


def test_a_stream_keeps_what_is_finished(model, Y):
    def blocks():
        yield Y[:16]
        yield Y[16:32]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more") as raised:
        model.fit_many(blocks(), n_jobs=1)
    left = raised.value.batch
    whole = model.fit_many(Y)
    assert len(left) in (0, 16, 32)
    np.testing.assert_array_equal(left.params, whole.params[: len(left)])
    rest = model.fit_many(iter([Y[len(left) :]]))
    np.testing.assert_array_equal(flc.batch_result.BatchResult.concat([left, rest]).params, whole.params)


@pytest.mark.parametrize("stream", [False, True])
def test_estimates_are_written(model, Y, tmp_path, stream, monkeypatch):
    monkeypatch.setattr(policy, "WORTH_A_THREAD", 1)
    out = {
        "params": np.lib.format.open_memmap(tmp_path / "params.npy", "w+", shape=(64, 2)),
        "df": np.empty((64, 2)), "covariance": np.empty((64, 2, 2)), "converged": np.empty(64, dtype=bool),
        "criterion": np.empty(64, dtype=np.float32), "theta": np.empty((64, 3)),
    }  # fmt: skip
    given = iter([Y[:20], Y[20:]]) if stream else Y
    batch = model.fit_many(given, out=out, n_jobs=2, memory=0.01)
    np.testing.assert_array_equal(out["params"], batch.params)
    np.testing.assert_array_equal(out["df"], batch.df)
    np.testing.assert_array_equal(out["covariance"], batch.covariance)
    np.testing.assert_array_equal(out["converged"], batch.converged)
    np.testing.assert_allclose(out["criterion"], batch.criterion, rtol=1e-6)
    np.testing.assert_array_equal(out["theta"], batch.theta)


def test_what_is_refused(model, Y):
    whole = model.fit_many(Y)
    for options, message in (
        ({"out": [1]}, "out must be names to arrays"),
        ({"out": {"pvalues": np.empty(64)}}, "there is no 'pvalues'"),
        ({"out": {"params": np.empty((64, 3))}}, r"of shape \(64, 2\), not \(64, 3\)"),
        ({"out": {"sigma2": np.empty(60)}}, r"of shape \(64,\), not \(60,\)"),
        ({"resume": whole[:3]}, "another design, criterion or number"),
        ({"resume": model.fit_many(Y, reml=False)}, "another design, criterion or number"),
        ({"resume": 3}, "resume is a int"),
        ({"resume": whole, "missing": "drop"}, "leave the other options out"),
    ):
        with pytest.raises(LMMError, match=message):
            model.fit_many(Y, **options)
    with pytest.raises(LMMError, match="resume needs an array"):
        model.fit_many(iter([Y]), resume=whole)
