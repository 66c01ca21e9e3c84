"""Whitening of rows that several factors join, against the covariance matrix of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.design import independence as clusters
from fastlmm_core.estimation import whitening
from several import KINDS, Study


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_large_clusters_are_whitened_by_a_root_of_the_inverse(kind, weighted, monkeypatch):
    n = 150
    result = Study(np.random.default_rng(3), kind, weighted).model(np.arange(n)).fit()
    V = whitening.rows_covariance(result, np.arange(n))
    sizes = np.bincount(clusters.cluster_labels(result.model.design))
    for largest in (0, int(np.sort(sizes)[len(sizes) // 2])):
        monkeypatch.setattr(whitening, "LARGEST", largest)
        W = np.column_stack([whitening.whitened(result, unit) for unit in np.eye(n)])
        np.testing.assert_allclose(W @ V @ W.T, np.eye(n), atol=1e-12)
        # each value remains for the most part that of its row
        assert np.all(np.diag(W) * np.sqrt(np.diag(V)) > 0.5)


def test_every_row_joined():
    rng = np.random.default_rng(8)
    n = 4000
    assert n > whitening.LARGEST
    study = Study(rng, "crossed", n=n)
    result = study.model(np.arange(n)).fit()
    w = result.residuals("whitened")
    V = whitening.rows_covariance(result, np.arange(n))
    r = result.residuals("marginal")
    assert np.sum(w * w) == pytest.approx(r @ np.linalg.solve(V, r), rel=1e-10)
