"""Several grouping factors to a conditioned problem, as design.py does it for one.

The order in which their levels are eliminated is found in layout.py, the criterion is in the kernel `_blocked`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _levels as levels
from . import design, kernels
from .errors import LMMError
from .layout import Layout, Stage, Tail, lay_out, lay_out_chain
from .parameters import Block, CovarianceStructure

if TYPE_CHECKING:
    from .blocked import BlockedCriterion

__all__ = ["Factor", "HierarchyProblem", "condition_factors", "start"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

QUICK_FROM = 2000
"""Rows from which nested factors are taken in by one pass; below, each column is treated with more care."""

PILOT_GROUPS = 200
"""Levels of the coarsest factor on which a start is found when there are many more of them."""

EXACT_UP_TO, WIDE_UP_TO = 3e6, 1e9
"""Floating-point operations up to which Newton's Hessian is exact: for few parameters, where the average information
does nearly as well, and for many, where it does not."""

MANY_PARAMETERS = 10


@dataclass(frozen=True)
class Factor:
    """One grouping factor with all its random effects.

    Parameters
    ----------
    Z : (n, q) array
    codes : (n,) int array
        Level of each row, 0 to m - 1, all of them used.
    m : int
    name : str
    """

    Z: Array
    codes: NDArray[Any]
    m: int
    name: str


@dataclass(frozen=True)
class HierarchyProblem:
    """A conditioned problem of several grouping factors and the way back to the caller's units.

    Attributes
    ----------
    n, m : int
        Observations; levels of the factor that has most.
    n_levels : tuple of int
        Levels of each factor.
    names : tuple of str
    structure : CovarianceStructure
        Over all factors, side by side.
    columns : tuple of int
        First column of each factor in Lambda.
    layout : Layout
    cross, gram : arrays
        Z'[X y] (n_slots, k) and [X y]'[X y] (k, k) of the conditioned columns.
    z_map, x_map, beta_base, scale, kept, log_constant, log_jacobian
        As in `design.Problem`; z_map is block diagonal.
    """

    n: int
    m: int
    n_levels: tuple[int, ...]
    names: tuple[str, ...]
    structure: CovarianceStructure
    columns: tuple[int, ...]
    layout: Layout
    cross: Array
    gram: Array
    x_scale: Array
    x_rows: Array
    x_constant: bool
    z_map: Array
    x_map: Array
    beta_base: Array
    scale: float
    kept: Index
    log_constant: float
    log_jacobian: float

    @property
    def rank(self) -> int:
        """Number of fixed-effect columns kept."""
        return len(self.kept)

    @property
    def levels(self) -> Array:
        """Number of levels of the factor of each random effect (q,)."""
        widths = np.diff([*self.columns, self.structure.q])
        return np.repeat(np.array(self.n_levels, dtype=float), widths)

    def start(self, criterion: BlockedCriterion) -> Array:
        """Theta from the moments of the data."""
        return start(self)

    @cached_property
    def n_effects(self) -> int:
        """Random effects over all levels."""
        return len(self.cross)

    def conditioned_x(self, X: Array) -> Array:
        """Rows of X_o (n, r)."""
        return np.asarray((X[:, self.kept] - self.x_scale[0]) * self.x_scale[1] @ self.x_rows)

    def criterion(self, columns: Array | None = None) -> BlockedCriterion:
        """The criterion of the conditioned problem.

        Parameters
        ----------
        columns : (rank + 1, k) array, optional
            Take [X y] columns for [X y]: for coefficients that are fixed or constrained.
        """
        from .blocked import BlockedCriterion

        cross, gram = self.cross, self.gram
        if columns is not None:
            cross, gram = cross @ columns, columns.T @ gram @ columns
        rows, places = self.structure.positions
        limit = EXACT_UP_TO if len(rows) < MANY_PARAMETERS else WIDE_UP_TO
        average = _exact_work(self.layout) > limit
        return BlockedCriterion(self.layout, cross, gram, self.n, self.structure.q, rows, places, average)

    def pilot(self, n_groups: int = PILOT_GROUPS) -> BlockedCriterion | None:
        """The criterion of about `n_groups` levels of the coarsest factor, None where there are not many more.

        Only where all factors are nested, so that the rest of the data can be left out.
        """
        from .blocked import BlockedCriterion

        stages = self.layout.stages
        if self.layout.tails or not stages or stages[-1].m < 4 * n_groups:
            return None
        step = stages[-1].m // n_groups
        some = np.zeros(stages[-1].m, dtype=bool)
        some[::step] = True
        chosen: list[Stage] = []
        crosses: list[Array] = []
        at = len(self.cross)
        finest = None
        number = np.zeros(0, dtype=np.intp)
        for stage in reversed(stages):
            up = stage.parent
            if up is not None:
                parent_number, some = number, some[up]
                up = parent_number[up[some]]
            number = np.cumsum(some) - 1
            at -= stage.m * stage.q
            finest = self.cross[at : at + stage.m * stage.q].reshape(stage.m, stage.q, -1)
            crosses.append(finest[some].reshape(-1, finest.shape[2]))
            chosen.append(stage._replace(m=int(some.sum()), parent=up, own=stage.own[some], chain=stage.chain[some]))
        chosen.reverse()
        crosses.reverse()
        assert finest is not None
        # what the finest levels leave of [X y]'[X y] is taken to be spread evenly
        kernel = levels.explained
        mine = kernel(stages[0].own, finest, some.astype(np.uint8))
        others = kernel(stages[0].own, finest, (~some).astype(np.uint8))
        share = chosen[0].m / stages[0].m
        gram = mine + share * (self.gram - mine - others)
        rows, places = self.structure.positions
        layout = Layout(tuple(chosen), (), np.zeros(1, dtype=np.intp), ())
        n = round(self.n * share)
        return BlockedCriterion(layout, np.concatenate(crosses), gram, n, self.structure.q, rows, places, True)

    def offset(self, reml: bool) -> float:
        """Criterion in the caller's units less that of the conditioned problem."""
        nu = self.n - self.rank if reml else self.n
        return self.log_constant + nu * 2.0 * log(self.scale) - (self.log_jacobian if reml else 0.0)

    def _at(self, factor: Array) -> BlockedCriterion:
        engine = self.criterion()
        engine.evaluate(self.structure.theta(factor), 1)
        return engine

    def effects(self, factor: Array, beta: Array) -> list[Array]:
        """Posterior means of the random effects in conditioned units.

        Parameters
        ----------
        factor : (q, q) array
            Lambda_o.
        beta : (rank,) array
            beta_o.

        Returns
        -------
        list of (m_f, q_f) arrays
            One for each factor, its levels as the caller numbers them; times `scale` for the caller's units of y.
        """
        scores = self._at(factor).scores() @ np.append(-beta, 1.0)
        G = factor @ factor.T
        return [
            scores[places] @ G[start : start + places.shape[1], start : start + places.shape[1]]
            for start, places in zip(self.columns, self.layout.places, strict=True)
        ]

    def effects_covariance(self, factor: Array) -> list[Array]:
        """Conditional covariances of the random effects given y, relative to sigma^2, in conditioned units.

        Returns
        -------
        list of (m_f, q_f, q_f) arrays
        """
        blocks = self._at(factor).conditional()
        return [blocks[places][:, :, : places.shape[1]] for places in self.layout.places]


