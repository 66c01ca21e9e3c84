"""Nested factors whose levels stay with the workers: all that is below a level of the outermost factor in its bucket.

The sweeps over families of levels (`kernels.hierarchies.FamilySums`) give sums over them, which add up over buckets:
log|V| and the part of [X y]'V^-1[X y] between levels on the way up, what derivatives are made of on the way down.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from ..engines.crossed.problem import problem_fields
from ..engines.nested.engine import NestedCriterion
from ..engines.nested.families import families
from ..engines.nested.problem import Chain, NestedProblem, vary_freely
from ..engines.nested.shared import CellRows, SharedColumns, conditioned_x
from ..engines.one_factor import conditioning as design
from ..engines.one_factor.summing import Conditioned, conditioned_sums
from ..engines.protocol import Elsewhere
from ..errors import LMMError
from ..kernels import hierarchies
from ..problem.columns import WELL_CONDITIONED
from ..support.types import Array, Index
from .cross_products import Lines
from .elsewhere import BucketRows, ElsewhereProblem, SumsElsewhere, refuse_elsewhere, undecided

__all__ = ["condition_nested"]


SAMPLE = 20_000
"""Levels of the finest factor, about, from which a search starts: as many of each bucket."""


class Tree(NamedTuple):
    """Levels of nested factors.

    Attributes
    ----------
    raw : (m, K) array
        Lines of the finest levels.
    parents : list of intp arrays
        See `Chain`.
    sizes : list of int
        Levels of each factor, the finest first.
    """

    raw: Array
    parents: list[Index]
    sizes: list[int]

    def first(self, wanted: int) -> Tree:
        """The first levels of the outermost factor that have about so many of the finest, and all below them."""
        top = np.arange(len(self.raw))
        for parent in self.parents:
            top = parent[top]
        count = np.cumsum(np.bincount(top, minlength=self.sizes[-1]))
        some = np.arange(self.sizes[-1]) <= np.searchsorted(count, wanted)
        sizes, parents = [int(some.sum())], []
        for parent in reversed(self.parents):
            number = np.cumsum(some) - 1
            some = some[parent]
            parents.append(number[parent[some]])
            sizes.append(len(parents[-1]))
        return Tree(self.raw[some], parents[::-1], sizes[::-1])


def beside(trees: Sequence[Tree]) -> Tree:
    """Levels of several trees as those of one."""
    sizes = np.array([tree.sizes for tree in trees])
    before = np.cumsum(sizes, axis=0) - sizes
    parents = [
        np.concatenate([tree.parents[s] + before[i, s + 1] for i, tree in enumerate(trees)])
        for s in range(sizes.shape[1] - 1)
    ]
    return Tree(np.concatenate([tree.raw for tree in trees]), parents, sizes.sum(axis=0).tolist())


def tree_of(lines: Lines, order: Sequence[int]) -> Tree | None:
    """The levels of a bucket, None where they are not nested in this order, finest first."""
    sizes = [len(lines.levels[f]) for f in order]
    if len(lines.cells) != sizes[0]:
        return None
    cells = np.ascontiguousarray(lines.cells[:, order], dtype=np.intp)
    at = np.argsort(cells[:, 0])
    levels = [np.ascontiguousarray(own) for own in cells[at].T]
    parents = []
    for s, (fine, coarse) in enumerate(pairwise(levels)):
        parent = hierarchies.nested_in(fine, coarse, sizes[s])
        if parent is None:
            return None
        parents.append(parent)
    return Tree(lines.raw[at], parents, sizes)


class Told(NamedTuple):
    """What is told of a bucket before the search: part of [X_o y_o]'[X_o y_o] between finest levels, some levels."""

    between: Array
    sample: Tree


