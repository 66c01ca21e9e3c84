"""Draws as models see them that are nested in the one that generates.

Where Z and X of a model lie in the spaces of Z and X of the design that draws scores (see `scores`), what it sees of a
draw is a function of these scores.  With Q_i the orthonormal basis of Z_i and Q2_i = Q_i P_i that of its columns,
c2_i = P_i' c_i; the groups of a pattern that their columns do not tell apart have the cross-products
P' (sum c_i c_i') P, and X2'y = M' X'y.  So no response has to be made for the fits of a smaller model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.one_factor.problem import one_factor
from ..estimation.many.one_factor import shared_design
from ..estimation.many.sparse import plain_sums, triangle
from ..kernels import BatchDesign
from ..support.types import Array
from .scores import Scores

if TYPE_CHECKING:
    from ..estimation.many.batch_fit import BatchFit
    from ..estimation.model import Model

__all__ = [
    "NestedBlock", "NestedResponses", "NestedScores", "SeenAgain", "drawn_log_rss", "nested_scores", "seen_by",
]  # fmt: skip


OUTSIDE = 1e-9
"""Length of a unit vector outside a space to which it counts as belonging."""


class NestedScores:
    """Scores of a design, as a model nested in it sees them.

    Parameters
    ----------
    scores : Scores
    model : Model
        With a problem that any response conditions.

    Attributes
    ----------
    meaning : BatchScores
        For the lanes.
    coefficients : (p,) array
        What is added to those of a fit.
    nested : bool
        Whether it is nested.
    """

    def __init__(self, scores: Scores, model: Model) -> None:
        self.source, self.model = scores, model
        large, small = scores.model, model
        design = shared_design(small)
        assert isinstance(design, BatchDesign)
        self._patterns = patterns = design.patterns
        x, own_x = (
            one_factor(large.problem).conditioned_x(large.exog),
            one_factor(small.problem).conditioned_x(small.exog),
        )
        weighted = x if large.weights is None else x * large.weights[:, None]
        self._map = weighted.T @ own_x
        outside = own_x - x @ self._map
        self.nested = bool(np.abs(outside).max(initial=0.0) <= OUTSIDE * max(np.abs(own_x).max(initial=0.0), 1e-300))
        self._turn_groups(scores, design)
        # y - mean of the model that generates, with what its own mean has outside the columns of this one
        mean = scores.mean if large.offset is None else scores.mean - large.offset
        along = weighted.T @ mean
        self._shift = along - self._map @ (self._map.T @ along)
        self.coefficients = small.problem.x_map @ (self._map.T @ along)
        self.meaning, self._into_within = plain_sums(patterns, small.structure.q, small.problem.rank)

    def _turn_groups(self, scores: Scores, design: Any) -> None:
        """P of each pattern that draws, and how columns of these make columns here."""
        large, small = scores.rows, design.rows
        patterns, own = scores.patterns, design.patterns
        n, q, q2 = len(scores.mean), large.basis.shape[1], small.basis.shape[1]
        at, at2 = np.empty(n, dtype=np.intp), np.empty(n, dtype=np.intp)
        basis, basis2 = np.empty((n, q)), np.empty((n, q2))
        for rows, group, into in ((large, at, basis), (small, at2, basis2)):
            order: Any = slice(None) if rows.order is None else rows.order
            group[order] = np.repeat(np.arange(len(rows.start) - 1), np.diff(rows.start))
            into[order] = rows.basis
        m = len(large.start) - 1
        weights = self.model.weights
        plain = basis2 if weights is None else basis2 / weights[:, None]
        P = np.zeros((m, q, q2))
        for a in range(q):
            for b in range(q2):
                P[:, a, b] = np.bincount(at, basis[:, a] * plain[:, b], m)
        length = np.stack([np.bincount(at, basis2[:, b] * plain[:, b], m) for b in range(q2)], axis=1)
        self.nested &= bool(np.abs(length - (P * P).sum(axis=1)).max(initial=0.0) <= OUTSIDE)
        first = patterns.groups[:-1]
        owner = np.repeat(np.arange(len(first)), np.diff(patterns.groups))
        self._P = P[first]
        self.nested &= bool(np.abs(P - self._P[owner]).max(initial=0.0) <= OUTSIDE)
        place = np.empty(m, dtype=np.intp)
        place[at] = at2
        # the pattern here to which each pattern that draws belongs
        pattern2 = np.searchsorted(own.groups, place, side="right") - 1
        self._into = pattern2[first]
        self.nested &= bool((pattern2 == self._into[owner]).all())
        self._owner = np.repeat(np.arange(len(first)), np.diff(patterns.columns))
        self._join_columns(patterns, own, place)

    def _join_columns(self, patterns: Any, own: Any, place: NDArray[np.intp]) -> None:
        """How the columns here are made of those that draw: copies where a pattern is one group, else combinations."""
        counts = np.diff(own.groups)
        there = self._into[self._owner]  # the pattern here of each column that draws
        alone = np.flatnonzero(counts[there] == 1)
        self._copied = own.columns[:-1][there[alone]], alone
        self._joined = []
        for k2 in np.flatnonzero(counts > 1).tolist():
            columns = np.flatnonzero(there == k2)
            parts = []
            for k in np.flatnonzero(self._into == k2).tolist():
                groups = slice(patterns.groups[k], patterns.groups[k + 1])
                wanted = _loading(own, k2)[place[groups] - own.groups[k2]]
                given = _loading(patterns, k)
                parts.append(wanted.T @ given)
                outside = wanted - given @ parts[-1].T
                self.nested &= bool(np.abs(outside).max(initial=0.0) <= OUTSIDE)
            self._joined.append((k2, columns, np.concatenate(parts, axis=1)))

    def lines(self, lines: Array) -> Array:
        """Lines of this model (count, width) of lines that were drawn."""
        sums = self.source.sums(lines)
        count, q2 = len(lines), self._P.shape[2]
        columns = sums.columns + (self.source.patterns.cx @ self._shift)
        beta, total = sums.beta + self._shift, sums.total + 2.0 * sums.beta @ self._shift + self._shift @ self._shift
        turned = np.einsum("cka,kab->ckb", columns, self._P[self._owner])
        own, rest = np.empty((count, int(self._patterns.columns[-1]), q2)), []
        own[:, self._copied[0]] = turned[:, self._copied[1]]
        for k2, some, weights in self._joined:
            given = turned[:, some]
            made = weights @ given
            own[:, self._patterns.columns[k2] : self._patterns.columns[k2 + 1]] = made
            squares = given.transpose(0, 2, 1) @ given - made.transpose(0, 2, 1) @ made
            for k in np.unique(self._owner[some]).tolist():
                if k in sums.rest:
                    squares += self._P[k].T @ sums.rest[k] @ self._P[k]
            rest.append(squares)
        within = (beta @ self._map - np.einsum("cka,kaj->cj", own, self._patterns.cx)) @ self._into_within
        left = total - np.einsum("cka,cka->c", own, own) - (within * within).sum(axis=1)
        for one in rest:
            left -= np.trace(one, axis1=1, axis2=2)
        lower, upper = np.tril_indices(q2)
        parts = [own.reshape(count, -1), within, *(triangle(one)[:, lower, upper] for one in rest), left[:, None]]
        return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _loading(patterns: Any, k: int) -> Array:
    """How the groups of a pattern make its columns (groups, columns)."""
    groups = slice(patterns.groups[k], patterns.groups[k + 1])
    count = int(patterns.columns[k + 1] - patterns.columns[k])
    if patterns.groups[k + 1] - patterns.groups[k] == 1:
        return np.ones((1, 1))
    return np.asarray(patterns.loading[groups, :count])


def nested_scores(scores: Any, model: Model) -> NestedScores | None:
    """Draws of scores as a model sees them, None where it does not lie in the design that draws."""
    if not isinstance(scores, Scores):
        return None
    large = scores.model
    if model.one_by_one or len(model.factors) != 1 or model.nobs != large.nobs:
        return None
    pairs: list[tuple[Any, Any]] = [
        (model.weights, large.weights), (model.offset, large.offset), (model.grouping.index, large.grouping.index)
    ]  # fmt: skip
    if not all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs):
        return None
    found = NestedScores(scores, model)
    return found if found.nested else None


class Block(Protocol):
    """Draws of a block of a stream."""

    def __len__(self) -> int: ...

    def __call__(self) -> Array:
        """The responses."""

    def scores(self) -> Array:
        """Their scores."""

    def responses(self, lines: Array, places: NDArray[np.intp]) -> Array:
        """Some of the responses, of which the scores are known."""


class NestedBlock:
    """A block of draws, as a nested model sees them."""

    def __init__(self, block: Block, nested: NestedScores) -> None:
        self._block, self.meaning = block, nested

    def __len__(self) -> int:
        return len(self._block)

    def __call__(self) -> Array:
        """The responses (count, nobs)."""
        return self._block()

    def scores(self) -> Array:
        """What the model sees of them (count, width)."""
        return self.meaning.lines(self._block.scores())

    def responses(self, lines: Array, places: NDArray[np.intp]) -> Array:
        """Some of the responses."""
        return self._block.responses(self._block.scores(), places)


class NestedResponses:
    """Responses that are drawn again where they are asked for, as a nested model sees them."""

    draws_again = True

    def __init__(self, whole: Any, nested: NestedScores) -> None:
        self.shape, self._whole, self._nested = whole.shape, whole, nested

    def __getitem__(self, at: Any) -> Array:
        return np.asarray(self._whole[at])

    def scores(self, chosen: NDArray[np.intp]) -> tuple[Array, NestedScores] | None:
        """Lines of some of the responses, and what they mean."""
        found = self._whole.scores(chosen)
        return None if found is None else (self._nested.lines(found[0]), self._nested)


class SeenAgain:
    """Some of the draws that a batch has fitted, as a nested model sees them."""

    def __init__(self, batch: BatchFit, chosen: NDArray[np.intp], nested: NestedScores | None) -> None:
        self._batch, self._chosen, self.meaning = batch, chosen, nested

    def __len__(self) -> int:
        return len(self._chosen)

    def __call__(self) -> Array:
        """The responses (count, nobs)."""
        return self._batch.fitted_responses(self._chosen)

    def scores(self) -> Array:
        """What the model sees of them (count, width)."""
        assert self.meaning is not None
        return self.meaning.lines(self._batch.responses.scores(self._chosen)[0])

    def responses(self, lines: Array, places: NDArray[np.intp]) -> Array:
        """Some of the responses."""
        return self._batch.fitted_responses(self._chosen[places])


def seen_by(batch: BatchFit, model: Model) -> NestedScores | None:
    """The draws of a batch as a nested model sees them; None where the batch is not of draws, or that is not nested."""
    if not len(batch) or not hasattr(batch.responses, "scores"):
        return None
    found = batch.responses.scores(np.zeros(1, dtype=np.intp))
    return None if found is None else nested_scores(found[1], model)


def drawn_log_rss(batch: BatchFit, chosen: NDArray[np.intp]) -> Array | None:
    """Logarithms of the sums of squares that X alone leaves of some draws; None where the batch is not of draws."""
    found = batch.responses.scores(chosen) if hasattr(batch.responses, "scores") else None
    if found is None or not isinstance(found[1], Scores):
        return None
    sums = found[1].sums(found[0])
    return np.asarray(np.log(sums.total - (sums.beta * sums.beta).sum(axis=1)))
