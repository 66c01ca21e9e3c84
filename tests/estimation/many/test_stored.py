"""Responses that are stored elsewhere: the fits are those of the array, with the labels that they carry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.tables.stored import StoredResponses


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(10), 4)
    x = rng.normal(size=40)
    x[7] = np.nan
    return flc.lmm("y ~ x + (1 | g)", {"y": rng.normal(size=40), "x": x, "g": g})


@pytest.fixture(scope="module")
def Y(model):
    rng = np.random.default_rng(2)
    return np.round(rng.normal(size=(30, 39)) + rng.normal(size=(30, 10))[:, model.grouping.index], 3)


NAMES = [f"gene {i}" for i in range(30)]


class Slices:
    """An array that is read by slices with a step of 1 along its first axis, and by nothing else."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, 2
        self.largest = 0

    def __getitem__(self, at):
        if not (isinstance(at, slice) and at.step in (None, 1)):
            raise TypeError("slices only")
        found = self.values[at]
        self.largest = max(self.largest, len(found))
        return found


class Named:
    """An array with dims and coords."""

    def __init__(self, values, dims, coords):
        self.values, self.shape, self.dtype, self.dims, self.coords = values, values.shape, values.dtype, dims, coords

    def __getitem__(self, at):
        return self.values[at]


class Annotated:
    """Observations by variables, with names of the variables."""

    def __init__(self, X):
        self.X, self.var_names, self.shape = X, NAMES, X.shape


