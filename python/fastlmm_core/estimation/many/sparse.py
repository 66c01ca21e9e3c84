"""Sparse responses: what a fit sees of them, from the elements that are there.

A response enters its fit by Z'Wy within the groups, X'Wy and y'Wy.  These are sums over its elements that are not zero;
they take the place of the scores of a draw (lanes/scores.pxi) with S = I and sigma^2 = 1: c_y of the columns as they
are, a triangle T with T T' the cross-products of the rest, X'y within groups in an orthonormal basis, and the squared
length of what none of these reach.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engines.one_factor.problem import one_factor
from ...kernels import BatchDesign, unpack
from ...kernels.records.batches import BatchPatterns, BatchScores
from ...support.types import Array
from ...tables.stored import Compressed, StoredResponses
from ..model import Model
from .one_factor import shared_design

__all__ = ["SparseBlock", "SparseResponses", "SparseSums", "plain_sums", "triangle"]


SPANNED = 1e-10
"""Share of a column of X within groups, below which it counts as spanned by Z."""

LOST = 1e-6
"""Share of y'y that X leaves below which sums about zero have lost digits: such responses are made dense."""


def plain_sums(patterns: BatchPatterns, q: int, r: int) -> tuple[BatchScores, Array]:
    """What lines of sums as they are mean (S = I and sigma^2 = 1), and what takes X'y within groups to its basis."""
    values, vectors = np.linalg.eigh(unpack(patterns.within_xx, r))
    kept = values > SPANNED
    lower, upper = np.tril_indices(q)
    counts = np.diff(patterns.groups)
    meaning = BatchScores(
        spread=np.tile((lower == upper).astype(np.float64), (len(counts), 1)),
        within_root=np.ascontiguousarray(vectors[:, kept] * np.sqrt(values[kept])),
        variance=1.0,
        width=int(patterns.columns[-1]) * q + int(kept.sum()) + int((counts > 1).sum()) * len(lower) + 1,
    )
    return meaning, vectors[:, kept] / np.sqrt(values[kept])


class SparseSums:
    """Sums of sparse responses on one design.

    Parameters
    ----------
    model : Model
        With one grouping factor and independent residuals.

    Attributes
    ----------
    meaning : BatchScores
        For the lanes.
    coefficients : (p,) array
        Zero: nothing is added to those of a fit.
    """

    def __init__(self, model: Model) -> None:
        problem, design = one_factor(model.problem), shared_design(model)
        assert isinstance(design, BatchDesign)
        rows, patterns = design.rows, design.patterns
        n, q, r = problem.n, model.structure.q, problem.rank
        self.model, self.n_groups = model, len(rows.start) - 1
        order: Any = slice(None) if rows.order is None else rows.order
        # by the caller's rows
        self.q, self.group = q, np.empty(n, dtype=np.int64)
        self.group[order] = np.repeat(np.arange(self.n_groups), np.diff(rows.start))
        x = problem.conditioned_x(model.exog)
        weights = np.ones(n) if model.weights is None else model.weights
        # an offset is summed with the responses as one more column of X
        given = 0 if model.offset is None else 1
        self.table = np.empty((n, q + r + given + 1))
        self.table[order, :q] = rows.basis
        self.table[:, q : q + r] = x * weights[:, None]
        if model.offset is not None:
            self.table[:, q + r] = weights * model.offset
        self.table[:, -1] = weights
        self.counts, self.columns = np.diff(patterns.groups), np.diff(patterns.columns)
        self.several = np.flatnonzero(self.counts > 1)
        self.patterns = patterns
        self.meaning, self.into_within = plain_sums(patterns, q, r)
        self.coefficients = np.zeros(model.exog.shape[1])
        own = model.offset
        self.offset: tuple[Array, Array, Array] | None = None
        if own is not None:
            self.offset = self._sums(np.array([0, n]), np.arange(n), own)

    def _sums(self, start: NDArray[Any], place: NDArray[Any], values: Array) -> tuple[Array, Array, Array]:
        """Z'Wy within groups (count, m, q), X'Wy (count, r) and y'Wy (count,) of elements at `place`."""
        return kernels.sparse_sums(start, place, values, self.table, self.group, self.q, self.n_groups)

    def lines(self, Y: Compressed) -> tuple[Array, NDArray[np.bool_]]:
        """Lines of sums (count, width), and where sums about zero have lost digits.

        Parameters
        ----------
        Y : Compressed
        """
        count, n = len(Y.start) - 1, len(self.table)
        acc, beta, total = self._sums(Y.start, Y.place, Y.values)
        if self.offset is not None:
            total = total - 2.0 * beta[:, -1] + self.offset[2]
            acc, beta = acc - self.offset[0], beta[:, :-1] - self.offset[1][:, :-1]
        parts = [self._columns(acc)]
        columns, rest = parts[0].reshape(count, -1, self.q), self._rest(acc, parts[0])
        within = (beta - np.einsum("cka,kaj->cj", columns, self.patterns.cx)) @ self.into_within
        left = total - np.einsum("cka,cka->c", columns, columns) - (within * within).sum(axis=1)
        for squares in rest:
            left -= np.trace(squares, axis1=1, axis2=2)
        lower, upper = np.tril_indices(self.q)
        parts += [within, *(triangle(squares)[:, lower, upper] for squares in rest), left[:, None]]
        lines = np.ascontiguousarray(np.concatenate(parts, axis=1))
        # responses that do not vary are refused whatever the offset
        same = _constant(Y.start, Y.values, n)
        lines[same] = 0.0
        lost = total - (beta * beta).sum(axis=1) <= LOST * total
        return lines, lost & ~same

    def _columns(self, acc: Array) -> Array:
        """c_y of all columns (count, n_columns q)."""
        patterns = self.patterns
        out = np.empty((len(acc), int(patterns.columns[-1]), acc.shape[2]))
        alone = self.counts == 1
        out[:, patterns.columns[:-1][alone]] = acc[:, patterns.groups[:-1][alone]]
        for k in self.several.tolist():
            groups = slice(patterns.groups[k], patterns.groups[k + 1])
            loading = patterns.loading[groups, : self.columns[k]]
            out[:, patterns.columns[k] : patterns.columns[k + 1]] = np.einsum("gk,cga->cka", loading, acc[:, groups])
        return out.reshape(len(acc), -1)

    def _rest(self, acc: Array, columns: Array) -> list[Array]:
        """Cross-products of c_y among the other groups of each pattern with several (count, q, q)."""
        patterns, q, out = self.patterns, acc.shape[2], []
        columns = columns.reshape(len(acc), -1, q)
        for k in self.several.tolist():
            groups = acc[:, patterns.groups[k] : patterns.groups[k + 1]]
            own = columns[:, patterns.columns[k] : patterns.columns[k + 1]]
            out.append(groups.transpose(0, 2, 1) @ groups - own.transpose(0, 2, 1) @ own)
        return out