def condition_factors(
    y: Array,
    X: Array,
    factors: list[Any],
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
) -> HierarchyProblem:
    """Cross-products of a model with several grouping factors, conditioned.

    Parameters
    ----------
    y, X : (n,), (n, p) arrays
    factors : list of Factor
        Different grouping factors; several terms on one factor make one with all their columns.
    weights, offset : (n,) arrays or None
    structure : CovarianceStructure
        Over the columns of all factors, in their order.

    Raises
    ------
    LMMError
        For values that are not finite, a constant response, collinear columns of a Z, a factor with as many random
        effects as there are observations, a response without residual variation, or crossed factors too large for a
        dense matrix.
    """
    n = len(y)
    codes = [np.ascontiguousarray(f.codes, dtype=np.intp) for f in factors]
    quick = _condition_chain(y, X, factors, codes, weights, offset, structure)
    if quick is not None:
        return quick
    design._refuse(y, X, np.concatenate([f.Z for f in factors], axis=1), weights, offset)
    root = None if weights is None else np.sqrt(weights)
    for f in factors:
        design._check_size(n, f.m, f.Z.shape[1], f.name)
    if (y == y[0]).all():
        raise LMMError("y is constant: there is nothing to model; check that the right column is the response")
    kept, x_scale, x_constant, x_rows, scaled = _condition_x(X, weights, root)
    xy = np.empty((n, len(kept) + 1))
    np.matmul(scaled, x_rows, out=xy[:, :-1])
    x_o = xy[:, :-1]
    # the residual of y, twice: the second pass takes out what rounding has left of X in the first
    columns_map = kernels.scale_map(x_scale, x_constant)
    rest = np.array(y if offset is None else y - offset)
    before = float(np.sum(rest * rest))
    shift = np.zeros(len(kept))
    if x_constant >= 0:
        shift[x_constant] = rest.mean()
        rest -= rest.mean()
    if root is not None:
        rest *= root
    beta_o = np.zeros(len(kept))
    for _ in range(2):
        change = x_o.T @ rest
        rest -= x_o @ change
        beta_o += change
    squares = float(rest @ rest)
    if not squares > 1e-30 * before:
        raise LMMError("y is reproduced exactly by the fixed effects: there is no variation left to model")
    scale = sqrt(squares / n)
    xy[:, -1] = rest / scale

    Z: list[Array] = []
    columns: list[int] = []
    z_map = np.zeros((structure.q, structure.q))
    at = 0
    for f in factors:
        width = f.Z.shape[1]
        local = _local(structure, at, width)
        conditioned, inner = _condition_z(np.asarray(f.Z, dtype=float), weights, root, local)
        z_map[at : at + width, at : at + width] = inner
        Z.append(conditioned)
        columns.append(at)
        at += width
    layout, cross = lay_out(Z, codes, [f.m for f in factors], columns, xy)
    gram = xy.T @ xy
    x_map = columns_map @ x_rows
    beta_base = columns_map @ (shift + x_rows @ beta_o)
    log_det = kernels.log_diagonal(columns_map) + kernels.log_diagonal(x_rows)
    if len(kept) < X.shape[1]:
        x_map = design._spread(x_map, kept, X.shape[1])
        beta_base = design._spread(beta_base, kept, X.shape[1])
    return HierarchyProblem(
        n=n,
        m=max(f.m for f in factors),
        n_levels=tuple(f.m for f in factors),
        names=tuple(f.name for f in factors),
        structure=structure,
        columns=tuple(columns),
        layout=layout,
        cross=cross,
        gram=gram,
        x_scale=x_scale,
        x_rows=x_rows,
        x_constant=x_constant >= 0,
        z_map=z_map,
        x_map=x_map,
        beta_base=beta_base,
        scale=scale,
        kept=kept,
        log_constant=0.0 if weights is None else -float(np.sum(np.log(weights))),
        log_jacobian=2.0 * log_det,
    )


