"""Whitening of rows that several factors join, against the covariance matrix of all rows."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
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


@pytest.mark.parametrize("joined", [0, 1, 3])
def test_clusters_share_no_level(joined):
    """Ten levels within five of a factor that comes first, but for some that occur in the next one too."""
    inner = np.repeat(np.arange(10), 6)
    outer = inner // 2
    for level in range(joined):
        outer[6 * 2 * level] = (level + 1) % 5
    y = np.random.default_rng(1).normal(size=60)
    one = np.ones((60, 1))
    terms = [flc.RandomTerm(one, outer, name="outer"), flc.RandomTerm(one, inner, name="inner")]
    labels = clusters.cluster_labels(flc.LinearMixedModel(y, one, terms=terms).design)
    linked = (outer[:, None] == outer) | (inner[:, None] == inner)
    reached = np.linalg.matrix_power(linked.astype(float), 60) > 0.0
    np.testing.assert_array_equal(labels[:, None] == labels, reached)
