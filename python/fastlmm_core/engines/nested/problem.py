"""Factors nested in each other: one pass over the rows, and levels in families for the sweeps of `NestedEngine`.

All factors are written in the columns U that any of them has, conditioned once: the effects of factor s are
b_s = T_s b_o, T_s (r, q_s), so that a level adds U b with covariance T_s G_s T_s'.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import kernels
from ...errors import LMMError
from ...kernels import hierarchies
from ...kernels.layouts import Families
from ...kernels.records.rows import Rows
from ...problem.aliasing import suspects
from ...problem.columns import WELL_CONDITIONED
from ...support.types import Array, Index
from ..crossed.order import lay_out_chain
from ..crossed.problem import CrossedProblem, Factor, LaidOut, problem_fields
from ..crossed.start import factors_start
from ..one_factor import conditioning as design
from ..one_factor.reading import ArrayRows, RowReader
from ..one_factor.summing import Conditioned, conditioned_sums
from .engine import NestedCriterion
from .families import families
from .shared import CellRows, SharedColumns, conditioned_x, shared_scales

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ..crossed.engine import CrossedCriterion

__all__ = ["Chain", "NestedProblem", "Nesting", "chain_problem", "condition_chain", "nested", "vary_freely"]


PILOT_GROUPS, START_GROUPS = 1000, 200
"""Levels of the coarsest factor from which an approximate optimum and its start are found when there are many more."""

WIDEST, LONGEST = 4, 40
"""Different columns of Z, and columns of [X y], up to which levels take the sweeps."""


class Chain(NamedTuple):
    """Nested factors in common columns.

    Attributes
    ----------
    raw : (m, line) array
        Cross-products of the levels of the finest factor, as `kernels.accumulate` gives them.
    order : list of int
        The factors, finest first.
    parents : list of intp arrays
        Parent of each level, for all factors but the last.
    z_map : upper triangular (r, r) array
        U = columns z_map.
    xy_map : upper triangular (k, k) array
    maps : list of (r, q_s) arrays
        T_s, in the order of the factors.
    """

    raw: Array
    order: list[int]
    parents: list[Index]
    z_map: Array
    xy_map: Array
    maps: list[Array]


class NestedProblem(CrossedProblem):
    """A conditioned problem of nested factors; layout and products of the block elimination are made when asked for.

    Parameters
    ----------
    chain : Chain
    **fields
        Those of `CrossedProblem` but `laid_out`.
    """

    chain: Chain

    def __init__(self, chain: Chain, **fields: Any) -> None:
        self.__dict__.update(fields, chain=chain)

    def with_structure(self, structure: CovarianceStructure) -> NestedProblem:
        """The same data with other covariances of their effects."""
        return self.with_chain(self.chain, structure=structure)

    def with_chain(self, chain: Chain, **changed: Any) -> NestedProblem:
        """The same design with other sums of y."""
        return NestedProblem(chain, **(self._fields_beside_chain() | changed))

    def _fields_beside_chain(self) -> dict[str, Any]:
        """What it was made of but the chain, of which all else is made."""
        names = CrossedProblem.__dataclass_fields__.keys() - {"laid_out"}
        return {name: value for name, value in self.__dict__.items() if name in names}

    @cached_property
    def laid_out(self) -> LaidOut:
        """Products of the levels, and Z'[X y], of which the chain is the order of elimination."""
        chain = self.chain
        turn = np.zeros((len(chain.z_map), self.structure.q))
        widths = [T.shape[1] for T in chain.maps]
        for at, T in zip(self.columns, chain.maps, strict=True):
            turn[:, at : at + T.shape[1]] = chain.z_map @ T
        layout, cross = lay_out_chain(
            chain.raw, turn, chain.xy_map, chain.order, chain.parents, list(self.n_levels), list(self.columns), widths
        )
        return LaidOut(layout, cross)

    @cached_property
    def n_effects(self) -> int:
        """Random effects over all levels."""
        return sum(m * T.shape[1] for m, T in zip(self.n_levels, self.chain.maps, strict=True))

    @cached_property
    def _families(self) -> Families:
        return families(self.chain.parents, [self.n_levels[f] for f in self.chain.order], kernels.lanes())

    @cached_property
    def _packed(self) -> tuple[Array, Array]:
        """Factored levels of the finest factor, and [X y]'[X y] less what they explain."""
        chain = self.chain
        packed, between = hierarchies.pack(chain.raw, self._families.order[0], chain.z_map, chain.xy_map)
        return packed, self.gram - kernels.unpack(between, len(self.gram))

    def within_slope(self) -> Array | None:
        """Regression of y_o on X_o within the finest levels where little of y varies within them, else None."""
        lower = self._packed[1][np.tril_indices(len(self.gram))]
        slope, rest = kernels.within_regression(lower, len(self.gram), design.EXACT_WITHIN)
        return slope if rest < design.MOSTLY_BETWEEN * self.n else None

    def look_within(self, reader: RowReader | None, found: Conditioned, unchecked: bool) -> bool:
        """See what varies within the finest levels, summed over the rows again if they are given.

        Parameters
        ----------
        reader : RowReader or None
        found : Conditioned
            The sums of which the problem was made.
        unchecked : bool
            Whether nothing is refused.

        Returns
        -------
        bool
            Whether anything of y varies within them, or nothing could.  The columns that the factors share may
            reproduce it where those of the finest factor do not.

        Raises
        ------
        LMMError
            For a response that the random effects reproduce.
        """
        packed, within = self._packed
        k = len(within)
        lower = np.ascontiguousarray(within[np.tril_indices(k)])
        tolerance = design.EXACT_WITHIN
        if reader is not None:
            order = self._families.order[0]
            place = np.empty(len(self.chain.raw), dtype=np.int64)
            place[order[order >= 0]] = np.flatnonzero(order >= 0)
            columns, z_map = found.columns, self.chain.z_map
            turned = columns._replace(
                x_transform=self.chain.xy_map
                if columns.x_transform is None
                else design.padded(columns.x_transform) @ self.chain.xy_map,
                z_transform=z_map if columns.z_transform is None else columns.z_transform @ z_map,
                beta0=found.x_turn @ columns.beta0,
            )
            lower = reader.within(turned, found.kept, place, packed)
            tolerance = tolerance**2
            outside, spanned = design.spanned_rows(
                packed, len(self.chain.z_map), self._families.order[0], self.chain.raw[:, -1], kernels.unpack(lower, k)
            )
            if spanned:
                lower[-k:] = 0.0
            self.__dict__.update(saturated=spanned, outside=outside if spanned else 0)
        if kernels.clear_exact(lower, k, float(self.n), tolerance):
            if self.chain.maps[self.chain.order[0]].shape[1] < len(self.chain.z_map):
                return False
            if not (self.saturated or unchecked):
                raise LMMError(
                    "y is reproduced exactly by the random effects: the residual variance is zero; use fewer random "
                    "effects"
                )
        self.__dict__["_packed"] = packed, kernels.unpack(lower, k)
        return True

    def criterion(self, columns: Array | None = None) -> NestedCriterion:  # type: ignore[override]
        """The criterion of the conditioned problem; see `CrossedProblem.criterion`."""
        packed, within = self._packed
        gram, r, k = self.gram, len(self.chain.z_map), len(self.gram)
        if columns is not None:
            n_a = r * (r + 1) // 2
            products = packed[:, n_a:-1].reshape(len(packed), r, k, -1)
            k = columns.shape[1]
            products = np.einsum("vakl,kj->vajl", products, columns).reshape(len(packed), r * k, -1)
            packed = np.ascontiguousarray(np.concatenate([packed[:, :n_a], products, packed[:, -1:]], axis=1))
            gram, within = columns.T @ gram @ columns, columns.T @ within @ columns
        parts = [(self.columns[f], self.chain.maps[f]) for f in self.chain.order]

        def elimination() -> CrossedCriterion:
            return self.blocked_criterion(columns)

        levels = hierarchies.FamilySums(packed, self._families, r, k)
        return NestedCriterion(levels, within, gram, self.n, parts, self.structure, elimination)

    def blocked_criterion(self, columns: Array | None = None) -> CrossedCriterion:
        """The criterion by block elimination."""
        return super().criterion(columns)

    def sample(self, n_groups: int) -> NestedProblem | None:
        """The problem of about `n_groups` levels of the coarsest factor, None where there are not many more."""
        chain = self.chain
        sizes = [self.n_levels[f] for f in chain.order]
        if sizes[-1] < 4 * n_groups:
            return None
        some = np.zeros(sizes[-1], dtype=bool)
        some[:: sizes[-1] // n_groups] = True
        kept = [int(some.sum())]
        parents: list[Index] = []
        for parent in reversed(chain.parents):
            number = np.cumsum(some) - 1
            some = some[parent]
            parents.append(number[parent[some]])
            kept.append(len(parents[-1]))
        raw = chain.raw[some]
        share = float(raw[:, -1].sum() / chain.raw[:, -1].sum())
        # what the finest levels leave of [X y]'[X y] is taken to be spread evenly
        between = hierarchies.pack(raw, _padded(len(raw), kernels.lanes()), chain.z_map, chain.xy_map)[1]
        n_levels = [0] * len(kept)
        for f, m in zip(chain.order, reversed(kept), strict=True):
            n_levels[f] = m
        fields = self._fields_beside_chain()
        fields.update(
            n=round(self.n * share),
            m=kept[-1],
            n_levels=tuple(n_levels),
            gram=share * self._packed[1] + kernels.unpack(between, len(self.gram)),
        )
        return NestedProblem(chain._replace(raw=raw, parents=parents[::-1]), **fields)

    def start(self, criterion: Any) -> Array:
        """Theta from the moments of the data, or of a part of them."""
        sample = self.sample(START_GROUPS)
        return factors_start(self, criterion) if sample is None else factors_start(sample, sample.criterion())

    def pilot(self, n_groups: int = PILOT_GROUPS) -> NestedCriterion | None:  # type: ignore[override]
        """The criterion of about `n_groups` levels of the coarsest factor, None where there are not many more."""
        sample = self.sample(n_groups)
        return None if sample is None else sample.criterion()


def _padded(m: int, lanes: int) -> Index:
    """0, 1, ... m - 1 and -1 up to a multiple of the lanes."""
    out = np.full(-(-m // lanes) * lanes, -1, dtype=np.intp)
    out[:m] = np.arange(m)
    return out


def condition_chain(
    y: Array,
    X: Array,
    factors: list[Factor],
    codes: list[Index],
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
) -> CrossedProblem | None:
    """The problem from one pass over the rows where all factors are nested in each other; None where that does not do.

    It does not do for crossed factors, or columns so dependent, or explained so well, that sums of products are not
    exact enough.  The parameters are those of `choose.condition_factors`, and codes (n,) intp arrays.
    """
    sizes = [f.m for f in factors]
    if len(set(sizes)) < len(sizes):
        return None
    nesting = nested(codes, sizes)
    if nesting is None:
        return None
    Z, which = _shared_columns(X, factors)
    shared = SharedColumns(
        tuple(f.name for f in factors), tuple(f.column_names for f in factors), tuple(sizes), which, structure
    )
    finest = nesting.order[0]
    reader = ArrayRows(Rows(X, y, Z, codes[finest], 0, sizes[finest], weights, offset))
    columns = shared_scales(reader, which, structure)
    found = conditioned_sums(reader, columns, shared.turns, shared.precondition, once=True)
    return None if found is None else chain_problem(reader, found, shared, nesting, X.shape[1])


class Nesting(NamedTuple):
    """How factors are nested in each other.

    Attributes
    ----------
    order : list of int
        The factors, finest first.
    parents : list of intp arrays
        Parent of each level, for all factors but the last.
    """

    order: list[int]
    parents: list[Index]

    @property
    def above(self) -> dict[int, Index]:
        """Of each factor the level of each finest level."""
        level = np.arange(len(self.parents[0]))
        out = {self.order[0]: level}
        for f, parent in zip(self.order[1:], self.parents, strict=True):
            out[f] = level = parent[level]
        return out


def nested(codes: Sequence[Index], sizes: Sequence[int]) -> Nesting | None:
    """How the factors are nested, None where they are not.

    Parameters
    ----------
    codes : sequence of (n,) intp arrays
        Levels of each factor by rows, or by cells.
    sizes : sequence of int
    """
    order = sorted(range(len(sizes)), key=lambda f: -sizes[f])
    parents: list[Index] = []
    for fine, coarse in pairwise(order):
        parent = hierarchies.nested_in(codes[fine], codes[coarse], sizes[fine])
        if parent is None:
            return None
        parents.append(parent)
    return Nesting(order, parents)


def chain_problem(
    reader: RowReader, found: Conditioned, shared: SharedColumns, nesting: Nesting, p: int, unchecked: bool = False
) -> CrossedProblem | None:
    """The problem of nested factors from sums over the finest levels.

    Parameters
    ----------
    reader : RowReader
        Its groups are the finest levels.
    found : Conditioned
    shared : SharedColumns
    nesting : Nesting
    p : int
        Columns of X, with those that were dropped.
    unchecked : bool
        Whether nothing is refused.

    Returns
    -------
    CrossedProblem or None
        None where the finest factor alone leaves nothing of y, so that rows have to be taken in another way.

    Raises
    ------
    LMMError
        For effects that X explains, covariances that are not identified, a response that the random effects reproduce.
    """
    raw, structure, sizes, starts = found.raw, shared.structure, list(shared.sizes), list(shared.starts)
    order, parents = nesting
    xy, n, r = found.xy.copy(), reader.n, shared.width
    rank = len(found.kept)
    turns, z_map = shared.maps(found)
    above = nesting.above
    free: set[int] = set()
    for at in () if unchecked else reversed(order):
        # what varies freely between coarse levels does so between finer ones
        turn, level, own = turns[at], above[at], shared.local(at)
        if free.issuperset(shared.which[at]):
            continue
        if vary_freely(raw, turn, level, rank, n, sizes[at]):
            free.update(shared.which[at])
            continue
        suspected = suspects(_crossed(raw, turn, xy[:rank, :rank], level, sizes[at]), n, own)
        if suspected:
            shared.refuse_aliased(suspected, reader.whole(), found, at, level)
    cells, levels = CellRows(found, n), [above[f] for f in range(len(sizes))]
    if not unchecked and not cells.clearly_identified(shared, turns, levels):
        cells.refuse_unidentified(shared, turns, levels, z_map)
    fields: dict[str, Any] = {
        "columns": tuple(starts), "z_map": z_map, "scale": found.scale,
        **problem_fields(n, p, sizes, reader.log_weights, structure, conditioned_x(found), found.x_turn @ found.beta),
    }  # fmt: skip
    packed = kernels.unpack(found.packed, rank + 1)
    gram = xy.T @ packed @ xy
    common, margin = kernels.orthonormal(kernels.unpack(found.gram, r))
    if r > WIDEST or rank >= LONGEST or margin < WELL_CONDITIONED:
        widths = [turn.shape[1] for turn in turns]
        layout, cross = lay_out_chain(raw, np.hstack(turns), xy, order, parents, sizes, starts, widths)
        return CrossedProblem(laid_out=LaidOut(layout, cross), gram=gram, **fields)
    common *= sqrt(n)
    maps = [np.asarray(np.linalg.solve(common, turn), dtype=np.float64) for turn in turns]
    problem = NestedProblem(Chain(raw, order, parents, common, xy, maps), gram=gram, **fields)
    slope = problem.within_slope()
    if slope is None:
        return problem if problem.look_within(None, found, unchecked) else None
    # sums of squares have lost digits: take out what X explains within levels and sum over the rows again
    xy[:rank, rank] -= found.to_x @ slope
    beta = found.columns.beta0 - xy[:rank, rank] * found.scale
    fields |= problem_fields(n, p, sizes, reader.log_weights, structure, conditioned_x(found), found.x_turn @ beta)
    problem = NestedProblem(Chain(raw, order, parents, common, xy, maps), gram=xy.T @ packed @ xy, **fields)
    return problem if problem.look_within(reader, found, unchecked) else None


def _shared_columns(X: Array, factors: list[Factor]) -> tuple[Array, list[list[int]]]:
    """The different columns among the Z of all factors side by side, and which of them each factor has.

    Those of X come first, in their order, then others by their names, whatever the order of the factors.
    """
    columns: list[Array] = []
    keys: list[tuple[int, str]] = []
    which: list[list[int]] = []
    for f in factors:
        mine = []
        for j, name in enumerate(f.column_names):
            column = f.Z[:, j]
            same = (i for i, other in enumerate(columns) if _same_column(other, column))
            found = next(same, len(columns))
            if found == len(columns):
                columns.append(column)
                in_x = (i for i in range(X.shape[1]) if _same_column(X[:, i], column))
                keys.append((next(in_x, X.shape[1]), name))
            mine.append(found)
        which.append(mine)
    order = sorted(range(len(columns)), key=keys.__getitem__)
    which = [[order.index(i) for i in mine] for mine in which]
    columns = [columns[i] for i in order]
    # nothing is copied where one matrix has them all
    for given in (X, *(f.Z for f in factors)):
        if given.shape[1] == len(columns) and all(_same_column(given[:, i], c) for i, c in enumerate(columns)):
            return given, which
    return np.column_stack(columns), which


def vary_freely(raw: Array, turn: Array, level: Index, p: int, n: int, m: int) -> bool:
    """Whether more of the first levels than X has columns take all effects of a factor, so that none is explained.

    Levels have no rows in common, so that X explains as many of their columns as it has itself at most.
    """
    r = len(turn)
    some = 2 * (p + 1)
    few = np.flatnonzero(level < some)
    own = np.zeros((some, r * (r + 1) // 2))
    np.add.at(own, level[few], raw[few, : own.shape[1]])
    taken = turn.T @ np.array([kernels.unpack(packed, r) for packed in own]) @ turn
    return bool(np.count_nonzero(np.linalg.eigvalsh(taken)[:, 0] > 1e-8 * n / m) > p)


def _crossed(raw: Array, turn: Array, x_turn: Array, level: Index, m: int) -> Array:
    """Z_a'X_o (m, q, p) of the levels of a factor."""
    r, p = len(turn), len(x_turn)
    given = raw[:, r * (r + 1) // 2 : -1]
    sums = [np.bincount(level, weights=column, minlength=m) for column in given.T]
    products = np.array(sums).T.reshape(m, r, -1)[:, :, :p]
    return np.asarray(np.einsum("aij,ik,jl->akl", products, turn, x_turn, optimize=True))


def _same_column(one: Array, other: Array) -> bool:
    """Whether two columns are equal; those in the same place of memory need not be read."""
    if one.strides == other.strides and one.__array_interface__["data"] == other.__array_interface__["data"]:
        return True
    return np.array_equal(one[:64], other[:64]) and np.array_equal(one, other)