def _condition_chain(
    y: Array,
    X: Array,
    factors: list[Any],
    codes: list[Index],
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
) -> HierarchyProblem | None:
    """The problem from one pass over the rows where all factors are nested in each other; None where that does not do.

    It does not do for crossed factors, few rows, or columns so dependent, or explained so well, that sums of products
    are not exact enough.
    """
    n, p = X.shape
    sizes = [f.m for f in factors]
    if n < QUICK_FROM or len(set(sizes)) < len(sizes):
        return None
    chain = sorted(range(len(factors)), key=lambda f: -sizes[f])
    parents: list[Index] = []
    for fine, coarse in pairwise(chain):
        parent = levels.nested_in(codes[fine], codes[coarse], sizes[fine])
        if parent is None:
            return None
        parents.append(parent)
    for f in factors:
        design._check_size(n, f.m, f.Z.shape[1], f.name)
    # the different columns among the Z of all factors
    columns: list[Array] = []
    which: list[list[int]] = []
    for f in factors:
        mine = []
        for j in range(f.Z.shape[1]):
            column = f.Z[:, j]
            same = (i for i, other in enumerate(columns) if _same_column(other, column))
            found = next(same, len(columns))
            if found == len(columns):
                columns.append(column)
            mine.append(found)
        which.append(mine)
    r = len(columns)
    for Z in (X, *(f.Z for f in factors)):
        if Z.shape[1] == r and all(_same_column(Z[:, i], column) for i, column in enumerate(columns)):
            break
    else:
        Z = np.column_stack(columns)
    x_scale, x_constant = kernels.column_scales(X, design.SAMPLE, True)
    # a shift must be undone by a constant column of the same block
    shifted = all(
        block.structure == "full" and block.stop - block.start == factors[f].Z.shape[1]
        for f, mine in enumerate(which)
        for block in structure.blocks
        if sum(len(w) for w in which[:f]) <= block.start < sum(len(w) for w in which[: f + 1])
    )
    z_scale, z_constant = kernels.column_scales(Z, design.SAMPLE, shifted)
    if z_constant >= 0 and any(z_constant not in mine for mine in which):
        z_scale, z_constant = kernels.column_scales(Z, design.SAMPLE, False)
    beta0 = np.zeros(p)
    if x_constant >= 0:
        beta0[x_constant] = kernels.probe(y[:, None], design.SAMPLE)[0, 0]
    raw, packed, gram_z, constant, varies, finite = kernels.accumulate(
        X, y, Z, codes[chain[0]], 0, sizes[chain[0]], weights, offset, x_scale, z_scale, beta0, x_constant, z_constant,
        None, None,
    )  # fmt: skip
    if not (finite and varies and constant):
        return None
    S = kernels.unpack(packed, p + 1)
    to_x, margin = kernels.orthonormal(S[:p, :p]) if p else (np.zeros((0, 0)), 1.0)
    if p and margin < design.WELL_CONDITIONED:
        return None
    whitened = to_x.T @ S[:p, p]
    beta1 = to_x @ whitened
    rest = float(S[p, p] - whitened @ whitened)
    if not rest > 1e-7 * S[p, p]:
        return None
    scale = sqrt(rest / n)
    xy = np.zeros((p + 1, p + 1))
    xy[:p, :p] = to_x
    xy[:p, p] = -beta1 / scale
    xy[p, p] = 1.0 / scale
    gram = xy.T @ S @ xy
    gram_of = kernels.unpack(gram_z, r)
    turn = np.zeros((r, structure.q))
    z_map = np.zeros((structure.q, structure.q))
    starts: list[int] = []
    at = 0
    for mine in which:
        width = len(mine)
        rotation, margin = _rotation(gram_of[np.ix_(mine, mine)], n, _local(structure, at, width))
        if margin < design.WELL_CONDITIONED:
            return None
        part = slice(at, at + width)
        turn[mine, part] = rotation
        local_constant = mine.index(z_constant) if z_constant in mine else -1
        z_map[part, part] = kernels.scale_map(np.ascontiguousarray(z_scale[:, mine]), local_constant) @ rotation
        starts.append(at)
        at += width
    columns_map = kernels.scale_map(x_scale, x_constant)
    fields: dict[str, Any] = {
        "n": n,
        "m": sizes[chain[0]],
        "n_levels": tuple(sizes),
        "names": tuple(f.name for f in factors),
        "structure": structure,
        "columns": tuple(starts),
        "gram": gram,
        "x_scale": x_scale,
        "x_rows": to_x,
        "x_constant": x_constant >= 0,
        "z_map": z_map,
        "x_map": columns_map @ to_x,
        "beta_base": columns_map @ (beta0 + beta1),
        "scale": scale,
        "kept": np.arange(p),
        "log_constant": 0.0 if weights is None else -float(np.sum(np.log(weights))),
        "log_jacobian": 2.0 * (kernels.log_diagonal(columns_map) + kernels.log_diagonal(to_x)),
    }
    from .chain import LONGEST, WIDEST, Chain, ChainProblem

    shared, margin = kernels.orthonormal(gram_of)
    if r <= WIDEST and p < LONGEST and margin >= design.WELL_CONDITIONED:
        shared *= sqrt(n)
        maps: list[Array] = []
        for at, mine in zip(starts, which, strict=True):
            maps.append(np.asarray(np.linalg.solve(shared, turn[:, at : at + len(mine)]), dtype=np.float64))
        problem = ChainProblem(Chain(raw, chain, parents, shared, xy, maps), **fields)
        slope = problem.within_slope()
        rows = None
        if slope is not None:
            # sums of squares have lost digits: take out what X explains within levels and sum over the rows again
            xy[:p, p] -= to_x @ slope
            fields["gram"] = xy.T @ S @ xy
            fields["beta_base"] = columns_map @ (beta0 - xy[:p, p] * scale)
            problem = ChainProblem(Chain(raw, chain, parents, shared, xy, maps), **fields)
            rows = X, y, Z, codes[chain[0]], weights, offset
        problem.look_within(rows, (x_scale, z_scale, beta0))
        return problem
    layout, cross = lay_out_chain(raw, turn, xy, chain, parents, sizes, starts, [len(w) for w in which])
    return HierarchyProblem(layout=layout, cross=cross, **fields)


