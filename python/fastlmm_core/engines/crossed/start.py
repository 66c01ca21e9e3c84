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


def factors_start(problem: Sums, engine: Any) -> Array:
    """Theta from second moments: MINQUE(0) with one variance per factor, then the shape of each block.

    The sums of squares of Z_f'r, r the residual of y, are set to their expectations where each G^_f is a multiple of
    the identity (Rao 1971, J. Multivar. Anal. 1, 257-275); negative estimates are kept away from 0, a stationary point.
    `engine` is one of the problem.
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
    C = problem.cross[:, :-1] if layout.tails or problem.n_effects < EXACT_UP_TO else problem.cross[:, :0]
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
            if block.correlated:
                factor[whole, whole] = floored_factor(inner, max(floor, 0.05 * size))
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
