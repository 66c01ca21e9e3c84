"""Runs that are broken off and go on, and estimates written to arrays of the caller's."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.estimation.many import looks, masks, pieces
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
    monkeypatch.setattr(pieces, "WORTH_A_THREAD", 1)
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
    original = pieces.fit_alone

    def watch(model, responses, into, part):
        fitted.append(part.stop - part.start)
        original(model, responses, into, part)

    monkeypatch.setattr(pieces, "fit_alone", watch)
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
    monkeypatch.setattr(pieces, "WORTH_A_THREAD", 1)
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
        ({"resume": whole, "missing": "drop"}, "resume is a BatchResult; give the batch"),
        ({"resume": whole, "offset": Y}, "resume is a BatchResult; give the batch"),
    ):
        with pytest.raises(LMMError, match=message):
            model.fit_many(Y, **options)
    with pytest.raises(LMMError, match="resume needs an array"):
        model.fit_many(iter([Y]), resume=whole)


def breaks_once(monkeypatch, owner, name, when):
    """Let a function raise KeyboardInterrupt at one of its calls."""
    original, calls = getattr(owner, name), []

    def broken(*args):
        calls.append(args)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, name, broken)
    return calls


def with_holes(Y):
    """Four masks that many have, and thirty-six that one has each."""
    rng = np.random.default_rng(3)
    masked = np.concatenate([Y] * 3)
    masked[:50, 3:9] = np.nan
    masked[50:80, 30:] = np.nan
    for i in range(90, 126):
        masked[i, rng.choice(40, 5, replace=False)] = np.nan
    masked[150] = np.nan
    return masked[rng.permutation(len(masked))]


ESTIMATES = ("params", "bse", "df", "sigma2", "criterion", "theta", "covariance", "converged", "singular", "nobs")


def alike(one, other):
    for name in ESTIMATES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def arrays_for(count):
    shapes = {"params": (2,), "bse": (2,), "df": (2,), "theta": (3,), "covariance": (2, 2)}
    kinds = {"converged": bool, "singular": bool, "nobs": int}
    return {name: np.full((count, *shapes.get(name, ())), 7, kinds.get(name, float)) for name in ESTIMATES}


def written(out, found, fitted):
    for name, values in out.items():
        wanted = getattr(found, name)
        np.testing.assert_array_equal(np.asarray(values)[fitted], wanted[fitted], err_msg=name)
    assert np.isnan(np.asarray(out["params"])[~fitted]).all() and not np.asarray(out["converged"])[~fitted].any()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("when", [2, 4, 40])
def test_a_run_with_holes_goes_on(model, Y, when, jobs, monkeypatch):
    monkeypatch.setattr(masks, "FEW", 16)
    masked = with_holes(Y)
    whole = model.fit_many(masked, missing="drop", n_jobs=1)
    assert len(whole.masks) == 3 and len(whole.scattered[0]) == 37
    out = arrays_for(len(masked))
    with monkeypatch.context() as patch:
        if when == 40:
            from fastlmm_core.estimation.many import stack_fit

            patch.setattr(stack_fit, "PIECE", 8)
            breaks_once(patch, stack_fit, "estimates_of", 3)
        else:
            patch.setattr(pieces, "WORTH_A_THREAD", 1)
            breaks_once(patch, pieces, "fit_together", when)
        with pytest.raises(KeyboardInterrupt) as raised:
            model.fit_many(masked, missing="drop", n_jobs=jobs, memory=0.01, out=out)
    left = raised.value.batch
    there = np.isfinite(left.criterion)
    assert 0 < there.sum() < np.isfinite(whole.criterion).sum()
    np.testing.assert_array_equal(left.params[there], whole.params[there])
    if when == 40:
        with pytest.raises(LMMError, match="could not be fitted: the run was broken off"):
            left[int(np.flatnonzero(~there & np.isfinite(whole.criterion))[-1])]
    again = model.fit_many(masked, missing="drop", n_jobs=jobs, memory=0.01, out=out, resume=left)
    alike(again, whole)
    written(out, whole, np.isfinite(whole.criterion))
    other = masked.copy()
    other[np.flatnonzero(np.isnan(masked).sum(axis=1) == 0)[0], 0] = np.nan
    with pytest.raises(LMMError, match="number or missing values of responses"):
        model.fit_many(other, missing="drop", resume=left)


def test_what_is_left_of_later_masks_stays(model, Y, monkeypatch):
    """A run that goes on and is broken off again, before it has come to them."""
    monkeypatch.setattr(masks, "FEW", 16)
    masked = with_holes(Y)
    first = model.fit_many(masked, missing="drop", n_jobs=1)
    # as if the first mask had not been reached
    lost = first.masks[0]._replace(batch=None, reason="")
    left = type(first)(model, (lost, *first.masks[1:]), None, first.scattered)
    breaks_once(monkeypatch, pieces, "fit_together", 1)
    with pytest.raises(KeyboardInterrupt) as raised:
        model.fit_many(masked, missing="drop", n_jobs=1, resume=left)
    again = raised.value.batch
    later = np.concatenate([mask.members for mask in first.masks[1:]])
    np.testing.assert_array_equal(again.params[later], first.params[later])
    assert np.isnan(again.params[lost.members]).all()


@pytest.mark.parametrize("jobs", [2, 5])
def test_masks_and_their_pieces_go_to_any_number_of_threads(model, Y, jobs, monkeypatch):
    """Each design is made once, some of them while others are fitted, and smaller pieces come last."""
    monkeypatch.setattr(masks, "FEW", 16)
    masked = with_holes(Y)
    whole = model.fit_many(masked, missing="drop", n_jobs=1)
    monkeypatch.setattr(pieces, "WORTH_A_THREAD", 1)
    made, lengths = [], []
    begin, fit = masks.begin_many, pieces.Run._fit
    monkeypatch.setattr(masks, "begin_many", lambda *arguments: (made.append(arguments[6]), begin(*arguments))[1])
    monkeypatch.setattr(pieces.Run, "_fit", lambda self, *piece: (lengths.append(len(piece[0])), fit(self, *piece))[1])
    alike(model.fit_many(masked, missing="drop", n_jobs=jobs), whole)
    sizes = [len(mask.members) for mask in whole.masks]
    assert made == [sum(sizes[k + 1 :]) for k in range(3)]
    assert sum(lengths) == sum(sizes) and max(lengths) > min(lengths)


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_that_a_piece_finds_without_a_fit(model, Y, jobs, monkeypatch):
    """None of their responses has estimates, and the other masks have theirs."""
    monkeypatch.setattr(masks, "FEW", 16)
    monkeypatch.setattr(pieces, "WORTH_A_THREAD", 1)
    masked = with_holes(Y)
    whole, out, fit = model.fit_many(masked, missing="drop", n_jobs=1), arrays_for(len(masked)), pieces.Run._fit
    lost = whole.masks[1]

    def fails(self, block, into, first):
        if block.shape[1] == len(lost.rows) and first > 0:
            raise LMMError("no fit of these")
        fit(self, block, into, first)

    monkeypatch.setattr(pieces.Run, "_fit", fails)
    found = model.fit_many(masked, missing="drop", n_jobs=jobs, memory=0.005, out=out)
    assert [mask.reason for mask in found.masks] == ["", "no fit of these", ""] and found.masks[1].batch is None
    others = np.isfinite(whole.criterion) & ~np.isin(np.arange(len(masked)), lost.members)
    np.testing.assert_array_equal(found.params[others], whole.params[others])
    written(out, found, others)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_with_weights_goes_on(model, Y, jobs, monkeypatch):
    from fastlmm_core.estimation.many import stack_fit

    monkeypatch.setattr(stack_fit, "PIECE", 8)
    weights, offset = np.random.default_rng(4).uniform(0.5, 2.0, (2, *Y.shape))
    Y = Y.copy()
    Y[5, 3] = np.nan
    own = {"weights": weights, "offset": offset}
    whole = model.fit_many(Y, **own)
    out = arrays_for(len(Y))
    with monkeypatch.context() as patch:
        breaks_once(patch, stack_fit, "estimates_of", 4)
        with pytest.raises(KeyboardInterrupt) as raised:
            model.fit_many(Y, **own, out=out, n_jobs=jobs)
    left = raised.value.batch
    reached = left.status != UNREACHED
    assert 0 < reached.sum() < 64
    fits = []
    original = stack_fit.StackFit.refuse
    monkeypatch.setattr(stack_fit.StackFit, "refuse", lambda self, i, why: (fits.append(i), original(self, i, why)))
    again = model.fit_many(Y, **own, out=out, n_jobs=jobs, resume=left)
    alike(again, whole)
    assert list(again.reasons) == [5] and fits == ([] if reached[5] else [5])
    written(out, whole, np.arange(64) != 5)
    with pytest.raises(LMMError, match="of other columns, another criterion or number"):
        model.fit_many(Y, **own, resume=left, reml=False)


@pytest.mark.parametrize("library", ["h5py", "zarr"])
def test_stores_take_what_masks_have(model, Y, library, tmp_path, monkeypatch):
    store = pytest.importorskip(library)
    from fastlmm_core.estimation.many import progress

    monkeypatch.setattr(progress, "SPAN", 16)
    masked = with_holes(Y)
    shape = (len(masked), 2)
    if library == "h5py":
        params = store.File(tmp_path / "e.h5", "w").create_dataset("params", shape, "f8", chunks=(10, 2))
    else:
        params = store.create_array(str(tmp_path / "e.zarr"), shape=shape, chunks=(10, 2), dtype="f4")
    found = model.fit_many(masked, missing="drop", out={"params": params})
    np.testing.assert_allclose(params[:], found.params, rtol=1e-6)


def test_several_factors_go_on(monkeypatch):
    from fastlmm_core.estimation.many import stack_fit

    rng = np.random.default_rng(5)
    data = {"y": rng.normal(size=48), "a": np.repeat(np.arange(8), 6), "b": np.tile(np.arange(6), 8)}
    model = flc.lmm("y ~ 1 + (1 | a) + (1 | b)", data)
    Y = rng.normal(size=(10, 48)) + rng.normal(size=(10, 8))[:, data["a"]]
    monkeypatch.setattr(stack_fit, "PIECE_ALONE", 2)
    weights = rng.uniform(0.5, 2.0, Y.shape)
    whole = model.fit_many(Y, weights=weights)
    with monkeypatch.context() as patch:
        breaks_once(patch, stack_fit, "estimate", 6)
        with pytest.raises(KeyboardInterrupt) as raised:
            model.fit_many(Y, weights=weights, n_jobs=1)
    left = raised.value.batch
    assert (left.status != UNREACHED).sum() == 4
    alike(model.fit_many(Y, weights=weights, resume=left), whole)
    Y[np.arange(10), np.arange(10)] = np.nan
    whole = model.fit_many(Y, missing="drop")
    with monkeypatch.context() as patch:
        breaks_once(patch, looks, "estimate", 6)
        with pytest.raises(KeyboardInterrupt) as raised:
            model.fit_many(Y, missing="drop", n_jobs=1)
    left = raised.value.batch
    assert np.isfinite(left.criterion).sum() == 5
    alike(model.fit_many(Y, missing="drop", resume=left), whole)


def parts_of_a_table():
    """A table of 40 parts of 24 rows, of which one has a response without variation."""
    rng = np.random.default_rng(8)
    part, g = np.repeat(np.arange(40), 24), np.tile(np.repeat(np.arange(6), 4), 40)
    x = rng.normal(size=960)
    y = x + rng.normal(size=(40, 6))[part, g] + rng.normal(size=960)
    y[part == 5] = 1.0
    return {"y": y, "x": x, "g": g, "h": np.tile(np.arange(4), 240), "part": np.array([f"p{k:02d}" for k in part])}


def by_arrays(data, **more):
    X = np.column_stack([np.ones(960), data["x"]])
    return flc.fit_each(data["y"], X, None, data["g"], data["part"], **more)


def by_table(data, **more):
    return flc.fit_by("y ~ x + (1 | g)", data, by="part", **more)


def by_factors(data, **more):
    return flc.fit_by("y ~ x + (1 | g) + (1 | h)", data, by="part", **more)


@pytest.mark.parametrize("fit", [by_arrays, by_table, by_factors])
@pytest.mark.parametrize("jobs", [1, 2])
def test_parts_of_a_table_go_on(fit, jobs, monkeypatch, tmp_path):
    from fastlmm_core.estimation.many import stack_fit

    monkeypatch.setattr(stack_fit, "PIECE", 8)
    data = parts_of_a_table()
    whole = fit(data)
    assert list(whole.reasons) == [5]
    shapes = {"params": (2,), "bse": (2,), "df": (2,), "theta": (whole.theta.shape[1],)}
    shapes["covariance"] = whole.covariance.shape[1:]
    out = {name: np.full((40, *shapes.get(name, ())), 7.0) for name in ESTIMATES}
    out["params"] = np.lib.format.open_memmap(tmp_path / "params.npy", "w+", shape=(40, 2))
    with monkeypatch.context() as patch:
        breaks_once(patch, stack_fit, "estimates_of", 3)
        with pytest.raises(KeyboardInterrupt) as raised:
            fit(data, out=out, n_jobs=jobs)
    left = raised.value.batch
    reached = left.status != UNREACHED
    assert 0 < reached.sum() < 40 and np.isnan(left.params[~reached]).all()
    assert all(left.reasons[i] == stack_fit.NOT_REACHED for i in np.flatnonzero(~reached))
    fits = []
    original = stack_fit.in_threads
    monkeypatch.setattr(stack_fit, "in_threads", lambda run, tasks, *more: original(run, counted(tasks, fits), *more))
    again = fit(data, out=out, n_jobs=jobs, resume=left)
    alike(again, whole)
    np.testing.assert_array_equal(again.n_evaluations, whole.n_evaluations)
    assert again.reasons == whole.reasons
    written(out, whole, np.ones(40, dtype=bool))
    # a finished run is taken as it is
    before = len(fits)
    alike(fit(data, resume=again), whole)
    assert len(fits) == before
    other = data | {"y": data["y"] + np.linspace(0.0, 1e-9, 960)}
    with pytest.raises(LMMError, match="resume is of problems with other values or labels"):
        fit(other, resume=left)
    with pytest.raises(LMMError, match="another criterion or number of problems"):
        fit(data, resume=left, reml=False)
    with pytest.raises(LMMError, match="resume is a int"):
        fit(data, resume=3)
    with pytest.raises(LMMError, match=r"out\['bse'\] must be an array of shape \(40, 2\)"):
        fit(data, out={"bse": np.empty((39, 2))})


def counted(tasks, fits):
    for task in tasks:
        fits.append(task)
        yield task


def test_responses_go_on_with_their_own_values_only(model, Y):
    weights = np.random.default_rng(4).uniform(0.5, 2.0, Y.shape)
    whole = model.fit_many(Y, weights=weights, covariates={"c": weights**2})
    alike(model.fit_many(Y, weights=weights, covariates={"c": weights**2}, resume=whole), whole)
    for other in (
        {"weights": weights + 1e-9, "covariates": {"c": weights**2}},
        {"weights": weights, "covariates": {"c": weights**3}},
        {"covariates": {"c": weights**2}},
    ):
        with pytest.raises(LMMError, match="responses with other values or labels"):
            model.fit_many(Y, resume=whole, **other)