def _same_column(one: Array, other: Array) -> bool:
    """Whether two columns are equal; those in the same place of memory need not be read."""
    if one.strides == other.strides and one.__array_interface__["data"] == other.__array_interface__["data"]:
        return True
    return np.array_equal(one[:64], other[:64]) and np.array_equal(one, other)


def _exact_work(layout: Layout) -> float:
    """Operations that an exact Hessian takes beyond a gradient: all of Z'V^-1 Z, and products of its blocks."""
    items: list[Stage | Tail] = [*layout.stages, *layout.tails]
    total = float(sum(item.m * item.q for item in items))
    if len(layout.stages) == 1 and len(layout.comp_slot) == 2:
        tail = float(layout.comp_slot[-1])
        chain = total - tail
        work = 2.0 * tail * chain * total + 4.0 * tail**2 * total
    else:
        entries = sum(s.chain.size + s.own.size + (0 if s.panel is None else s.panel.size) for s in layout.stages)
        entries += sum(t.own.size + t.panel.size for t in layout.tails)
        work = 8.0 * total * (entries + float(np.sum(np.diff(layout.comp_slot).astype(float) ** 2)))
    return work + sum(2.0 * a.m * b.m * (a.q * b.q) ** 2 for a in items for b in items)


def _local(structure: CovarianceStructure, at: int, width: int) -> CovarianceStructure:
    """The blocks of the factor whose columns start at `at`, by themselves."""
    return CovarianceStructure(
        tuple(Block(b.start - at, b.stop - at, b.structure) for b in structure.blocks if at <= b.start < at + width)
    )


