"""The kernels by their C faces: through ctypes, numba and a Cython module that is compiled here."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core import cython_lmm

SOURCES = Path(__file__).parents[2]

DOUBLE, INT64 = ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_int64)


class Problem(ctypes.Structure):
    """lmm_problem of cython_lmm.pxd."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("version", "reml", "diagonal", "status")),
        *((name, ctypes.c_int64) for name in "npqm"),
        *((name, DOUBLE) for name in "yXZ"),
        ("groups", INT64),
        *((name, DOUBLE) for name in ("weights", "offset", "beta", "std_error", "df", "theta")),
        *((name, ctypes.c_double) for name in ("sigma2", "criterion")),
        *((name, ctypes.c_int64) for name in ("rank", "evaluations")),
    ]


def function(name, result, *arguments):
    return ctypes.CFUNCTYPE(result, *arguments)(cython_lmm.addresses()[name])


PROBLEM = ctypes.POINTER(Problem)
WORK_SIZE = function("lmm_work_size", ctypes.c_size_t, PROBLEM)
FIT = function("lmm_fit", ctypes.c_int, PROBLEM, ctypes.c_void_p)
CRITERION = function("lmm_criterion", ctypes.c_double, PROBLEM, DOUBLE, ctypes.c_void_p)
SOLVE = function("lmm_solve", ctypes.c_int, PROBLEM, DOUBLE, DOUBLE, DOUBLE, ctypes.c_void_p)


def pointer(array):
    return array.ctypes.data_as(INT64 if array.dtype == np.int64 else DOUBLE)


class Called:
    """A problem with its arrays, which live as long as it does."""

    def __init__(self, y, X, Z, groups, weights=None, offset=None, reml=True, diagonal=False):
        n, p, q = len(y), X.shape[1], Z.shape[1]
        k = q if diagonal else q * (q + 1) // 2
        self.arrays = [np.ascontiguousarray(v) for v in (y, X, Z)] + [groups.astype(np.int64)]
        self.extra = [None if v is None else np.ascontiguousarray(v) for v in (weights, offset)]
        self.beta, self.std_error, self.df, self.theta = np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(k)
        written = [pointer(v) for v in (self.beta, self.std_error, self.df, self.theta)]
        self.struct = Problem(
            1, int(reml), int(diagonal), 0, n, p, q, int(groups.max()) + 1, *map(pointer, self.arrays),
            *(None if v is None else pointer(v) for v in self.extra), *written,
        )  # fmt: skip
        self.work = ctypes.create_string_buffer(WORK_SIZE(self.struct))

    def fit(self):
        return FIT(self.struct, self.work)

    def criterion(self, theta):
        return CRITERION(self.struct, pointer(theta), self.work)

    def solve(self, theta, v):
        out = np.empty_like(v)
        assert SOLVE(self.struct, pointer(theta), pointer(v), pointer(out), self.work) == 0
        return out


def drawn(rng, m):
    """y, X, Z, groups, weights and an offset of m groups."""
    groups = np.repeat(np.arange(m), rng.integers(4, 9, m))
    n = len(groups)
    X = np.column_stack([np.ones(n), 50.0 + rng.standard_normal(n), rng.standard_normal(n)])
    Z = np.column_stack([np.ones(n), X[:, 1]])
    b = rng.standard_normal((m, 2))
    y = X.sum(axis=1) + b[groups, 0] + b[groups, 1] * (X[:, 1] - 50.0) + rng.standard_normal(n)
    return y, X, Z, groups, rng.uniform(0.5, 2.0, n), rng.standard_normal(n)


@pytest.fixture
def arrays(rng):
    return drawn(rng, 40)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("diagonal", [False, True])
def test_fit(arrays, reml, diagonal):
    y, X, Z, groups, weights, offset = arrays
    Z = Z - [0.0, 50.0] if diagonal else Z
    called = Called(y, X, Z, groups, weights, offset, reml, diagonal)
    status = called.fit()
    model = flc.LinearMixedModel(
        y, X, Z, groups, weights=weights, offset=offset, structure="diagonal" if diagonal else "full"
    )
    one = model.fit(reml)
    assert status == called.struct.status == (2 if one.singular else 1)
    np.testing.assert_allclose(called.beta, one.params, rtol=0.0, atol=1e-8 * one.bse.max())
    np.testing.assert_allclose(called.std_error, one.bse, rtol=1e-7)
    np.testing.assert_allclose(called.df, one.df, rtol=1e-5)
    np.testing.assert_allclose(called.theta, one.theta, rtol=1e-5, atol=1e-7)
    assert called.struct.sigma2 == pytest.approx(one.sigma2, rel=1e-7)
    assert called.struct.criterion == pytest.approx(one.criterion, rel=1e-11)
    assert called.struct.rank == 3
    assert called.struct.evaluations > 2


