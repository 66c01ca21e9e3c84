"""Whitening of rows that several factors join, against the covariance matrix of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

import fastlmm_core as flc
from fastlmm_core.design import independence as clusters
from fastlmm_core.estimation import whitening
from several import KINDS, Study


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_large_clusters_are_whitened_by_a_root_of_the_inverse(kind, weighted, monkeypatch):
    n = 90
    result = Study(np.random.default_rng(3), kind, weighted, n).model(np.arange(n)).fit()
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
    n = whitening.LARGEST + 1
    study = Study(rng, "crossed", n=n)
    result = study.model(np.arange(n)).fit()
    w = result.residuals("whitened")
    V = whitening.rows_covariance(result, np.arange(n))
    r = result.residuals("marginal")
    assert np.sum(w * w) == pytest.approx(r @ cho_solve(cho_factor(V), r), rel=1e-10)


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
    assert_clusters(flc.LinearMixedModel(y, one, terms=terms).design, outer, inner)


def test_clusters_of_as_many_levels():
    """Two factors with six levels each that join two groups of three, and the same levels by other names."""
    first = np.repeat(np.arange(6), 10)
    y, one = np.random.default_rng(2).normal(size=60), np.ones((60, 1))
    for second in (np.where(np.arange(60) % 10 < 5, first, (first + 1) % 3 + 3 * (first // 3)), (first + 2) % 6):
        terms = [flc.RandomTerm(one, first, name="first"), flc.RandomTerm(one * y[:, None], second, name="second")]
        assert_clusters(flc.LinearMixedModel(y, one, terms=terms).design, first, second)


def test_clusters_hold_whole_subjects():
    """Subjects of the residuals that have rows in two of the groups join these."""
    group, subject = np.repeat(np.arange(4), 12), np.repeat(np.arange(12), 4)
    subject[12:14] = 2
    data = {"y": np.random.default_rng(3).normal(size=48), "g": group, "s": subject, "t": np.arange(48)}
    model = flc.lmm("y ~ 1 + (1 | g)", data, residual="ar1(t | s)")
    assert_clusters(model.design, group, subject)


def assert_clusters(design, one, other):
    """Clusters are what links of equal labels connect."""
    labels = clusters.cluster_labels(design)
    linked = (one[:, None] == one) | (other[:, None] == other)
    reached = np.linalg.matrix_power(linked.astype(float), len(one)) > 0.0
    np.testing.assert_array_equal(labels[:, None] == labels, reached)
