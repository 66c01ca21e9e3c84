"""Subjects by their pattern of visits: the rows of each pattern are those of its subjects."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.residual import patterns as module


@pytest.mark.parametrize("bits", [62, 0])
def test_rows_of_patterns(bits, rng, monkeypatch):
    monkeypatch.setattr(module, "BITS", bits)
    subject, visit = np.nonzero(rng.random((40, 3)) < 0.7)
    order = rng.permutation(len(subject))
    subject, visit, arm = subject[order], visit[order], (subject % 2)[order]
    X = np.column_stack([np.ones(len(visit)), visit == 1, visit == 2]).astype(float)
    residual = flc.Residual("us", subject, visit, by=arm)
    problem = flc.LinearMixedModel(rng.normal(size=len(visit)), X, residual=residual).problem
    found, places = problem.patterns
    assert [len(p) for p in places] == [3, 3]
    assert np.array_equal(found.members, found.counts)
    seen, row, at = [], 0, 0
    for size, members, table in zip(found.size, found.members, found.table, strict=True):
        visits = found.visits[at : at + size]
        at += size
        rows = found.rows.reshape(-1, found.columns)[row : row + size * members].reshape(size, members, -1)
        row += size * members
        for i in range(members):
            # the subject that the first row belongs to
            own = np.flatnonzero((problem.xy == rows[0, i]).all(axis=1))
            assert len(own) == 1
            mine = np.flatnonzero(subject == subject[own[0]])
            mine = mine[np.argsort(visit[mine])]
            assert np.array_equal(visit[mine], visits)
            assert problem.residual.stratum[mine[0]] == table
            assert np.array_equal(problem.xy[mine], rows[:, i])
            seen.append(subject[own[0]])
    assert sorted(seen) == np.unique(subject).tolist() and row == len(visit)
    every = np.split(found.visits, np.cumsum(found.size)[:-1])
    assert len({(*visits, -table) for visits, table in zip(every, found.table, strict=True)}) == len(found.size)


def test_rows_split_by_what_x_spans(rng):
    subject, visit = np.nonzero(rng.random((200, 3)) < 0.7)
    base = rng.normal(size=200)[subject]
    X = np.column_stack([np.ones(len(visit)), visit == 1, visit == 2, base]).astype(float)
    residual = flc.Residual("us", subject, visit)
    patterns = flc.LinearMixedModel(rng.normal(size=len(visit)), X, residual=residual).problem.patterns
    whole, split = patterns.sums, patterns.split()
    c = whole.columns
    ends, parts = np.cumsum(whole.size * whole.members * c), np.cumsum(split.size * split.members * c)
    squares = np.cumsum(whole.size**2)
    # rows of subjects are spanned by 1 and the covariate
    assert (split.members <= 2).all() and (whole.members > 2).any()
    for k, n in enumerate(whole.size):
        before = whole.rows[ends[k] - n * whole.members[k] * c : ends[k]].reshape(n, -1, c)
        after = split.rows[parts[k] - n * split.members[k] * c : parts[k]].reshape(n, -1, c)
        root = split.outside[squares[k] - n * n : squares[k]].reshape(n, n)
        known = np.einsum("aij,bil->ajbl", before, before)
        found = np.einsum("aij,bil->ajbl", after, after)
        found[:, -1, :, -1] += root @ root.T
        np.testing.assert_allclose(found, known, atol=1e-13 * np.abs(known).max())