def same(model, given, Y, labels=None, rounding=0.0):
    """`rounding`: relative, of sums in another order."""
    batch, wanted = model.fit_many(given), model.fit_many(Y)
    np.testing.assert_allclose(batch.params, wanted.params, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(batch.criterion, wanted.criterion, rtol=rounding)
    assert (batch.labels is None) if labels is None else list(batch.labels) == list(labels)
    np.testing.assert_array_equal(batch[7].model.endog, Y[7])
    if labels is not None:
        np.testing.assert_array_equal(batch[labels[4]].model.endog, Y[4])
    some = [29, 3, 3, 0]
    np.testing.assert_allclose(batch.random_effects(some), wanted.random_effects(some))
    np.testing.assert_allclose(batch.test("Intercept + x").df_denom, wanted.test("Intercept + x").df_denom)
    return batch


def test_slices(model, Y):
    given = Slices(Y)
    same(model, given, Y)
    given = Slices(Y)
    model.fit_many(given, memory=0.005)
    assert given.largest < 30


def test_names(model, Y):
    same(model, Named(Y, ("gene", "cell"), {"gene": NAMES}), Y, NAMES)
    same(model, Named(Y.T, ("cell", "gene"), {"gene": NAMES}), Y, NAMES)
    same(model, Named(Y, ("gene", "cell"), {}), Y)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_sparse(model, Y, kind):
    counts = np.where(np.abs(Y) > 0.8, Y, 0.0)
    same(model, kind(counts), counts, rounding=1e-11)
    same(model, Annotated(kind(counts.T)), counts, NAMES, rounding=1e-11)


def test_annotated_and_all_rows_of_the_data(model, Y):
    wide = np.full((30, 40), 1e6)
    wide[:, model.rows_used] = Y
    same(model, Annotated(wide.T), Y, NAMES)
    same(model, Slices(wide), Y)
    masked = Y.copy()
    masked[3, 5] = np.nan
    found = model.fit_many(Named(masked, ("gene", "cell"), {"gene": NAMES}), missing="drop")
    assert found.nobs[3] == 38 and list(found.labels) == NAMES
    blocks = model.fit_many(iter([Annotated(Y[:, :].T), Named(Y, ("gene", "cell"), {"gene": NAMES})]))
    assert list(blocks.labels) == NAMES + NAMES
    part = model.fit_many(Slices(Y))[:5]
    part.with_responses(Slices(Y[:5]))


def test_what_is_refused(model, Y):
    with pytest.raises(LMMError, match=r"shape \(n_responses, 39\), not \(30, 20\)"):
        model.fit_many(Slices(Y[:, :20]))
    with pytest.raises(LMMError, match="must hold numbers"):
        model.fit_many(Slices(Y.astype(str)))


@pytest.mark.parametrize("library", ["h5py", "zarr", "dask", "xarray", "anndata"])
def test_libraries(model, Y, library, tmp_path):
    pytest.importorskip(library)
    if library == "h5py":
        import h5py

        with h5py.File(tmp_path / "y.h5", "w") as file:
            same(model, file.create_dataset("Y", data=Y, chunks=(7, 39)), Y)
    elif library == "zarr":
        import zarr

        same(model, zarr.array(Y, chunks=(7, 39)), Y)
    elif library == "dask":
        da = pytest.importorskip("dask.array")
        same(model, da.from_array(Y, chunks=(7, 20)), Y)
    elif library == "xarray":
        import xarray

        given = xarray.DataArray(Y, dims=("gene", "cell"), coords={"gene": NAMES})
        batch = same(model, given, Y, NAMES)
        found = batch.to_xarray()
        np.testing.assert_array_equal(found.params.sel(term="x"), batch.params[:, 1])
        np.testing.assert_array_equal(found.covariance.sel(response="gene 3"), batch.covariance[3])
    else:
        anndata = pytest.importorskip("anndata")
        given = anndata.AnnData(sparse.csr_matrix(Y.T))
        given.var_names = NAMES
        same(model, given, Y, NAMES, rounding=1e-11)


def test_numpy_arrays_are_no_stores(model, Y):
    from fastlmm_core.tables.stored import stored

    rows = model.design.caller_rows
    assert stored(Y, rows) is None and stored([1.0], rows) is None
    assert isinstance(stored(Slices(Y), rows), StoredResponses)


class Unfolded(sparse.csr_array):
    """Sparse responses that refuse to be made dense."""

    def toarray(self, *args, **kwargs):
        raise AssertionError("made dense")


def sparse_study(q, weighted, kind, seed):
    rng = np.random.default_rng(seed)
    m = 14
    sizes = np.full(m, 6) if kind == "balanced" else rng.integers(3, 9, m)
    g = rng.permutation(np.repeat(np.arange(m), sizes))
    n = len(g)
    x = np.zeros(n)
    for level in range(m):
        x[g == level] = np.arange((g == level).sum())
    between = rng.standard_normal(m)[g]
    X = np.column_stack([np.ones(n), x, between])
    Z = np.column_stack([np.ones(n), x])[:, :q]
    more = {"weights": rng.uniform(0.5, 2.0, n), "offset": rng.normal(size=n)} if weighted else {}
    Y = rng.poisson(0.4 * np.exp(0.5 * rng.standard_normal((40, m))[:, g])).astype(float)
    Y[5], Y[6], Y[7] = 0.0, 3.0, Y[7] + 1e9
    return flc.LinearMixedModel(Y[0], X, Z, g, **more), Y


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["balanced", "uneven"])
@pytest.mark.parametrize(("q", "weighted"), [(1, False), (1, True), (2, False), (2, True)])
def test_sparse_responses_are_not_made_dense(q, weighted, kind, reml):
    """Sums over the elements that are there give what the dense responses give; what loses digits is looked at."""
    model, Y = sparse_study(q, weighted, kind, 3)
    dense = model.fit_many(Y, reml)
    found = model.fit_many(sparse.csr_array(Y), reml)
    np.testing.assert_array_equal(found.status, dense.status)
    ok = dense.status >= 0
    for name, tolerance in (("params", 1e-7), ("bse", 1e-6), ("sigma2", 1e-6), ("covariance", 1e-5)):
        own, wanted = getattr(found, name)[ok], getattr(dense, name)[ok]
        scale = np.abs(wanted).reshape(len(wanted), -1).max(axis=1)
        gap = np.abs(own - wanted).reshape(len(wanted), -1).max(axis=1)
        assert (gap <= tolerance * np.maximum(scale, 1e-3)).all(), name
    np.testing.assert_allclose(found.criterion[ok], dense.criterion[ok], rtol=1e-9)
    few = [i for i in range(40) if i not in (5, 6, 7)]
    part = model.fit_many(Unfolded(Y[few]), reml)
    np.testing.assert_allclose(part.criterion, dense.criterion[few], rtol=1e-9)
    L = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for ddf in ("satterthwaite", "kenward-roger") if reml else ("satterthwaite",):
        wanted = model.fit_many(Y[few], reml).test(L, ddf=ddf)
        own = part.test(L, ddf=ddf)
        np.testing.assert_allclose(own.statistic, wanted.statistic, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(own.df_denom, wanted.df_denom, rtol=1e-4)


def test_sparse_responses_in_threads_and_missing_values():
    model, Y = sparse_study(2, False, "uneven", 4)
    Y[9, 3] = np.nan
    one, two = (model.fit_many(sparse.csr_array(Y), n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.params, two.params)
    assert one.status[9] == -1 and one.status[5] == one.status[6] == -2
    assert one[3].criterion == pytest.approx(model.refit(Y[3]).criterion, rel=1e-12)


def test_sparse_responses_that_are_there_or_not():
    """Elements that are alike make a response constant only where all are there."""
    model, Y = sparse_study(1, False, "uneven", 6)
    Y = Y[:5]  # one of the others loses digits, and its block would be made dense
    Y[0], Y[1], Y[2] = np.where(np.arange(Y.shape[1]) % 3 == 0, 2.0, 0.0), 2.0, 0.0
    found, dense = model.fit_many(sparse.csr_array(Y)), model.fit_many(Y)
    assert found.status[0] == dense.status[0] >= 0 and found.status[1] == found.status[2] == -2
    assert found.criterion[0] == pytest.approx(dense.criterion[0], rel=1e-9)


def test_sparse_responses_that_are_changed():
    model, Y = sparse_study(1, False, "uneven", 5)
    given = sparse.csr_array(Y[:5])
    batch = model.fit_many(given)
    batch[2]
    given.data[given.indptr[2]] += 1.0
    with pytest.raises(LMMError, match="Y has been changed since it was fitted"):
        batch[2]
