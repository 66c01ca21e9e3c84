"""Where the search of several factors starts: second moments of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...kernels import floored_factor
from ...support.types import Array, Index

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ...kernels.layouts import Layout, Stage, Tail

__all__ = ["factors_start"]


EXACT_UP_TO = 2000
"""Random effects of nested factors up to which the moments of several factors allow for the fixed effects."""


PIECE = 1 << 22
"""Products of levels that are squared at a time."""


class Sums(Protocol):
    """What the moments are made of: a conditioned problem of several factors."""

    @property
    def n(self) -> int:
        """Observations."""

    @property
    def rank(self) -> int:
        """Columns of X kept."""

    @property
    def n_effects(self) -> int:
        """Random effects over all levels."""

    @property
    def columns(self) -> tuple[int, ...]:
        """First column of each factor."""

    @property
    def structure(self) -> CovarianceStructure:
        """Covariance of the random effects."""

    @property
    def layout(self) -> Layout:
        """Order of elimination and products."""

    @property
    def cross(self) -> Array:
        """Z'[X y]."""

    @property
    def gram(self) -> Array:
        """[X y]'[X y]."""


REFINED = 2
"""How often the moments are taken anew with the weights that the variances found before ask for."""


def factors_start(problem: Sums, engine: Any) -> Array:
    """Theta from second moments: MINQUE(0) with one variance per factor, then the shape of each block.

    The sums of squares of Z_f'r, r the residual of y, are set to their expectations where each G^_f is a multiple of
    the identity (Rao 1971, J. Multivar. Anal. 1, 257-275); negative estimates are kept away from 0, a stationary point.
    For crossed intercepts the levels are then weighted by what they tell at these variances: where some have many more
    rows than others, the start is nearer by an order of magnitude.  `engine` is one of the problem.
    """
    layout, structure = problem.layout, problem.structure
    count = len(problem.columns)
    moments = problem.cross[:, -1]
    squares = _Squares(problem, engine)
    variances = squares.variances(np.ones(len(moments)), np.zeros(len(moments)))
    if variances is None:
        variances = np.ones(count + 1)
    elif layout.tails and all(places.shape[1] == 1 for places in layout.places):
        for _ in range(REFINED):
            found = squares.variances(*squares.weights(variances)) if (variances > 0.0).all() else None
            if found is None or not (found > 0.0).all():
                break
            variances = found
    sigma2 = max(float(variances[-1]), 0.05 * float(problem.gram[-1, -1]) / problem.n)
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
            if block.correlated:
                factor[whole, whole] = floored_factor(inner, max(floor, 0.05 * size))
            else:
                factor[whole, whole] = np.diag(np.sqrt(np.maximum(np.diag(inner), max(floor, 0.05 * size))))
    return structure.theta(factor)


