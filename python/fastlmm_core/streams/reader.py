"""The sums of a model whose rows are not held, for the conditioning of its problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..design.grouping import Grouping
from ..design.streamed import grouping_of, random_without_rows
from ..engines.nested.shared import SharedColumns
from ..engines.one_factor.reading import RowSums
from ..engines.protocol import Problem
from ..errors import LMMError
from ..kernels.records.rows import RowColumns, Rows
from ..problem.columns import refuse_non_finite, scaled_triangle
from ..support.types import Array, Index
from .cross_products import CrossProducts
from .exact import ExactSums
from .labels import CellSlots, joined
from .late import OnceSums
from .plan import Plan
from .recipe import Seen
from .reduce import PassSums, first_chunk, line_length, room_for_lines, sum_chunks
from .source import Scan

__all__ = ["StreamRows"]


GATHERED = 1 << 28
"""Bytes of rows that are gathered where a suspicion has to be looked into."""


class StreamRows:
    """Rows of a source, or sums of them that are there already.

    Parameters
    ----------
    plan : Plan
    source : Scan or None
        None where only the sums are known.
    total : CrossProducts or None
        The sums by the plan; None where they are still to be made.
    """

    def __init__(self, plan: Plan, source: Scan | None, total: CrossProducts | None) -> None:
        self.plan, self._source, self._total = plan, source, total
        self._slots = CellSlots(plan.factors)
        self._order: Index | None = None
        self.seen = Seen.nothing()
        self.groupings: tuple[Grouping, ...] = ()
        self.cells: NDArray[np.int64] = np.empty((0, len(plan.factors)), dtype=np.int64)
        self.columns, self.gram, self.packed = plan.columns, np.zeros(0), np.zeros(0)
        self.n = self.n_slots = 0
        self.log_weights = 0.0
        self.passes = 0
        self._triangle: tuple[Array, int, Array] | None = None
        self._exact: ExactSums | None = None
        self._head: Rows | None = None
        self._pass: PassSums | None = None
        if source is not None and source.once:
            # what a second pass would find is kept in the first
            self._head, self._exact = self.first(), ExactSums(plan.columns)

    @classmethod
    def of_sums(cls, plan: Plan, source: Scan, made: OnceSums) -> StreamRows:
        """What one reading has found of rows that cannot be read again."""
        out = cls(plan, None, None)
        out._source, out._head, out._exact = source, made.head, made.exact
        out._order = np.arange(len(made.cells))[out._put_in_order(made.levels, made.cells)]
        out.seen, out.n, out.log_weights = made.seen, made.seen.n, made.log_weights
        nothing = np.zeros(0)
        out._pass = PassSums(nothing, nothing, nothing, made.constant, made.varies, made.log_weights, float("nan"))
        return out

    def _chunks(self, seen: Seen) -> Iterator[Rows]:
        if self._source is None:
            raise LMMError(
                "the sums alone do not decide this model: its columns are so dependent, or y is explained so well, "
                "that the rows are needed again; give them too, lmm(plan, total, source=...)"
            )
        self.passes += 1
        for rows in self.plan.chunks(self._source, self._slots, seen):
            if self._exact is not None:
                self._exact.add(rows)
            yield rows
        if self.n and seen.n != self.n:
            raise LMMError(
                f"the source gave {self.n} complete rows when it was first read, and {seen.n} when it was read again; "
                "give scan() something that has the same rows each time"
            )

    def _slot_order(self) -> Index:
        """Slots of the cells in order; where the sums were made elsewhere, slots are given by a pass."""
        if self._order is None:
            if not self._slots.n:
                for _ in self._chunks(Seen.nothing()):
                    pass
            levels, cells, order = self._slots.levels()
            self._order = order[self._put_in_order(levels, cells)]
        return self._order

    def _put_in_order(self, levels: Sequence[NDArray[Any]], cells: NDArray[np.int64]) -> Index | slice:
        """Keep labels and cells, in the order of the factor that has most levels; return that order."""
        names = self.plan.factors
        factors = sorted(range(len(names)), key=lambda f: -len(levels[f]))
        self.groupings = tuple(grouping_of(names[f], joined(names[f], levels[f])) for f in factors)
        self.n_slots = len(cells)
        if factors == sorted(factors):
            self.cells = cells
            return slice(None)
        cells = cells[:, factors]
        order = np.lexsort(cells.T[::-1])
        self.cells = cells[order]
        return order

    @property
    def shared(self) -> SharedColumns:
        """The grouping factors, that with most levels first; known after the first sums."""
        terms = self.plan.recipe.shared
        at = [terms.names.index(grouping.name) for grouping in self.groupings]
        structure = random_without_rows(self.plan.recipe.terms, [grouping.codes for grouping in self.groupings])
        return SharedColumns(
            tuple(terms.names[f] for f in at),
            tuple(terms.columns[f] for f in at),
            tuple(grouping.m for grouping in self.groupings),
            [terms.which[f] for f in at],
            structure.structure,
        )

    def first(self) -> Rows:
        """The first rows."""
        if self._head is not None:
            return self._head
        if self._source is None:
            next(self._chunks(Seen.nothing()))
        assert self._source is not None
        return first_chunk(self.plan.recipe, self._source.look(list(self.plan.recipe.columns)))

    def changes(self, column: int, of_z: bool) -> bool:
        """Nothing is known of other rows."""
        return False

    def sums(self, columns: RowColumns, kept: Index | None) -> RowSums:
        """The sums over all rows."""
        p, q = len(columns.beta0), self.plan.columns.z_scale.shape[1]
        total = self._total
        if total is not None and columns is self.plan.columns:
            order = self._put_in_order(total.levels, total.cells)
            self.n, self.seen, self.log_weights = total.nobs, total.seen, total.log_weights
            raw, packed, gram = total.raw[order].copy(), total.packed.copy(), total.gram.copy()
            constant, varies = total.constant, total.varies
        elif self._exact is not None and self._pass is not None:
            unshifted = columns.x_constant < 0 and columns.z_constant < 0
            found = self._exact.sums(columns, kept, unshifted or self._pass.constant, self._pass.varies)
            raw, packed, gram, constant, varies, _ = found
            raw = raw[self._slot_order()]
        else:
            seen = Seen.nothing()
            values = self.plan.values
            memory = None if self._source is None else self._source.memory
            room = room_for_lines(memory, self._slots, line_length(p, q), self._exact is not None)
            made = sum_chunks(self._chunks(seen), columns, kept, values, p, q, room)
            if not self.n:
                self.seen, self.n, self.log_weights, self._pass = seen, seen.n, made.log_weights, made
            raw, packed, gram = made.raw, made.packed, made.gram
            if not np.array_equal(self._slot_order(), np.arange(len(raw))):
                raw = raw[self._order]
            constant, varies = made.constant, made.varies
        self.check()
        finite = bool(np.isfinite(packed).all() and np.isfinite(gram).all())
        self.columns, self.gram, self.packed = columns, gram, packed
        return RowSums(raw, packed, gram, constant, varies, finite)

    def check(self) -> None:
        """Refuse what leaves variances or coefficients open whatever the sums are."""
        for grouping in self.groupings:
            if grouping.m <= 1:
                raise LMMError(
                    f"the grouping factor {grouping.name!r} has {'one level' if grouping.m else 'no rows'}: its "
                    "variance cannot be estimated; use ordinary regression or another factor"
                )
        count = len(self.plan.recipe.x_names)
        if self.n <= count:
            raise LMMError(f"there are {self.n} observations for {count} fixed effects; use fewer columns in X")

    def squares(self) -> float:
        """Sum of w (y - offset)^2."""
        back = np.append(self.columns.beta0, 1.0)
        return float(back @ kernels.unpack(self.packed, len(back)) @ back)

    def mean_squares(self) -> Array:
        """Z'WZ / n in the caller's units, the columns of all factors side by side (q, q)."""
        columns, which = self.columns, [j for mine in self.shared.which for j in mine]
        turn = kernels.scale_map(columns.z_scale, columns.z_constant)
        if columns.z_transform is not None:
            turn = turn @ columns.z_transform
        back = np.linalg.inv(turn)[:, which]
        return np.asarray(back.T @ kernels.unpack(self.gram, len(turn)) @ back / self.n)

    def root(self, problem: Problem) -> Array:
        """R (r, p) with R'R = X'WX."""
        kept, p = problem.kept, len(problem.x_map)
        root = np.zeros((len(kept), p))
        root[:, kept] = np.linalg.inv(problem.x_map[kept])
        if len(kept) < p:
            assert self._triangle is not None
            shift_scale, constant, triangle = self._triangle
            size = np.linalg.norm(triangle, axis=0)
            size[size == 0.0] = 1.0
            dropped = problem.dropped
            scaled = triangle / size
            weights = np.linalg.lstsq(scaled[:, kept], scaled[:, dropped], rcond=None)[0]
            # combinations of the shifted and scaled columns that vanish, then of those of the caller
            null = np.zeros((p, len(dropped)))
            null[kept] = -weights / size[kept, None]
            null[dropped, np.arange(len(dropped))] = 1.0 / size[dropped]
            null = kernels.scale_map(shift_scale, constant) @ null
            null = null @ np.linalg.inv(null[dropped])
            root[:, dropped] = -root[:, kept] @ null[kept]
        return root

    def triangle(self, shift_scale: Array, of_z: bool) -> Array:
        """R of the QR decomposition of shifted, scaled and weighted columns."""
        found: Array | None = None
        if self._exact is not None:
            found = self._exact.triangle(shift_scale, of_z)
        for rows in () if self._exact is not None else self._chunks(Seen.nothing()):
            found = scaled_triangle(rows.Z if of_z else rows.X, shift_scale, rows.weights, found)
        assert found is not None
        if not of_z:
            constant = np.flatnonzero(shift_scale[0] != 0.0)
            known = self.plan.columns.x_constant if len(constant) else -1
            self._triangle = np.ascontiguousarray(shift_scale), known, found
        return found

    def within(self, columns: RowColumns, kept: Index, position: NDArray[np.int64], packed: Array) -> Array:
        """See `kernels.within_rows`."""
        k = len(columns.beta0) + 1
        more: Array = np.zeros((1, k * (k + 1) // 2))
        place = np.empty(self.n_slots, dtype=np.int64)
        place[self._slot_order()] = position
        if self._exact is not None:
            return self._exact.within(columns, kept, place, packed)
        for rows in self._chunks(Seen.nothing()):
            rows = rows._replace(X=np.ascontiguousarray(rows.X[:, kept]))
            kernels.within_rows(rows, columns, place, packed, more=more)
        return np.asarray(more[0])

    def refuse_non_finite(self) -> None:
        """Name the first value that is not finite, if there is one."""
        if self._source is not None and self._exact is None:
            for rows in self._chunks(Seen.nothing()):
                refuse_non_finite(rows.y, rows.X, rows.Z, rows.weights, rows.offset)
        raise LMMError("the data overflow: rescale y, X, Z or weights to values below 1e100 in size")

    def whole(self) -> Rows:
        """All rows at once, where they are not too many."""
        p, q = len(self.plan.columns.beta0), self.plan.columns.z_scale.shape[1]
        if 8 * self.n * (p + q + 4) > GATHERED:
            raise LMMError(
                "by their sums of products, random effects are explained by the fixed effects at every level, or "
                "covariance parameters cannot be told apart, and the rows are too many to be looked at again; fit some "
                "thousands of them in memory to see which, and leave that term out"
            )
        parts: list[dict[str, Any]] = [
            {name: value.copy() for name, value in rows._asdict().items() if isinstance(value, np.ndarray)}
            for rows in self._chunks(Seen.nothing())
        ]
        rank = np.empty(self.n_slots, dtype=np.int64)
        rank[self._slot_order()] = np.arange(len(rank))

        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        w, o = whole.get("weights"), whole.get("offset")
        return Rows(whole["X"], whole["y"], whole["Z"], rank[whole["codes"]], 0, self.n_slots, w, o)
