"""Data frames of Dask: the numbers of memory from partitions in any state, by one worker or two."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.streams.dask import plan_of_dask, reduce_dask
from streamed import FORMULA, close, cut, frame_of, same_bits, simulated

dask = pytest.importorskip("dask")
dd = pytest.importorskip("dask.dataframe")


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def test_a_frame_is_fitted_as_in_memory():
    data = simulated(5000, shuffled=True)
    frame = frame_of(cut(data, 600))
    result = flc.lmm(FORMULA, frame).fit()
    close(result, flc.lmm(FORMULA, data).fit())
    plan = flc.plan(FORMULA, data)
    parts = [plan.reduce(part, key=i) for i, part in enumerate(cut(data, 600))]
    same_bits(result, flc.lmm(plan, flc.merge(parts)).fit())


@pytest.mark.parametrize(
    "formula", ["y ~ arm * z + (1 | g)", "y ~ center(x) + within(z, g) + (1 | g)", "y ~ scale(x) + arm + (1 | g)"]
)
def test_what_all_rows_tell_is_learnt_where_they_are(formula):
    data = simulated(5000).sort_values("arm", ascending=False, kind="stable").reset_index(drop=True)
    data.loc[::97, "z"] = np.nan
    close(flc.lmm(formula, frame_of(cut(data, 600))).fit(), flc.lmm(formula, data).fit())


def test_categories_that_differ_by_partition():
    data = simulated(4000).sort_values("arm", kind="stable").reset_index(drop=True)
    parts = [part.assign(arm=pd.Categorical(part["arm"])) for part in cut(data, 500)]
    assert len({tuple(part["arm"].cat.categories) for part in parts}) > 1
    one = flc.lmm("y ~ arm + z + (1 | g)", data).fit()
    for source in (frame_of(parts), flc.scan(parts)):
        other = flc.lmm("y ~ arm + z + (1 | g)", source).fit()
        assert other.model.exog_names == one.model.exog_names
        close(other, one)


def test_a_plan_of_a_frame_sums_its_partitions():
    parts = cut(simulated(3000), 500)
    frame = frame_of(parts)
    plan = flc.plan("y ~ center(x) * arm + (1 | g)", frame)
    total = flc.merge([plan.reduce(part, key=i) for i, part in enumerate(parts)])
    same_bits(flc.lmm(plan, total).fit(), flc.lmm("y ~ center(x) * arm + (1 | g)", frame).fit())


def test_partitions_without_rows():
    data = simulated(3000)
    parts = cut(data, 500)
    parts = [data.iloc[:0], parts[0], data.iloc[:20].assign(y=np.nan), *parts[1:], data.iloc[:0]]
    result = flc.lmm(FORMULA, frame_of(parts)).fit()
    assert result.nobs == 3000 and result.model.n_dropped == 20
    close(result, flc.lmm(FORMULA, data).fit())


def test_errors_name_the_place():
    data = simulated(3000)
    with pytest.raises(flc.LMMError, match="no column 'absent'"):
        flc.lmm("y ~ absent + (1 | g)", frame_of(cut(data, 500)))
    with pytest.raises(flc.LMMError, match="needs the rows"):
        flc.lmm(FORMULA, frame_of(cut(data, 500)), residual="ar1(z | g)")


def test_categories_that_are_unknown():
    data = simulated(4000).sort_values("arm", kind="stable").reset_index(drop=True)
    frame = frame_of(cut(data, 500))
    frame["arm"] = frame["arm"].astype("category")
    assert not frame["arm"].cat.known
    close(flc.lmm("y ~ arm + (x | g)", frame).fit(), flc.lmm("y ~ arm + (x | g)", data).fit())


def test_several_factors():
    data = simulated(4000, shuffled=True).assign(room=lambda d: np.arange(len(d)) % 5)
    for formula in ("y ~ x + (1 | g/room)", "y ~ x + (1 | g) + (1 | arm)"):
        close(flc.lmm(formula, frame_of(cut(data, 500))).fit(), flc.lmm(formula, data).fit())


def _breaks_down_once(part, flag):
    """A task that takes its worker with it the first time."""
    if not flag.exists():
        flag.touch()
        os._exit(1)
    return part


@pytest.mark.slow
def test_a_worker_that_is_lost_changes_nothing(tmp_path):
    distributed = pytest.importorskip("distributed")
    data = simulated(6000, shuffled=True)
    parts = [dask.delayed(part) for part in cut(data, 900)]
    one = flc.lmm(FORMULA, dd.from_delayed(parts, meta=data.iloc[:0], verify_meta=False)).fit()
    parts[4] = dask.delayed(_breaks_down_once)(parts[4], tmp_path / "flag")
    frame = dd.from_delayed(parts, meta=data.iloc[:0], verify_meta=False)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        other = flc.lmm(FORMULA, frame, client=client).fit()
    assert (tmp_path / "flag").exists()
    same_bits(one, other)


@pytest.mark.slow
def test_two_workers_have_the_bits_of_one():
    distributed = pytest.importorskip("distributed")
    data = simulated(20_000, shuffled=True)
    frame = dd.from_pandas(data, npartitions=9, sort=False)
    plan = plan_of_dask(FORMULA, frame, None, None, "drop", {})
    one = reduce_dask(plan, frame)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        other = reduce_dask(plan, frame, client)
    np.testing.assert_array_equal(one.raw, other.raw)
    np.testing.assert_array_equal(one.packed, other.packed)
    same_bits(flc.lmm(plan, one).fit(), flc.lmm(plan, other).fit())