def _scales(columns: Array, may_shift: bool) -> tuple[Array, int]:
    """Shift and scale of each column and the constant one, from all rows (see `kernels.column_scales`)."""
    n = len(columns)
    shift_scale, constant = kernels.column_scales(columns, n, may_shift)
    if constant >= 0 and not (columns[:, constant] == columns[0, constant]).all():
        return kernels.column_scales(columns, n, False)
    return shift_scale, constant


def _condition_x(X: Array, weights: Array | None, root: Array | None) -> tuple[Index, Array, int, Array, Array]:
    """Columns kept, their shifts and scales, the constant one, the map to X_o, and scaled (and weighted) rows."""
    p = X.shape[1]
    kept = np.arange(p)
    x_scale, constant = _scales(X, True)
    scaled = (X - x_scale[0]) * x_scale[1]
    if root is not None:
        scaled *= root[:, None]
    rows, margin = kernels.orthonormal(scaled.T @ scaled) if p else (np.zeros((0, 0)), 1.0)
    if margin < design.WELL_CONDITIONED:
        kept, triangle = design._revealed(X, x_scale, weights)
        if constant >= 0 and constant not in kept:
            x_scale, constant = kernels.column_scales(X, len(X), False)
            kept, triangle = design._revealed(X, x_scale, weights)
        if constant >= 0:
            constant = int(np.flatnonzero(kept == constant)[0])
        x_scale = np.ascontiguousarray(x_scale[:, kept])
        scaled = (X[:, kept] - x_scale[0]) * x_scale[1]
        if root is not None:
            scaled *= root[:, None]
        first = np.triu(np.linalg.inv(triangle)) if len(kept) else np.zeros((0, 0))
        turned = scaled @ first
        rows = first @ kernels.orthonormal(turned.T @ turned)[0] if len(kept) else first
    return kept, x_scale, constant, np.ascontiguousarray(rows), scaled


