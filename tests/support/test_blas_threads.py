"""Threads of BLAS that are not woken for matrices of moderate size."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fastlmm_core.support.blas_threads import blas_threads, quiet_blas, quiet_product

LEAST = 0.02
"""Seconds that a thread of OpenBLAS spins after a call, at the least; what is not woken takes nothing."""

MEASURED = """
import json, time
import numpy as np
import fastlmm_core as flc

rng = np.random.default_rng(1)


def others(call):
    # CPU time of all threads but this one
    time.sleep(0.1)
    before = time.process_time() - time.thread_time()
    found = call()
    time.sleep(0.1)
    return found, time.process_time() - time.thread_time() - before


"""

CROSSED = """
n = 3000
X = np.column_stack([np.ones(n), rng.normal(size=(n, 7))])
s, i = rng.integers(0, 60, n), rng.integers(0, 30, n)
y = X.sum(axis=1) + rng.normal(size=60)[s] + rng.normal(size=30)[i] + rng.normal(size=n)
terms = [flc.RandomTerm(X[:, :5], s, "s"), flc.RandomTerm(X[:, :5], i, "i")]
model, made = others(lambda: flc.LinearMixedModel(y, X, terms=terms))
result, fitted = others(model.fit)
_, tested = others(lambda: result.pvalues)
square = np.ones((600, 600))
_, multiplied = others(lambda: square @ square)
print(json.dumps([made, fitted, tested, multiplied]))
"""

ROWS = """
n = 100_000
X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
s, i = np.repeat(np.arange(n // 10), 10), rng.integers(0, 100, n)
y = X.sum(axis=1) + rng.normal(size=n // 10)[s] + rng.normal(size=100)[i] + rng.normal(size=n)
found = []
for terms in ([flc.RandomTerm(X[:, :2], s, "s")], [flc.RandomTerm(None, s, "s"), flc.RandomTerm(None, i, "i")]):
    result = flc.LinearMixedModel(y, X, terms=terms).fit()
    calls = lambda: result.fittedvalues, lambda: str(result.summary()), result.augment, lambda: result.r2
    for call in calls:
        found.append(others(call)[1])
square = np.ones((600, 600))
_, multiplied = others(lambda: square @ square)
print(json.dumps([*found, multiplied]))
"""


@contextlib.contextmanager
def two_threads():
    """Two threads of BLAS, whatever the environment says."""
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != 2:
            pytest.skip("this BLAS has one thread")
        yield


@pytest.mark.parametrize("measured", [CROSSED, ROWS], ids=["models", "rows"])
def test_no_thread_of_blas_is_woken(measured):
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED + measured], env=free, capture_output=True, text=True, check=True
    )
    *ours, plain = json.loads(done.stdout)
    if plain < LEAST:
        pytest.skip("this BLAS has one thread, or its threads do not spin")
    assert max(ours) < 0.5 * LEAST


@pytest.mark.parametrize(
    ("rows", "columns", "one"), [(100, 10, False), (1790, 9, True), (73_421, 31, True), (10**7, 20, False)]
)
def test_blas_is_quiet_where_threads_gain_little(rows, columns, one):
    with two_threads():
        with quiet_blas(rows, columns):
            assert blas_threads() == (1 if one else 2)
        assert blas_threads() == 2


def test_products_of_long_matrices_wake_no_thread():
    seen = []

    class Watched(np.ndarray):
        def __matmul__(self, other):
            seen.append(blas_threads())
            return np.asarray(self) @ other

    with two_threads():
        for n, p in ((73_421, 31), (100, 10)):
            assert quiet_product(np.ones((n, p)).view(Watched), np.ones(p)).tolist() == [p] * n
    assert seen == [1, 2]