class Held:
    """The levels of a bucket, factored, with the work space of one evaluation.

    Parameters
    ----------
    tree : Tree
    common, xy : (r, r), (k, k) arrays
        Turns of the columns as they were summed.
    """

    def __init__(self, tree: Tree, common: Array, xy: Array) -> None:
        self._families = families(tree.parents, tree.sizes, kernels.lanes())
        self._packed, between = hierarchies.pack(tree.raw, self._families.order[0], common, xy)
        self._shape, self.between = (len(common), len(xy)), kernels.unpack(between, len(xy))
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_sums", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @cached_property
    def _sums(self) -> hierarchies.FamilySums:
        return hierarchies.FamilySums(self._packed, self._families, *self._shape)

    def values(self, factors: Array) -> tuple[float, Array]:
        """See `FamilySums`."""
        with self._lock:
            return self._sums.values(factors)

    def derivatives(self, factors: Array, weight: Array, asked: tuple[int, bool, bool, int]) -> Array:
        """See `FamilySums`."""
        with self._lock:
            return self._sums.derivatives(factors, weight, asked)


def told(tree: Tree, held: Held, wanted: int) -> Told:
    """See `Told`; `wanted`: levels of the sample."""
    return Told(held.between, tree.first(wanted))


class NestedBuckets(SumsElsewhere):
    """The sums over all levels; see `FamilySums`."""

    def values(self, factors: Array) -> tuple[float, Array]:
        """See `FamilySums`."""
        found = self.all_of("values", factors)
        return sum(log_det for log_det, _ in found), np.sum([total for _, total in found], axis=0)

    def derivatives(self, factors: Array, weight: Array, asked: tuple[int, bool, bool, int]) -> Array:
        """See `FamilySums`."""
        return np.asarray(np.sum(self.all_of("derivatives", factors, weight, asked), axis=0))


@dataclass(frozen=True, eq=False, kw_only=True)
class NestedBucketProblem(ElsewhereProblem):
    """A problem of nested factors whose levels are elsewhere; see `NestedProblem`.

    Attributes
    ----------
    n_levels, columns : tuples of int
        See `CrossedProblem`.
    groups : NestedBuckets
    sample : NestedProblem
        Some levels of the outermost factor with all below them: what a search starts from.
    gram, within : (k, k) arrays
        [X_o y_o]'[X_o y_o], and less what the finest levels explain.
    """

    n_levels: tuple[int, ...]
    columns: tuple[int, ...]
    groups: NestedBuckets
    sample: NestedProblem
    gram: Array
    within: Array

    @property
    def levels(self) -> Array:
        """Number of levels of the factor of each random effect (q,)."""
        return np.repeat(np.asarray(self.n_levels, dtype=float), np.diff([*self.columns, self.structure.q]))

    def criterion(self, columns: Array | None = None) -> NestedCriterion:
        """The criterion, of [X y] as they are."""
        if columns is not None:
            refuse_elsewhere("profiles and what constrains coefficients")
        parts = list(zip(self.columns, self.sample.chain.maps, strict=True))
        return NestedCriterion(
            self.groups, self.within, self.gram, self.n, parts, self.structure, lambda: self.refuse_groups()
        )

    def pilot(self) -> NestedCriterion:
        """The criterion of the sample, or of a part of it."""
        return self.sample.pilot() or self.sample.criterion()

    def elsewhere(self) -> Elsewhere:
        """Other minima are looked for in the sample."""
        found = self.sample.elsewhere()
        # a part may be balanced by itself
        return found if found.scout is not None else found._replace(kind="search", scout=self.sample.criterion())

    def start(self, criterion: Any) -> Array:
        """Theta from the moments of the sample."""
        return self.sample.start(self.sample.criterion())


