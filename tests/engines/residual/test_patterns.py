"""Subjects by their pattern of visits: what stands for them has the sums of products of all of their rows."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.residual import patterns as module
from fastlmm_core.kernels.residuals import pair_moments


def model_of(rng, subjects, columns, seen=0.7, visits=3):
    """Subjects in an order of their own, with two arms and an X of `columns` that vary from visit to visit."""
    subject, visit = np.nonzero(rng.random((subjects, visits)) < seen)
    order = rng.permutation(len(subject))
    subject, visit = subject[order], visit[order]
    base = rng.normal(size=subjects)[subject]
    own = rng.normal(size=(len(visit), columns)) * np.geomspace(1e-3, 1e3, columns)
    X = np.column_stack([np.ones(len(visit)), visit[:, None] == np.arange(1, visits), base, own]).astype(float)
    residual = flc.Residual("cs", subject, visit, by=subject % 2)
    return flc.LinearMixedModel(rng.normal(size=len(visit)), X, residual=residual), subject, visit


def sums_by_hand(xy, subject, visit):
    """The subjects, and their sum of vec(xy_i) vec(xy_i)', for each set of visits of each arm."""
    found = {}
    for one in np.unique(subject):
        rows = np.flatnonzero(subject == one)
        rows = rows[np.argsort(visit[rows])]
        count, total = found.get((int(one) % 2, *visit[rows].tolist()), (0, 0.0))
        flat = xy[rows].ravel()
        found[int(one) % 2, *visit[rows].tolist()] = count + 1, total + np.outer(flat, flat)
    return found


@pytest.mark.parametrize("bits", [62, 0])
@pytest.mark.parametrize(
    "subjects, columns, most",
    # rows of subjects are spanned by 1 and the covariate; by few dimensions; by as many as there are subjects; by more
    # than are looked for one by one
    [(200, 0, 2), (200, 1, 5), (40, 8, 40), (700, 9, 30), (1, 0, 1)],
)
def test_sums_of_products_of_patterns(bits, subjects, columns, most, rng, monkeypatch):
    monkeypatch.setattr(module, "BITS", bits)
    if subjects > 1:
        model, subject, visit = model_of(rng, subjects, columns)
        problem = model.problem
        xy, part = problem.xy, problem.residual
    else:
        model, *_ = model_of(rng, 30, columns)
        part = model.problem.residual.rows(np.flatnonzero(np.asarray(model.problem.residual.subject.codes) == 0))
        visit = part.where
        subject, xy = np.zeros(len(visit), dtype=int), rng.normal(size=(len(visit), 5))
    found, places = module.visit_patterns(part, xy)
    known = sums_by_hand(xy, subject, visit)
    c, row, square, at = found.columns, 0, 0, 0
    assert c == xy.shape[1] and len(found.size) == len(known)
    for n, d, count, table in zip(found.size, found.members, found.counts, found.table, strict=True):
        rows = found.rows.reshape(-1, c)[row : row + n * d].reshape(n, d, c)
        root = found.outside[square : square + n * n].reshape(n, n)
        made = np.einsum("aij,bil->ajbl", rows, rows)
        made[:, -1, :, -1] += root @ root.T
        label = (
            int(table) if len(places) > 1 else int(subject[0]) % 2,
            *places[table][found.visits[at : at + n]].tolist(),
        )
        number, total = known.pop(label)
        assert count == number and d <= min(most, number)
        size = np.sqrt(np.diag(total))
        np.testing.assert_allclose(
            made.reshape(n * c, n * c) / np.outer(size, size), total / np.outer(size, size), atol=1e-12
        )
        row, square, at = row + n * d, square + n * n, at + n
    assert not known and row * c == len(found.rows) and square == len(found.outside) and at == len(found.visits)


def test_responses_alone_need_no_rows(rng):
    model, subject, visit = model_of(rng, 60, 0)
    y = model.problem.xy[:, -1:].copy()
    found = module.visit_patterns(model.problem.residual, y)[0]
    assert not found.members.any() and not len(found.rows)
    total = sum(float(np.trace(one)) for _, one in sums_by_hand(y, subject, visit).values())
    assert np.sum(found.outside**2) == pytest.approx(total, rel=1e-13)


def test_other_columns_of_patterns(rng):
    model, *_ = model_of(rng, 200, 1)
    problem = model.problem
    columns = np.zeros((problem.rank + 1, 3))
    columns[:-1, :2] = rng.normal(size=(problem.rank, 2))
    columns[:, -1] = rng.normal(size=problem.rank + 1)
    sums = []
    for found in (problem.patterns.of_columns(columns), module.visit_patterns(problem.residual, problem.xy @ columns)):
        rows = found.sums.rows.reshape(-1, 3)
        total = rows.T @ rows
        total[-1, -1] += np.sum(found.sums.outside**2)
        sums.append(total)
    np.testing.assert_allclose(*sums, rtol=1e-11)


def test_moments_over_pairs_of_positions(rng):
    seen = rng.random((30, 4)) < 0.6
    seen[:3] = True
    seen[3:6] = [True, False, False, False]
    whole = rng.normal(size=(30, 4))
    subjects, where = np.nonzero(seen)
    held = np.where(seen, whole, np.nan)
    counts, products, squares, complete, n, n_complete = pair_moments(whole[seen], where, subjects, 4)
    assert n == seen.any(axis=1).sum() and n_complete == seen.all(axis=1).sum()
    for a in range(4):
        for b in range(4):
            both = ~np.isnan(held[:, a] + held[:, b])
            assert counts[a, b] == both.sum()
            assert products[a, b] == pytest.approx((held[both, a] * held[both, b]).sum(), rel=1e-12, abs=1e-12)
            assert squares[a, b] == pytest.approx((held[both, a] ** 2).sum(), rel=1e-12)
    np.testing.assert_allclose(complete, whole[seen.all(axis=1)].T @ whole[seen.all(axis=1)], rtol=1e-12)