class _Squares:
    """Expectations of weighted squares of Z'r, r the residual of y, as far as the moments need them.

    With K = Z'Z and C = Z'X_o, Z'QZ = K - CC' for the projector Q on what X leaves, so that

        E (z_a'r)^2 = sigma^2 (K_aa - c_a'c_a) + sum_g sigma_g^2 sum_{b in g} (K_ab - c_a'c_b)^2
    """

    def __init__(self, problem: Sums, engine: Any) -> None:
        layout = problem.layout
        self._moments = problem.cross[:, -1] ** 2
        n_slots, count = len(problem.cross), len(problem.columns)
        self._of = np.zeros(n_slots, dtype=np.intp)
        self._own = np.zeros(n_slots)
        self._products = np.zeros((n_slots, count))
        of = {column: f for f, column in enumerate(problem.columns)}
        slots, _ = layout.factor_slots()
        items: list[Stage | Tail] = [*layout.stages, *layout.tails]
        for item, at in zip(items, slots, strict=True):
            f = of[item.column]
            self._of[at] = f
            self._own[at] = np.einsum("aii->ai", item.own)
            self._products[at, f] += np.sum(item.own**2, axis=2)
        for s, stage in enumerate(layout.stages):
            self._add_chain(layout, s, slots, of)
            self._add_panels(layout, stage, slots[s])
        for tail, at in zip(layout.tails, slots[len(layout.stages) :], strict=True):
            self._add_panels(layout, tail, at)
        # X is taken out; not where a pilot follows
        self._C = problem.cross[:, :-1] if layout.tails or problem.n_effects < EXACT_UP_TO else problem.cross[:, :0]
        leverage = np.sum(self._C**2, axis=1)
        inner, turned = [], []
        for g in range(count):
            only = np.where(self._of[:, None] == g, self._C, 0.0)
            inner.append((only.T @ only).ravel())
            turned.append(np.sum(engine.gram_times(only) * self._C, axis=1))
        # what multiplies the variance of each factor, less the part of K C C' that is left, and that of the residuals
        self._shares = self._products - 2.0 * np.stack(turned, axis=1)
        self._rest, self._inner = self._own - leverage, np.array(inner)
        self._whole = float(problem.gram[-1, -1]), float(problem.n - problem.rank)

    def _add_chain(self, layout: Layout, s: int, slots: list[Index], of: dict[int, int]) -> None:
        """Products of a factor of the chain with the coarser ones."""
        stage, at = layout.stages[s], 0
        level = np.arange(stage.m)
        for finer, coarser, where in zip(layout.stages[s:], layout.stages[s + 1 :], slots[s + 1 :], strict=False):
            assert finer.parent is not None
            level = finer.parent[level]
            squares = stage.chain[:, :, at : at + coarser.q] ** 2
            self._products[slots[s], of[coarser.column]] += np.sum(squares, axis=2)
            for j in range(coarser.q):
                sums = np.bincount(level, weights=squares[:, :, j].sum(axis=1), minlength=coarser.m)
                self._products[where[:, j], of[stage.column]] += sums
            at += coarser.q

    def _add_panels(self, layout: Layout, item: Stage | Tail, at: Index) -> None:
        """Products of the levels of a factor with their neighbours in the tail."""
        if item.start is None or item.slots is None or item.panel is None or not len(item.slots):
            return
        first = 0
        while first < item.m:
            # a level may have more neighbours than a piece
            last = int(np.searchsorted(item.start, item.start[first] + PIECE, side="right")) - 1
            stop = max(first + 1, last)
            self._add_panel_piece(layout, item, at, slice(first, stop))
            first = stop

    def _add_panel_piece(self, layout: Layout, item: Stage | Tail, at: Index, some: slice) -> None:
        """Products of some of the levels of a factor with their neighbours in the tail."""
        assert item.start is not None and item.slots is not None and item.panel is not None and item.comp is not None
        n_slots = len(self._products)
        start, q = item.start[some.start : some.stop + 1], item.q
        widths = np.diff(start)
        level = np.repeat(np.arange(some.start, some.stop), widths)
        neighbours = item.slots[start[0] : start[-1]]
        other = n_slots - int(layout.comp_slot[-1]) + neighbours + layout.comp_slot[item.comp[level]]
        squares = item.panel[q * start[0] : q * start[-1]] ** 2
        some_there = widths > 0
        rows, first = at[some][some_there], (start[:-1] - start[0])[some_there]
        owner = self._of[other]
        owners = [(g, owner == g) for g in np.unique(owner)]
        # the effects of a level follow each other, each with products with all neighbours
        place = np.repeat((q - 1) * (start[:-1] - start[0]), widths) + np.arange(len(level))
        wide, of_others = np.repeat(widths, widths), np.zeros(len(level))
        for a in range(q):
            own = squares if q == 1 else squares[place]
            of_others += own
            for g, mine in owners:
                part = own if len(owners) == 1 else np.where(mine, own, 0.0)
                self._products[rows[:, a], g] += np.add.reduceat(part, first)
            place += wide
        self._products[:, self._of[at[0, 0]]] += np.bincount(other, weights=of_others, minlength=n_slots)

    def forms(self, weights: Array) -> tuple[Array, Array]:
        """Sums of weighted squares of Z'r, and what multiplies each variance in their expectations, that of r last.

        Parameters
        ----------
        weights : (k, n_slots) array

        Returns
        -------
        (k,) and (k, n_factors + 1) arrays
        """
        between = np.array([self._weighted(one).ravel() for one in weights])
        of_factors = weights @ self._shares + between @ self._inner.T
        return weights @ self._moments, np.column_stack([of_factors, weights @ self._rest])

    def _weighted(self, weights: Array) -> Array:
        """C'diag(weights) C, from the levels that have one: those of one factor as a rule."""
        some = np.flatnonzero(weights)
        C = self._C if len(some) == len(weights) else self._C[some]
        return np.asarray((C * weights[some, None]).T @ C)

    def weights(self, variances: Array) -> tuple[Array, Array]:
        """Weights of the squares for the equations of the factors, and for that of the residuals."""
        ratio = variances[:-1] / variances[-1]
        mine, others = ratio[self._of], 1.0 + (ratio.sum() - ratio)[self._of]
        return 1.0 / (1.0 + self._own * mine / others) ** 2, -mine / (1.0 + self._own * mine)

    def variances(self, weights: Array, of_residuals: Array) -> Array | None:
        """Variances of the factors and of the residuals; None where the equations do not determine them."""
        count = len(self._inner)
        observed, expected = self.forms(
            np.vstack([np.where(self._of == np.arange(count)[:, None], weights, 0.0), of_residuals])
        )
        observed[-1] += self._whole[0]
        expected[-1] += np.append(np.bincount(self._of, weights=self._rest, minlength=count), self._whole[1])
        try:
            return np.asarray(np.linalg.solve(expected, observed), dtype=float)
        except np.linalg.LinAlgError:
            return None