def _constant(start: NDArray[Any], values: Array, n: int) -> NDArray[np.bool_]:
    """Which responses do not vary."""
    sizes = np.diff(start)
    out = sizes == 0
    some = np.flatnonzero(~out)
    if len(some):
        least, most = (which.reduceat(values, start[:-1][some]) for which in (np.minimum, np.maximum))
        out[some] = (least == most) & ((sizes[some] == n) | (most == 0.0))
    return np.asarray(out)


def triangle(squares: Array) -> Array:
    """Lower triangular T (count, q, q) with T T' the given matrices, zero beyond their rank."""
    T = np.zeros_like(squares)
    for b in range(squares.shape[1]):
        left = squares[:, b:, b] - np.einsum("cal,cl->ca", T[:, b:, :b], T[:, b, :b])
        size = np.sqrt(np.maximum(left[:, 0], 0.0))
        known = left[:, 0] > 1e-14 * np.abs(squares[:, b, b])
        T[:, b:, b] = np.where(known[:, None], left / np.where(known, size, 1.0)[:, None], 0.0)
    return T


class SparseBlock:
    """Some sparse responses, summed when they are called for.

    Parameters
    ----------
    whole : StoredResponses
    chosen : slice or int array
        Which of them.
    sums : SparseSums
    """

    def __init__(self, whole: StoredResponses, chosen: NDArray[np.intp], sums: SparseSums) -> None:
        self._whole, self._chosen, self._sums = whole, chosen, sums
        self.shape = (len(chosen), whole.shape[1])

    def __len__(self) -> int:
        return len(self._chosen)

    def __call__(self) -> Array:
        """The responses themselves (count, n)."""
        return self._whole[self._chosen]

    @cached_property
    def _compressed(self) -> Compressed:
        return self._whole.compressed(self._chosen)

    @cached_property
    def _lines(self) -> tuple[Array, NDArray[np.bool_]]:
        return self._sums.lines(self._compressed)

    @property
    def meaning(self) -> SparseSums | None:
        """What the sums mean; None where some have lost digits, and the responses have to be looked at."""
        return None if self._lines[1].any() else self._sums

    def scores(self) -> Array:
        """The sums (count, width)."""
        return self._lines[0]

    def seals(self) -> NDArray[np.uint64]:
        """`kernels.line_seals` of the responses (count, 2), in which zeros do not count."""
        Y = self._compressed
        return kernels.sparse_seals(Y.start, Y.place, Y.values, self.shape[1])

    def responses(self, lines: Array, places: NDArray[np.intp]) -> Array:
        """Some of the responses."""
        return self._whole[self._chosen[places]]


class SparseResponses:
    """Sparse responses of a batch: what fits see of them without making them dense."""

    def __init__(self, whole: StoredResponses, sums: SparseSums) -> None:
        self._whole, self._sums = whole, sums
        self.shape, self.dtype, self.labels = whole.shape, whole.dtype, whole.labels

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, at: Any) -> Array:
        return self._whole[at]

    def scores(self, chosen: NDArray[np.intp]) -> tuple[Array, SparseSums] | None:
        """Sums of some of the responses and what they mean; None where these have lost digits."""
        block = SparseBlock(self._whole, np.asarray(chosen), self._sums)
        meaning = block.meaning if len(block) else None
        return None if meaning is None else (block.scores(), meaning)
