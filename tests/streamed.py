"""Data that are read in pieces, and what it means that two fits are the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

FORMULA = "y ~ x + z + (x | g)"

# sums in another order, of values that are no whole numbers
OTHER_ORDER = 1e-12


def simulated(n=7000, m=150, seed=1, shuffled=False):
    rng = np.random.default_rng(seed)
    g = np.sort(rng.integers(0, m, n))
    if shuffled:
        rng.shuffle(g)
    x, z = rng.normal(30.0, 2.0, n), rng.normal(size=n)
    b = rng.normal(size=(m, 2)) * [2.0, 0.3]
    y = 5.0 + 0.5 * x + z + b[g, 0] + b[g, 1] * (x - 30.0) + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": 3 * g, "arm": np.array(["b", "a", "c"])[rng.integers(0, 3, n)]})


def cut(data, size):
    return [data.iloc[i : i + size] for i in range(0, len(data), size)]


def frame_of(parts):
    """A data frame of Dask with these partitions."""
    import dask.dataframe as dd

    return dd.from_map(lambda i: parts[i], range(len(parts)), meta=parts[0].iloc[:0])


def client_of(workers=2, threads=1):
    """A client of workers in this process, with so many threads each."""
    from distributed import Client

    return Client(processes=False, n_workers=workers, threads_per_worker=threads, dashboard_address=":0",
                  set_as_default=False)  # fmt: skip


def same_bits(one, other):
    assert one.criterion == other.criterion
    np.testing.assert_array_equal(np.asarray(one.theta), np.asarray(other.theta))
    np.testing.assert_array_equal(one.beta, other.beta)
    np.testing.assert_array_equal(one.cov, other.cov)
    for a, b in zip(one.blups, other.blups, strict=True):
        np.testing.assert_array_equal(a, b)
    for f, other_f in zip(one.model.factors, other.model.factors, strict=True):
        assert f.grouping.labels.tolist() == other_f.grouping.labels.tolist()


def close(one, other, tolerance=OTHER_ORDER):
    assert one.criterion == pytest.approx(other.criterion, rel=tolerance)
    for a, b in ((one.beta, other.beta), (one.cov, other.cov), (one.theta, other.theta)):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e4 * tolerance, atol=1e4 * tolerance)