def _rotation(gram: Array, n: int, structure: CovarianceStructure) -> tuple[Array, float]:
    """Block-wise T with T' gram T = n I (diagonal blocks: unit diagonal only), and the smallest 1 - R^2."""
    out = np.zeros(gram.shape)
    margin = 1.0
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = np.ascontiguousarray(gram[part, part])
        if block.structure == "full":
            rotation, smallest = kernels.orthonormal(inner)
            margin = min(margin, smallest)
        else:
            size = np.sqrt(np.diag(inner))
            rotation = np.diag(1.0 / np.where(size > 0.0, size, 1.0))
            design._check_diagonal(inner, size, block.start)
        out[part, part] = rotation * sqrt(n)
    return out, margin


def _condition_z(
    Z: Array, weights: Array | None, root: Array | None, local: CovarianceStructure
) -> tuple[Array, Array]:
    """Z_o (weighted) and the map b = z_map b_o of one factor."""
    n = len(Z)
    correlated = len(local.blocks) == 1 and local.blocks[0].structure == "full"
    z_scale, constant = _scales(Z, correlated)
    scaled = (Z - z_scale[0]) * z_scale[1]
    if root is not None:
        scaled *= root[:, None]
    z_map = kernels.scale_map(z_scale, constant)
    rotation, margin = _rotation(scaled.T @ scaled, n, local)
    if margin < design.WELL_CONDITIONED:
        first = design._z_preconditioner(Z, z_scale, weights, local)
        scaled = scaled @ first
        z_map = z_map @ first
        rotation, _ = _rotation(scaled.T @ scaled, n, local)
    return np.ascontiguousarray(scaled @ rotation), z_map @ rotation