@pytest.mark.parametrize("reml", [True, False])
def test_criterion_and_solution_against_the_dense_oracle(rng, arrays, reml):
    y, X, Z, groups, weights, offset = arrays
    Z = Z - [0.0, 50.0]
    called = Called(y, X, Z, groups, weights, offset, reml)
    theta, v = np.array([0.8, -0.3, 0.5]), rng.standard_normal(len(y))
    expected = oracle.criterion_theta(theta, y, X, Z, groups, reml, weights, offset)
    assert called.criterion(theta) == pytest.approx(expected, rel=1e-11)
    L = oracle.lambda_from_theta(theta, 2)
    V = oracle.relative_v(Z, groups, L @ L.T, weights)
    np.testing.assert_allclose(called.solve(theta, v), np.linalg.solve(V, v), rtol=1e-10, atol=1e-12)


def test_columns_left_out(rng):
    # of so many groups that no closer look is taken
    y, X, Z, groups, *_ = drawn(rng, 120)
    X = np.column_stack([X, np.full(len(y), 3.0)])
    called = Called(y, X, Z, groups)
    assert called.fit() == 1
    assert called.struct.rank == 3
    assert np.isnan(called.beta[3]) and np.isnan(called.std_error[3])
    theta = called.theta.copy()
    assert called.criterion(theta) == pytest.approx(called.struct.criterion, rel=1e-11)


def test_what_is_refused_or_left(arrays):
    y, X, Z, groups, *_ = arrays
    called = Called(y, X, Z, groups)
    called.struct.version = 2
    assert (called.fit(), WORK_SIZE(called.struct)) == (-1, 0)
    broken = y.copy()
    broken[3] = np.nan
    called = Called(broken, X, Z, groups)
    assert called.fit() == called.struct.status == -1
    assert np.isnan(called.beta).all() and np.isnan(called.struct.criterion)
    assert np.isnan(called.criterion(np.ones(3)))
    outside = groups.copy()
    called = Called(y, X, Z, outside)
    called.arrays[3][0] = 99
    assert called.fit() == -1
    # dependent columns take a decomposition of the rows
    called = Called(y, np.column_stack([X, X[:, 1] + X[:, 2]]), Z, groups)
    assert called.fit() == called.struct.status == 0


CODE = """
# cython: language_level=3
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cimport fastlmm_core.cython_lmm as lmm


def fit(double[::1] y, double[:, ::1] X, double[:, ::1] Z, int64_t[::1] groups, int64_t m):
    cdef lmm.lmm_problem problem
    cdef double beta[8]
    cdef double error[8]
    cdef double df[8]
    cdef double theta[8]
    cdef void* work
    cdef int status
    memset(&problem, 0, sizeof(problem))
    problem.version, problem.reml = lmm.LMM_VERSION, 1
    problem.n, problem.p, problem.q, problem.m = y.shape[0], X.shape[1], Z.shape[1], m
    problem.y, problem.X, problem.Z, problem.groups = &y[0], &X[0, 0], &Z[0, 0], &groups[0]
    problem.beta, problem.std_error, problem.df, problem.theta = beta, error, df, theta
    with nogil:
        work = malloc(lmm.lmm_work_size(&problem))
        status = lmm.lmm_fit(&problem, work)
        free(work)
    return status, [beta[i] for i in range(X.shape[1])], problem.criterion
"""


def test_from_cython(tmp_path, arrays):
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or importlib.util.find_spec("Cython") is None:
        pytest.skip("needs Cython and a C compiler")
    y, X, Z, groups, *_ = arrays
    (tmp_path / "caller.pyx").write_text(CODE)
    subprocess.run([sys.executable, "-m", "cython", "-3", "-I", str(SOURCES), "caller.pyx"], cwd=tmp_path, check=True)
    include = sysconfig.get_paths()["include"]
    built = f"caller{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-shared", "-fPIC", "-O1", "-w", f"-I{include}"]
    subprocess.run([compiler, *options, "caller.c", "-o", built], cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("caller", tmp_path / built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    status, beta, criterion = module.fit(y, X, Z, groups.astype(np.int64), 40)
    one = flc.LinearMixedModel(y, X, Z, groups).fit()
    assert status == 1
    np.testing.assert_allclose(beta, one.params, rtol=0.0, atol=1e-8 * one.bse.max())
    assert criterion == pytest.approx(one.criterion, rel=1e-11)


def test_from_numba(arrays):
    numba = pytest.importorskip("numba")
    y, X, Z, groups, *_ = arrays
    called = Called(y, X, Z, groups)
    fit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(cython_lmm.addresses()["lmm_fit"])

    @numba.njit
    def several(problem, work):
        total = 0
        for _ in range(3):
            total += fit(problem, work)
        return total

    assert several(ctypes.addressof(called.struct), ctypes.addressof(called.work)) == 3


def test_the_capsule_holds_the_same_functions():
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    at = get(cython_lmm.capsule(), b"fastlmm_core.lmm")
    assert ctypes.c_int.from_address(at).value == 1
    table = (ctypes.c_void_p * 4).from_address(at + ctypes.sizeof(ctypes.c_void_p))
    assert list(table) == list(cython_lmm.addresses().values())
