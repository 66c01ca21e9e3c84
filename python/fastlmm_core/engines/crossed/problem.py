"""Several grouping factors to a conditioned problem, as design.py does it for one.

The order in which their levels are eliminated is found in order.py and cores.py, the criterion is in the kernel
`_crossed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ...covariance.parameters import Block, CovarianceStructure
from ...errors import LMMError
from ...kernels import hierarchies
from ...kernels.layouts import Layout, Stage, Tail
from ...problem.aliasing import default_names, refuse_aliased, suspects
from ...problem.columns import (
    ConditionedX,
    condition_x,
    condition_y,
    condition_z,
    factor_structure,
    fixed_fields,
    refuse_non_finite,
    scaled_z,
)
from ...problem.identification import GroupedColumns, refuse_unidentified_rows
from ...support.blas_threads import one_blas_thread
from ...support.memory import available, modest, numpy_blas, require, scipy_blas
from ...support.types import Array, Index
from ..conditioned import ConditionedProblem
from ..protocol import CAREFUL, EASY, Elsewhere, Relaxed
from .balance import has_one_minimum
from .cores import sparse_first
from .order import lay_out
from .start import factors_start

if TYPE_CHECKING:
    from .engine import CrossedCriterion

__all__ = ["CrossedProblem", "Factor", "LaidOut", "condition_crossed", "crossed_problem", "problem_fields"]


SPANNED_UP_TO = 600
"""Rows up to which it is looked at whether X and Z span them all, if there are as many columns."""

SCOUT_GROUPS, CAREFUL_UP_TO = 50, 100
"""Levels of the coarsest factor of which the criterion is screened for other minima; random effects up to which it is
searched with care."""

BALANCED_UP_TO = 300
"""Random effects up to which it is looked at whether data are balanced: of more, other minima are not searched for."""

PILOT_GROUPS = 200
"""Levels of the coarsest factor on which a start is found when there are many more of them."""

EXACT_UP_TO, WIDE_UP_TO = 3e6, 1e9
"""Floating-point operations up to which Newton's Hessian is exact: for few parameters, where the average information
does nearly as well, and for many, where it does not."""

MANY_PARAMETERS = 10

MATRICES = 2
"""Dense matrices of the size of each core: the products, in whose place their factor and the covariances come, and a
second one where a variance is nearly zero, as the products are then wanted beside them."""


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
    columns : tuple of str, optional
        Names of the columns of Z, for messages.
    """

    Z: Array
    codes: NDArray[Any]
    m: int
    name: str
    columns: tuple[str, ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of Z, made up where there are none."""
        return self.columns or default_names(self.Z)


@dataclass(frozen=True)
class LaidOut:
    """Products of the levels, and Z'[X y].

    Attributes
    ----------
    layout : Layout
        As it comes of the rows: no order of elimination is looked for before it is asked for.
    cross : (n_slots, k) array
    """

    layout: Layout
    cross: Array

    @cached_property
    def ordered(self) -> tuple[Layout, Array]:
        """Both for an elimination: found once for all that shares this object."""
        return sparse_first(self.layout, self.cross)


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossedProblem(ConditionedProblem):
    """A conditioned problem of several grouping factors and the way back to the caller's units.

    `saturated` and `outside` are told of nested factors, and of few rows; elsewhere a fit that leaves hardly any
    residual variance is looked at (see `estimation.residual_limit`).

    Attributes
    ----------
    n_levels : tuple of int
        Levels of each factor.
    columns : tuple of int
        First column of each factor in Lambda.
    laid_out : LaidOut
    gram : (k, k) array
        [X y]'[X y] of the conditioned columns.
    alone : float
        Part of y_o'y_o that is not the data's: n where X reproduces a response whose residual variance is known, so
        that r^2 is positive; otherwise 0.
    """

    n_levels: tuple[int, ...]
    columns: tuple[int, ...]
    laid_out: LaidOut
    gram: Array
    alone: float = 0.0

    @property
    def layout(self) -> Layout:
        """Order of elimination and products."""
        return self.laid_out.ordered[0]

    @property
    def cross(self) -> Array:
        """Z'[X y] (n_slots, k)."""
        return self.laid_out.ordered[1]

    def elsewhere(self) -> Elsewhere:
        """What is known of other minima of the criterion, and how to look for them."""
        if self.n_effects <= BALANCED_UP_TO and has_one_minimum(self.laid_out.layout, self.laid_out.cross, self.n):
            return Elsewhere("nothing")
        scout = self.pilot(SCOUT_GROUPS)
        if all(width == block.stop - block.start and block.correlated for width, block in self._terms()):
            small = self.n_effects <= CAREFUL_UP_TO
            return Elsewhere("search", CAREFUL if small else EASY, scout)
        return Elsewhere("search", CAREFUL, scout, always=True, relaxed=partial(self._relaxed_criterion, scout is None))

    def _relaxed_criterion(self, of_all: bool) -> Relaxed | None:
        whole = self.relaxed()
        engine = (None if of_all else whole.pilot(SCOUT_GROUPS)) or whole.criterion()
        return None if engine.costly else Relaxed(engine, whole.structure)

    def relaxed(self) -> Self:
        """The problem with all effects of a factor correlated."""
        starts = [*self.columns, self.structure.q]
        return self.with_structure(CovarianceStructure(tuple(Block(a, b, "full") for a, b in pairwise(starts))))

    def with_structure(self, structure: CovarianceStructure) -> Self:
        """The same data with other covariances of their effects."""
        return replace(self, structure=structure)

    def _terms(self) -> list[tuple[int, Block]]:
        """Each block of G, and how many effects its factor has."""
        starts = [*self.columns, self.structure.q]
        return [
            (starts[f + 1] - starts[f], block)
            for f in range(len(self.columns))
            for block in self.structure.blocks
            if starts[f] <= block.start < starts[f + 1]
        ]

    @property
    def levels(self) -> Array:
        """Number of levels of the factor of each random effect (q,)."""
        widths = np.diff([*self.columns, self.structure.q])
        return np.repeat(np.array(self.n_levels, dtype=float), widths)

    def start(self, criterion: Any) -> Array:
        """Theta from the moments of the data."""
        return factors_start(self, criterion)

    @cached_property
    def n_effects(self) -> int:
        """Random effects over all levels."""
        return len(self.laid_out.cross)

    def criterion(self, columns: Array | None = None) -> CrossedCriterion:
        """The criterion of the conditioned problem.

        Parameters
        ----------
        columns : (rank + 1, k) array, optional
            Take [X y] columns for [X y]: for coefficients that are fixed or constrained.
        """
        scipy_blas()
        from .engine import CrossedCriterion

        _refuse_large_cores(self.layout.core_sizes)
        cross, gram = self.cross, self.gram
        if columns is not None:
            cross, gram = cross @ columns, columns.T @ gram @ columns
        limit = EXACT_UP_TO if self.structure.n_parameters < MANY_PARAMETERS else WIDE_UP_TO
        average = _exact_work(self.layout) > limit
        engine = CrossedCriterion(self.layout, cross, gram, self.n, self.structure, average)
        engine.share()
        return engine

    def pilot(self, n_groups: int = PILOT_GROUPS) -> CrossedCriterion | None:
        """The criterion of about `n_groups` levels of the coarsest factor, None where there are not many more.

        Only where all factors are nested, so that the rest of the data can be left out.
        """
        scipy_blas()
        from .engine import CrossedCriterion

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
        kernel = hierarchies.explained
        mine = kernel(stages[0].own, finest, some.astype(np.uint8))
        others = kernel(stages[0].own, finest, (~some).astype(np.uint8))
        share = chosen[0].m / stages[0].m
        gram = mine + share * (self.gram - mine - others)
        layout = Layout(tuple(chosen), (), np.zeros(1, dtype=np.intp), ())
        n = round(self.n * share)
        return CrossedCriterion(layout, np.concatenate(crosses), gram, n, self.structure, True)

    def criterion_at(self, factor: Array) -> CrossedCriterion:
        """The criterion where Lambda_o is `factor`."""
        engine = self.criterion()
        # what is asked of it is the same by REML, which needs more rows than columns
        engine.reml = False
        with one_blas_thread(engine.serial):
            engine.evaluate(self.structure.theta(factor), 1)
        return engine

    def effects(self, factor: Array, beta: Array) -> tuple[Array, ...]:
        """Posterior means of the random effects in conditioned units.

        Parameters
        ----------
        factor : (q, q) array
            Lambda_o.
        beta : (rank,) array
            beta_o.

        Returns
        -------
        tuple of (m_f, q_f) arrays
            One for each factor, its levels as the caller numbers them; times `scale` for the caller's units of y.
        """
        scores = self.criterion_at(factor).scores() @ np.append(-beta, 1.0)
        G = factor @ factor.T
        return tuple(
            scores[places] @ G[start : start + places.shape[1], start : start + places.shape[1]]
            for start, places in zip(self.columns, self.layout.places, strict=True)
        )

    def effects_covariance(self, factor: Array) -> tuple[Array, ...]:
        """Conditional covariances of the random effects given y, relative to sigma^2, in conditioned units.

        Returns
        -------
        tuple of (m_f, q_f, q_f) arrays
        """
        engine = self.criterion_at(factor)
        with one_blas_thread(engine.serial):
            blocks = engine.conditional()
        return tuple(blocks[places][:, :, : places.shape[1]] for places in self.layout.places)


def _refuse_large_cores(cores: Index) -> None:
    """Refuse dense matrices that memory has no room for."""
    size, widest = MATRICES * 8 * int(np.sum(cores.astype(np.int64) ** 2)), int(cores.max(initial=0))
    if modest(size):
        return
    free = available()
    if size > free:
        raise LMMError(
            f"crossed factors: {widest:,} random effects of levels that are connected need dense matrices of "
            f"{size / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free; fit(method='iterative') does "
            "without them, with Monte Carlo errors that it states; or use fewer crossed levels, or drop a random "
            "effect of the factor with fewer levels"
        )
    require(size, f"crossed factors with a dense core of {widest:,} random effects")


def condition_crossed(
    y: Array,
    X: Array,
    factors: list[Factor],
    codes: list[Index],
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
    *,
    given: bool = False,
    sigma: float | None = None,
) -> CrossedProblem:
    """`engines.choose.condition_factors` by elimination of the levels, whatever the factors are.

    Parameters
    ----------
    codes : list of (n,) intp arrays
        Level of each row, 0 to m - 1, of each factor.
    y, X, factors, weights, offset, structure, given, sigma
        As there.

    Raises
    ------
    LMMError
        As there.
    """
    numpy_blas()
    n = len(y)
    # what restricts a covariance may identify parameters that a free one does not: told when they are estimated
    unchecked = given or sigma is not None or structure.restricted
    refuse_non_finite(y, X, np.concatenate([f.Z for f in factors], axis=1), weights, offset)
    x, xy = condition_x(X, weights, spare=1)
    xy[:, -1], scale, coefficients = condition_y(y, x, xy[:, :-1], weights, offset, given, sigma)

    Z: list[Array] = []
    columns: list[int] = []
    local: list[CovarianceStructure] = []
    z_map = np.zeros((structure.q, structure.q))
    at = 0
    for f in factors:
        width = f.Z.shape[1]
        part = slice(at, at + width)
        local.append(factor_structure(structure, at, width))
        columns_of = np.asarray(f.Z, dtype=float)
        if given:
            conditioned, z_map[part, part] = scaled_z(columns_of, weights, local[-1])
        else:
            conditioned, z_map[part, part] = condition_z(columns_of, weights, local[-1])
        Z.append(conditioned)
        columns.append(at)
        at += width
    grouped = [
        GroupedColumns(rows, code, f.m, f.name, f.column_names) for f, rows, code in zip(factors, Z, codes, strict=True)
    ]
    gram = xy.T @ xy
    # what is left of a response that X does not reproduce has unit variance
    alone = float(n) if sigma is not None and not given and gram[-1, -1] < 0.5 * n else 0.0
    gram[-1, -1] += n if given else alone
    log_weights = 0.0 if weights is None else float(np.sum(np.log(weights)))
    fields = {
        "gram": gram, "z_map": z_map, "scale": scale, "alone": alone,
        **problem_fields(n, X.shape[1], [f.m for f in factors], log_weights, structure, x, coefficients),
    }  # fmt: skip
    return crossed_problem(grouped, xy, fields, unchecked, lambda i: factors[i].Z)


def crossed_problem(
    grouped: list[GroupedColumns],
    xy: Array,
    fields: dict[str, Any],
    unchecked: bool,
    natural: Callable[[int], Array],
) -> CrossedProblem:
    """The problem of conditioned rows, or of rows that have the same products.

    Parameters
    ----------
    grouped : list of GroupedColumns
    xy : (rows, k) array
        [X_o y_o]
    fields : dict
        Those of `CrossedProblem` but for what is made here.
    unchecked : bool
        Whether nothing is refused.
    natural : callable
        Gives the columns of a factor as they were given, for messages.

    Raises
    ------
    LMMError
        For random effects that the fixed effects explain, and covariance parameters that are not identified.
    """
    structure, n, z_map, x_o = fields["structure"], fields["n"], fields["z_map"], xy[:, :-1]
    columns = np.cumsum([0, *(f.Z.shape[1] for f in grouped[:-1])]).tolist()
    layout, cross = lay_out([f.Z for f in grouped], [f.codes for f in grouped], [f.m for f in grouped], columns, xy)
    for i, (f, at, places) in enumerate(zip(grouped, columns, layout.places, strict=True)):
        own = factor_structure(structure, at, f.Z.shape[1])
        found = [] if unchecked else suspects(cross[places, :-1], n, own)
        if found:
            part = slice(at, at + own.q)
            refuse_aliased(found, f.Z, x_o, f.codes, z_map[part, part], natural(i), f.name, f.columns)
    if not unchecked:
        refuse_unidentified_rows(grouped, x_o, structure, z_map)
    saturated, outside = _spanned(grouped, x_o, n)
    return CrossedProblem(
        laid_out=LaidOut(layout, cross), columns=tuple(columns), saturated=saturated, outside=outside, **fields
    )


def _spanned(factors: list[GroupedColumns], X: Array, n: int) -> tuple[bool, int]:
    """Whether X and Z span all n rows, and how many dimensions Z leaves to X then; many rows are not looked at."""
    width = sum(f.m * f.Z.shape[1] for f in factors)
    if width + X.shape[1] < n or n > SPANNED_UP_TO:
        return False, 0
    wide = [(f.codes[:, None] == np.arange(f.m)) * z[:, None] for f in factors for z in f.Z.T]
    if np.linalg.matrix_rank(np.column_stack([*wide, X])) < n:
        return False, 0
    return True, n - int(np.linalg.matrix_rank(np.column_stack(wide)))


def problem_fields(
    n: int,
    p: int,
    sizes: list[int],
    log_weights: float,
    structure: CovarianceStructure,
    x: ConditionedX,
    coefficients: Array,
) -> dict[str, Any]:
    """What a problem of several factors holds of its sizes and its fixed effects.

    Parameters
    ----------
    n, p : int
    sizes : list of int
        Levels of each factor.
    log_weights : float
        Sum of the logarithms of the weights.
    structure : CovarianceStructure
    x : ConditionedX
    coefficients : (r,) array
        Taken out of y, of the shifted and scaled columns.
    """
    return {
        "n": n,
        "m": max(sizes),
        "n_levels": tuple(sizes),
        "structure": structure,
        "log_constant": -log_weights,
        **fixed_fields(p, x, coefficients),
    }


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
