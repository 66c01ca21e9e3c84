"""The sums of a model whose rows are not held, for the conditioning of its problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engines.one_factor.problem import OneFactorProblem
from ..engines.one_factor.reading import RowSums
from ..errors import LMMError
from ..kernels.records import RowColumns, Rows
from ..problem.columns import refuse_non_finite, scaled_triangle
from .cross_products import CrossProducts
from .labels import GroupSlots
from .plan import Plan
from .recipe import Seen
from .reduce import first_chunk, sum_chunks
from .source import Scan

__all__ = ["StreamRows"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

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
        self._plan, self._source, self._total = plan, source, total
        self._slots = GroupSlots(plan.factor)
        self._order: Index | None = None
        self.seen = Seen.nothing()
        self.labels: NDArray[np.generic] = np.empty(0)
        self.n = self.n_slots = 0
        self.log_weights = 0.0
        self.passes = 0
        self._triangle: tuple[Array, int, Array] | None = None

    def _chunks(self, seen: Seen) -> Iterator[Rows]:
        if self._source is None:
            raise LMMError(
                "the sums alone do not decide this model: its columns are so dependent, or y is explained so well, "
                "that the rows are needed again; give them too, lmm(plan, total, source=...)"
            )
        self.passes += 1
        yield from self._plan.chunks(self._source, self._slots, seen)
        if self.n and seen.n != self.n:
            raise LMMError(
                f"the source gave {self.n} complete rows when it was first read, and {seen.n} when it was read again; "
                "give scan() something that has the same rows each time"
            )

    def _slot_order(self) -> Index:
        """Slots of the labels in order; where the sums were made elsewhere, slots are given by a pass."""
        if self._order is None:
            for _ in self._chunks(Seen.nothing()):
                pass
            self.labels, self._order = self._slots.labels()
        return self._order

    def first(self) -> Rows:
        """The first rows."""
        if self._source is None:
            next(self._chunks(Seen.nothing()))
        assert self._source is not None
        return first_chunk(self._plan.recipe, self._source.look(list(self._plan.recipe.columns)))

    def changes(self, column: int, of_z: bool) -> bool:
        """Nothing is known of other rows."""
        return False

    def sums(self, columns: RowColumns, kept: Index | None) -> RowSums:
        """The sums over all rows."""
        p, q = len(columns.beta0), self._plan.structure.q
        total = self._total
        if total is not None and columns is self._plan.columns:
            self.labels, self.seen, self.log_weights = total.labels, total.seen, total.log_weights
            self.n, self.n_slots = total.nobs, len(total.labels)
            raw, packed = total.raw.copy(), total.packed.copy()
            shared, constant, varies = total.shared, total.constant, total.varies
        else:
            seen = Seen.nothing()
            values = self._plan.values
            made = sum_chunks(self._chunks(seen), columns, kept, values, p, q)
            if self._order is None:
                self.labels, self._order = self._slots.labels()
                self.seen, self.n, self.n_slots = seen, seen.n, len(self._order)
                self.log_weights = made.log_weights
            raw, packed = made.raw, made.packed
            if not np.array_equal(self._order, np.arange(len(raw))):
                raw = raw[self._order]
            shared, constant, varies = made.shared, made.constant, made.varies
        self._check()
        gram, finite = kernels.settle_sums(raw, packed, q, shared)
        return RowSums(raw, packed, gram, constant, varies, finite)

    def _check(self) -> None:
        """Refuse what leaves variances or coefficients open whatever the sums are."""
        if self.n_slots <= 1:
            raise LMMError(
                f"the grouping factor {self._plan.factor!r} has {'one level' if self.n_slots else 'no rows'}: its "
                "variance cannot be estimated; use ordinary regression or another factor"
            )
        count = len(self._plan.recipe.x_names)
        if self.n <= count:
            raise LMMError(f"there are {self.n} observations for {count} fixed effects; use fewer columns in X")

    def root(self, problem: OneFactorProblem) -> Array:
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
        for rows in self._chunks(Seen.nothing()):
            found = scaled_triangle(rows.Z if of_z else rows.X, shift_scale, rows.weights, found)
        assert found is not None
        if not of_z:
            constant = np.flatnonzero(shift_scale[0] != 0.0)
            known = self._plan.columns.x_constant if len(constant) else -1
            self._triangle = np.ascontiguousarray(shift_scale), known, found
        return found

    def within(self, columns: RowColumns, kept: Index, position: NDArray[np.int64], packed: Array) -> Array:
        """See `kernels.within_rows`."""
        k = len(columns.beta0) + 1
        more: Array = np.zeros((1, k * (k + 1) // 2))
        place = np.empty(self.n_slots, dtype=np.int64)
        place[self._slot_order()] = position
        for rows in self._chunks(Seen.nothing()):
            rows = rows._replace(X=np.ascontiguousarray(rows.X[:, kept]))
            kernels.within_rows(rows, columns, place, packed, more=more)
        return np.asarray(more[0])

    def refuse_non_finite(self) -> None:
        """Name the first value that is not finite, if there is one."""
        if self._source is not None:
            for rows in self._chunks(Seen.nothing()):
                refuse_non_finite(rows.y, rows.X, rows.Z, rows.weights, rows.offset)
        raise LMMError("the data overflow: rescale y, X, Z or weights to values below 1e100 in size")

    def whole(self) -> Rows:
        """All rows at once, where they are not too many."""
        p, q = len(self._plan.columns.beta0), self._plan.structure.q
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
