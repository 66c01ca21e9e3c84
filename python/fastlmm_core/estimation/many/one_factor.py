"""What many responses on one design share, in conditioned coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engines.one_factor.problem import one_factor
from ...kernels.records.batches import BatchPatterns, BatchRows, BatchSearch
from ...support.types import Array
from ..model import Model
from ..optimum import close_enough
from .search import group_basis, response_screen
from .start import batch_start

if TYPE_CHECKING:
    from ...kernels.hierarchies import CorrelatedBatch, FactorBatch
    from .several_factors import HierarchyDesign

__all__ = ["EffectsDesign", "effects_design", "hierarchy_design", "shared_design"]


MAX_ITERATIONS = 40
"""Newton steps in lanes before a response is left to the single-fit path."""


class EffectsDesign:
    """What BLUPs of many responses share: b = L (I + L'A L)^-1 L' Z'W (y - X beta), group by group."""

    def __init__(self, model: Model) -> None:
        problem = one_factor(model.problem)
        self.model = model
        position = model.grouping.index
        self.order = np.argsort(position, kind="stable")
        self.start = np.append(0, np.cumsum(np.bincount(position, minlength=problem.m)))[:-1]
        z = problem.conditioned_z(model.exog_re)[self.order]
        self.weighted = z if model.weights is None else z * model.weights[self.order, None]
        self.gram = np.add.reduceat(self.weighted[:, :, None] * z[:, None, :], self.start, axis=0)

    def effects(self, Y: Array, params: Array, factors: Array) -> list[Array]:
        """BLUPs (count, m, q) in natural units of the rows of Y, in a list of one."""
        model = self.model
        # a product by BLAS would depend on how many responses there are
        residual = Y - np.einsum("rp,np->rn", np.nan_to_num(params), model.exog)
        if model.offset is not None:
            residual -= model.offset
        cross = np.add.reduceat(residual[:, self.order, None] * self.weighted, self.start, axis=1)
        turned = factors.transpose(0, 2, 1)[:, None]
        inner = np.eye(factors.shape[1]) + turned @ self.gram @ factors[:, None]
        spherical = np.linalg.solve(inner, turned @ cross[..., None])
        return [(model.problem.z_map @ (factors[:, None] @ spherical))[..., 0]]


def effects_design(model: Model) -> EffectsDesign | HierarchyDesign:
    """What finds BLUPs of many responses, for one grouping factor or several."""
    return EffectsDesign(model) if len(model.factors) == 1 else hierarchy_design(model)


def shared_design(model: Model) -> kernels.BatchDesign | FactorBatch | CorrelatedBatch | HierarchyDesign:
    """What all responses share; made once per model."""
    return model.once("shared by responses", lambda: _shared_design(model))


def _shared_design(model: Model) -> kernels.BatchDesign | FactorBatch | CorrelatedBatch | HierarchyDesign:
    if len(model.factors) == 1:
        return _one_factor(model)
    from .correlated_lanes import correlated_batch
    from .factor_lanes import factor_batch

    single = all(f.stop - f.start == 1 for f in model.factors)
    return (factor_batch(model) if single else correlated_batch(model)) or hierarchy_design(model)


def hierarchy_design(model: Model) -> HierarchyDesign:
    """What responses with several grouping factors share where each is a fit of its own; made once per model."""
    from .several_factors import HierarchyDesign

    return model.once("shared by responses of several factors", lambda: HierarchyDesign(model))


def _one_factor(model: Model) -> kernels.BatchDesign:
    """The arrays that all responses share, in conditioned coordinates."""
    problem = one_factor(model.problem)
    n, m, q, r = problem.n, problem.m, model.structure.q, problem.rank
    packed, _ = kernels.factor_groups(problem.raw, problem.z_transform, problem.xy_transform)
    lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:m]
    labels = kernels.pattern_labels(packed, m, q)
    labels = np.arange(m) if labels is None else labels
    sequence = np.argsort(labels, kind="stable")
    lines = lines[sequence]
    n_a = q * (q + 1) // 2
    triangle = lines[:, :n_a]
    cx = np.ascontiguousarray(lines[:, n_a:-1].reshape(m, q, r + 1)[:, :, :r])
    bounds = np.append(0, np.cumsum(np.bincount(labels))).astype(np.int64)
    columns, loading, rotated = kernels.pattern_bases(cx, bounds)

    place = np.empty(m, dtype=np.int64)
    place[sequence] = np.arange(m)
    position = place[model.grouping.index]
    order: NDArray[np.int64] | None = np.argsort(position, kind="stable")
    start = np.append(0, np.cumsum(np.bincount(position, minlength=m))).astype(np.int64)
    assert order is not None
    z = problem.conditioned_z(model.exog_re)[order]
    x = problem.conditioned_x(model.exog)[order]
    upper = np.zeros((m, q, q))
    upper[:, *np.triu_indices(q)] = triangle
    # their inner products with y_i are c_y
    basis = group_basis(z, upper[position[order]])
    weights = None if model.weights is None else np.ascontiguousarray(model.weights[order])
    offset = None if model.offset is None else np.ascontiguousarray(model.offset[order])
    if weights is not None:
        basis *= weights[:, None]
        x = x * weights[:, None]
    diagonal = np.cumsum(np.arange(1, r + 1)) - 1
    exact = (problem.within[diagonal] == 0.0).astype(np.intc)
    rows, positions = model.structure.positions
    free = np.zeros((q, q), dtype=np.intc)
    free[rows, positions] = free[positions, rows] = 1
    patterns = BatchPatterns(
        groups=bounds,
        columns=columns,
        loading=loading,
        R=np.ascontiguousarray(triangle[bounds[:-1]]),
        cx=np.ascontiguousarray(rotated),
        within_xx=np.ascontiguousarray(problem.within[: r * (r + 1) // 2]),
        exact=exact,
    )
    return kernels.BatchDesign(
        BatchRows(
            order=None if np.array_equal(order, np.arange(n)) else order,
            start=start,
            basis=basis,
            x=None if exact.all() else np.ascontiguousarray(x),
            weights=weights,
            offset=offset,
            centre=problem.x_constant,
        ),
        patterns,
        BatchSearch(
            structure=free,
            rows=rows,
            columns=positions,
            start=batch_start(model, patterns),
            per_group=n / m,
            tolerance=close_enough(m),
            max_iterations=MAX_ITERATIONS,
        ),
        response_screen(model, patterns),
        np.ascontiguousarray(problem.x_map),
        model.coefficients_of_one,
    )
