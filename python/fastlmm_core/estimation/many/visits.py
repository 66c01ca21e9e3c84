"""What many responses over the same visits share, with `us` residuals; see `kernels.residuals.UnstructuredBatch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...covariance.residual.unstructured import Unstructured
from ...engines.residual.problem import SPANNED, ResidualProblem
from ...engines.residual.visits import NEARLY
from ...kernels.records.batches import BatchCriterion, BatchResults
from ...kernels.records.residuals import VisitPatterns, VisitResponses
from ...support.types import Array
from ..optimum import close_enough

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["VisitDesign", "visit_design"]


MAX_ITERATIONS = 40
"""Newton steps before a response is left to the single-fit path."""

DEPENDENT = 1e-12
"""Singular value of the rows of a pattern, relative to the largest, that adds nothing to them."""


class VisitDesign:
    """What the responses share; each thread has a work space of its own."""

    def __init__(self, shared: VisitResponses) -> None:
        self.shared = shared

    def fit(self, Y: Array, first: int, criterion: BatchCriterion, start: Array | None, results: BatchResults) -> None:
        """Fit the rows of Y, and write results from row `first` on; see `BatchDesign.fit`."""
        from ...kernels.residuals import UnstructuredBatch

        UnstructuredBatch(self.shared).fit(Y, first, *criterion, results)


def visit_design(model: Model) -> VisitDesign | None:
    """What responses share where residuals are `us` over visits, and all visits can be told; None elsewhere."""
    return model.once("shared over visits", lambda: _visit_design(model))


def _visit_design(model: Model) -> VisitDesign | None:
    problem = model.problem
    if not isinstance(problem, ResidualProblem) or not problem.by_pattern or not problem.rank or problem.given:
        return None
    part, design = problem.residual, model.design
    places = [np.unique(part.where[part.stratum == g]) for g in range(len(part.strata))]
    for own, found in zip(part.strata, places, strict=True):
        if type(own.structure) is not Unstructured or own.structure.m != len(found):
            return None
    X = np.ascontiguousarray(problem.xy[:, :-1])
    # visits of one row, and those that the fixed effects reproduce, are refused one by one
    free = 1.0 - np.einsum("ij,ij->i", X, X)
    width = max(map(len, places))
    visit = part.stratum * width + part.where
    if np.bincount(visit).min(initial=2, where=np.bincount(visit) > 0) < 2:
        return None
    if (np.bincount(visit, free >= SPANNED)[np.unique(visit)] == 0).any():
        return None
    order: list[NDArray[np.intp]] = []
    rows: list[Array] = []
    basis: list[Array] = []
    size, members, counts, visits, table = [], [], [], [], []
    for own, where, subjects in part.alike():
        count, n = subjects.shape
        wide = X[subjects].reshape(count, -1)
        left, values, right = np.linalg.svd(wide, full_matrices=False)
        d = int(np.sum(values > DEPENDENT * values[0])) if values[0] > 0.0 else 0
        made = np.zeros((n, d, X.shape[1] + 1))
        made[:, :, :-1] = (values[:d, None] * right[:d]).reshape(d, n, X.shape[1]).transpose(1, 0, 2)
        rows.append(made.ravel())
        basis.append(np.ascontiguousarray(left[:, :d]).ravel())
        order.append(subjects.T.ravel())
        g = part.strata.index(own)
        size.append(n)
        members.append(d)
        counts.append(float(count))
        visits.append(np.searchsorted(places[g], where))
        table.append(g)
    at = np.concatenate(order)
    patterns = VisitPatterns(
        rows=np.concatenate(rows),
        size=np.array(size, dtype=np.intp),
        members=np.array(members, dtype=np.intp),
        counts=np.array(counts),
        visits=np.concatenate(visits).astype(np.intp),
        table=np.array(table, dtype=np.intp),
        table_size=np.array([len(found) for found in places], dtype=np.intp),
        columns=X.shape[1] + 1,
        outside=np.zeros(int(np.sum(np.square(size)))),
    )
    shared = VisitResponses(
        patterns=patterns,
        order=at,
        # one more: the last pattern may have no columns
        basis=np.concatenate([*basis, np.zeros(1)]),
        root_weights=None if design.weights is None else np.sqrt(design.weights[at]),
        offset=None if design.offset is None else np.ascontiguousarray(design.offset[at]),
        x_map=np.ascontiguousarray(problem.x_map),
        tolerance=close_enough(problem.m),
        max_iterations=MAX_ITERATIONS,
        nearly=NEARLY,
    )
    return VisitDesign(shared)