def start(problem: HierarchyProblem) -> Array:
    """Theta from second moments: MINQUE(0) with one variance per factor, then the shape of each block.

    The sums of squares of Z_f'r, r the residual of y, are set to their expectations where each G^_f is a multiple of
    the identity (Rao 1971, J. Multivar. Anal. 1, 257-275); negative estimates are kept away from 0, a stationary point.
    """
    layout, structure = problem.layout, problem.structure
    count = len(problem.columns)
    moments = problem.cross[:, -1]
    observed = np.array([float(np.sum(moments[places] ** 2)) for places in layout.places] + [problem.gram[-1, -1]])
    expected = np.zeros((count + 1, count + 1))
    of = {column: f for f, column in enumerate(problem.columns)}
    for s, stage in enumerate(layout.stages):
        f = of[stage.column]
        expected[f, f] += np.sum(stage.own**2)
        expected[f, -1] = expected[-1, f] = np.einsum("aii->", stage.own)
        at = 0
        for coarser in layout.stages[s + 1 :]:
            g = of[coarser.column]
            expected[f, g] = expected[g, f] = np.sum(stage.chain[:, :, at : at + coarser.q] ** 2)
            at += coarser.q
        _add_panels(expected, f, stage, stage.comp, layout, of)
    for tail in layout.tails:
        f = of[tail.column]
        expected[f, f] += np.sum(tail.own**2)
        expected[f, -1] = expected[-1, f] = np.einsum("aii->", tail.own)
        _add_panels(expected, f, tail, tail.comp, layout, of)
    expected[-1, -1] = problem.n - problem.rank
    # X is taken out: Z_f'Q Z_g = K_fg - C_f C_g', C = Z'X_o; not where a pilot follows
    C = problem.cross[:, :-1] if layout.tails or problem.n_effects < QUICK_FROM else problem.cross[:, :0]
    engine = problem.criterion()
    inner = [C[places.ravel()].T @ C[places.ravel()] for places in layout.places]
    for g, places in enumerate(layout.places):
        only = np.zeros_like(C)
        only[places.ravel()] = C[places.ravel()]
        turned = engine.gram_times(only) * C
        for f, other in enumerate(layout.places):
            expected[f, g] += np.sum(inner[f] * inner[g]) - 2.0 * np.sum(turned[other.ravel()])
        expected[g, -1] -= np.trace(inner[g])
        expected[-1, g] -= np.trace(inner[g])
    try:
        variances = np.linalg.solve(expected, observed)
    except np.linalg.LinAlgError:
        variances = np.ones(count + 1)
    sigma2 = max(float(variances[-1]), 0.05 * observed[-1] / problem.n)
    factor = np.zeros((structure.q, structure.q))
    for f, places in enumerate(layout.places):
        q_f = places.shape[1]
        per_level = problem.n / len(places)
        floor = 0.1 / per_level
        size = max(float(variances[f]) / sigma2, floor)
        own = moments[places]
        part = slice(problem.columns[f], problem.columns[f] + q_f)
        second = own.T @ own / (len(places) * per_level**2 * sigma2)
        shape = second + np.eye(q_f) * (size - np.trace(second) / q_f)
        for block in structure.blocks:
            if not part.start <= block.start < part.stop:
                continue
            whole = slice(block.start, block.stop)
            inner = shape[
                block.start - part.start : block.stop - part.start, block.start - part.start : block.stop - part.start
            ]
            if block.structure == "full":
                factor[whole, whole] = kernels.floored_factor(inner, max(floor, 0.05 * size))
            else:
                factor[whole, whole] = np.diag(np.sqrt(np.maximum(np.diag(inner), max(floor, 0.05 * size))))
    return structure.theta(factor)


def _add_panels(
    expected: Array, f: int, item: Stage | Tail, comp: Index | None, layout: Layout, of: dict[int, int]
) -> None:
    """Sums of squares of the products with the tail, by the factor of the neighbour."""
    if item.start is None or item.slots is None or item.panel is None or comp is None or not len(item.slots):
        return
    owner = np.zeros(int(layout.comp_slot[-1]), dtype=np.intp)
    for tail in layout.tails:
        for i in range(tail.q):
            owner[layout.comp_slot[tail.comp] + tail.slot + i] = of[tail.column]
    widths = np.diff(item.start)
    squares = item.panel**2
    if item.q > 1:
        level = np.repeat(np.arange(item.m), widths * item.q)
        place = np.arange(len(squares)) - item.q * item.start[level]
        place = item.start[level] + place % widths[level]
        slots = item.slots[place] + layout.comp_slot[comp[level]]
    else:
        slots = item.slots + layout.comp_slot[np.repeat(comp, widths)]
    sums = np.bincount(owner[slots], weights=squares, minlength=len(expected) - 1)
    for g in range(len(expected) - 1):
        if g != f and sums[g]:
            expected[f, g] += sums[g]
            expected[g, f] = expected[f, g]