def condition_nested(
    reader: BucketRows, client: Any, lines: list[Any], sigma: float | None = None
) -> NestedBucketProblem | None:
    """The problem of sums over all rows, and of lines elsewhere; None where factors are not nested in a bucket.

    Parameters
    ----------
    reader : BucketRows
    client : distributed.Client
    lines : list of Future
        Of buckets with lines, no level of any factor in two of them.
    sigma : float, optional
        Residual standard deviation where it is known.

    Raises
    ------
    LMMError
        For models that the sums alone do not decide.
    """
    trees = [client.submit(tree_of, own, reader.order, pure=False) for own in lines]
    if not all(client.gather([client.submit(_is_there, tree, pure=False) for tree in trees])):
        return None
    shared = reader.shared
    if shared.structure.restricted:
        raise LMMError("buckets= is for covariances without restrictions, where factors are nested: leave it out")
    found = conditioned_sums(
        reader, reader.plan.columns, lambda *sums: shared.turns(*sums), lambda *rows: shared.precondition(*rows),
        sigma=sigma,
    )  # fmt: skip
    assert found is not None
    common, margin = kernels.orthonormal(kernels.unpack(found.gram, shared.width))
    if margin < WELL_CONDITIONED:
        undecided()
    common *= sqrt(reader.n)
    turns, z_map = shared.maps(found)
    maps = [np.asarray(np.linalg.solve(common, turn), dtype=np.float64) for turn in turns]
    held = [client.submit(Held, tree, common, found.xy, pure=False) for tree in trees]
    share = -(-SAMPLE // len(lines))
    parts: list[Told] = client.gather(
        [client.submit(told, tree, own, share, pure=False) for tree, own in zip(trees, held, strict=True)]
    )
    some = beside([part.sample for part in parts])
    n, k = reader.n, len(found.xy)
    if sigma is None:
        _decided_by(some, found, shared, turns, n)
    gram = found.xy.T @ kernels.unpack(found.packed, k) @ found.xy
    within = gram - np.sum([part.between for part in parts], axis=0)
    lower = within[np.tril_indices(k)]
    if kernels.within_regression(lower, k, design.EXACT_WITHIN)[1] < design.MOSTLY_BETWEEN * n or kernels.clear_exact(
        lower, k, float(n), design.EXACT_WITHIN
    ):
        undecided()
    sizes = list(shared.sizes)
    fields: dict[str, Any] = {
        "columns": shared.starts, "z_map": z_map, "scale": found.scale,
        **problem_fields(
            n, len(reader.plan.columns.beta0), sizes, reader.log_weights, shared.structure, conditioned_x(found),
            found.x_turn @ found.beta,
        ),
    }  # fmt: skip
    chain = Chain(some.raw, list(range(len(sizes))), some.parents, common, found.xy, maps)
    return NestedBucketProblem(
        groups=NestedBuckets(client, held), gram=gram, within=within, sample=_sample(chain, some, within, fields),
        **fields,
    )  # fmt: skip


def _is_there(tree: Tree | None) -> bool:
    return tree is not None


def _sample(chain: Chain, some: Tree, within: Array, fields: dict[str, Any]) -> NestedProblem:
    """The problem of some levels, with their share of what varies within the finest ones."""
    order = families(some.parents, some.sizes, kernels.lanes()).order[0]
    between = kernels.unpack(hierarchies.pack(some.raw, order, chain.z_map, chain.xy_map)[1], len(within))
    n = round(float(some.raw[:, -1].sum()))
    gram = n / fields["n"] * within + between
    return NestedProblem(chain, gram=gram, **{**fields, "n": n, "m": some.sizes[0], "n_levels": tuple(some.sizes)})


def _decided_by(some: Tree, found: Conditioned, shared: SharedColumns, turns: list[Array], n: int) -> None:
    """Refuse what the levels of the sample do not tell: whether X explains random effects, and all parameters."""
    above = [np.arange(len(some.raw))]
    for parent in some.parents:
        above.append(parent[above[-1]])
    rank = len(found.kept)
    for turn, level, m in zip(turns, above, shared.sizes, strict=True):
        if not vary_freely(some.raw, turn, level, rank, n, m):
            undecided()
    sampled = shared._replace(sizes=tuple(some.sizes))
    rows = CellRows(found._replace(raw=some.raw), round(float(some.raw[:, -1].sum())))
    if not rows.clearly_identified(sampled, turns, above):
        undecided()
