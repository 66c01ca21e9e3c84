"""Responses in chunks of Dask: the bits of the array in memory, read chunk by chunk, here or by workers."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation.many.parts import FIELDS
from streamed import client_of

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

FORMULAS = ["y ~ x + (x | g)", "y ~ x + (1 | g) + (1 | h)", "y ~ x + (1 | g)"]


def study(formula):
    rng = np.random.default_rng(3)
    g, h = np.repeat(np.arange(12), 5), rng.integers(0, 6, 60)
    x = rng.normal(size=60)
    x[11] = np.nan
    model = flc.lmm(formula, {"y": rng.normal(size=60), "x": x, "g": g, "h": h})
    effects = rng.normal(size=(30, 12))[:, g] + rng.normal(size=(30, 6))[:, h]
    Y = rng.normal(size=(30, 60)) + effects + np.where(np.arange(30) % 4 == 0, 0.0, 1.0)[:, None] * effects
    return model, Y


def same_bits(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    test, again = one.test("x"), other.test("x")
    np.testing.assert_array_equal(test.statistic, again.statistic)
    np.testing.assert_array_equal(one.blups(np.array([3, 20]))[0], other.blups(np.array([3, 20]))[0])


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("distributed")
    with client_of() as found:
        yield found


def chunked(Y, chunks, read):
    """An array of Dask that notes which chunks are made."""

    def made(block, block_info=None):
        if block_info is not None:
            read.append(tuple(block_info[0]["chunk-location"]))
        return block

    return da.from_array(Y, chunks=chunks).map_blocks(made, dtype=Y.dtype, meta=Y[:0, :0])


@pytest.mark.parametrize("formula", FORMULAS)
def test_chunks_are_read_once_without_workers(formula):
    model, Y = study(formula)
    read = []
    with dask.config.set(scheduler="synchronous"):
        batch = model.fit_many(chunked(Y, (7, 60), read))
        assert sorted(read) == [(i, 0) for i in range(5)]
        same_bits(batch, model.fit_many(Y[:, model.rows_used]))


def test_a_chunk_that_is_too_large_is_read_in_pieces():
    model, Y = study(FORMULAS[0])
    whole = np.tile(Y, (40, 1))
    with dask.config.set(scheduler="synchronous"):
        batch = model.fit_many(da.from_array(whole, chunks=(1000, 60)), memory=0.1)
    np.testing.assert_array_equal(batch.criterion, np.tile(model.fit_many(Y[:, model.rows_used]).criterion, 40))


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("chunks", [(7, 60), (30, 13), (4, 20)])
def test_workers_have_the_bits_of_memory(client, formula, chunks):
    model, Y = study(formula)
    same_bits(model.fit_many(da.from_array(Y, chunks=chunks), client=client), model.fit_many(Y[:, model.rows_used]))


def test_labels_rows_in_use_and_responses_across(client):
    xarray = pytest.importorskip("xarray")
    model, Y = study(FORMULAS[0])
    names = [f"gene {i}" for i in range(30)]
    one = model.fit_many(Y[:, model.rows_used])
    used = Y[:, model.rows_used]
    for values, dims in ((Y, ("gene", "cell")), (used.T, ("cell", "gene"))):
        array = xarray.DataArray(da.from_array(values, chunks=(11, 9)), dims=dims, coords={"gene": names})
        batch = model.fit_many(array, client=client)
        same_bits(batch, one)
        assert list(batch.labels) == names
    assert batch.one(4).criterion == one.one(4).criterion


def test_the_current_client_is_taken(client, monkeypatch):
    distributed = pytest.importorskip("distributed")
    model, Y = study(FORMULAS[0])
    array, asked, compute = da.from_array(Y, chunks=(8, 60)), [], client.compute
    monkeypatch.setattr(distributed, "default_client", lambda: client)
    monkeypatch.setattr(client, "compute", lambda tasks: asked.append(len(tasks)) or compute(tasks))
    same_bits(model.fit_many(array), model.fit_many(Y[:, model.rows_used]))
    assert asked == [4]


def test_what_breaks_off_is_kept_and_goes_on(client, tmp_path):
    model, Y = study(FORMULAS[0])
    flag = tmp_path / "broken"

    def breaks(block, block_info=None):
        if block_info and block_info[0]["chunk-location"][0] == 2 and not flag.exists():
            flag.touch()
            raise ValueError("a disk is full")
        return block

    array = da.from_array(Y, chunks=(10, 60)).map_blocks(breaks, dtype=Y.dtype, meta=Y[:0, :0])
    out = {"params": np.full((30, 2), np.nan)}
    with pytest.raises(ValueError, match="disk is full") as caught:
        model.fit_many(array, client=client, out=out)
    batch = caught.value.batch
    assert flag.exists()
    assert np.isnan(batch.params[20:]).all()
    found = model.fit_many(array, client=client, out=out, resume=batch)
    same_bits(found, model.fit_many(Y[:, model.rows_used]))
    np.testing.assert_array_equal(out["params"], found.params)


def test_responses_that_change_are_noticed(client):
    model, Y = study(FORMULAS[0])
    own = Y.copy()
    array = da.map_blocks(lambda block: own, da.from_array(Y, chunks=(30, 60)), dtype=Y.dtype, meta=Y[:0, :0])
    batch = model.fit_many(array, client=client)
    own[3, 5] += 1.0
    with pytest.raises(flc.LMMError, match="changed since it was fitted"):
        batch.one(3)


def test_what_is_refused(client):
    model, Y = study(FORMULAS[0])
    array = da.from_array(Y, chunks=(10, 60))
    with pytest.raises(flc.LMMError, match="client is for an array of Dask"):
        model.fit_many(Y, client=client)
    with pytest.raises(flc.LMMError, match="client is for complete responses"):
        model.fit_many(array, client=client, missing="drop")
    with pytest.raises(flc.LMMError, match="compute_chunk_sizes"):
        model.fit_many(array[array[:, 0] > 0.0])


@pytest.mark.slow
def test_processes_have_the_bits_of_memory():
    distributed = pytest.importorskip("distributed")
    model, Y = study(FORMULAS[0])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        same_bits(
            model.fit_many(da.from_array(Y, chunks=(6, 60)), client=client), model.fit_many(Y[:, model.rows_used])
        )
