"""Tasks on several threads: all are done, in whatever number of threads the system grants."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation.deletion import groups as deletion
from fastlmm_core.support.threads import in_threads, map_in_threads


@pytest.fixture(params=[0, 1, None], ids=["none", "one", "all"])
def granted(request, monkeypatch):
    """How many threads the system starts; None for all that are asked for."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if request.param is not None and len(started) >= request.param:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return request.param


def test_every_task_is_done_once(granted):
    lock, done, reported = threading.Lock(), [], []

    def run(i):
        with lock:
            done.append(i)
        return 2

    in_threads(run, ((i,) for i in range(50)), 4, reported.append)
    assert sorted(done) == list(range(50))
    assert sum(reported) == 100


def test_what_tasks_return_comes_in_their_order(granted):
    assert map_in_threads(lambda a, b: a - b, ((i, 2 * i) for i in range(40)), 4) == [-i for i in range(40)]
    assert map_in_threads(abs, iter(()), 4) == []


def test_the_first_error_is_raised(granted):
    def run(i):
        if i == 7:
            raise ZeroDivisionError("task 7")
        return 1

    with pytest.raises(ZeroDivisionError, match="task 7"):
        in_threads(run, ((i,) for i in range(50)), 4)
    with pytest.raises(ZeroDivisionError, match="task 7"):
        map_in_threads(run, ((i,) for i in range(50)), 4)


def test_many_responses_and_deletions_need_no_second_thread(granted, rng, monkeypatch):
    monkeypatch.setattr(deletion, "PER_THREAD", 150)
    monkeypatch.setattr(deletion, "processors", lambda: 4)
    groups = np.repeat(np.arange(600), 4)
    x = rng.standard_normal(2400)
    X = np.column_stack([np.ones(2400), x])
    y = 1.0 + x + rng.standard_normal(600)[groups] + rng.standard_normal(2400)
    model = flc.LinearMixedModel(y, X, groups=groups)
    Y = y + rng.standard_normal((600, 2400))
    batch = model.fit_many(Y, n_jobs=4)
    assert batch.converged.all()
    np.testing.assert_allclose(batch.params[17], model.refit(Y[17]).params, rtol=1e-7)
    influence = model.fit().influence()
    rest = groups != 5
    alone = flc.LinearMixedModel(y[rest], X[rest], groups=groups[rest]).fit()
    np.testing.assert_allclose(influence.params[5], alone.params, rtol=1e-7)


def test_one_blas_thread_counts_libraries_that_are_loaded_later():
    # scipy's BLAS comes with the first model of crossed factors, after numpy's was asked for
    code = (
        "from threadpoolctl import threadpool_info\n"
        "from fastlmm_core.support.blas_threads import one_blas_thread\n"
        "with one_blas_thread(): pass\n"
        "import fastlmm_core.engines.crossed.engine\n"
        "with one_blas_thread():\n"
        "    print(*[found['num_threads'] for found in threadpool_info() if found['user_api'] == 'blas'])\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert set(done.stdout.split()) == {"1"}
