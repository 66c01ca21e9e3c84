"""What many responses on one design share, in conditioned coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.parameters import vech_positions
from ...engines.one_factor.problem import one_factor
from ...engines.protocol import linear_engine
from ...kernels.records import BatchPatterns, BatchRows, BatchSearch
from ...support.types import Array
from ..fit import Fit, estimate
from ..model import Model
from ..moments import projected_traces, reduced_traces
from .search import group_basis, response_screen

if TYPE_CHECKING:
    from ...kernels.hierarchies import FactorBatch
    from .several_factors import HierarchyDesign

__all__ = ["EffectsDesign", "effects_design", "hierarchy_design", "shared_design"]


BENT_EFFECTS = 4
"""Random effects up to which the first step of a search goes beyond scoring."""

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
        residual = Y - np.nan_to_num(params) @ model.exog.T
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


def shared_design(model: Model) -> kernels.BatchDesign | FactorBatch | HierarchyDesign:
    """What all responses share; made once per model."""
    return model.once("shared by responses", lambda: _shared_design(model))


def _shared_design(model: Model) -> kernels.BatchDesign | FactorBatch | HierarchyDesign:
    if len(model.factors) == 1:
        return _one_factor(model)
    from .factor_lanes import factor_batch

    return factor_batch(model) or hierarchy_design(model)


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
    ones = np.zeros(model.exog.shape[1])
    if problem.x_constant:
        column = model.constant_column
        ones[column] = 1.0 / model.exog[0, column]
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
    first, scoring, bend = _scoring(model, patterns)
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
            first=first,
            scoring=scoring,
            bend=bend,
            per_group=n / m,
            tolerance=min(1e-9 * float(np.sqrt(m)), 1e-6),
            max_iterations=MAX_ITERATIONS,
        ),
        response_screen(model, patterns),
        np.ascontiguousarray(problem.x_map),
        ones,
    )


def _scoring(model: Model, patterns: BatchPatterns) -> tuple[Array, tuple[Array, Array], tuple[Array, Array] | None]:
    """A point from which to take one step of scoring, the inverse of the expected information there, by REML and by ML,
    and what the next terms of the expansion need, None where scoring is exact or that would cost too much.

    Scores and expected information are those of sigma^2 and the covariances of random effects together: tr(P V_a P V_b)
    (Patterson and Thompson 1971, Biometrika 58, 545-554), by ML with V^-1 for P.  Where sigma^2 is profiled out its
    score is the one along G^, with the sign turned.
    """
    problem, structure = one_factor(model.problem), model.structure
    q, r = structure.q, problem.rank
    fitted = estimate(Fit, model, True).optimum.factor
    relative = fitted @ fitted.T + 0.25 * problem.m / problem.n * np.eye(q)
    first = structure.canonical(np.asarray(np.linalg.cholesky(relative), dtype=np.float64))
    criterion = linear_engine(problem.criterion())
    criterion.reml = True
    criterion.evaluate(structure.theta(first), 2)
    half = np.asarray(np.linalg.inv(criterion.solution()[2]), dtype=np.float64)
    slopes = half @ criterion.cross()[:, :r, :r] @ half.T
    lower, upper = vech_positions(q)
    trace = criterion.precision()[lower, upper] * (2.0 - (lower == upper))
    along = (first @ first.T)[lower, upper]
    free = np.append(0, 1 + np.flatnonzero(structure.free[lower, upper]))
    found: list[Array] = []
    bent: list[Array] = []
    # V = I + sum of the directions times the elements of G^
    basis = np.eye(1 + len(lower))
    basis[0, 1:] = -along
    for square, linear, nu in (
        (projected_traces(reduced_traces(criterion, half), slopes), trace - np.trace(slopes, axis1=1, axis2=2), -r),
        (criterion.traces(), trace, 0),
    ):
        information = np.zeros((1 + len(lower), 1 + len(lower)))
        information[1:, 1:] = square
        # I = V - sum of the directions times the elements of G^
        information[0, 1:] = information[1:, 0] = linear - square @ along
        information[0, 0] = problem.n + nu - along @ linear - along @ information[0, 1:]
        inverse = np.zeros_like(information)
        inverse[np.ix_(free, free)] = np.linalg.pinv(information[np.ix_(free, free)])
        found.append(inverse)
        if len(patterns.R) > 1 and q <= BENT_EFFECTS:
            third = np.zeros((len(basis),) * 3)
            third[1:, 1:, 1:] = _third_traces(patterns, first, half if nu else None)
            third[0, 1:, 1:] = third[1:, 0, 1:] = third[1:, 1:, 0] = square
            third[0, 0, 1:] = third[0, 1:, 0] = third[1:, 0, 0] = linear
            third[0, 0, 0] = problem.n + nu
            bent.append(np.ascontiguousarray(np.einsum("abc,ia,jb,kc->ijk", third, basis, basis, basis, optimize=True)))
    return np.ascontiguousarray(first), (found[0], found[1]), (bent[0], bent[1]) if bent else None


def _third_traces(patterns: BatchPatterns, factor: Array, half: Array | None) -> Array:
    """tr(P V_a P V_b P V_c) along the unit directions of G^ at G^ = L L'; they depend on the order of directions.

    With Z_i'V^-1 Z_i = N_i, Z_i'V^-1 X_i = E_i and (X'V^-1X)^-1 = half'half, Z'PZ = N - E half'half E', block by block.

    Parameters
    ----------
    patterns : BatchPatterns
    factor : (q, q) array
        L.
    half : (p, p) array or None
        None: with V^-1 in the place of P.
    """
    q = len(factor)
    upper = np.zeros((len(patterns.R), q, q))
    upper[:, *np.triu_indices(q)] = patterns.R
    spread = upper @ factor
    turned = np.linalg.solve(np.eye(q) + spread @ spread.transpose(0, 2, 1), upper)
    N = upper.transpose(0, 2, 1) @ turned
    lower, position = vech_positions(q)
    directions = np.zeros((len(lower), q, q))
    directions[np.arange(len(lower)), lower, position] = directions[np.arange(len(lower)), position, lower] = 1.0
    counts = np.diff(patterns.groups)
    DN = directions[:, None] @ N
    count = len(directions)
    last = DN.transpose(0, 1, 3, 2).reshape(count, -1).T
    out = np.stack([((counts[:, None, None] * one) @ DN).reshape(count, -1) @ last for one in DN])
    if half is None:
        return out
    owner = np.repeat(np.arange(len(counts)), np.diff(patterns.columns))
    E = turned.transpose(0, 2, 1)[owner] @ patterns.cx @ half.T
    p = E.shape[2]
    DE = directions[:, None] @ E
    flat = E.transpose(2, 0, 1).reshape(p, -1)
    J = np.stack([flat @ one.reshape(-1, p) for one in DE])
    Q = np.empty((count, count, p, p))
    # of three P in a cycle, the parts with E once, twice and three times
    for b, c in np.ndindex(count, count):
        along = DN[b][owner] @ DE[c]
        Q[b, c] = flat @ along.reshape(-1, p)
        left = (DN.transpose(0, 1, 3, 2)[:, owner] @ E).reshape(count, -1)
        once = left @ along.reshape(-1)
        out[:, b, c] -= once
        out[b, c, :] -= once
        out[c, :, b] -= once
    twice = np.einsum("aij,bcji->abc", J, Q)
    out += twice + twice.transpose(2, 0, 1) + twice.transpose(1, 2, 0) - np.einsum("aij,bjk,cki->abc", J, J, J)
    return out
